"""Whether the promises were kept: what was asked, what VCDA did and what a reader sees, compared. Pure.

It knows nothing of how the service works. What `docs/guarantees.md` doesn't promise is recognised here by the
replications on which a run provoked it, and counted apart: there only, and by name.
"""

import json
import signal
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from aiokafka import TopicPartition

Header = tuple[str, bytes]

TOLD_WITHIN = 65.0
"""Seconds from the end of a task, or from the calm, to its outcome: a rebalance that waits for somebody dead, on a busy
machine. Shorter than the deadline, by which all those end that are held up for good."""

TAKEN_WITHIN = 15.0
"""Seconds from the intent of a POST to VCDA's taking it, at most: D, and a machine that is busy."""

ENDS = frozenset({0, 1, 3})
"""Exit codes of a command that nobody interrupts: all is well, something failed, or Kafka was away."""
INTERRUPTED = {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
"""The exit code after a signal."""


NO_CREDENTIALS: Final = "NoCredentials"
"""As a client reads it in an outcome."""

OTHER_END: Final = "CANCELLED"
"""The state, unknown to clients, in which failed tasks end in some runs."""

HAS_TASK: Final = "VCDA has a task for it"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was put on the topic, the first time."""

    operation_id: str
    replication_id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Spoilt:
    """A message that nobody can understand, as it was put on the topic. `lost`: Kafka's client can't hand it over."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """A record as a read_committed reader sees it; `event` is empty unless it is an outcome."""

    kind: str
    event: Mapping[str, Any]
    headers: tuple[Header, ...]
    place: TopicPartition
    offset: int
    key: bytes | None = None
    value: bytes | None = None
    at: float = 0.0
    """When it was written, in seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePaused:
    """A time in which each process had read that an operator paused a site, and the POSTs that came to it then."""

    site: str
    seconds: float
    posts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """A cancel as it was put on the topic."""

    operation_id: str
    partition: int
    offset: int
    release: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRun:
    """A run of `vm-sync request --from`. `interrupted`: the signal that it was sent."""

    code: int
    said: str
    interrupted: signal.Signals | None = None
    known: frozenset[str] = frozenset()
    """Operations whose outcomes a reader had seen before it began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSent:
    """A file of requests that was sent by several runs of a command, the last of which came to its end."""

    name: str
    replications: frozenset[str]
    """All that the file has; nobody else asks for them."""
    records: Mapping[tuple[str, str], int]
    """How often each operation of a replication stands on the topic."""
    runs: Sequence[CommandRun]
    answer: Mapping[str, Any]
    """What the last run printed."""
    failed_to: str
    """What stands in its file of failures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """Something done to Kafka while nothing else was wrong and outcomes were due all the time."""

    words: str
    began: float
    until: float
    """In seconds since 1970."""
    bound: float
    """Seconds for which a partition may have no outcome."""


@dataclass(frozen=True, slots=True)
class Silence:
    """The longest time in which a partition had no outcome during a disturbance, in seconds."""

    disturbance: Disturbance
    partition: int
    longest: float


@dataclass(slots=True)
class Verdict:
    """What was found; `violations` are sentences, and none is what a run has to show."""

    violations: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    not_promised: Counter[str] = field(default_factory=Counter)
    """What went as badly as the guarantees say that it may, by case."""
    silences: list[Silence] = field(default_factory=list)
    """The longest one of each disturbance."""

    def must(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.violations.append(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything there is to compare."""

    asked: Mapping[str, Asked]
    unsure: frozenset[str] = frozenset()
    """Operations whose sending failed: they may stand on the topic or not."""
    deleted: frozenset[str] = frozenset()
    """Operations whose records were taken from the topic; those that nobody had read are counted as lost."""
    counted_lost: float = 0.0
    """How many the service says were gone before it could read them."""
    told: Sequence[Told]
    cancelled: Mapping[str, bool] = field(default_factory=dict)
    """Operations for which there was a cancel, and whether one of theirs was a release."""
    cancels: Sequence[Cancel] = ()
    """Those that are known to stand on the topic."""
    files: Sequence[FileSent] = ()
    tasks: Sequence[Mapping[str, Any]]
    """The simulated VCDA's own ledger."""
    spoilt: Sequence[Spoilt] = ()
    dead: Sequence[Told] = ()
    foreign: frozenset[tuple[int, int]] = frozenset()
    """Records, by partition and offset, that an earlier release doesn't know: a dead letter of each is no wrong."""
    spoilt_twice: Mapping[int, int] = field(default_factory=dict)
    """By partition, how often a message that can't be handed over was sent again, and may stand there twice."""
    foreseen: Mapping[str, str] = field(default_factory=dict)
    """By replication, what was done to it that no client could stand up to."""
    odd: frozenset[str] = frozenset()
    """Replications with which something was wrong all the time: theirs may be told late."""
    endless: Mapping[str, str] = field(default_factory=dict)
    """By replication, why its requests can't end but by their deadlines."""
    sites: frozenset[str] = frozenset()
    """Sites that the processes can call: no request is rejected for want of credentials there."""
    replaced: frozenset[tuple[str, str]] = frozenset()
    """By site and name, accounts that were replaced: what became of their tasks, nobody can see."""
    calm: tuple[float, float] | None = None
    """From when to when nothing went wrong, in seconds since 1970."""
    disturbances: Sequence[Disturbance] = ()
    read: Mapping[str, float] = field(default_factory=dict)
    """Records by their fate, as all processes counted them."""
    produced: int | None = None
    """Records that the requests topic was given; None: unknown."""
    skipped: float = 0.0
    """Records that a process has read, and that have no fate in the end."""
    accounted: bool = False
    """Whether `read` is all that was counted, once: who is killed takes what it counted last with it, and who lost a
    partition and gets it back counts what others did with it meanwhile."""
    posts: int = 0
    posts_while_paused: int = 0
    site_pauses: Sequence[SitePaused] = ()
    refusals: Sequence[str] = ()
    """What a correct client never asks."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Everything written: logs, events, journals; by where it stands."""
    secrets: Sequence[str] = ()


def judge(seen: Evidence) -> Verdict:
    """Compare. Only of use when nothing is to be expected any more."""
    verdict = Verdict()
    tasks: defaultdict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
    for task in seen.tasks:
        tasks[task["operationID"]].append(task)
    by_operation: defaultdict[str, list[Told]] = defaultdict(list)
    for one in seen.told:
        by_operation[one.event["operationID"]].append(one)
    untold = set(seen.asked) - set(by_operation)
    overtaken = untold & seen.deleted
    lost = sorted(untold - overtaken)
    twice = sorted(op for op, some in by_operation.items() if len(some) > 1)
    doubled = sorted(op for op in seen.asked if len(tasks[op]) > 1)
    excuses = {op: _excuse(seen.foreseen.get(seen.asked[op].replication_id), tasks[op]) for op in doubled}
    promised = [op for op in doubled if excuses[op] is None]
    for excuse in excuses.values():
        if excuse is not None:
            verdict.not_promised[f"two tasks: {excuse}"] += 1
    overlapping = 0
    for task in seen.tasks:
        if task["overlapped"] and task["replicationId"] in seen.foreseen:
            verdict.not_promised[f"overlap: {seen.foreseen[task['replicationId']]}"] += 1
        else:
            overlapping += task["overlapped"]
    verdict.must(not lost, f"{len(lost)} requests have no outcome, such as {lost[:5]}")
    verdict.must(not twice, f"{len(twice)} requests have two outcomes, such as {twice[:5]}")
    verdict.must(not promised, f"{len(promised)} requests have two tasks, such as {promised[:5]}")
    verdict.must(overlapping == 0, f"{overlapping} syncs overlapped one of the same replication")
    verdict.must(
        len(overtaken) == seen.counted_lost,
        f"{len(overtaken)} requests were gone before they could be read, and {seen.counted_lost:.0f} are counted",
    )
    verdict.must(seen.posts_while_paused == 0, f"{seen.posts_while_paused} POSTs came inside a Retry-After pause")
    for pause in seen.site_pauses:
        verdict.must(
            pause.posts == 0,
            f"{pause.posts} POSTs came to site {pause.site} within {pause.seconds:.1f} s of an operator's pause",
        )
    verdict.must(not seen.refusals, f"VCDA was asked what nobody should ask: {list(seen.refusals)[:3]}")
    verdict.violations.extend(_truth(seen, by_operation, tasks, verdict.not_promised))
    verdict.violations.extend(_order(seen))
    verdict.violations.extend(_cancels_ignored(seen))
    for file in seen.files:
        events = [one.event for one in seen.told if one.event["replicationId"] in file.replications]
        wrong = [*_file_sent(file, events), *_file_runs(file), *_file_answer(file, events)]
        verdict.violations.extend(f"file {file.name}: {sentence}" for sentence in wrong)
    verdict.violations.extend(_endless(seen))
    verdict.violations.extend(_late(seen))
    verdict.silences = [_silence(seen.told, one) for one in seen.disturbances]
    verdict.violations.extend(_silent(verdict.silences))
    verdict.violations.extend(_balance(seen))
    verdict.violations.extend(_dead_letters(seen))
    verdict.violations.extend(_secrets(seen))
    verdict.figures = {
        "asked": len(seen.asked),
        "completed": sum(one.kind == "completed" for one in seen.told),
        "failed": sum(one.kind == "failed" for one in seen.told),
        "lost": len(lost),
        "overtaken": len(overtaken),
        "two outcomes": len(twice),
        "two tasks": len(promised),
        "overlapping": overlapping,
        "not promised": verdict.not_promised.total(),
        "posts": seen.posts,
        "spoilt": len(seen.spoilt),
        "dead letters": len(seen.dead),
        "cancelled": counts(seen.told)["cancelled"],
        "files": len(seen.files),
    }
    return verdict


def _excuse(foreseen: str | None, tasks: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what no client could stand up to, and so may have led to a request's second task."""
    if foreseen is not None:
        return foreseen
    ordered = sorted(tasks, key=lambda task: task["start"])
    if all(one["forgottenAt"] is not None and one["forgottenAt"] <= two["start"] for one, two in pairwise(ordered)):
        return "VCDA had forgotten the first before the second was asked for"
    return None


def _truth(
    seen: Evidence,
    by_operation: Mapping[str, Sequence[Told]],
    tasks: Mapping[str | None, Sequence[Mapping[str, Any]]],
    not_promised: Counter[str],
) -> Iterator[str]:
    """Each outcome tells what became of the request's own task."""
    by_id = {task["id"]: task for task in seen.tasks}
    of_files = {replication for file in seen.files for replication in file.replications}
    for operation_id, some in by_operation.items():
        event = some[0].event
        if operation_id not in seen.asked:
            if operation_id not in seen.unsure and event["replicationId"] not in of_files:
                yield f"{operation_id} has an outcome, and was never asked for"
            continue
        lie = (
            _lie(some[0], tasks.get(operation_id, ()), by_id)
            or _cancelled_lie(some[0], tasks.get(operation_id, ()), seen.cancelled)
            or _rejected_lie(event, seen.sites)
        )
        if lie is None:
            continue
        foreseen = seen.foreseen.get(event["replicationId"])
        if event.get("reason") == "rejected":
            foreseen = None  # whatever led to the repetition of its POST, a look-up after the refusal finds the task
        if foreseen is None and lie == HAS_TASK and _forgotten(tasks[operation_id], by=some[0].at):
            foreseen = "VCDA had forgotten it before it was looked up"
        if foreseen is None:
            yield f"{operation_id} is told {event.get('reason', 'completed')}, and {lie}"
        else:
            not_promised[f"{lie}: {foreseen}"] += 1


def _forgotten(tasks: Iterable[Mapping[str, Any]], *, by: float) -> bool:
    """Return whether VCDA had forgotten all of these tasks at a moment."""
    return all(task["forgottenAt"] is not None and task["forgottenAt"] < by for task in tasks)


def _lie(told: Told, own: Sequence[Mapping[str, Any]], by_id: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return what is not as the outcome says."""
    event = told.event
    task = by_id.get(event["taskId"] or "")
    if event["taskId"] and (task is None or task["operationID"] != event["operationID"]):
        return "the task is not its own"
    needed = {"completed": {"SUCCEEDED"}, "task-failed": {"FAILED", OTHER_END}}.get(event.get("reason", "completed"))
    state = None if task is None else task["state"]
    if needed is not None and state not in needed:
        return f"its task is {state}"
    if event.get("reason") == "task-lost" and (task is None or not task["forgotten"]):
        return "VCDA still knows its task"
    if event.get("reason") in {"not-started", "rejected"} and own:
        return HAS_TASK
    return None


def _cancelled_lie(told: Told, own: Sequence[Mapping[str, Any]], cancelled: Mapping[str, bool]) -> str | None:
    """Return what is not as the outcome says of a cancel."""
    event = told.event
    if event.get("reason") != "cancelled":
        return None
    if event["operationID"] not in cancelled:
        return "nobody has cancelled it"
    if event["error"]["code"] == "Released":
        return None if cancelled[event["operationID"]] else "nobody has released it"
    return HAS_TASK if own else None


def _rejected_lie(event: Mapping[str, Any], sites: Collection[str]) -> str | None:
    """Return what is not as the outcome says of missing credentials."""
    error = event.get("error") or {}
    wrong = event.get("reason") == "rejected" and error.get("code") == NO_CREDENTIALS and event["site"] in sites
    return f"there are credentials for site {event['site']}" if wrong else None


def _order(seen: Evidence) -> Iterator[str]:
    """Syncs and outcomes of one replication come in the order of its requests; what is cancelled ends at once."""
    started: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for task in seen.tasks:
        asked = seen.asked.get(task["operationID"] or "")
        if asked is not None and asked.replication_id not in seen.foreseen:
            started[asked.replication_id].append((asked.offset, task["start"]))
    for replication_id, some in started.items():
        starts = [start for _, start in sorted(some)]
        if starts != sorted(starts):
            yield f"the syncs of {replication_id} began out of order"
    placed: defaultdict[tuple[str, TopicPartition], list[tuple[int, int]]] = defaultdict(list)
    for one in seen.told:
        asked = seen.asked.get(one.event["operationID"])
        if asked is not None and one.event.get("reason") != "cancelled":
            placed[asked.replication_id, one.place].append((asked.offset, one.offset))
    for (replication_id, _), offsets in placed.items():
        told_at = [at for _, at in sorted(offsets)]
        if told_at != sorted(told_at):
            yield f"the outcomes of {replication_id} were told out of order"


def _cancels_ignored(seen: Evidence) -> Iterator[str]:
    """A cancel takes effect when it is read, which is before any request behind it in its partition is read.

    So no outcome of a released request comes behind one of such a request. And where such a request has a task, a POST
    of the cancelled one had left before, unless it was in doubt: then there was a second one.
    """
    outcomes = {one.event["operationID"]: one for one in seen.told}
    started = {task["operationID"]: task["start"] for task in seen.tasks}
    later: defaultdict[int, list[Asked]] = defaultdict(list)
    for asked in seen.asked.values():
        later[asked.partition].append(asked)
    for cancel in seen.cancels:
        own = outcomes.get(cancel.operation_id)
        if (cancel.partition, cancel.offset) in seen.foreign or own is None or cancel.operation_id not in seen.asked:
            continue
        if cancel.offset < seen.asked[cancel.operation_id].offset:  # it names a request that was sent before it
            continue
        behind = [one.operation_id for one in later[cancel.partition] if one.offset > cancel.offset]
        if cancel.release:
            earlier = [outcomes[name] for name in behind if name in outcomes and outcomes[name].place == own.place]
            if any(one.offset < own.offset for one in earlier):
                yield f"the release of {cancel.operation_id} was ignored: requests behind it ended earlier"
        elif cancel.operation_id in started and own.event.get("attempts") == 1:
            first = min((started[name] for name in behind if name in started), default=None)
            if first is not None and started[cancel.operation_id] > first + TAKEN_WITHIN:
                yield f"the cancel of {cancel.operation_id} was ignored: POSTs of requests behind it left earlier"


def _file_sent(file: FileSent, events: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Each line of a file is one request, whatever its runs were interrupted by."""
    operations: defaultdict[str, set[str]] = defaultdict(set)
    ended = [(event["replicationId"], event["operationID"]) for event in events]
    for replication_id, operation_id in (*file.records, *ended):
        operations[replication_id].add(operation_id)
    if missing := sorted(file.replications - operations.keys()):
        yield f"{len(missing)} of its requests were never sent, such as {missing[0]}"
    if several := sorted(name for name, some in operations.items() if len(some) > 1):
        yield f"{len(several)} of its lines became several requests, such as {several[0]}"


def _file_runs(file: FileSent) -> Iterator[str]:
    """What had ended isn't sent again, and each run ends as it should."""
    for number, run in enumerate(file.runs):
        # Each run sends a request once at most, so there are as many as runs that began before its outcome was known.
        repeated = sorted(name for (_, name), count in file.records.items() if name in run.known and count > number)
        if repeated:
            yield f"run {number + 1} sent {len(repeated)} requests again that had ended, such as {repeated[0]}"
        allowed = ENDS
        if run.interrupted is not None:
            # The negative number: all was done, and the signal came while Python was ending.
            allowed = ENDS | {INTERRUPTED[run.interrupted], -run.interrupted}
        silent = run.code not in {0, -signal.SIGKILL} and not run.said.strip()
        if run.code not in allowed or silent or "Traceback" in run.said:
            yield f"run {number + 1} ended with {run.code}, and said {run.said[-300:]!r}"


def _file_answer(file: FileSent, events: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The last run says how all requests ended, also those that earlier runs have sent."""
    failed = {event["replicationId"]: event["reason"] for event in events if "reason" in event}
    size, code = len(file.replications), file.runs[-1].code
    if code != (1 if failed else 0):
        yield f"the last run ended with {code}, and {len(failed)} requests have failed"
    counted = {"requests": size, "completed": size - len(failed), "failed": len(failed), "withoutOutcome": 0}
    if (printed := {name: file.answer.get(name) for name in counted}) != counted:
        yield f"the last run printed {printed}, and there are {counted}"
    if file.answer.get("sent", 0) + file.answer.get("sentBefore", 0) != size:
        yield f"the last run sent {file.answer.get('sent')} and found {file.answer.get('sentBefore')}, of {size}"
    if {one["replicationId"]: one["reason"] for one in file.answer.get("failures", ())} != failed:
        yield "the last run printed other failures than there are"
    again = [json.loads(line) for line in file.failed_to.splitlines()]
    if sorted((one["replicationId"], one["failed"]["reason"]) for one in again) != sorted(failed.items()):
        yield f"--failed-to has {len(again)} requests, and not those {len(failed)} that have failed"


def _endless(seen: Evidence) -> Iterator[str]:
    """What never ends is told so by its deadline, unless VCDA forgets it."""
    for one in seen.told:
        why = seen.endless.get(one.event["replicationId"])
        reason = one.event.get("reason", "completed")
        if why is not None and reason not in {"timed-out", "not-started", "task-lost"}:
            yield f"{one.event['operationID']} is told {reason}, and it has {why}"


def _late(seen: Evidence) -> Iterator[str]:
    """When nothing goes wrong any more, what has ended is told soon, whatever is odd about others."""
    if seen.calm is None:
        return
    began, ended = seen.calm
    ends = {
        task["operationID"]: max(began, task["end"])
        for task in seen.tasks
        if task["end"] < ended
        and task["replicationId"] not in {*seen.odd, *seen.foreseen}
        and not task["forgotten"]
        and (task["site"], task["user"]) not in seen.replaced
    }
    late = {
        one.event["operationID"]: one.at - ends[one.event["operationID"]]
        for one in seen.told
        if one.event["operationID"] in ends and one.at - ends[one.event["operationID"]] > TOLD_WITHIN
    }
    if late:
        name, most = max(late.items(), key=lambda item: item[1])
        yield (
            f"{len(late)} requests were told more than {TOLD_WITHIN:.0f} s after their tasks had ended, although "
            f"nothing went wrong any more, such as {name} after {most:.0f} s"
        )


def _silence(told: Iterable[Told], disturbance: Disturbance) -> Silence:
    """Return the longest time without an outcome of any partition that has some at all."""
    began, until = disturbance.began, disturbance.until
    moments: defaultdict[int, list[float]] = defaultdict(list)
    for one in told:
        moments[one.place.partition].append(one.at)
    longest = {
        partition: max(later - earlier for earlier, later in pairwise([began, *within, until]))
        for partition, some in moments.items()
        for within in [sorted(at for at in some if began <= at <= until)]
    }
    partition = max(longest, key=longest.__getitem__, default=-1)
    return Silence(disturbance, partition, longest.get(partition, until - began))


def _silent(silences: Iterable[Silence]) -> Iterator[str]:
    """Outcomes come again soon after what is done to Kafka."""
    for one in silences:
        if one.longest > one.disturbance.bound:
            yield (
                f"partition {one.partition} had no outcome for {one.longest:.1f} s, of at most "
                f"{one.disturbance.bound:.1f} s: {one.disturbance.words}"
            )


def _balance(seen: Evidence) -> Iterator[str]:
    """No record is skipped: each has a fate, and one."""
    if seen.skipped:
        yield f"{seen.skipped:.0f} records were read and have no fate"
    if seen.produced is None or not seen.read:
        return
    fates = ", ".join(f"{fate} {number:.0f}" for fate, number in sorted(seen.read.items()))
    total = sum(number for fate, number in seen.read.items() if fate != "reread")
    if seen.accounted and total != seen.produced:
        yield f"{total:.0f} records have a fate, of {seen.produced} that were produced: {fates}"


def _dead_letters(seen: Evidence) -> Iterator[str]:
    """Each spoilt message has one dead letter, bytes untouched, and nothing else has any."""
    letters: defaultdict[tuple[int, int], list[Told]] = defaultdict(list)
    for letter in seen.dead:
        headers = dict(letter.headers)
        letters[int(headers["vm-sync-partition"]), int(headers["vm-sync-offset"])].append(letter)
    for spoilt in seen.spoilt:
        where = f"the unreadable message {spoilt.offset} of partition {spoilt.partition}"
        some = letters.pop((spoilt.partition, spoilt.offset), [])
        if len(some) != 1:
            yield f"{where} has {len(some)} dead letters"
            continue
        (letter,) = some
        if spoilt.lost:
            if dict(letter.headers)["vm-sync-reason"] != b"unreadable":
                yield f"{where} can't be handed over, and its dead letter doesn't say so"
            continue
        theirs = tuple(header for header in letter.headers if not header[0].startswith("vm-sync-"))
        if (letter.key, letter.value or b"", theirs) != (spoilt.key, spoilt.value or b"", spoilt.headers):
            yield f"{where} was changed on its way to the dead letters"
    twice = Counter(seen.spoilt_twice)
    for (partition, offset), some in letters.items():
        if twice[partition] and len(some) == 1 and dict(some[0].headers)["vm-sync-reason"] == b"unreadable":
            twice[partition] -= 1
            continue
        if (partition, offset) in seen.foreign and len(some) == 1:
            continue
        yield f"message {offset} of partition {partition} has a dead letter, and nothing was wrong with it"


def _secrets(seen: Evidence) -> Iterator[str]:
    for secret in seen.secrets:
        for where, text in seen.texts.items():
            if secret in text:
                yield f"the secret {secret[:3]}... stands in {where}"


def counts(told: Iterable[Told]) -> Counter[str]:
    """Count outcomes by their word."""
    return Counter(one.event.get("reason", "completed") for one in told)
