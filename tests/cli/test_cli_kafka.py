"""The commands that talk to Kafka, against a real one; what the service would write there is written by hand."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from typer.testing import CliRunner
from typing_extensions import override

from service.cli.commands import app
from service.cli.kafka import FETCH_WAIT_MS, KafkaContext, described, explained, read_on, reader, settings
from service.cli.output import NoAnswer
from service.kafka import journal_codec as records
from service.kafka.connection import KafkaConnection
from service.kafka.diagnosis import overheard
from service.messages.dead_letters import write_dead_letter
from service.messages.kafka_record import Record
from service.messages.requests import DeadLetterReason, InvalidRequest
from service.sandbox.kafka import EmbeddedKafka
from service.settings import load_for_kafka
from service.sync import ApiError, Ended, Lingering, Reason, Request, Running, Submitting, Sync, Waiting
from tests.conftest import started
from tests.support.cli_scene import Scene, instance
from tests.support.kafka_harness import fetch_waits, until
from tests.support.relay import Relay

NOON = datetime(2026, 8, 17, 12, tzinfo=UTC)


# ---------------------------------------------------------------- topics


def test_missing_topics_are_a_no_and_made_when_asked_to(empty: Scene) -> None:
    before, made, after = (
        empty.answer("topics", "check", code=1),
        empty.answer("topics", "create"),
        empty.answer("topics", "check"),
    )

    assert not before["fits"]
    assert [finding["finding"] for finding in before["findings"]].count("refused") == 5
    assert [finding["finding"] for finding in made["findings"]].count("created") == 6
    assert after["fits"]


@pytest.mark.parametrize("command", [("list",), ("request", "C4-1"), ("dead-letters", "redrive")], ids=" ".join)
def test_a_missing_topic_is_told_in_a_sentence_and_not_made(empty: Scene, command: tuple[str, ...]) -> None:
    result = empty.run(*command)

    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1
    assert "vm-sync topics check" in result.stderr
    findings = [finding["finding"] for finding in empty.answer("topics", "check", code=1)["findings"]]
    assert findings == ["refused"] * 5 + ["advice"]


# ---------------------------------------------------------------- request


def test_a_request_is_keyed_and_gets_an_operation_id_of_its_own(scene: Scene) -> None:
    first, second = (
        scene.answer("request", "C4-1", "--site", "site2", "--deadline", "60"),
        scene.answer("request", "C4-1"),
    )

    records = {record.offset: record for record in scene.read("requests")}
    body = json.loads(records[first["offset"]].value)
    assert {record.key for record in records.values()} == {b"C4-1"}
    assert body == {
        "operationID": first["operationID"],
        "replicationId": "C4-1",
        "site": "site2",
        "deadlineSeconds": 60,
    }
    assert first["requestId"] == f"op:C4-1:{first['operationID']}"
    assert first["operationID"] != second["operationID"]
    assert first["partition"] == second["partition"]


def answering(scene: Scene, *, topic: str, when: Callable[[], bool] = lambda: True, **outcome: Any) -> threading.Thread:
    """Answer the first request as the service does: in a transaction; another one that is aborted comes before."""

    async def answer() -> None:
        give_up = time.monotonic() + 120
        while not ((requests := await scene._read("requests")) and when()) and time.monotonic() < give_up:
            await asyncio.sleep(0.05)
        body = json.loads(requests[0].value)
        told = {"requestId": f"op:{body['replicationId']}:{body['operationID']}", **outcome}
        producer = AIOKafkaProducer(bootstrap_servers=scene.bootstrap, transactional_id=scene.name("answering"))
        await producer.start()
        try:
            await producer.begin_transaction()
            await producer.send_and_wait(scene.name(topic), json.dumps(told | {"taskId": "aborted"}).encode())
            await producer.abort_transaction()
            async with producer.transaction():
                await producer.send_and_wait(scene.name(topic), b"not an outcome")
                await producer.send_and_wait(scene.name(topic), json.dumps(told | {"requestId": "op:x:y"}).encode())
                await producer.send_and_wait(scene.name(topic), json.dumps(told).encode())
        finally:
            await producer.stop()

    thread = threading.Thread(target=lambda: asyncio.run(answer()))
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("topic", "outcome", "code"),
    [("completed", {"taskId": "t-1"}, 0), ("failed", {"taskId": "t-1", "reason": "task-failed"}, 1)],
)
def test_waiting_for_an_outcome_tells_it_and_how_it_ended(
    scene: Scene, topic: str, outcome: dict[str, Any], code: int
) -> None:
    thread = answering(scene, topic=topic, **outcome)

    answer = scene.answer("request", "C4-1", "--operation-id", "op-1", "--wait", "--timeout", "30", code=code)

    thread.join()
    assert answer["outcome"] == {"requestId": "op:C4-1:op-1", **outcome}


def test_who_waits_is_told_the_operation_id_at_once_and_the_outcome_with_its_duration(scene: Scene) -> None:
    thread = answering(scene, topic="failed", reason="task-failed")

    said = scene.run("request", "C4-1", "--operation-id", "op-1", "--wait", "--timeout", "30").stderr

    thread.join()
    first, *_, last = said.splitlines()
    assert re.fullmatch(r"Request op-1 is at offset 0 of partition \d\.", first)
    assert re.fullmatch(r"Request op-1 failed \(task-failed\) after \d+ s\.", last)


def test_who_stops_waiting_is_told_how_to_look_again(scene: Scene) -> None:
    command = [sys.executable, "-m", "service.cli", "request", "C4-1", "--operation-id", "op-1", "--wait"]
    with subprocess.Popen(command, env={**os.environ, **scene.env}, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Request op-1 is at offset" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(240) == 130

    assert said.splitlines()[-1] == "Stopped waiting; the request goes on. To see how it ends: vm-sync show op-1"


def test_without_an_outcome_in_time_the_exit_code_is_3_and_the_request_stands(scene: Scene) -> None:
    result = scene.run("request", "C4-1", "--wait", "--timeout", "0.5")

    assert result.exit_code == 3
    assert "No outcome of cli-" in result.stderr
    assert "sent before" not in result.stderr  # its operationID is a new one
    assert len(scene.read("requests")) == 1


def test_an_outcome_of_yesterday_is_not_taken_for_that_of_today(scene: Scene) -> None:
    scene.write("completed", {"value": json.dumps({"requestId": "op:C4-1:op-1"}).encode()})

    result = scene.run("request", "C4-1", "--operation-id", "op-1", "--wait", "--timeout", "0.5")

    assert result.exit_code == 3
    assert "vm-sync show" in result.stderr


def sent_before(scene: Scene, sync: Running | Ended) -> None:
    """Leave a request as the service would: on its topic, and with its state in the journal of its partition."""
    place = scene.answer("request", sync.request.replication_id, "--operation-id", sync.request.operation_id)
    sync = replace(sync, request=replace(sync.request, offset=place["offset"]))
    key = sync.request.identity.encode()
    scene.write("journal", {"key": key, "value": records.encode(sync), "partition": place["partition"]})


@pytest.mark.parametrize(
    ("topic", "reason", "code", "word"),
    [("completed", None, 0, "completed"), ("failed", Reason.TASK_FAILED, 1, r"failed \(task-failed\)")],
)
def test_waiting_for_a_request_that_has_ended_before_gives_its_outcome(
    scene: Scene, topic: str, reason: Reason | None, code: int, word: str
) -> None:
    sent_before(scene, lately(ended(1, reason=reason)))
    outcome = {"requestId": "op:C4-1:op-1", "taskId": "t-1", **({"reason": reason} if reason else {})}
    scene.write(topic, {"value": json.dumps(outcome | {"requestId": "another"}).encode(), "partition": 2})
    scene.write(topic, {"value": json.dumps(outcome).encode(), "partition": 1})

    result = scene.run("request", "C4-1", "--operation-id", "op-1", "--wait", "--timeout", "2", "--json")

    assert result.exit_code == code, result.output
    assert json.loads(result.stdout)["outcome"] == outcome
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(rf"Request op-1 was sent before: it {word} \d+s ago\. No second sync is started\.", last)


def test_of_an_outcome_that_kafka_has_deleted_the_journal_tells(scene: Scene) -> None:
    sent_before(scene, lately(ended(1, reason=Reason.REJECTED)))

    result = scene.run("request", "C4-1", "--operation-id", "op-1", "--wait", "--timeout", "2", "--json")

    assert result.exit_code == 1, result.output
    outcome = json.loads(result.stdout)["outcome"]
    assert (outcome["requestId"], outcome["reason"], outcome["attempts"]) == ("op:C4-1:op-1", "rejected", 1)
    assert "The outcome of op-1 is no longer on its topic" in result.stderr


def test_a_request_that_is_forgotten_or_in_flight_gets_its_outcome_when_it_comes(scene: Scene) -> None:
    sent_before(scene, running(1))
    sent_before(scene, ended(2, reason=None))

    in_flight = scene.run("request", "C4-1", "--operation-id", "op-1", "--wait", "--timeout", "0.5")
    forgotten = scene.run("request", "C4-2", "--operation-id", "op-2", "--wait", "--timeout", "0.5")

    assert in_flight.exit_code == forgotten.exit_code == 3
    assert "Request op-1 was sent before, and is in flight; no second sync is started." in in_flight.stderr
    assert "before" not in forgotten.stderr


@pytest.fixture
def syncs(state: str) -> Iterator[tuple[str, list[str]]]:
    """An operations server that tells of one sync in this state; its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = {"syncs": [{"requestId": "op:C4-1:op-1", "state": state, "progress": 42}], "next": None}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        @override
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("state", ["running", "[/b] \x1b]0;title\x07"])
def test_a_person_who_waits_sees_the_progress_that_the_service_tells(
    scene: Scene, syncs: tuple[str, list[str]], state: str
) -> None:
    url, asked = syncs
    thread = answering(scene, topic="completed", when=lambda: len(asked) > 1, taskId="t-1")
    command = ["request", "C4-1", "--operation-id", "op-1", "--wait", "--timeout", "30", "--ops-url", url]

    shown = at_a_terminal(scene, command)

    thread.join()
    assert ascii(state)[1:-1] in shown
    assert "Traceback" not in shown
    assert asked[0] == "/syncs?replicationId=C4-1&limit=1000"


