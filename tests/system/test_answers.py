"""Whatever VCDA answers, a request ends as it should: the table of answers.py against a real process."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

import pytest

from service.sandbox.kafka import Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.support.answers import LOST_AFTER, OUR_SITE, REQUEST_TIMEOUT, SETTLE, STRANGE_SITE, TABLES, End, Row
from tests.support.process_harness import GUEST_SECRET, PASSWORD, Ledger, Told, appliance

pytestmark = pytest.mark.e2e

ROWS = [row for rows in TABLES.values() for row in rows]
NAMES = [f"{title.split()[1]}: {row.answer}" for title, rows in TABLES.items() for row in rows]


@dataclass(frozen=True, slots=True)
class Case:
    """A row with a site, a replication and an operation that no other row has."""

    row: Row
    number: int

    @property
    def operation_id(self) -> str:
        return f"row-{self.number}"

    @property
    def replication_id(self) -> str:
        return f"C4-00000000-0000-4000-8000-{self.number:012d}"

    @property
    def site(self) -> str | None:
        match self.row.site:
            case None:
                return f"site-of-row-{self.number}"
            case site if site == OUR_SITE:
                return None
            case site if site == STRANGE_SITE:
                return "strange-site"
            case _:
                return "unknown-site"


CASES = [Case(row, number) for number, row in enumerate(ROWS)]


@dataclass(frozen=True, slots=True)
class Run:
    """What there was to see, when all was over."""

    told: dict[str, list[Told]]
    posts: dict[str, int]
    tasks: dict[str, int]
    adopted: set[str]
    log: str
    tracebacks: list[str]
    metrics: str
    exit_code: int
    faults_left: list[dict[str, object]]
    refusals: list[str]
    posts_while_paused: int
    overlapping: int


@pytest.fixture(scope="module")
def run(kafka: Kafka) -> Run:
    """Ask one process for all rows, most of them at once."""
    return asyncio.run(_run(kafka.bootstrap))


async def _run(bootstrap: str) -> Run:
    sites = sorted({case.site for case in CASES if case.row.site is None and case.site})
    config = appliance(Plan(queued=Durations.of(0.1), duration=Durations.of(1)), remote_sites=(*sites, "strange-site"))
    users = [{"name": name, "user": "administrator@System", "password": PASSWORD} for name in (*sites, "unknown-site")]
    async with (
        Simulator(config) as simulator,
        Ledger(bootstrap=bootstrap, simulator=simulator, prefix="answers") as ledger,
    ):
        process = ledger.start(
            VM_SYNC_VCDA__SITES=json.dumps(users),
            VM_SYNC_VCDA__REQUEST_TIMEOUT=f"PT{REQUEST_TIMEOUT}S",
            VM_SYNC_SYNC__SETTLE=f"PT{SETTLE}S",
            VM_SYNC_SYNC__LOST_AFTER=f"PT{LOST_AFTER}S",
        )
        await ledger.ready(process)
        await _warm_up(ledger, sites)
        before = dict(simulator.world.counts.calls_by_site)
        for case in CASES:
            for fault in case.row.faults:
                simulator.faults.add(replace(fault, site=case.site), now=simulator.world.now())
            simulator.world.plan(replication=case.replication_id, **case.row.plan)
        # All rows share the session. One that no login helps pauses logins for all, so it comes last, and alone; those
        # that cost the session its life come one by one, or the next would meet a session that is just being renewed.
        renewing = [case for case in CASES if _says_401(case.row) and case.row.deadline is None]
        refused = [case for case in CASES if _says_401(case.row) and case.row.deadline is not None]
        rest = [case for case in CASES if case not in renewing and case not in refused]
        impatient = [case for case in rest if case.row.deadline is not None and case.row.ends.posts is not None]
        for case in renewing:
            await _ask(ledger, [case])
            await ledger.wait(within=60)
        # Those with a deadline before the crowd.
        await _ask(ledger, impatient)
        await _each_posted_or_over(ledger, impatient, posted=simulator.world.counts.calls_by_site, before=before)
        await _ask(ledger, [case for case in rest if case not in impatient])
        await ledger.wait(within=120)
        await _ask(ledger, refused)
        told = await ledger.wait(within=120)
        counters = simulator.world.counters()
        metrics = (await process.get("/metrics")).text
        exit_code = await process.stop()
        tasks = [task["operationID"] for task in simulator.world.ledger()]
        lines = [json.loads(line) for line in process.text().splitlines() if line.startswith("{")]
        return Run(
            told={
                case.operation_id: [one for one in told if one.event["operationID"] == case.operation_id]
                for case in CASES
            },
            posts={
                case.operation_id: counters["callsBySite"].get(name, 0) - before.get(name, 0)
                for case in CASES
                for name in [f"submit {case.site or config.local_site}"]
            },
            tasks={case.operation_id: tasks.count(case.operation_id) for case in CASES},
            adopted={line["operation_id"] for line in lines if line["message"].startswith("Adopted task")},
            log=process.text(),
            tracebacks=ledger.tracebacks(),
            metrics=metrics,
            exit_code=exit_code,
            faults_left=simulator.faults.list(now=simulator.world.now()),
            refusals=counters["refusals"],
            posts_while_paused=counters["postsWhilePaused"],
            overlapping=counters["overlapping"],
        )


async def _each_posted_or_over(
    ledger: Ledger, cases: Sequence[Case], *, posted: Mapping[str, int], before: Mapping[str, int]
) -> None:
    """Wait until each has had its first POST. On a busy machine its deadline may come first: then it alone fails."""
    left = {case.operation_id: f"submit {case.site}" for case in cases}
    async with asyncio.timeout(60):
        while left:
            over = {told.event["operationID"] for told in await ledger.outcomes()}
            left = {one: name for one, name in left.items() if one not in over and posted[name] == before.get(name, 0)}
            await asyncio.sleep(0.05)


async def _ask(ledger: Ledger, cases: list[Case]) -> None:
    for case in cases:
        fields: dict[str, Any] = {} if case.site is None else {"site": case.site}
        if case.row.deadline is not None:
            fields["deadlineSeconds"] = case.row.deadline
        await ledger.ask(case.operation_id, case.replication_id, **fields)


def _says_401(row: Row) -> bool:
    return any(fault.status == HTTPStatus.UNAUTHORIZED for fault in row.faults if fault.answer == "status")


async def _warm_up(ledger: Ledger, sites: list[str]) -> None:
    """Have the session extended to all sites, so that no row's deadline passes meanwhile."""
    for number, site in enumerate(sites):
        await ledger.ask(f"warm-up-{number}", f"C4-00000000-0000-4000-8001-{number:012d}", site=site)
    await ledger.wait(within=120)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_request_ends_as_the_page_says(case: Case, run: Run) -> None:
    (told,) = run.told[case.operation_id]
    event, error = told.event, told.event.get("error")
    expected = case.row.ends
    ended = End(
        outcome=event.get("reason", told.kind),
        code=error and error["code"],
        http_status=event.get("httpStatus"),
        attempts=event["attempts"],
        posts=run.posts[case.operation_id],
        tasks=run.tasks[case.operation_id],
        adopted=case.operation_id in run.adopted,
        warnings=tuple(warning["code"] for warning in event["warnings"]),
    )

    if expected.attempts is None:
        ended = replace(ended, attempts=None)
    if expected.posts is None:
        ended = replace(ended, posts=None)
    assert ended == expected


