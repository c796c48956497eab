"""`vm-sync outcomes` against a real Kafka: what is counted, what is left out, and how it is said."""

import asyncio
import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from typer.testing import CliRunner

from service.cli import request
from service.cli.commands import app
from service.cli.outcome_events import OutcomeEvent, read_event
from service.cli.outcome_summary import Published
from service.cli.outcomes import LastOutcomes, lasted
from service.moments import rfc3339
from tests.cli.test_outcome_summary import event
from tests.support.cli_scene import Scene


def record(number: int, *, hours: float, reason: str | None = None, took: float = 60, **fields: Any) -> dict[str, Any]:
    """Return the record of an outcome that was published so many hours ago."""
    at = datetime.now(UTC) - timedelta(hours=hours)
    body: dict[str, Any] = {
        "requestId": f"op:C4-{number}:op-{number}",
        "operationID": f"op-{number}",
        "replicationId": f"C4-{number}",
        "site": None,
        "taskId": f"t-{number}",
        "requestedAt": rfc3339(at - timedelta(seconds=took)),
        "submittedAt": rfc3339(at - timedelta(seconds=took / 2)),
        "endedAt": rfc3339(at),
        "attempts": 1,
        "warnings": [],
    }
    if reason is None:
        body["instance"] = None
    else:
        body |= {"reason": reason, "error": {"code": "Gone", "msg": "No\x1b such.", "args": []}, "httpStatus": 404}
    return {
        "key": f"C4-{number}".encode(),
        "value": json.dumps(body | fields).encode(),
        "timestamp_ms": int(at.timestamp() * 1000),
    }


@pytest.fixture
def told(scene: Scene) -> Scene:
    """With outcomes of three days, and what does not belong there."""
    scene.write(
        "completed",
        record(1, hours=50),
        record(2, hours=10, took=30),
        record(3, hours=3, site="site2", took=7200),
        record(4, hours=1, took=10),
        {"value": b"not an outcome", "timestamp_ms": int(datetime.now(UTC).timestamp() * 1000)},
        {"value": None, "key": b"C4-1", "timestamp_ms": int(datetime.now(UTC).timestamp() * 1000)},
    )
    scene.write(
        "failed",
        record(5, hours=30, reason="rejected"),
        record(6, hours=5, reason="rejected"),
        record(4, hours=4, reason="task-failed"),
        record(7, hours=2, reason="a-newer-reason", site="site2"),
    )
    return scene


def named(answer: Any) -> list[str]:
    return [one["operationID"] for one in answer["latest"]]


def test_the_outcomes_of_a_period_are_counted_and_the_latest_listed(told: Scene) -> None:
    answer = told.answer("outcomes", "--since", "P1D")

    assert named(answer) == ["op-2", "op-6", "op-4", "op-3", "op-7", "op-4"]
    assert (answer["count"], answer["foreign"]) == (6, 2)
    groups = [(one["outcome"], one["reason"], one["site"], one["count"]) for one in answer["summary"]]
    assert groups == [
        ("completed", None, None, 2),
        ("completed", None, "site2", 1),
        ("failed", "a-newer-reason", "site2", 1),
        ("failed", "rejected", None, 1),
        ("failed", "task-failed", None, 1),
    ]
    first = answer["summary"][0]
    assert first["seconds"] == {"p50": pytest.approx(10, rel=0.02)} | dict.fromkeys(
        ("p90", "p99"), pytest.approx(30, rel=0.02)
    )
    assert first["secondsAtVcda"]["p50"] == pytest.approx(5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--since", "7d"), ["op-1", "op-5", "op-2", "op-6", "op-4", "op-3", "op-7", "op-4"]),
        (("--since", "7d", "--until", "245m"), ["op-1", "op-5", "op-2", "op-6"]),
        (("--failed",), ["op-6", "op-4", "op-7"]),
        (("--completed",), ["op-2", "op-3", "op-4"]),
        (("--reason", "rejected", "--since", "7d"), ["op-5", "op-6"]),
        (("--site", "site2"), ["op-3", "op-7"]),
        (("--site", ""), ["op-2", "op-6", "op-4", "op-4"]),
        (("--replication", "C4-4"), ["op-4", "op-4"]),
        (("--limit", "2"), ["op-7", "op-4"]),
        (("--limit", "0"), []),
    ],
)
def test_options_choose_which_are_meant(told: Scene, options: tuple[str, ...], expected: list[str]) -> None:
    assert named(told.answer("outcomes", *options)) == expected


def test_people_get_a_list_and_a_table_and_are_told_what_was_not_counted(told: Scene) -> None:
    result = told.run("outcomes", "--limit", "2")

    head, first, second, _, groups, *counts = result.stdout.splitlines()
    assert head.split()[:5] == ["operationID", "replicationId", "site", "outcome", "ended"]
    assert "failed: a-newer-reason" in first
    assert "Gone: No\\x1b such. (HTTP 404)" in first
    assert "completed" in second
    assert re.search(r"6\dm ago", second)
    assert groups.split() == "outcome reason site count p50 p90 p99 VCDA p50 VCDA p90 VCDA p99".split()  # noqa: SIM905 - a line
    assert counts[0].split() == ["completed", "local", "2", "10s", "30s", "30s", "5.0s", "15s", "15s"]
    assert counts[1].split()[:4] == ["completed", "site2", "1", "2h00m"]
    assert "The latest 2 of 6; --limit shows more, --csv all of them." in result.stderr
    assert "2 records of the topics are no outcomes" in result.stderr