def at_a_terminal(scene: Scene, command: Sequence[str]) -> str:
    """Run a command as a process with stderr on a terminal; return what that showed."""
    ours, its = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *command],
        env={**os.environ, **scene.env, "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=its,
        timeout=240,
        check=True,
    )
    os.close(its)
    assert done.returncode == 0
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how Linux says that a terminal's other end is closed
        pass
    os.close(ours)
    return shown.decode()


# ---------------------------------------------------------------- list, show


def request(number: int, **fields: Any) -> Request:
    given: dict[str, Any] = {
        "identity": f"op:C4-{number}:op-{number}",
        "operation_id": f"op-{number}",
        "replication_id": f"C4-{number}",
        "site": None,
        "offset": number,
        "requested_at": NOON,
        "accepted_at": NOON + timedelta(seconds=number),
        "deadline": NOON + timedelta(hours=6),
    }
    return Request(**given | fields)


def running(number: int, *, adopted: bool = False) -> Running:
    return Running(
        request=request(number),
        attempts=2,
        task_id=f"t-{number}",
        site=None,
        account=None,
        submitted_at=NOON,
        adopted=adopted,
    )


def ended(number: int, *, reason: Reason | None) -> Ended:
    at = NOON + timedelta(minutes=2)
    return Ended(request=request(number), attempts=1, reason=reason, ended_at=at, expires_at=at + timedelta(days=1))


