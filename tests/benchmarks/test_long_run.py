"""The long run follows each request, and notices what grows, gets lost or comes twice."""

import io
import json
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from rich.console import Console
from rich.progress import Progress

from benchmarks.log_files import OnDisk, on_disk
from benchmarks.long_run import Deployment, Load, LongRun, growth, passed, write
from benchmarks.stage import Stage
from benchmarks.tally import Tally
from service.kafka.topics import JOURNAL_SETTINGS
from service.sandbox.kafka import Kafka

LOAD = Load(requests=60, rate=40.0, seconds=None, processes=2, remember=600.0, partitions=4)


# ---------------------------------------------------------------- the tally


def a_task(operation: str | None, *, state: str = "SUCCEEDED", end: float = 10.0, **more: Any) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "operationID": operation, "state": state, "end": end, "overlapped": False, **more}


def an_outcome(operation: str, task_id: str | None, *, reason: str | None = None) -> bytes:
    return json.dumps({"operationID": operation, "taskId": task_id} | ({"reason": reason} if reason else {})).encode()


def test_a_request_with_one_task_and_the_outcome_of_it_is_as_it_should_be_whichever_comes_first() -> None:
    tally = Tally()
    tally.ask(2)
    good, bad = a_task("op-0", end=10.0), a_task("op-1", state="FAILED", end=20.0)
    tally.take_tasks([good])
    tally.take_outcome(12.5, an_outcome("op-0", good["id"]))
    tally.take_outcome(20.5, an_outcome("op-1", bad["id"], reason="task-failed"))
    tally.take_tasks([bad])
    assert list(tally.findings()) == []
    assert tally.ended == 2
    assert tally.outcomes == {"completed": 1, "task-failed": 1}
    assert tally.lags() == [0.5, 2.5]


def test_each_request_that_lacks_something_or_has_it_twice_is_found() -> None:
    tally = Tally()
    tally.ask(5)
    tasks = [a_task(f"op-{number}") for number in (0, 1, 1, 2, 3)]
    tally.take_tasks(tasks)
    for number, task in ((0, tasks[0]), (0, tasks[0]), (1, tasks[1]), (2, tasks[3])):
        tally.take_outcome(11.0, an_outcome(f"op-{number}", task["id"]))
    assert list(tally.findings()) == [
        "1 requests have no task: op-4",
        "1 requests have several tasks: op-1",
        "2 requests have no outcome: op-3, op-4",
        "1 requests have several outcomes: op-0",
    ]
    assert tally.ended == 3


@pytest.mark.parametrize("wrong", ["task", "end"])
def test_an_outcome_that_tells_another_task_or_another_end_is_found(wrong: str) -> None:
    tally = Tally()
    tally.ask(1)
    task = a_task("op-0")
    tally.take_tasks([task])
    told = {"task": (str(uuid.uuid4()), None), "end": (task["id"], "task-failed")}[wrong]
    tally.take_outcome(11.0, an_outcome("op-0", told[0], reason=told[1]))
    assert list(tally.findings()) == [
        "1 outcomes name another task, or another end, than the request's own: op-0",
    ]


def test_what_was_never_asked_for_and_what_overlapped_is_found() -> None:
    tally = Tally()
    tally.ask(1)
    task = a_task("op-0", overlapped=True)
    tally.take_tasks([task, a_task("op-1"), a_task(None)])
    tally.take_outcome(11.0, an_outcome("op-0", task["id"]))
    tally.take_outcome(11.0, an_outcome("somebody's", task["id"]))
    assert list(tally.findings()) == [
        "op-1 has a task, and was never asked for",
        "None has a task, and was never asked for",
        "somebody's has an outcome, and was never asked for",
        "1 tasks began while another of the same replication was unfinished",
    ]


# ---------------------------------------------------------------- log files


def a_batch(offset: int, records: int, *, marker: bool = False) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=True,
        producer_id=1,
        producer_epoch=0,
        base_sequence=0,
        batch_size=10_000,
    )
    for number in range(records):
        builder.append(number, 0, b"key", b"value", [])
    content = builder.build()
    struct.pack_into(">q", content, 0, offset)
    struct.pack_into(">h", content, 21, struct.unpack_from(">h", content, 21)[0] | 0x20 * marker)
    return bytes(content)


