"""`vm-sync request --from` against a real Kafka; a thread answers as the service would."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaTimeoutError
from typer.testing import CliRunner, Result

from service.cli import request_many
from service.cli.commands import app
from service.cli.request_file import read_file
from service.cli.request_many import Batch
from service.kafka import journal_codec as records
from service.sandbox.kafka import EmbeddedKafka
from service.sync import ApiError, Ended, Lingering, Reason, Request, Running, Sync, Waiting
from tests.conftest import TopicNamer
from tests.support.cli_scene import Scene
from tests.support.virtual_time import virtual

NOW = datetime.now(UTC)


def a_request(body: Mapping[str, Any]) -> Request:
    return Request(
        identity=f"op:{body['replicationId']}:{body['operationID']}",
        operation_id=body["operationID"],
        replication_id=body["replicationId"],
        site=body.get("site"),
        offset=0,
        requested_at=NOW,
        accepted_at=NOW,
        deadline=NOW + timedelta(hours=6),
    )


def an_end(body: Mapping[str, Any], reason: Reason | None = None, *, known_for: float = 3600) -> Ended:
    error = None if reason is None else ApiError("NotFound", "No such\x1b replication.")
    expires_at = NOW + timedelta(seconds=known_for)
    return Ended(request=a_request(body), attempts=1, reason=reason, ended_at=NOW, expires_at=expires_at, error=error)


def an_outcome(body: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {
        "requestId": f"op:{body['replicationId']}:{body['operationID']}",
        "operationID": body["operationID"],
        "replicationId": body["replicationId"],
        "site": body.get("site"),
        "requestedAt": "2026-03-01T22:00:00.000Z",
        "endedAt": "2026-03-01T22:05:00.000Z",
        **({} if reason is None else {"reason": reason, "error": {"code": "NotFound", "msg": "Gone.", "args": []}}),
    }


@contextlib.contextmanager
def answering(scene: Scene, reason_of: Callable[[str], str | None] = lambda _: None) -> Iterator[None]:
    """Answer each request, once, as the service does; something foreign comes before each outcome."""
    stop = threading.Event()

    async def answer() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=scene.bootstrap, auto_offset_reset="earliest")
        consumer.assign([TopicPartition(scene.name("requests"), number) for number in range(3)])
        producer = AIOKafkaProducer(bootstrap_servers=scene.bootstrap)
        await consumer.start()
        await producer.start()
        told = set()
        try:
            while not stop.is_set():
                for found in (await consumer.getmany(timeout_ms=100)).values():
                    for body in [json.loads(record.value) for record in found]:
                        outcome = an_outcome(body, reason_of(body["replicationId"]))
                        if outcome["requestId"] not in told:
                            told.add(outcome["requestId"])
                            topic = scene.name("failed" if "reason" in outcome else "completed")
                            await producer.send_and_wait(topic, b"\xff")
                            await producer.send_and_wait(topic, json.dumps(outcome).encode())
        finally:
            await consumer.stop()
            await producer.stop()

    thread = threading.Thread(target=lambda: asyncio.run(answer()))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ids(folder: Path, count: int = 5) -> str:
    path = folder / "ids.txt"
    path.write_text("".join(f"C4-{number}\n" for number in range(count)), encoding="utf-8")
    return str(path)


def sent(scene: Scene) -> list[dict[str, Any]]:
    return [json.loads(record.value) for record in scene.read("requests")]


def note(scene: Scene, *syncs: Sync) -> None:
    """Write into the journal, as the service does once it has read the requests."""
    scene.write("journal", *[{"key": one.request.identity.encode(), "value": records.encode(one)} for one in syncs])


def before(monkeypatch: pytest.MonkeyPatch, step: str, do: Callable[[], None]) -> None:
    """Do something, once, right before a step of the command."""
    take, todo = getattr(request_many, step), [do]

    async def do_first(*about: Any) -> None:
        if todo:
            await asyncio.to_thread(todo.pop())
        await take(*about)

    monkeypatch.setattr(request_many, step, do_first)


# ---------------------------------------------------------------- sending


def test_each_request_of_the_file_is_sent_with_its_key_and_an_operation_id(scene: Scene, tmp_path: Path) -> None:
    answer = scene.answer("request", "--from", ids(tmp_path), "--deadline", "60")

    found = scene.read("requests")
    assert {record.key for record in found} == {b"C4-0", b"C4-1", b"C4-2", b"C4-3", b"C4-4"}
    assert {record.headers for record in found} == {(("content-type", b"application/json"),)}
    assert all(json.loads(record.value)["replicationId"].encode() == record.key for record in found)
    assert all(json.loads(record.value)["deadlineSeconds"] == 60 for record in found)
    assert len({json.loads(record.value)["operationID"] for record in found}) == 5
    assert (answer["requests"], answer["sent"], answer["sentBefore"]) == (5, 5, 0)


def test_an_invalid_line_is_named_and_nothing_is_sent(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("C4-1\n" + "C4,ü\n" * 30, encoding="utf-8")

    result = scene.run("request", "--from", str(path))

    assert result.exit_code == 2
    first, *rest, last = result.stderr.splitlines()
    assert first.startswith(f"{path}:2: more than")
    assert len(rest) == 19
    assert last == "Nothing was sent: 30 lines are invalid, of which 20 are shown."
    assert not scene.read("requests")


def test_a_second_run_sends_again_only_what_the_service_has_not_read_and_with_the_same_identity(
    scene: Scene, tmp_path: Path
) -> None:
    path = ids(tmp_path)
    scene.answer("request", "--from", path)
    first = sent(scene)
    note(scene, Waiting(request=a_request(first[0])), an_end(first[1]), an_end(first[2], Reason.REJECTED))

    answer = scene.answer("request", "--from", path)

    again = Counter(body["operationID"] for body in sent(scene))
    assert again == {body["operationID"]: 1 if number < 3 else 2 for number, body in enumerate(first)}
    assert (answer["sent"], answer["sentBefore"]) == (2, 3)


def test_when_all_have_ended_before_nothing_is_sent_and_the_exit_code_is_1(scene: Scene, tmp_path: Path) -> None:
    path = ids(tmp_path, 2)
    scene.answer("request", "--from", path)
    note(scene, *[an_end(body) for body in sent(scene)])

    result = scene.run("request", "--from", path)

    assert result.exit_code == 1
    assert "--operation-prefix NAME makes new ones" in result.stderr
    assert result.stderr.splitlines()[-1] == "Nothing was sent: all of the requests have ended."
    assert len(sent(scene)) == 2
    assert scene.answer("request", "--from", path, "--operation-prefix", "two")["sent"] == 2
    assert {body["operationID"][:4] for body in sent(scene)} == {"from", "two-"}


def test_a_request_that_is_no_longer_remembered_is_a_new_one(scene: Scene, tmp_path: Path) -> None:
    path = ids(tmp_path, 1)
    scene.answer("request", "--from", path)
    note(scene, an_end(sent(scene)[0], known_for=-1))

    assert scene.answer("request", "--from", path)["sent"] == 1


def test_what_is_piped_in_is_a_batch_of_its_own_unless_it_is_named(scene: Scene) -> None:
    def run(*more: str) -> Result:
        return CliRunner().invoke(app, ["request", "--from", "-", *more], env=scene.env, input="C4-1\n")

    first, second = run(), run("--operation-prefix", "night")

    assert first.exit_code == second.exit_code == 0, first.output + second.output
    (name,) = re.findall(r"with --operation-prefix (from-\w+) with --wait", first.stderr)
    one, two = sorted(body["operationID"] for body in sent(scene))
    assert one.startswith(f"{name}-")
    assert two.startswith("night-")
    assert "operation-prefix" not in second.stderr
    run("--operation-prefix", "night")
    assert len({body["operationID"] for body in sent(scene)}) == 2


def test_an_input_without_a_request_is_no_failure(scene: Scene) -> None:
    result = CliRunner().invoke(app, ["request", "--from", "-", "--json"], env=scene.env, input="")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["requests"] == 0
    assert "The input has no requests; nothing was sent." in result.stderr


def test_a_dry_run_sends_nothing_and_says_what_would_be(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("replicationId,site\nC4-1,\nC4-2,site2\nC4-3,site2\n", encoding="utf-8")

    result = scene.run("request", "--from", str(path), "--dry-run")

    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()[-2:]] == [
        ["to", "send", "local", "1"],
        ["to", "send", "site2", "2"],
    ]
    assert "3 would be" in result.stderr
    assert not scene.read("requests")


# ---------------------------------------------------------------- waiting


def test_waiting_counts_the_outcomes_and_the_failed_ones_can_be_sent_again(scene: Scene, tmp_path: Path) -> None:
    path, failed = tmp_path / "many.csv", tmp_path / "failed.jsonl"
    lines = ["C4-1,site2,60", "C4-2,,", "C4-3,site2,"]
    path.write_text("replicationId,site,deadlineSeconds\n" + "\n".join(lines), encoding="utf-8")
    options = ("--wait", "--timeout", "60", "--failed-to", str(failed))

    with answering(scene, lambda name: "rejected" if name == "C4-1" else None):
        answer = scene.answer("request", "--from", str(path), *options, code=1)

    assert (answer["completed"], answer["failed"], answer["withoutOutcome"]) == (2, 1, 0)
    (failure,) = answer["failures"]
    assert (failure["replicationId"], failure["site"], failure["reason"]) == ("C4-1", "site2", "rejected")
    assert failure["error"] == "NotFound: Gone."
    again = json.loads(failed.read_text(encoding="utf-8"))
    assert again == {
        "replicationId": "C4-1",
        "site": "site2",
        "deadlineSeconds": 60,
        "failed": {"operationID": failure["operationID"], "reason": "rejected", "error": "NotFound: Gone."},
    }
    retried = scene.answer("request", "--from", str(failed))
    assert retried["sent"] == 1
    (one, two) = [body for body in sent(scene) if body["replicationId"] == "C4-1"]
    assert one["operationID"] != two["operationID"]
    assert (two["site"], two["deadlineSeconds"]) == ("site2", 60)


def test_the_summary_for_people_has_counts_failures_and_how_to_retry(scene: Scene, tmp_path: Path) -> None:
    failed = tmp_path / "failed.jsonl"

    with answering(scene, lambda name: "rejected" if name == "C4-1" else None):
        result = scene.run(
            "request", "--from", ids(tmp_path, 3), "--wait", "--timeout", "60", "--failed-to", str(failed)
        )

    assert result.exit_code == 1
    table = [line.split() for line in result.stdout.splitlines()]
    assert ["completed", "local", "2"] in table
    assert ["failed", "rejected", "local", "1"] in table
    assert "C4-1" in result.stdout
    assert "NotFound: Gone." in result.stdout
    assert f"vm-sync request --from {failed}" in result.stderr


def test_a_second_run_waits_also_for_what_the_first_has_sent(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ids(tmp_path, 4)
    scene.answer("request", "--from", path)
    bodies = sent(scene)
    running = Running(
        request=a_request(bodies[2]), attempts=1, task_id="t", site=None, account=None, submitted_at=NOW, adopted=False
    )
    note(
        scene,
        an_end(bodies[0]),
        an_end(bodies[1], Reason.REJECTED),
        running,
        Lingering(of=replace(running, request=a_request(bodies[3])), told_at=NOW),
    )
    scene.write("completed", {"value": json.dumps(an_outcome(bodies[0])).encode()})

    failed = tmp_path / "failed.jsonl"
    late = {"value": json.dumps(an_outcome(bodies[2])).encode()}
    before(monkeypatch, "_take", lambda: scene.write("completed", late))
    answer = scene.answer("request", "--from", path, "--wait", "--timeout", "60", "--failed-to", str(failed), code=1)

    assert (answer["sent"], answer["sentBefore"], answer["completed"], answer["failed"]) == (0, 4, 2, 2)
    assert sorted(one["reason"] for one in answer["failures"]) == ["rejected", "timed-out"]
    assert len(failed.read_text(encoding="utf-8").splitlines()) == 2
    assert len(sent(scene)) == 4


def test_an_end_that_the_journal_shows_later_than_its_outcome_was_shown_is_not_missed(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, failed = ids(tmp_path, 2), tmp_path / "failed.jsonl"
    failed.write_text("of an earlier run\n", encoding="utf-8")
    scene.answer("request", "--from", path)
    bodies = sent(scene)
    note(scene, *[Waiting(request=a_request(body)) for body in bodies])  # whose outcomes stand on their topics already
    ends = (an_end(bodies[0]), an_end(bodies[1], Reason.REJECTED))
    before(monkeypatch, "_catch_up", lambda: note(scene, *ends))

    options = ("--wait", "--timeout", "2", "--failed-to", str(failed))
    answer = scene.answer("request", "--from", path, *options, code=1)

    assert (answer["completed"], answer["failed"], answer["withoutOutcome"]) == (1, 1, 0)
    assert [json.loads(line)["replicationId"] for line in failed.read_text(encoding="utf-8").splitlines()] == [
        bodies[1]["replicationId"]
    ]


def test_without_all_outcomes_in_time_the_exit_code_is_3(scene: Scene, tmp_path: Path) -> None:
    result = scene.run("request", "--from", ids(tmp_path, 2), "--wait", "--timeout", "0.5")

    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == ("2 of 2 requests have no outcome within 0.5 s; they stay in flight.")
    assert ["none", "yet", "local", "2"] in [line.split() for line in result.stdout.splitlines()]


def test_after_an_interruption_the_same_command_goes_on_and_repeats_nothing(scene: Scene, tmp_path: Path) -> None:
    path = ids(tmp_path, 40)
    arguments = ["request", "--from", path, "--rate", "1"]  # on a busy machine, each look at the topic takes seconds
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", *arguments],
        env={**os.environ, **scene.env},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while len(scene.read("requests")) < 3:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(240) == 130

    before = sent(scene)
    assert re.search(r"Interrupted: sent \d+ of 40\. The same command goes on; what was sent is not sent again\.", said)
    assert 3 <= len(before) < 40
    note(scene, *[Waiting(request=a_request(body)) for body in before])
    answer = scene.answer("request", "--from", path, "--rate", "1000")
    assert (answer["sent"], answer["sentBefore"]) == (40 - len(before), len(before))
    assert len({body["operationID"] for body in sent(scene)}) == len(sent(scene)) == 40


def test_when_kafka_goes_away_meanwhile_it_says_how_far_it_is_and_how_to_go_on(
    own_kafka: EmbeddedKafka, topic_name: TopicNamer, tmp_path: Path
) -> None:
    scene = Scene(own_kafka.bootstrap, topic_name)
    assert scene.run("topics", "create").exit_code == 0

    def stopping() -> None:
        while not scene.read("requests"):
            pass
        own_kafka.stop()

    thread = threading.Thread(target=stopping)
    thread.start()
    result = scene.run("request", "--from", ids(tmp_path, 1000), "--rate", "20")
    thread.join()

    assert result.exit_code == 3, result.output
    stopped, why = result.stderr.splitlines()[-2:]
    assert re.fullmatch(
        r"Stopped: sent \d+ of 1000\. The same command goes on; what was sent is not sent again\.", stopped
    )
    assert own_kafka.bootstrap in why or "Kafka" in why


def test_it_says_how_to_go_on_also_where_kafka_has_acknowledged_nothing(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.asynccontextmanager
    async def writer(_: object) -> AsyncIterator[SimpleNamespace]:
        async def send(*_: object, **__: object) -> asyncio.Future[None]:
            sent = asyncio.get_running_loop().create_future()
            sent.set_exception(KafkaTimeoutError())  # Kafka may have them, or not
            return sent

        yield SimpleNamespace(send=send)

    monkeypatch.setattr("service.cli.kafka.writer", writer)
    result = scene.run("request", "--from", ids(tmp_path, 1))

    assert result.exit_code == 3, result.output
    assert "Stopped: sent 0 of 1. The same command goes on; what was sent is not sent again.\n" in result.stderr


# ---------------------------------------------------------------- options that do not fit


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "{ids}", "C4-1"), "don't go with --from"),
        (("--from", "{ids}", "--operation-id", "x"), "don't go with --from"),
        (("C4-1", "--dry-run"), "need --from"),
        ((), "Name one replication by REPLICATION_ID, or many by --from FILE"),
        (("--from", "{ids}", "--failed-to", "x"), "--failed-to needs --wait"),
        (("--from", "{ids}", "--site", "\udcff"), "--site has bytes that are not UTF-8: \\udcff."),
        (("C4-1", "--site", "\udcff"), "--site has bytes that are not UTF-8"),
        (("C4-\udcff",), "REPLICATION_ID has bytes that are not UTF-8"),
        (("C4-1", "--operation-id", "\udcff"), "--operation-id has bytes that are not UTF-8"),
        (
            ("C4-1", "--wait", "--ops-url", "http://["),
            "--ops-url must be a URL such as http://10.0.0.7:8080, not http://[.",
        ),
        (("C4-1", "--wait", "--ops-url", "ops:8080"), "--ops-url must be a URL such as"),
        (("--from", "{ids}", "--wait", "--failed-to", "{ids}"), "would overwrite"),
        (("--from", "{ids}", "--wait", "--failed-to", "/"), "can't be written: Is a directory"),
        (("--from", "/none"), "/none can't be read: No such file or directory"),
        (("--from", "/"), "can't be read: Is a directory"),
        (("--from", "{ids}", "--operation-prefix", "a b"), "--operation-prefix must be"),
        (("--from", "{ids}", "--rate", "0"), "0.1"),
        (("--from", "{ids}", "--format", "xml"), "xml"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    path = ids(tmp_path)
    env = {"VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}

    result = CliRunner().invoke(app, ["request", *[one.format(ids=path) for one in arguments]], env=env)

    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_the_failures_of_an_earlier_run_stay_until_kafka_has_answered(tmp_path: Path) -> None:
    failed = tmp_path / "failed.jsonl"
    failed.write_text("earlier\n", encoding="utf-8")

    result = cli("request", "--from", ids(tmp_path), "--wait", "--failed-to", str(failed))

    assert (result.returncode, failed.read_text(encoding="utf-8")) == (3, "earlier\n")


def test_a_file_that_is_piped_in_is_not_overwritten_by_the_failed_requests(tmp_path: Path) -> None:
    path = ids(tmp_path)
    before = Path(path).read_bytes()

    with Path(path).open("rb") as file:
        result = cli("request", "--from", "-", "--wait", "--failed-to", path, stdin=file)

    assert (result.returncode, Path(path).read_bytes()) == (2, before)
    assert "would overwrite" in result.stderr


def test_a_closed_standard_input_reads_as_an_empty_one() -> None:
    result = cli("request", "--from", "-", preexec_fn=partial(os.close, 0))

    assert (result.returncode, result.stderr) == (0, "The input has no requests; nothing was sent.\n")


def cli(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env={**os.environ, "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        **options,
    )


# ---------------------------------------------------------------- the rate, in virtual time


class Producer:
    """Takes everything; `held` seconds pass until it takes the first."""

    def __init__(self, *, held: float = 0) -> None:
        self.sent: list[float] = []
        self._held = held

    async def send(self, *_: object, **__: object) -> "asyncio.Future[None]":
        held, self._held = self._held, 0
        await asyncio.sleep(held)
        loop = asyncio.get_running_loop()
        self.sent.append(loop.time())
        future: asyncio.Future[None] = loop.create_future()
        future.set_result(None)
        return future


def sending(producer: Producer, count: int, *, rate: float) -> Any:
    file = read_file(BytesIO(b"".join(b"C4-%d\n" % number for number in range(count))), form=None, batch="b")
    place: Any = SimpleNamespace(names=SimpleNamespace(requests="requests"))
    return request_many._send(place, producer, Batch(name="b", file=file), rate=rate)


@virtual
async def test_requests_leave_at_the_rate() -> None:
    producer = Producer()

    await sending(producer, 5, rate=4)

    assert producer.sent == [0, 0.25, 0.5, 0.75, 1]


@virtual
async def test_after_a_delay_the_rate_is_not_made_up_for() -> None:
    producer = Producer(held=10)

    await sending(producer, 4, rate=4)

    assert producer.sent == [10, 10, 10 - request_many.BURST + 0.25, 10 - request_many.BURST + 0.5]