def lately(sync: Ended) -> Ended:
    """Return it as one that ended a moment ago, and is remembered for a day."""
    now = datetime.now(UTC)
    return replace(sync, ended_at=now, expires_at=now + timedelta(days=1))


SYNCS: tuple[Sync, ...] = (
    Waiting(request=request(1), attempts=1, trouble=ApiError("Busy", "come\x1b[2J back later"), http_status=409),
    Submitting(request=request(2, site="site2"), attempts=1, look_from=NOON, conclusive_from=1.0),
    running(3, adopted=True),
    Lingering(of=running(4), told_at=NOON + timedelta(hours=6)),
    ended(5, reason=None),
    replace(ended(6, reason=Reason.REJECTED), error=ApiError("NotFound", "No such replication."), http_status=404),
    Waiting(request=request(7, replication_id="C4-1")),
)


@pytest.fixture
def journalled(scene: Scene) -> Scene:
    """With a journal as the service would have left it: several partitions, cursors, replaced and forgotten entries."""
    forgotten = Waiting(request=request(8))
    entries = [{"key": records.CURSOR_KEY, "value": b"{}", "partition": number} for number in range(3)]
    for sync in (Waiting(request=request(3)), *SYNCS, forgotten):
        number = int(sync.request.operation_id.removeprefix("op-"))
        key = sync.request.identity.encode()
        entries.append({"key": key, "value": records.encode(sync), "partition": number % 3})
    entries.append({"key": forgotten.request.identity.encode(), "value": None, "partition": 8 % 3})
    scene.write("journal", *entries)
    return scene


def test_the_journal_is_listed_in_the_order_of_acceptance_with_the_present_state_of_each(journalled: Scene) -> None:
    told = journalled.answer("list")

    assert [(sync["operationID"], sync["state"], sync["reason"]) for sync in told] == [
        ("op-1", "waiting", None),
        ("op-2", "in_doubt", None),
        ("op-3", "running", None),
        ("op-4", "lingering", "timed-out"),
        ("op-5", "completed", None),
        ("op-6", "failed", "rejected"),
        ("op-7", "waiting", None),
    ]
    assert told[2]["taskId"] == "t-3"
    assert told[2]["adopted"]
    assert told[4]["endedAt"] == "2026-08-17T12:02:00.000Z"
    assert {(sync["progress"], sync["waitsFor"]) for sync in told} == {(None, None)}, "no service runs"
    assert told[0]["error"] == {"code": "Busy", "msg": "come\x1b[2J back later", "httpStatus": 409}
    assert told[5]["error"] == {"code": "NotFound", "msg": "No such replication.", "httpStatus": 404}
    shown = journalled.run("list").stdout
    assert "waiting: Busy" in shown
    assert "failed: rejected, NotFound" in shown


def test_the_list_can_be_narrowed(journalled: Scene) -> None:
    def ids(*options: str) -> list[str]:
        return [sync["operationID"] for sync in journalled.answer("list", *options)]

    assert ids("--state", "waiting", "--state", "failed") == ["op-1", "op-6", "op-7"]
    assert ids("--site", "site2") == ["op-2"]
    assert ids("--site", "", "--limit", "2") == ["op-6", "op-7"]
    assert ids("--replication", "C4-1") == ["op-1", "op-7"]
    assert ids("--state", "running", "--site", "site2") == []
    assert ids("--failed") == ["op-4", "op-6"]
    assert ids("--failed", "--state", "failed", "--since", "2026-08-17T12:02:00Z") == ["op-6"]
    assert ids("--since", "2026-08-17T12:02:01Z") == ["op-4"]
    assert ids("--since", "PT1H") == []


def test_a_list_is_one_line_a_request_with_ages_and_wide_has_the_moments_too(journalled: Scene) -> None:
    head, *rows = journalled.run("list").stdout.splitlines()

    assert head.split() == [
        "operationID",
        "replicationId",
        "site",
        "state",
        "progress",
        "age",
        "ended",
        "POSTs",
        "task",
    ]
    assert len(rows) == len(SYNCS)
    assert re.search(r"op-6 +C4-6 +local +failed: rejected, NotFound +\d+d +\d+d ago +1$", rows[5])
    wide = journalled.run("list", "--wide").stdout.splitlines()
    assert "2026-08-17 12:00:06Z" in wide[6]
    assert "NotFound: No such replication. (HTTP 404)" in wide[6]


