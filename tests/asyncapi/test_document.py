"""The AsyncAPI document is sound, complete, true, and readable without anything from elsewhere."""

import hashlib
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typing_extensions import override

from service.asyncapi import Server, Topics, document, examples, to_json, to_page, to_yaml
from service.messages.dead_letters import write_dead_letter
from service.messages.kafka_record import Record
from service.messages.requests import DeadLetterReason, InvalidRequest

HERE = Path(__file__).parent
DOCUMENT = document(Topics(), version="1.2.3", partitions=12, replicas=3)
ONE_TOPIC = document(
    Topics(requests="in", completed="out", failed="out", dead_letter="bad"),
    version="1.2.3",
    server=Server(hosts=("a:1", "b:2"), security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512"),
)
WITH_PROGRESS = document(Topics(progress="bar"), version="1.2.3")


# ---------------------------------------------------------------- sound


@pytest.fixture(scope="session")
def parser(request: pytest.FixtureRequest) -> Path:
    """AsyncAPI's parser, installed once into the user's cache. CI must have it."""
    npm = shutil.which("npm")
    if npm is None:
        if os.environ.get("CI"):
            pytest.fail("npm is missing: AsyncAPI's parser can't judge the document")
        pytest.skip("npm is missing: AsyncAPI's parser can't judge the document")
    package = HERE / "package.json"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vm-sync"
    folder = cache / f"asyncapi-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"
    done = folder / "done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(package, folder)
        said = subprocess.run(
            [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if said.returncode != 0:
            if os.environ.get("CI"):
                pytest.fail(f"npm could not install AsyncAPI's parser:\n{said.stderr}")
            pytest.skip("npm could not install AsyncAPI's parser")
        done.touch()
    return folder


def judge(parser: Path, *texts: str, folder: Path) -> list[dict[str, Any]]:
    node = shutil.which("node")
    assert node is not None
    files = [folder / f"{place}.txt" for place, _ in enumerate(texts)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    said = subprocess.run(
        [node, HERE / "check.mjs", parser, *files], capture_output=True, text=True, timeout=240, check=True
    )
    return [json.loads(line) for line in said.stdout.splitlines()]


def test_asyncapis_own_parser_has_nothing_to_complain_of(parser: Path, tmp_path: Path) -> None:
    texts = [to_yaml(DOCUMENT), to_json(DOCUMENT), to_yaml(ONE_TOPIC), to_yaml(WITH_PROGRESS)]
    for verdict in judge(parser, *texts, folder=tmp_path):
        assert verdict["parsed"]
        # 3.1 exists; what others' tools read today is 3.0.
        assert [words for words in verdict["said"] if words["code"] != "asyncapi-latest-version"] == []


def test_asyncapis_own_parser_would_complain(parser: Path, tmp_path: Path) -> None:
    broken = json.loads(to_json(DOCUMENT))
    broken["channels"]["requests"]["messages"]["syncRequested"]["$ref"] = "#/components/messages/none"
    false = json.loads(to_json(DOCUMENT))
    false["operations"]["receiveRequests"]["action"] = "read"
    for verdict in judge(parser, json.dumps(broken), json.dumps(false), folder=tmp_path):
        assert not verdict["parsed"]


# ---------------------------------------------------------------- complete and true


def resolve(found: dict[str, Any]) -> dict[str, Any]:
    place: Any = DOCUMENT
    for part in found["$ref"].removeprefix("#/").split("/"):
        place = place[part]
    assert isinstance(place, dict)
    return place


def test_every_topic_that_others_see_is_there_and_the_journal_is_not() -> None:
    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == {
        "vm-sync.requests",
        "vm-sync.completed",
        "vm-sync.failed",
        "vm-sync.dead-letter",
    }
    assert "journal" not in to_json(DOCUMENT)


def test_outcomes_on_one_topic_share_a_channel() -> None:
    assert {name: set(channel["messages"]) for name, channel in ONE_TOPIC["channels"].items()} == {
        "requests": {
            "syncRequested",
            "syncRequestedCloudEvent",
            "syncRequestedStructured",
            "syncCancelRequested",
        },
        "outcomes": {"syncCompleted", "syncFailed"},
        "deadLetters": {"deadLetter"},
    }


def test_progress_is_there_where_a_topic_is_named_for_it_and_nowhere_else() -> None:
    channel = WITH_PROGRESS["channels"]["progress"]
    assert (channel["address"], set(channel["messages"])) == ("bar", {"syncProgressed"})
    operation = WITH_PROGRESS["operations"]["sendSyncProgressed"]
    assert (operation["action"], operation["channel"]) == ("send", {"$ref": "#/channels/progress"})
    assert "rogress" not in "".join(
        [*DOCUMENT["channels"], *DOCUMENT["operations"], *DOCUMENT["components"]["schemas"]]
    )


def test_operations_tell_what_the_service_receives_and_sends() -> None:
    for described in (DOCUMENT, ONE_TOPIC):
        assert {name: operation["action"] for name, operation in described["operations"].items()} == {
            "receiveRequests": "receive",
            "sendSyncCompleted": "send",
            "sendSyncFailed": "send",
            "sendDeadLetter": "send",
        }
        told = {message["$ref"] for operation in described["operations"].values() for message in operation["messages"]}
        assert told == {
            f"#/channels/{channel}/messages/{message}"
            for channel, inner in described["channels"].items()
            for message in inner["messages"]
        }


def test_partitions_are_told_where_they_are_known() -> None:
    assert DOCUMENT["channels"]["requests"]["bindings"]["kafka"]["partitions"] == 12
    assert "partitions" not in ONE_TOPIC["channels"]["requests"]["bindings"]["kafka"]


@pytest.mark.parametrize(
    ("protocol", "mechanism", "told", "scheme"),
    [
        ("PLAINTEXT", None, "kafka", None),
        ("SSL", None, "kafka-secure", "certificate"),
        ("SASL_PLAINTEXT", "PLAIN", "kafka", "plain"),
        ("SASL_SSL", None, "kafka-secure", "plain"),
        ("SASL_SSL", "SCRAM-SHA-256", "kafka-secure", "scramSha256"),
        ("SASL_SSL", "GSSAPI", "kafka-secure", "gssapi"),
        ("SASL_SSL", "SOMETHING", "kafka-secure", None),
    ],
)
def test_a_servers_security_is_told_by_its_kind(
    protocol: str, mechanism: str | None, told: str, scheme: str | None
) -> None:
    server = Server(hosts=("k:9092",), security_protocol=protocol, sasl_mechanism=mechanism)
    described = document(Topics(), version="1", server=server)["servers"]["kafka"]
    assert described["protocol"] == told
    wanted = [{"$ref": f"#/components/securitySchemes/{scheme}"}] if scheme else None
    assert described.get("security") == wanted


def test_each_server_of_a_list_is_there() -> None:
    assert [server["host"] for server in ONE_TOPIC["servers"].values()] == ["a:1", "b:2"]


@pytest.mark.parametrize("name", WITH_PROGRESS["components"]["messages"])
def test_a_messages_examples_fit_its_headers_and_its_value(name: str) -> None:
    # AsyncAPI's parser doesn't look at examples in version 3.
    message = WITH_PROGRESS["components"]["messages"][name]
    definitions = {"components": WITH_PROGRESS["components"]}
    assert message["examples"]
    for example in message["examples"]:
        headers = message["headers"]
        Draft202012Validator(headers).validate(example["headers"])
        undescribed = set(example["headers"]) - set(headers["properties"])
        assert undescribed == set(), example["name"]
        Draft202012Validator({**message["payload"], **definitions}).validate(example["payload"])


def test_every_example_stands_in_the_document() -> None:
    told = [
        {example["name"] for message in described["components"]["messages"].values() for example in message["examples"]}
        for described in (DOCUMENT, WITH_PROGRESS)
    ]
    every = {example.name for example in examples.ALL}
    assert told == [every - {example.name for example in examples.PROGRESS}, every]


def test_every_header_of_a_dead_letter_is_described() -> None:
    record = Record(topic="t", partition=0, offset=0, timestamp_ms=0, key=None, value=b"x")
    event = write_dead_letter(record, InvalidRequest(DeadLetterReason.TOO_LARGE, "x"), topic="d").shorter
    assert event is not None
    described = DOCUMENT["components"]["messages"]["deadLetter"]["headers"]
    assert {name for name, _ in event.headers} == set(described["properties"])
    assert set(described["required"]) == set(described["properties"]) - {"vm-sync-truncated"}


def test_parts_of_one_name_have_one_shape() -> None:
    parts = DOCUMENT["components"]["schemas"]
    assert set(parts) == {
        "SyncRequested",
        "SyncCancelRequested",
        "CancelledIds",
        "SyncCompleted",
        "SyncFailed",
        "Warned",
        "Error",
        "Instance",
    }


def test_two_documents_share_nothing_that_can_be_changed() -> None:
    text = to_json(DOCUMENT)
    other = document(Topics(), version="1.2.3", partitions=12, replicas=3)
    other["components"]["schemas"]["SyncRequested"]["properties"].clear()
    assert to_json(document(Topics(), version="1.2.3", partitions=12, replicas=3)) == text


# ---------------------------------------------------------------- readable


def test_yaml_says_what_json_says() -> None:
    for described in (DOCUMENT, ONE_TOPIC):
        assert yaml.safe_load(to_yaml(described)) == json.loads(to_json(described)) == described


NAMES = st.text(max_size=6) | st.sampled_from(
    ["yes", "No", "null", "1", "1e3", "$ref", "a-b", "a: b", "2026-03-01", "~"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_whatever_is_written_as_yaml_is_read_back(value: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


class Reader(HTMLParser):
    """Collects a page's text and tags, and checks that what is opened is closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = read(to_page(DOCUMENT))
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(attrs.get("href", "#").startswith("#") for _, attrs in page.tags if attrs.get("href"))  # type: ignore[union-attr]
    assert not any(name.startswith("on") or name == "src" for _, attrs in page.tags for name in attrs)
    assert "url(" not in to_page(DOCUMENT)


def test_the_page_shows_every_topic_message_field_header_and_example() -> None:
    text = read(to_page(DOCUMENT)).text
    for channel in DOCUMENT["channels"].values():
        assert channel["address"] in text
    for message in DOCUMENT["components"]["messages"].values():
        assert message["title"] in text
        assert all(header in text for header in message["headers"]["properties"])
        assert all(example["summary"] in text for example in message["examples"])
    for schema in DOCUMENT["components"]["schemas"].values():
        assert all(name in text for name in schema["properties"])
    assert "error.args" in text
    assert "warnings[].code" in text


def test_the_page_escapes_what_operators_name() -> None:
    page = to_page(document(Topics(requests="<script>alert(1)</script>"), version="<b>"))
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<script>alert(1)</script>" in read(page).text


def test_the_page_leads_to_each_topic() -> None:
    page = read(to_page(ONE_TOPIC))
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"] for tag, attrs in page.tags if tag == "a"} == {f"#{name}" for name in ids}
    assert ids == set(ONE_TOPIC["channels"])
