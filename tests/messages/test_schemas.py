"""`schemas/` is what the code says, its examples are true, and nothing that was released is broken."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service import sync
from service.asyncapi import examples
from service.messages import schemas
from service.messages.requests import SyncCancelRequested, SyncRequested, read_request
from tests.support.compatibility import breaks
from tests.support.ecma import validator
from tools.schemas import FOLDER, files, write

RELEASED = FOLDER / "released"


def load(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


# ---------------------------------------------------------------- the files


def test_the_files_are_what_the_code_says() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.json")}
    wanted = files()
    assert {path for path in there if not path.startswith("released/")} == set(wanted), "run: python -m tools.schemas"
    for path, text in wanted.items():
        assert (FOLDER / path).read_text(encoding="utf-8") == text, f"{path} is stale; run: python -m tools.schemas"


def test_writing_them_takes_away_examples_that_are_no_more(tmp_path: Path) -> None:
    write(tmp_path, release=False)
    (tmp_path / "examples" / "old.json").write_text("{}")
    write(tmp_path, release=True)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")}
    assert there == set(files()) | {f"released/{name}.json" for name in schemas.MESSAGES}


@pytest.mark.parametrize("name", schemas.MESSAGES)
def test_a_file_is_a_sound_schema_that_explains_itself(name: str) -> None:
    schema = load(FOLDER / f"{name}.json")
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["title"]
    assert schema["description"]
    for field in schema["properties"].values():
        assert field["title"]
        assert field["description"]


@pytest.mark.parametrize("name", schemas.MESSAGES)
def test_a_fields_examples_follow_its_own_rules(name: str) -> None:
    schema = load(FOLDER / f"{name}.json")
    for field in schema["properties"].values():
        for example in field.get("examples", ()):
            Draft202012Validator({**field, "$defs": schema.get("$defs", {})}).validate(example)


# ---------------------------------------------------------------- the examples


@pytest.mark.parametrize("example", examples.REQUESTS, ids=lambda example: example.name)
def test_an_example_of_a_request_is_understood(example: examples.Example) -> None:
    read = read_request(example.record())
    assert isinstance(read, SyncRequested)
    assert read.identity.startswith("ce:" if "cloudevent" in example.name else "op:")
    if "structured" not in example.name:
        validator("sync-requested.v1").validate(example.value)


@pytest.mark.parametrize("example", examples.CANCELS, ids=lambda example: example.name)
def test_an_example_of_a_cancel_is_understood(example: examples.Example) -> None:
    assert isinstance(read_request(example.record()), SyncCancelRequested)
    validator("sync-cancel-requested.v1").validate(example.value)


@pytest.mark.parametrize("example", examples.OUTCOMES, ids=lambda example: example.name)
def test_an_example_of_an_outcome_fits_its_schema(example: examples.Example) -> None:
    validator(f"sync-{example.name.partition('-')[0]}.v1").validate(example.value)


@pytest.mark.parametrize("example", examples.PROGRESS, ids=lambda example: example.name)
def test_an_example_of_progress_fits_its_schema(example: examples.Example) -> None:
    validator("sync-progressed.v1").validate(example.value)
    assert example.headers["ce_type"] == "vm-sync.progress.v1"
    assert example.key == example.headers["ce_subject"] == example.value["replicationId"]


def test_there_is_an_example_of_every_state_of_progress() -> None:
    states = schemas.shape("sync-progressed.v1")["properties"]["state"]["enum"]
    assert [example.value["state"] for example in examples.PROGRESS] == states


def test_there_is_an_example_of_every_reason() -> None:
    assert {example.value["reason"] for example in examples.FAILED} == set(sync.Reason)


def test_names_of_examples_are_file_names_and_differ() -> None:
    names = [example.name for example in examples.ALL]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() for name in names)


# ---------------------------------------------------------------- what was released


def test_nothing_that_was_released_is_broken() -> None:
    released = sorted(RELEASED.glob("*.json"))
    assert released, "run: python -m tools.schemas --release"
    for path in released:
        assert path.stem in schemas.MESSAGES, f"{path.stem} was released, and is gone"
        assert breaks(load(path), schemas.file(path.stem), read=path.stem in schemas.READ) == [], path.stem


def test_every_message_was_released() -> None:
    assert {path.stem for path in RELEASED.glob("*.json")} == set(schemas.MESSAGES)


OLD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^a"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "word": {"$ref": "#/$defs/Word"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "list": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/Item"}},
    },
    "required": ["name", "word"],
    "$defs": {
        "Word": {"type": "string", "enum": ["yes", "no"]},
        "Item": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    """Change OLD at a path; None takes away."""
    new = copy.deepcopy(OLD)
    *way, last = path.split("/")
    place: Any = new
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return new


@pytest.mark.parametrize("read", [True, False])
def test_a_schema_may_take_its_own_place_and_be_told_in_other_words(*, read: bool) -> None:
    assert breaks(OLD, OLD, read=read) == []
    assert breaks(OLD, changed("properties/name/description", "better said"), read=read) == []


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("path", ["properties/count", "properties/list", "$defs/Item/properties/code"])
def test_a_field_that_was_there_stays_there(path: str, *, read: bool) -> None:
    assert any(sentence.endswith("is gone") for sentence in breaks(OLD, changed(path, None), read=read))


@pytest.mark.parametrize("read", [True, False])
def test_a_new_field_that_may_be_left_out_breaks_nobody(*, read: bool) -> None:
    assert breaks(OLD, changed("properties/more", {"type": "string", "maxLength": 3}), read=read) == []


TIGHTER = [
    ("required", ["name", "word", "count"]),
    ("properties/name/minLength", 2),
    ("properties/name/maxLength", 4),
    ("properties/count/minimum", 2),
    ("properties/count/maximum", 8),
    ("properties/maybe/anyOf", [{"type": "string"}]),
    ("properties/list/maxItems", 2),
    ("properties/list/minItems", 1),
    ("$defs/Word/enum", ["yes"]),
    ("$defs/Item/properties/code/maxLength", 9),
]
LOOSER = [
    ("required", ["name"]),
    ("properties/name/minLength", 0),
    ("properties/name/maxLength", 6),
    ("properties/name/maxLength", None),
    ("properties/name/pattern", None),
    ("properties/count/type", "number"),
    ("properties/count/minimum", None),
    ("properties/maybe/anyOf", [{"type": "string"}, {"type": "null"}, {"type": "integer"}]),
    ("properties/list/maxItems", None),
    ("$defs/Word/enum", ["yes", "no", "perhaps"]),
    ("$defs/Item/required", []),
]
OTHER = [
    ("properties/name/pattern", "^b"),
    ("properties/name/type", "integer"),
    ("properties/maybe/anyOf", [{"type": "integer"}]),
    ("additionalProperties", False),
    ("properties/name/not", {"const": "b"}),
]


@pytest.mark.parametrize(("path", "value"), TIGHTER)
def test_what_is_read_may_not_get_tighter_and_what_is_written_may(path: str, value: object) -> None:
    assert breaks(OLD, changed(path, value), read=True)
    assert breaks(OLD, changed(path, value), read=False) == []


@pytest.mark.parametrize(("path", "value"), LOOSER)
def test_what_is_written_may_not_get_looser_and_what_is_read_may(path: str, value: object) -> None:
    assert breaks(OLD, changed(path, value), read=False)
    assert breaks(OLD, changed(path, value), read=True) == []


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize(("path", "value"), OTHER)
def test_what_is_neither_or_cannot_be_judged_is_a_break(path: str, value: object, *, read: bool) -> None:
    assert breaks(OLD, changed(path, value), read=read)