def test_a_list_that_is_watched_shows_what_has_come_meanwhile_until_it_is_interrupted(journalled: Scene) -> None:
    command = [sys.executable, "-m", "service.cli", "list", "--watch", "--site", "site9"]
    environment = {**os.environ, **journalled.env, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "every 2 s; Ctrl-C ends it." in process.stdout.readline()
        later = Waiting(request=request(9, site="site9"))
        journalled.write("journal", {"key": later.request.identity.encode(), "value": records.encode(later)})
        for line in process.stdout:
            if line.startswith("op-9"):
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(240) == 0


def test_a_request_in_flight_is_shown_with_what_its_owner_says_of_it(
    journalled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = {"cause": "limit", "site": None, "until": None, "behind": None, "detail": "2 syncs run at site x"}
    told = [
        {"requestId": "op:C4-1:op-1", "state": "waiting", "progress": None, "waitsFor": waits},
        {"requestId": "op:C4-3:op-3", "state": "running", "progress": 42, "waitsFor": None},
    ]
    monkeypatch.setenv("VM_SYNC_KAFKA__GROUP_ID", journalled.name("group"))

    with instance(journalled, lambda: {"syncs": told, "next": None}):
        listed = journalled.run("list").stdout
        shown = journalled.run("show", "op-1").stdout

    assert re.search(r"op-1 .*waiting: limit, Busy", listed)
    assert re.search(r"op-3 .*running +42 %", listed)
    assert "limit: 2 syncs run at site x" in shown


def test_what_the_limit_leaves_out_is_told(journalled: Scene) -> None:
    assert "The latest 2 of 7" in journalled.run("list", "--limit", "2").stderr
    assert journalled.run("list").stderr == ""


@pytest.mark.parametrize("name", ["op-3", "C4-3", "op:C4-3:op-3"])
def test_a_request_is_found_by_each_of_its_names_and_its_story_told(journalled: Scene, name: str) -> None:
    result = journalled.run("show", name)

    assert result.exit_code == 0
    facts = dict([line.split(maxsplit=1) for line in result.stdout.splitlines()])
    assert facts["state"] == "running"
    assert facts["submitted"] == "2026-08-17 12:00:00Z"
    assert facts["POSTs"] == "2"
    assert facts["task"] == "t-3, adopted for a POST in doubt"
    assert result.stdout.count("no instance of the service answers for partition 0") == 1


def test_of_several_requests_a_table_is_shown(journalled: Scene) -> None:
    result = journalled.run("show", "C4-1")

    assert "op-1" in result.stdout
    assert "op-7" in result.stdout
    assert len(journalled.answer("show", "C4-1")) == 2


def test_each_state_has_its_story(journalled: Scene) -> None:
    stories = [journalled.run("show", f"op-{number}").stdout for number in range(1, 7)]

    assert "last error" in stories[0]
    assert "Busy: come\\x1b[2J back later (HTTP 409)" in stories[0]
    assert "in_doubt" in stories[1]
    assert "site2" in stories[1]
    assert "may still run at VCDA" in stories[3]
    assert "0:01:55 after it was accepted" in stories[4]
    assert "rejected" in stories[5]
    assert "NotFound: No such replication. (HTTP 404)" in stories[5]


@pytest.mark.parametrize("name", ["op-8", "op-99", "\x1b[2J"])
def test_what_the_journal_does_not_know_is_no_answer(journalled: Scene, name: str) -> None:
    result = journalled.run("show", name)

    assert result.exit_code == 3
    assert "\x1b" not in result.stderr
    assert "VM_SYNC_SYNC__DEDUPLICATE_FOR" in result.stderr


def test_what_a_newer_version_has_written_does_not_hide_the_rest(journalled: Scene) -> None:
    base = json.loads(records.encode(ended(9, reason=Reason.TASK_FAILED)))
    for operation_id, changes in (("newer", {"reason": "eaten"}), ("unheard-of", {"state": "resting"})):
        value = json.dumps(base | {"operationID": operation_id} | changes).encode()
        journalled.write("journal", {"key": f"op:C4-9:{operation_id}".encode(), "value": value, "partition": 0})

    told = {sync["operationID"]: (sync["state"], sync["reason"]) for sync in journalled.answer("list")}
    listed = journalled.run("list")

    assert told["newer"] == ("failed", "eaten")
    assert told["op-6"] == ("failed", "rejected")
    assert len(told) == 8
    assert "1 of 9 records in the topic" in listed.stderr
    assert "failed: eaten" in listed.stdout
    assert "eaten" in journalled.run("show", "newer").stdout


def test_a_journal_that_is_none_is_told_in_a_sentence(scene: Scene) -> None:
    scene.write("journal", {"key": b"k", "value": b"something else", "partition": 0})

    result = scene.run("list")

    assert result.exit_code == 3
    assert "VM_SYNC_TOPICS__JOURNAL" in result.stderr


# ---------------------------------------------------------------- cancel


def body(scene: Scene) -> dict[str, Any]:
    """The only message on the requests topic, which has to lie where its request does."""
    (record,) = scene.read("requests")
    return {"partition": record.partition, "key": record.key, **json.loads(record.value)}


def test_a_cancel_goes_to_the_partition_of_its_request_and_says_by_whom_and_why(journalled: Scene) -> None:
    told = journalled.answer("cancel", "op-7", "--by", "alice", "--reason", "not needed")

    assert body(journalled) == {
        "partition": 1,
        "key": b"C4-1",
        "cancel": "op:C4-7:op-7",
        "by": "alice",
        "reason": "not needed",
    }
    assert told == {
        "requestId": "op:C4-7:op-7",
        "state": "waiting",
        "release": False,
        "topic": journalled.name("requests"),
        "partition": 1,
        "offset": 0,
    }


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("op-2", 1, "op:C4-2:op-2 is in_doubt and goes on, since VCDA has no cancel: nothing was sent. --release"),
        ("op-3", 1, "op:C4-3:op-3 is running (task t-3) and goes on"),
        ("op-4", 1, "op:C4-4:op-4 is lingering (task t-4) and goes on"),
        ("op-5", 1, "Nothing to cancel: op:C4-5:op-5 has ended (completed) at 2026-08-17 12:02:00Z."),
        ("op-6", 1, "Nothing to cancel: op:C4-6:op-6 has ended (failed: rejected) at"),
        ("C4-1", 2, "C4-1 names 2 requests; give the requestId of one of them: op:C4-1:op-1, op:C4-7:op-7."),
        ("op-99", 3, "There is no request op-99, neither in the journal nor unread in the topic"),
    ],
)
def test_a_cancel_that_would_do_nothing_is_not_sent_and_says_why(
    journalled: Scene, name: str, code: int, said: str
) -> None:
    result = journalled.run("cancel", name)

    assert result.exit_code == code
    assert result.stderr.startswith(said), result.stderr
    assert result.stderr.count("\n") == 1
    assert not journalled.read("requests")


