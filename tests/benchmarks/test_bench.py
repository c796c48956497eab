"""The benchmark works: tiny runs come to an end with all figures, and the pages follow from the raw ones.

No speed is asserted: a test that fails on a busy machine guards nothing.
"""

import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import owners, page, scenarios, standstill, virtual
from benchmarks.__main__ import steps
from benchmarks.goals import goals
from benchmarks.results import Results, Run, Spread, histogram_quantile
from benchmarks.scaling import Measured, Plan
from benchmarks.sizes import FULL, TINY
from benchmarks.stage import Stage
from service.sandbox.kafka import Kafka

RAW = Path(__file__).parent / "raw.json"
"""What a tiny run of everything wrote: `python -m benchmarks --form tiny --json tests/bench/raw.json`."""


@pytest.fixture
async def stage(kafka: Kafka) -> AsyncIterator[Stage]:
    async with Stage(kafka) as stage:
        yield stage


def results_of(*runs: Run) -> Results:
    settings = {"form": "tiny", "flight": [1, 2], "restored": 3, "remembered": 4, "rate": 5.0}
    return Results(form="tiny", taken="", machine={}, versions={}, settings=settings, runs=list(runs))


def a_run(subject: str, number: int, **figures: float) -> Run:
    return Run(scenario="S1", subject=subject, round=number, figures=figures)


# ---------------------------------------------------------------- runs


@pytest.mark.e2e
@pytest.mark.parametrize("subject", ["bare", "ceiling", "service", "obvious", "listing"])
async def test_a_burst_ends_with_an_outcome_for_each_request_whoever_does_the_job(stage: Stage, subject: str) -> None:
    run = await scenarios.burst_of_short_ones(stage, subject, sizes=TINY, number=0)
    assert run.figures["posts_per_second"] > 0
    assert run.figures["cpu_ms"] > 0
    assert run.figures.get("missing", 0) == 0
    if subject == "service":
        assert run.figures["overlapping"] == 0


@pytest.mark.e2e
async def test_journals_written_by_the_benchmark_are_restored_by_the_service(stage: Stage) -> None:
    run = await owners.restore(stage, "service", sizes=TINY, number=0)
    assert run.figures["seconds"] > 0
    assert run.figures["rss_mb"] > 0


@pytest.mark.e2e
@pytest.mark.parametrize("subject", ["deadlines-20", "syncs"])
async def test_the_turns_of_the_event_loop_are_measured_alone_and_in_the_service(stage: Stage, subject: str) -> None:
    run = await standstill.standstill(stage, subject, sizes=TINY, number=0)
    assert 0 <= run.figures["second_ms"] <= run.figures["worst_ms"]


@pytest.mark.e2e
async def test_every_request_of_a_trickle_is_seen_from_record_to_post(stage: Stage) -> None:
    run = await scenarios.steady_trickle(stage, "service", sizes=TINY, number=0)
    assert run.figures["missing"] == 0
    assert 0 < run.figures["wait_p50_ms"] <= run.figures["wait_p99_ms"]


@pytest.mark.e2e
async def test_all_partitions_of_a_process_are_open_before_its_idling_is_watched(stage: Stage) -> None:
    few, many = [await owners.partitions(stage, str(count), sizes=TINY, number=0) for count in TINY.partitions]
    assert few.figures["open_s"] > 0
    assert many.figures["open_s"] > 0
    assert many.figures["rss_mb"] > 0


@pytest.mark.e2e
async def test_a_burst_on_two_cores_counts_the_cpu_time_of_both_processes(stage: Stage) -> None:
    run = await scenarios.on_cores(stage, "2", sizes=TINY, number=0)
    assert run.figures["missing"] == 0
    assert 0 < run.figures["least_share"] <= 0.5
    assert run.figures["tasks_per_core_second"] == pytest.approx(2000 / run.figures["cpu_ms"])


@pytest.mark.e2e
async def test_the_service_is_measured_with_the_python_that_is_named(stage: Stage) -> None:
    run = await scenarios.other_python(stage, "this", sizes=TINY, number=0, interpreter=Path(sys.executable))
    assert (run.scenario, run.subject) == ("pythons", "this")
    assert run.figures["missing"] == 0