def test_a_period_without_outcomes_is_said_and_is_no_failure(told: Scene) -> None:
    for form in ((), ("--csv",), ("--ids",), ("--json",)):
        result = told.run("outcomes", "--since", "90d", "--until", "80d", *form)

        assert result.exit_code == 0
        assert result.stderr.startswith("No such outcomes from 20")


def test_as_csv_each_outcome_is_a_row_and_control_characters_are_escaped(told: Scene) -> None:
    rows = list(csv.DictReader(io.StringIO(told.run("outcomes", "--failed", "--csv").stdout)))

    assert sorted(row["operationID"] for row in rows) == ["op-4", "op-6", "op-7"]
    (row,) = [row for row in rows if row["operationID"] == "op-7"]
    assert row["reason"] == "a-newer-reason"
    assert (row["seconds"], row["site"], row["httpStatus"]) == ("60.0", "site2", "404")
    assert row["error"] == "Gone: No\\x1b such. (HTTP 404)"


def test_ids_are_those_whose_last_outcome_is_meant_and_request_reads_them(told: Scene) -> None:
    failed = told.run("outcomes", "--failed", "--ids")

    assert sorted(failed.stdout.splitlines()) == ["C4-6", "C4-7\tsite2"], "C4-4 has completed since then"
    assert sorted(told.run("outcomes", "--completed", "--ids").stdout.split()) == ["C4-2", "C4-3", "C4-4", "site2"]
    sent = CliRunner().invoke(app, ["request", "--from", "-", "--json"], env=told.env, input=failed.stdout)
    assert json.loads(sent.stdout)["sent"] == 2
    bodies = [json.loads(one.value) for one in told.read("requests")]
    assert sorted((body["replicationId"], body.get("site")) for body in bodies) == [("C4-6", None), ("C4-7", "site2")]


def test_one_topic_for_both_kinds_of_outcome_is_read_once(told: Scene) -> None:
    told.write("completed", record(8, hours=0.8, reason="rejected"), record(8, hours=0.5))
    common = told.name("completed")

    assert named(told.answer("outcomes", VM_SYNC_TOPICS__FAILED=common)) == ["op-2", "op-3", "op-4", "op-8", "op-8"]
    assert named(told.answer("outcomes", "--failed", VM_SYNC_TOPICS__FAILED=common)) == ["op-8"]
    assert told.run("outcomes", "--failed", "--ids", VM_SYNC_TOPICS__FAILED=common).stdout == ""


def test_aborted_outcomes_are_not_read(told: Scene) -> None:
    async def abort() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=told.bootstrap, transactional_id=told.name("aborting"))
        await producer.start()
        await producer.begin_transaction()
        await producer.send_and_wait(told.name("completed"), **record(9, hours=0))
        await producer.abort_transaction()
        await producer.stop()

    asyncio.run(abort())

    assert "op-9" not in named(told.answer("outcomes"))


def test_what_retention_has_deleted_of_the_period_is_said(told: Scene) -> None:
    async def delete() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=told.bootstrap)
        await admin.start()
        places = [TopicPartition(told.name("completed"), number) for number in range(3)]
        await admin.delete_records({place: RecordsToDelete(before_offset=1) for place in places})
        await admin.close()

    asyncio.run(delete())

    assert "Kafka has deleted the beginning of the period" in told.run("outcomes", "--since", "7d").stderr


def test_records_out_of_order_are_counted_by_their_own_time(scene: Scene) -> None:
    for hours in (1, 5, 2):
        scene.write("completed", {**record(int(hours), hours=hours), "partition": 0})

    assert named(scene.answer("outcomes", "--since", "3h")) == ["op-2", "op-1"]
    assert named(scene.answer("outcomes", "--since", "6h", "--until", "90m")) == ["op-5", "op-2"]


# ---------------------------------------------------------------- pure


def published(number: int, at: int, **fields: Any) -> Published:
    return Published(at, 0, at, event(number, **fields))


def test_a_replication_whose_outcome_was_another_one_later_is_left_out() -> None:
    last = LastOutcomes()
    for one, meant in (
        (published(1, 10, reason="rejected"), True),
        (published(2, 10, reason="rejected"), True),
        (published(1, 20), False),
        (published(2, 5), False),
        (published(3, 5), False),
        (published(1, 30, site="site2", reason="rejected"), True),
    ):
        last.add(one, meant=meant)

    assert list(last.lines()) == ["C4-1\tsite2", "C4-2"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (-1, "0.0s"),
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (119.4, "119s"),
        (185, "3m05s"),
        (7199.6, "2h00m"),
        (90_000, "25h00m"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, said: str) -> None:
    assert lasted(seconds) == said


DEEP = b'{"later":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "value", [None, b"", b"null", b"{}", b"[]", b"\xff", b'{"requestId": 1}', b'{"operationID": "x"}', DEEP]
)
def test_what_is_no_outcome_is_none(value: bytes | None) -> None:
    assert read_event(value) is None


@pytest.mark.parametrize("value", [None, b"", b"null", b"[]", b"\xff", b"9" * 5000, b"[" * 100_000, b"{}"])
def test_a_waiting_request_takes_what_is_no_outcome_for_a_record_without_fields(value: bytes | None) -> None:
    assert request._event(value) == {}


def test_a_moment_without_a_zone_or_out_of_range_is_no_outcome() -> None:
    body = json.loads(record(1, hours=1)["value"])

    assert isinstance(read_event(json.dumps(body).encode()), OutcomeEvent)
    for moment in ("2026-03-01T22:00:00", "99999-03-01T22:00:00Z", "0001-01-01T00:00:00+23:00", "soon"):
        assert read_event(json.dumps(body | {"endedAt": moment}).encode()) is None