def test_a_release_is_confirmed_or_not_sent(journalled: Scene) -> None:
    refused = journalled.run("cancel", "op-3", "--release")
    assert refused.exit_code == 2
    assert "op:C4-3:op-3 is running. VCDA may still work on task t-3. After a release the next" in refused.stderr
    assert "Nothing was sent: a release needs --yes" in refused.stderr
    assert not journalled.read("requests")

    told = journalled.answer("cancel", "op-3", "--release", "--yes")
    assert (told["requestId"], told["release"]) == ("op:C4-3:op-3", True)
    sent = body(journalled)
    assert (sent["cancel"], sent["release"], sent["key"]) == ("op:C4-3:op-3", True, b"C4-3")


@pytest.mark.parametrize(("answer", "code", "sent"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 1, 0)])
def test_a_person_at_a_terminal_confirms_a_release(
    journalled: Scene, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, sent: int
) -> None:
    monkeypatch.setattr("service.cli.operators._at_a_terminal", lambda: True)
    result = CliRunner().invoke(app, ["cancel", "op-3", "--release"], env=journalled.env, input=answer)

    assert result.exit_code == code, result.output
    assert "Release it?" in result.stderr
    assert len(journalled.read("requests")) == sent


def test_a_request_that_the_service_has_not_read_yet_is_found_on_the_topic(scene: Scene) -> None:
    sent = scene.answer("request", "C4-9", "--operation-id", "op-9")
    cursor = records.encode_cursor(records.Cursor(scene.name("requests"), sent["offset"]))
    scene.write("journal", {"key": records.CURSOR_KEY, "value": cursor, "partition": sent["partition"]})

    told = scene.answer("cancel", "op-9")

    assert (told["requestId"], told["state"]) == ("op:C4-9:op-9", "unread")
    assert (told["partition"], told["offset"]) == (sent["partition"], sent["offset"] + 1)
    read = records.encode_cursor(records.Cursor(scene.name("requests"), sent["offset"] + 1))
    scene.write("journal", {"key": records.CURSOR_KEY, "value": read, "partition": sent["partition"]})
    assert scene.run("cancel", "op-9").exit_code == 3, "it was read, and the journal knows nothing of it any more"


@pytest.mark.parametrize("option", ["--by", "--reason"])
def test_a_cancel_that_would_be_a_dead_letter_is_not_sent(journalled: Scene, option: str) -> None:
    result = journalled.run("cancel", "op-7", option, "a\nb")

    assert result.exit_code == 2
    assert f"Invalid cancel: {option[2:]} must be a string of 1 to 255 printable characters." in result.stderr
    assert not journalled.read("requests")


def carrying_out(scene: Scene, *, by: Sync | None, cursor: int = 1) -> threading.Thread:
    """Do as the service does once there is a cancel: write the sync's next state and the cursor."""

    async def answer() -> None:
        give_up = time.monotonic() + 120
        while not (sent := await scene._read("requests")) and time.monotonic() < give_up:
            await asyncio.sleep(0.05)
        place = sent[0].partition
        changes = [] if by is None else [{"key": by.request.identity.encode(), "value": records.encode(by)}]
        read = records.encode_cursor(records.Cursor(scene.name("requests"), cursor))
        for change in (*changes, {"key": records.CURSOR_KEY, "value": read}):
            await scene._write("journal", [{**change, "partition": place}])

    thread = threading.Thread(target=lambda: asyncio.run(answer()))
    thread.start()
    return thread


WAITED = ended(7, reason=Reason.CANCELLED)