def test_records_are_counted_in_whole_batches_of_a_topics_log_files_without_markers(tmp_path: Path) -> None:
    whole = a_batch(100, 3) + a_batch(103, 1, marker=True)
    for name, content in {
        "t-0/00.log": whole,
        "t-0/99.log": a_batch(104, 2) + a_batch(106, 9)[:-1],  # still being written
        "t-1/00.log": a_batch(7, 1),
        "t-1/00.index": b"x" * 1000,
        "t-1/01.log.deleted": whole,
        "other-0/00.log": whole,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = on_disk([tmp_path], "t")
    size = sum(path.stat().st_size for path in tmp_path.glob("t-*/*.log"))
    assert found == OnDisk(bytes=size, segments=3, records=6, written=106 + 8)


# ---------------------------------------------------------------- judging, and the page


def a_run(*memory: float, remember: float = 10.0) -> LongRun:
    """Make a run of 100 s, with a process whose memory is given, and another whose memory stays the same."""
    run = LongRun(Load(requests=100, rate=1.0, seconds=None, processes=2, remember=remember), "2026", {}, {})
    run.machine = dict.fromkeys(("revision", "processor", "cores", "memory", "system", "load"), "?")
    for number, some in enumerate(memory, 1):
        at = 100.0 * number / len(memory)
        each = [{"memory, MB": mb, "file descriptors": 50.0, "threads": 5.0, "CPU s": at} for mb in (80.0, some)]
        journal = {"bytes": 1_000_000, "segments": 1, "records": 10, "written": 20}
        run.samples.append({"at": at, "asked": number, "ended": number, "processes": each, "journal": journal})
    names = "asked ended rate cpu_ms lag_p50_s lag_p99_s lag_max_s peak_mb journal_mb journal_records journal_written"
    names += " without_outcome restore_first_s restore_s restored_mb"
    run.figures = dict.fromkeys(names.split(), 1.0)
    run.opened = [{"seconds": 0.5, "in_flight": 0, "remembered": 9}]
    return run


def test_a_process_that_grows_from_the_second_quarter_to_the_last_is_found_whichever_it_is() -> None:
    flat, growing = a_run(60, 80, 90, 85, 90, 89, 91, 90), a_run(60, 80, 90, 95, 100, 105, 110, 115)
    assert passed(flat)
    assert next(growth(growing)) == ("memory, MB", 90.0, 110.0, False)
    assert not passed(growing)


def test_growth_is_not_judged_where_identities_are_remembered_for_longer_than_a_quarter() -> None:
    assert list(growth(a_run(60, 80, 100, 120, remember=26.0))) == []


def test_a_run_in_which_something_got_lost_has_not_passed() -> None:
    run = a_run(80, 80, 80, 80)
    run.findings.append("1 requests have no outcome: op-7")
    assert not passed(run)


def test_the_page_and_its_picture_follow_from_the_raw_figures(tmp_path: Path) -> None:
    run = a_run(80, 80, 80, 80)
    write(run, tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "performance").iterdir()}
    assert first.keys() == {"long-run.md", "long-run.json", "long-run.svg"}
    write(LongRun.read(tmp_path / "performance" / "long-run.json"), tmp_path)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "performance").iterdir()}


@pytest.mark.e2e
async def test_each_request_of_a_small_run_has_one_task_and_one_outcome_although_all_processes_are_replaced(
    kafka: Kafka,
) -> None:
    run = LongRun(LOAD, "", {}, {})
    async with Stage(kafka) as stage:
        await stage.vcda_told("plan", queued="0", duration="uniform:0.5:1.5", failing=0.2)
        topics = await stage.topics(LOAD.partitions, journal=JOURNAL_SETTINGS)
        await Deployment(stage, topics, LOAD, run, Progress(console=Console(file=io.StringIO()))).work()
        await stage.drop(topics)
    assert run.findings == []
    assert run.figures["ended"] == LOAD.requests
    assert sum(run.outcomes.values()) == LOAD.requests
    assert len(run.samples[-1]["processes"]) == LOAD.processes
    assert run.figures["restore_s"] > 0
    assert sum(partition["remembered"] for partition in run.opened) == LOAD.requests