def test_other_pythons_are_measured_beside_this_one_in_turns() -> None:
    pythons = {"3.11.7": Path("one"), "3.14.0": Path("other")}
    sizes = replace(FULL, rounds=3)
    found = [(step.subject, step.round) for step in steps(sizes, pythons) if step.scenario == "pythons"]
    assert found == [
        ("3.11.7", 0),
        ("3.14.0", 0),
        ("3.14.0", 1),
        ("3.11.7", 1),
        ("3.11.7", 2),
        ("3.14.0", 2),
    ]
    assert all(step.scenario != "pythons" for step in steps(FULL, {}))


def test_each_simulated_site_keeps_as_many_syncs_running_as_it_began_with() -> None:
    row = virtual.simulate(virtual.Shape(sites=2, each=20, median=10.0, seconds=60.0))
    assert row["posts_per_second"] == pytest.approx(2 * 20 / (10.0 * 1.65), rel=0.3)
    assert row["ids_per_call"] >= 1
    assert 0 < row["lag_p50_s"] <= row["lag_p99_s"]


# ---------------------------------------------------------------- figures


def test_a_ratio_is_formed_between_runs_of_the_same_round() -> None:
    results = results_of(
        a_run("bare", 0, cpu_ms=1.0),
        a_run("bare", 1, cpu_ms=10.0),
        a_run("service", 0, cpu_ms=2.0),
        a_run("service", 1, cpu_ms=30.0),
        a_run("service", 2, cpu_ms=99.0),
    )
    assert results.ratio("S1", "service", "bare", "cpu_ms") == Spread(2.0, 2.5, 3.0, 2)


def test_an_excess_is_formed_between_runs_of_the_same_round() -> None:
    results = results_of(a_run("8", 0, mb=80.0), a_run("100", 0, mb=100.0), a_run("100", 1, mb=300.0))
    assert results.excess("S1", "100", "8", "mb") == Spread(20.0, 20.0, 20.0, 1)


def test_what_was_not_measured_is_said_to_be_so() -> None:
    verdicts = {goal.verdict for goal in goals(results_of(a_run("service", 0, overlapping=0.0)))}
    assert verdicts == {"not measured", "yes"}


def test_a_promise_that_is_not_kept_is_shown_in_bold() -> None:
    assert "| **no** |" in page.goals_table(results_of(a_run("service", 0, overlapping=1.0)))


def test_a_quantile_of_a_histogram_counts_only_what_was_seen_between_two_scrapes() -> None:
    before = 'm_bucket{le="0.1"} 90.0\nm_bucket{le="1.0"} 100.0\nm_bucket{le="+Inf"} 100.0\n'
    after = 'm_bucket{le="0.1"} 90.0\nm_bucket{le="1.0"} 150.0\nm_bucket{le="+Inf"} 150.0\n'
    assert histogram_quantile(before, after, "m", 0.5) == 1.0
    assert histogram_quantile("", before, "m", 0.5) == 0.1


def test_a_million_in_flight_take_as_many_processes_as_hold_or_as_work_them_off() -> None:
    known = Measured(
        bytes_each=4_000.0,
        idle_mb=80.0,
        cpu_ms=2.0,
        kafka_cpu_ms=1.0,
        identity_bytes=100.0,
        record_bytes=300.0,
        records_per_second=100_000.0,
        kill_s=8.0,
        join_s=2.0,
    )
    long_ones = Plan(median=600.0, remember=7_200.0, known=known)
    short_ones = Plan(median=90.0, remember=7_200.0, known=known)
    assert (long_ones.processes, long_ones.partitions) == (20, 200)
    assert short_ones.processes == 27
    assert long_ones.per_second == pytest.approx(1_011, abs=1)


# ---------------------------------------------------------------- pages


def test_raw_figures_survive_being_written_and_read(tmp_path: Path) -> None:
    results = Results.read(RAW)
    results.write(tmp_path / "again.json")
    assert Results.read(tmp_path / "again.json") == results


def test_the_pages_and_their_pictures_follow_from_the_raw_figures_and_the_notes_beside_them(tmp_path: Path) -> None:
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance" / "notes.md").write_text("Because of the moon.", encoding="utf-8")
    page.write(Results.read(RAW), tmp_path)
    performance = (tmp_path / "performance.md").read_text(encoding="utf-8")
    scaling = (tmp_path / "scaling.md").read_text(encoding="utf-8")
    for picture in ("burst", "lag", "flight", "trickle", "policy"):
        assert f"performance/{picture}.svg" in performance
        assert (tmp_path / "performance" / f"{picture}.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert "not measured" not in performance
    assert "Limits of these numbers" in performance
    assert "Because of the moon." in performance
    assert "not measured" not in scaling
    assert "1,011" in scaling