@pytest.mark.parametrize(
    ("name", "options", "by", "code", "said"),
    [
        ("op-7", (), replace(WAITED, request=request(7, replication_id="C4-1")), 0, "has ended (failed: cancelled)"),
        ("op-7", (), replace(running(7), request=request(7, replication_id="C4-1")), 1, "goes on"),
        ("op-7", (), replace(WAITED, request=request(7, replication_id="C4-1"), reason=None), 1, "ended before"),
        ("op-3", ("--release", "--yes"), ended(3, reason=Reason.CANCELLED), 0, "has ended (failed: cancelled)"),
        ("op-4", ("--release", "--yes"), ended(4, reason=Reason.TIMED_OUT), 0, "has ended (failed: timed-out)"),
        ("op-3", ("--release", "--yes"), ended(3, reason=Reason.TASK_FAILED), 1, "ended before"),
    ],
)
def test_waiting_tells_what_the_cancel_did(
    journalled: Scene, name: str, options: tuple[str, ...], by: Sync, code: int, said: str
) -> None:
    thread = carrying_out(journalled, by=by)
    result = journalled.run("cancel", name, *options, "--wait", "--timeout", "30")

    thread.join()
    assert result.exit_code == code, result.output
    assert said in result.stderr


def test_waiting_for_a_service_that_is_down_ends_and_says_when_the_cancel_takes_effect(journalled: Scene) -> None:
    result = journalled.run("cancel", "op-7", "--wait", "--timeout", "0.5")

    assert result.exit_code == 3
    assert "it takes effect when the service reads it" in result.stderr
    assert len(journalled.read("requests")) == 1


# ---------------------------------------------------------------- dead letters


AN_HOUR_AGO = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
"""When letters were set aside; Kafka deletes what is much older, some day, during a test."""


def dead(
    scene: Scene, number: int, *, reason: DeadLetterReason = DeadLetterReason.NOT_JSON, **fields: Any
) -> dict[str, Any]:
    """The dead letter of a request, as a record to write; its value is its number."""
    given: dict[str, Any] = {
        "topic": scene.name("requests"),
        "partition": 0,
        "offset": number,
        "timestamp_ms": 0,
        "key": b"C4-%d" % (number % 5),
        "value": b"%d" % number,
        "headers": (("theirs", b"\xff"),),
    }
    event = write_dead_letter(Record(**given | fields), InvalidRequest(reason, "why"), topic=scene.name("dead_letter"))
    return {
        "key": event.key,
        "value": event.value,
        "headers": list(event.headers),
        "partition": number % 3,
        "timestamp_ms": int((AN_HOUR_AGO + timedelta(seconds=number)).timestamp() * 1000),
    }


def values(scene: Scene) -> list[int]:
    return sorted(int(record.value) for record in scene.read("requests"))


def test_dead_letters_are_listed_with_why_and_whence(scene: Scene) -> None:
    scene.write("dead_letter", dead(scene, 1), dead(scene, 2, reason=DeadLetterReason.BAD_FIELD, key=b"\x1b[2J"))

    first, second = scene.answer("dead-letters", "list")

    assert (first["reason"], first["detail"], first["value"], first["key"]) == ("not-json", "why", "1", "C4-1")
    assert first["request"] == {
        "topic": scene.name("requests"),
        "partition": "0",
        "offset": "1",
        "timestamp": "0",
    }
    assert first["timesPutBack"] == 0
    assert second["key"] == "\\x1b[2J"
    assert "\x1b" not in scene.run("dead-letters", "list").stdout


def test_dead_letters_can_be_chosen(scene: Scene) -> None:
    scene.write("dead_letter", *[dead(scene, number) for number in range(6)])
    scene.write("dead_letter", dead(scene, 6, reason=DeadLetterReason.BAD_FIELD))

    def chosen(*options: str) -> list[str]:
        return [letter["value"] for letter in scene.answer("dead-letters", "list", *options)]

    assert chosen("--reason", "bad-field") == ["6"]
    assert chosen("--key", "C4-0") == ["0", "5"]
    assert chosen("--at", "1") == ["1", "4"]
    assert chosen("--at", "1:0", "--at", "2:1") == ["1", "5"]
    assert chosen("--since", f"{AN_HOUR_AGO + timedelta(seconds=4):%Y-%m-%dT%H:%M:%S}") == ["4", "5", "6"]
    assert chosen("--until", f"{AN_HOUR_AGO + timedelta(seconds=2):%Y-%m-%dT%H:%M:%S}") == ["0", "1"]
    assert chosen("--key", "C4-1", "--reason", "bad-field") == ["6"]


def test_dead_letters_are_a_line_each_with_their_messages_beginning_and_one_is_shown_whole(scene: Scene) -> None:
    message = b'{"operationID": "' + b"x" * 100 + b'"}\x1b[2J\nsecond line'
    scene.write("dead_letter", dead(scene, 1), dead(scene, 2, value=message))

    _, first, second = scene.run("dead-letters", "list").stdout.splitlines()
    shown = scene.run("dead-letters", "show", "2:0").stdout
    as_json = scene.answer("dead-letters", "show", "2:0")

    assert re.match(r"1:0 +6\d|1:0 +1?\d\dm", first)
    assert '{"operationID": "xxx' in second
    assert "xxx..." in second
    assert shown.endswith('"}\\x1b[2J\nsecond line\n')
    assert "x" * 100 in shown
    assert "header theirs" in shown
    assert as_json["headers"][0] == ["theirs", "\\xff"]
    assert scene.run("dead-letters", "show", "2:7").exit_code == 3
    assert scene.run("dead-letters", "show", "2").exit_code == 2