def test_everything_that_was_to_go_wrong_went_wrong(run: Run) -> None:
    assert [fault for fault in run.faults_left if fault["left"] is not None] == []


def test_no_answer_is_a_bug_and_none_stops_the_process(run: Run) -> None:
    assert run.tracebacks == []
    assert run.exit_code == 0


def test_no_secret_and_no_stack_trace_stands_in_an_event_or_in_the_log(run: Run) -> None:
    everything = run.log + json.dumps([one.event for told in run.told.values() for one in told])

    for secret in (PASSWORD, GUEST_SECRET, "stacktrace"):
        assert secret not in everything


def test_texts_are_cut_to_what_the_contract_says(run: Run) -> None:
    messages = [len(one.event["error"]["msg"]) for told in run.told.values() for one in told if one.event.get("error")]

    assert max(messages) == 1000


def test_vcda_was_asked_nothing_that_its_documentation_does_not_allow(run: Run) -> None:
    assert run.refusals == []
    assert run.posts_while_paused == 0
    assert run.overlapping == 0


def test_adopted_tasks_and_unknown_states_are_counted(run: Run) -> None:
    assert f"vm_sync_tasks_adopted_total {len(run.adopted):.1f}" in run.metrics
    assert sum(_samples(run.metrics, "vm_sync_unknown_task_states_total")) >= 1


def _samples(text: str, name: str) -> list[float]:
    return [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)]