def test_what_is_discarded_is_listed_no_more_and_never_redriven(scene: Scene) -> None:
    scene.write("dead_letter", *[dead(scene, number) for number in range(3)])

    assert len(scene.answer("dead-letters", "discard", "--key", "C4-1", "--dry-run")["discarded"]) == 1
    unasked = scene.run("dead-letters", "discard", "--key", "C4-1")
    done = scene.answer("dead-letters", "discard", "--key", "C4-1", "--yes")

    assert (unasked.exit_code, "a discard needs --yes" in unasked.stderr) == (2, True)
    assert [letter["value"] for letter in done["discarded"]] == ["1"]
    assert [letter["value"] for letter in scene.answer("dead-letters", "list")] == ["0", "2"]
    assert len(scene.answer("dead-letters", "list", "--discarded")) == 3
    assert "Discarded letters that are not shown: 1;" in scene.run("dead-letters", "list").stderr
    assert len(scene.answer("dead-letters", "redrive")["putBack"]) == 2
    assert values(scene) == [0, 2]
    assert scene.answer("dead-letters", "discard", "--yes")["discarded"] == [], "the others were redriven"


def test_what_is_put_back_has_its_bytes_and_a_count(scene: Scene) -> None:
    scene.write("dead_letter", dead(scene, 1), dead(scene, 2, key=None))

    answer = scene.answer("dead-letters", "redrive")

    records = {record.value: record for record in scene.read("requests")}
    assert len(answer["putBack"]) == 2
    assert records[b"1"].key == b"C4-1"
    assert records[b"2"].key is None
    assert records[b"1"].headers == (("theirs", b"\xff"), ("vm-sync-redriven", b"1"))


def test_a_dry_run_puts_nothing_back_and_leaves_no_trace(scene: Scene) -> None:
    scene.write("dead_letter", dead(scene, 1))

    answers = [scene.answer("dead-letters", "redrive", "--dry-run") for _ in range(2)]

    assert answers[0] == answers[1]
    assert [letter["value"] for letter in answers[0]["putBack"]] == ["1"]
    assert values(scene) == []


def test_nothing_is_put_back_twice_whatever_the_filters_left_out(scene: Scene) -> None:
    scene.write("dead_letter", *[dead(scene, number) for number in range(12)])

    scene.answer("dead-letters", "redrive", "--key", "C4-1")
    assert values(scene) == [1, 6, 11]
    scene.answer("dead-letters", "redrive", "--at", "0")
    assert values(scene) == [0, 1, 3, 6, 9, 11]
    last = scene.answer("dead-letters", "redrive")

    assert values(scene) == list(range(12))
    assert (len(last["putBack"]), len(last["putBackBefore"])) == (6, 6)
    assert all(letter["putBackAt"] for letter in scene.answer("dead-letters", "list"))


def test_what_keeps_coming_back_is_refused_in_the_end_unless_forced(scene: Scene) -> None:
    thrice = (("vm-sync-redriven", b"3"),)
    scene.write("dead_letter", dead(scene, 1, headers=thrice), dead(scene, 2))

    refused = scene.answer("dead-letters", "redrive", code=1)
    assert values(scene) == [2]
    assert [letter["why"] for letter in refused["refused"]] == [
        "redriven 3 times already; --force redrives it nevertheless"
    ]

    scene.answer("dead-letters", "redrive", "--force")
    assert values(scene) == [1, 2]


def test_letters_of_another_deployment_are_left_and_counted_unless_their_topic_is_named(scene: Scene) -> None:
    scene.write("dead_letter", *[dead(scene, number, topic="staging.requests") for number in (1, 2, 3)], dead(scene, 4))

    looked = scene.answer("dead-letters", "redrive", "--dry-run")
    done = scene.run("dead-letters", "redrive")
    assert values(scene) == [4]
    assert (done.exit_code, looked["otherTopics"]) == (0, {"staging.requests": 3})
    assert "sent to staging.requests, left as they are: 3; --topic selects them" in done.stderr
    assert scene.answer("dead-letters", "discard", "--yes", "--reason", "not-json")["discarded"] == []
    assert len(scene.answer("dead-letters", "list", "--topic", "staging.requests")) == 3

    refused = scene.answer("dead-letters", "redrive", "--topic", "staging.requests", "--key", "C4-1", code=1)
    assert values(scene) == [4]
    assert "sent to the topic staging.requests; --force redrives it" in refused["refused"][0]["why"]

    scene.answer("dead-letters", "redrive", "--topic", "staging.requests", "--key", "C4-1", "--force")
    assert values(scene) == [1, 4]

    discarded = scene.answer("dead-letters", "discard", "--yes", "--topic", "staging.requests")
    assert (len(discarded["discarded"]), discarded["otherTopics"]) == (2, {})


def test_a_letter_whose_bytes_are_gone_is_never_put_back(scene: Scene) -> None:
    truncated = dead(scene, 2, reason=DeadLetterReason.TOO_LARGE)
    truncated["headers"].append(("vm-sync-truncated", b"true"))
    scene.write("dead_letter", dead(scene, 1, reason=DeadLetterReason.UNREADABLE, value=None, key=None), truncated)

    result = scene.run("dead-letters", "redrive", "--force")

    assert result.exit_code == 1
    assert result.stderr.count("does not contain the original bytes") == 2
    assert values(scene) == []


MANY = 2_000


def redriving(scene: Scene) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", "dead-letters", "redrive"],
        env={**os.environ, **scene.env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def half_way(scene: Scene, process: subprocess.Popen[str]) -> None:
    """Wait until it has put some back, but not all."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "redriven ..." in line:
            return
    pytest.fail(f"it ended before it was half-way, having said {said}")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_redrive_that_is_ended_half_way_and_started_again_puts_nothing_back_twice(
    scene: Scene, end: signal.Signals
) -> None:
    scene.write("dead_letter", *[dead(scene, number) for number in range(MANY)])
    with redriving(scene) as process:
        half_way(scene, process)
        process.send_signal(end)
    assert 0 < len(values(scene)) < MANY

    scene.answer("dead-letters", "redrive")

    assert values(scene) == list(range(MANY))


def test_of_two_redrives_at_once_one_stops_and_nothing_is_put_back_twice(scene: Scene) -> None:
    scene.write("dead_letter", *[dead(scene, number) for number in range(MANY)])
    with redriving(scene) as process:
        half_way(scene, process)
        process.send_signal(signal.SIGSTOP)  # or it may have put all back before the other has begun
        try:
            scene.answer("dead-letters", "redrive")
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.stderr is not None
        said = process.stderr.read()

    assert process.returncode == 3
    assert "Another redrive or discard was started" in said or "start again" in said
    assert Counter(values(scene)) == Counter(range(MANY))


# ---------------------------------------------------------------- brokers that are away


@pytest.fixture(scope="module")
def relayed_kafka() -> Iterator[tuple[EmbeddedKafka, Relay]]:
    """A broker whose listener RELAYED answers, and says that clients find it at the relay, which is closed."""
    kafka = EmbeddedKafka(listeners={"RELAYED": "PLAINTEXT"})
    host, _, port = kafka.address("RELAYED").partition(":")
    relay = Relay(lambda: (host, int(port)))
    kafka.advertise("RELAYED", relay.address)
    with started(kafka):
        yield kafka, relay


@pytest.fixture
def relay(relayed_kafka: tuple[EmbeddedKafka, Relay], monkeypatch: pytest.MonkeyPatch) -> Relay:
    kafka, relay = relayed_kafka
    monkeypatch.setenv("VM_SYNC_KAFKA__BOOTSTRAP_SERVERS", kafka.address("RELAYED"))
    return relay


async def test_a_broker_that_is_away_for_seconds_is_asked_again(relay: Relay) -> None:
    with overheard() as failures:
        asking = asyncio.create_task(described(settings(), "requests"))
        await until(lambda: len(failures) > 2, what="some attempts have failed")
        assert not asking.done()

        async with relay:
            seen = await asking

    assert seen.unsettled == {"requests"}, "the broker has answered: there is no such topic"


async def test_a_broker_that_stays_away_is_given_up(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.kafka.SILENCE", 1.0)

    with pytest.raises(NoAnswer, match="Kafka can't be reached at "):
        async with explained(settings()):
            await described(settings(), "requests")


# ---------------------------------------------------------------- reading in time


def test_reading_ends_where_the_topic_ended_when_it_began(journalled: Scene) -> None:
    stop = threading.Event()

    async def write_on() -> None:
        while not stop.is_set():
            await journalled._write("journal", [{"key": records.CURSOR_KEY, "value": b"{}", "partition": 0}] * 50)

    thread = threading.Thread(target=lambda: asyncio.run(write_on()))
    thread.start()
    try:
        assert len(journalled.answer("list")) == len(SYNCS)
    finally:
        stop.set()
        thread.join()


def test_a_kafka_that_falls_silent_is_given_up(journalled: Scene) -> None:
    async def nothing(**_: object) -> dict[TopicPartition, list[object]]:
        await asyncio.sleep(0.05)
        return {}

    async def reading() -> None:
        async with journal_reader(journalled) as (consumer, wanted):
            consumer.getmany = nothing
            async for _ in read_on(consumer, wanted, what="the journal", silence=0.5):
                pytest.fail("a record, although Kafka is silent")

    with pytest.raises(NoAnswer, match="VM_SYNC_KAFKA__BOOTSTRAP_SERVERS"):
        asyncio.run(reading())


def test_reading_that_takes_long_says_how_far_it_is(journalled: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    async def reading() -> int:
        async with journal_reader(journalled) as (consumer, wanted):
            await consumer.seek_to_beginning()
            read = read_on(consumer, wanted, what="the journal", note_after=0.0, at_once=1)
            return len([record async for record in read])

    assert asyncio.run(reading()) >= len(SYNCS)
    assert "Reading the journal" in capsys.readouterr().err


def test_a_command_s_questions_wait_for_no_fetch_that_finds_nothing(
    journalled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = fetch_waits(monkeypatch)
    journalled.answer("list")
    journalled.answer("dead-letters", "list")

    assert [waits[journalled.name(topic)] for topic in ("journal", "dead_letter")] == [{FETCH_WAIT_MS}] * 2


@asynccontextmanager
async def journal_reader(scene: Scene) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    settings = load_for_kafka(scene.env)
    place = KafkaContext(settings, KafkaConnection(bootstrap_servers=tuple(settings.kafka.servers)))
    wanted = [TopicPartition(place.names.journal, number) for number in range(3)]
    async with explained(place), reader(place, wanted) as consumer:
        yield consumer, wanted
