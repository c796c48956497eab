"""`python -m tests.stress.mutants`: break one mechanism at a time in a copy of the tree, and see which test turns red.

A test that stays green whatever is broken guards nothing. Each mutant replaces one text by another and names the
tests that have to notice. `--write` puts what was seen into the table in docs/removed-mechanisms.md, row by row; with
`--new` only those are tried that the table lacks. The exit code is 1 if one goes unnoticed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console

HERE: Final = Path(__file__).resolve().parents[2]
PAGE: Final = HERE / "docs" / "removed-mechanisms.md"
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"
HEAD: Final = "| broken | rule | noticed first by |", "|---|---|---|"
PATIENCE: Final = 240
"""Seconds for one test; that it hangs is noticed, too."""

RULES: Final = "tests/partition/test_protocol_rules.py"
SIMULATION: Final = "tests/partition/test_simulation.py"
REPLACED: Final = "tests/intake/test_topics_replaced.py"
DELETED: Final = "tests/intake/test_journal_comparison.py"
REWRITTEN: Final = "tests/partition/test_journal_rewritten.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A mechanism taken out. `rule` is its number in the model-checked protocol, where it is one of those."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (RULES,)
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Which test noticed; None: none did."""

    mutant: Mutant
    test: str | None


OAUTH: Final = "tests/system/test_kafka_oauth.py"
TOKENS: Final = "tests/kafka/test_tokens.py"
SLICES: Final = "tests/partition/test_slices.py"
CANCELS: Final = "tests/partition/test_cancel.py"

PAUSES: Final = "tests/partition/test_site_pause.py"
CONTROL: Final = "tests/kafka/test_control.py"
LANES: Final = "tests/vcda/test_lanes.py"
ADOPTION: Final = "tests/partition/test_adoption.py"

MANY: Final = "tests/cli/test_request_many.py"
OUTCOMES: Final = "tests/cli/test_outcomes.py"

MUTANTS: Final = (
    Mutant(
        name="a cancel ends a request whose POST was sent",
        rule="18",
        file="service/sync.py",
        old="        case _ if not release:\n            return Step(state)\n",
        new="",
        tests=(CANCELS,),
    ),
    Mutant(
        name="the slot of a released request's POST is kept until its answer",
        file="service/partition/driver.py",
        old="        tracked.answered(lane)\n        tracked.vacate(lane)\n",
        new="        tracked.vacate(lane)\n",
        tests=(CANCELS,),
    ),
    Mutant(
        name="the task of a POST that is answered after its release is not noted",
        file="service/partition/driver.py",
        old="            self._answered_late(tracked, sync.answered_late(tracked.state, answer))\n",
        new="            pass\n",
        tests=(CANCELS,),
    ),
    Mutant(
        name="a cancel has no fate",
        file="service/partition/admission.py",
        old="            taken.fates[Fate.CANCEL] += 1\n",
        new="",
        tests=(CANCELS,),
    ),
    Mutant(
        name="an operator's pause holds back no slot",
        file="service/vcda/lanes.py",
        old="            and self.operator_pause() is None\n        )\n",
        new="        )\n",
        tests=(LANES,),
    ),
    Mutant(
        name="an operator's pause does not stop an intent that is being committed",
        file="service/partition/driver.py",
        old="            and self._lane(tracked).operator_pause() is None\n",
        new="",
        tests=(PAUSES,),
    ),
    Mutant(
        name="the end of an operator's pause wakes nobody",
        file="service/vcda/operator_pauses.py",
        old=".call_later(max(seconds, 0.001), self._look)",
        new=".call_later(86400.0, self._look)",
        tests=(LANES,),
    ),
    Mutant(
        name="an operator's resume wakes nobody",
        file="service/vcda/operator_pauses.py",
        old="        self._changed()\n",
        new="",
        tests=(LANES,),
    ),
    Mutant(
        name="an operator's pause knows the local site by one name only",
        file="service/vcda/operator_pauses.py",
        old="(pause.site in names or public_name(self._canonical_site(pause.site)) in names)",
        new="pause.site == public_name(site)",
        tests=(LANES,),
    ),
    Mutant(
        name="an operator's pause is forgotten while the control topic can't be read",
        file="service/kafka/control.py",
        old="        self._why = self._explained(error)\n",
        new="        self._why = self._explained(error)\n        self._changed({})\n",
        tests=(CONTROL,),
    ),
    Mutant(
        name="an operator's pause is forgotten when its topic is created again",
        file="service/kafka/control.py",
        old="        whole.keep(self._pauses, now=self._clock.now())\n",
        new="",
        tests=(CONTROL,),
    ),
    Mutant(
        name="operators' pauses are never read whole again",
        file="service/kafka/control.py",
        old="        while self._clock.monotonic() < reread_at:\n",
        new="        while True:\n",
        tests=(CONTROL,),
    ),
    Mutant(
        name="an invalid record leaves the operator's pause before it in effect",
        file="service/messages/site_pause.py",
        old="        self._pauses.pop(key.removeprefix(PREFIX)",
        new="        if value is None:\n            self._pauses.pop(key.removeprefix(PREFIX)",
        tests=("tests/messages/test_site_pause.py",),
    ),
    Mutant(
        name="a second run of a file sends again what the service has read",
        file="service/cli/request_many.py",
        old="        self.to_send = deque(one for one in self.to_send if one.identity not in entries)\n",
        new="",
        tests=(MANY,),
    ),
    Mutant(
        name="a file's requests get other ids in each run",
        file="service/cli/request_many.py",
        old='(batch_of(file, defaults) if again else f"from-{secrets.token_hex(6)}")',
        new='f"from-{secrets.token_hex(6)}"',
        tests=("tests/stress/test_chaos.py",),
    ),
    Mutant(
        name="an outcome that was shown before the journal showed the end is missed",
        file="service/cli/request_many.py",
        old="                    await _catch_up(place, batch, report)\n",
        new="                    pass\n",
        tests=(MANY,),
    ),
    Mutant(
        name="a second Ctrl-C waits like the first",
        file="service/cli/interrupts.py",
        old="        signal.signal(signal.SIGINT, _leave)\n",
        new="",
        tests=("tests/cli/test_interrupts.py",),
    ),
    Mutant(
        name="long answers of the operations server are made side by side",
        file="service/ops/server.py",
        old="        async with one_at_a_time:\n            return await answer(query)\n",
        new="        return await answer(query)\n",
        tests=("tests/ops/test_sites_view.py",),
    ),
    Mutant(
        name="the metrics are written in one go",
        file="service/ops/exposition.py",
        old="            await asyncio.sleep(0)\n",
        new="",
        tests=("tests/ops/test_exposition.py",),
    ),
    Mutant(
        name="a request that is no longer remembered is never sent again",
        file="service/cli/syncs.py",
        old="        return isinstance(self.sync, Ended) and self.sync.expires_at <= now\n",
        new="        return False\n",
        tests=(MANY,),
    ),
    Mutant(
        name="many requests are sent as fast as Kafka takes them",
        file="service/cli/request_many.py",
        old="            await asyncio.sleep(early)\n",
        new="            pass\n",
        tests=(MANY,),
    ),
    Mutant(
        name="after a delay the rate is made up for",
        file="service/cli/request_many.py",
        old="        due = max(due, clock() - BURST) + 1 / rate\n",
        new="        due += 1 / rate\n",
        tests=(MANY,),
    ),
    Mutant(
        name="a request of a file has another identity where it stands in another line",
        file="service/cli/request_file.py",
        old="hashlib.sha256(str(replication_id).encode",
        new="hashlib.sha256(f'{line}{replication_id}'.encode",
        tests=("tests/cli/test_request_file.py",),
    ),
    Mutant(
        name="a replication that has completed since is retried",
        file="service/cli/outcomes.py",
        old="            del self.meant[name]\n",
        new="            pass\n",
        tests=(OUTCOMES,),
    ),
    Mutant(
        name="records out of order count for the period that they stand in",
        file="service/cli/kafka.py",
        old="                if record.timestamp >= first and (last is None or record.timestamp < last):\n",
        new="                if True:\n",
        tests=(OUTCOMES,),
    ),
    Mutant(
        name="a journal that isn't compacted is opened",
        file="service/intake/start_position.py",
        old="                await self._check_compacted(consumer)\n",
        new="",
        tests=(REPLACED,),
    ),
    Mutant(
        name="outcomes of two topics at the same moment and place are compared",
        file="service/cli/outcome_summary.py",
        old="    event: OutcomeEvent = field(compare=False)\n",
        new="    event: OutcomeEvent\n",
        tests=("tests/cli/test_outcome_summary.py",),
    ),
    Mutant(
        name="top goes on showing what has ended",
        file="service/cli/top_state.py",
        old="        self._in_flight.pop(key, None)\n",
        new="",
        tests=("tests/cli/test_top_state.py",),
    ),
    Mutant(
        name="top counts the outcomes of more than a minute",
        file="service/cli/top_state.py",
        old="            del self._ended[second]\n",
        new="            pass\n",
        tests=("tests/cli/test_top_state.py",),
    ),
    Mutant(
        name="top's view is not drawn again on a resized terminal",
        file="service/live_view.py",
        old="        if self.resized:\n",
        new="        if False:\n",
        tests=("tests/cli/test_top.py",),
    ),
    Mutant(
        name="an internal error of a closed partition's task is dropped",
        file="service/partition/partition.py",
        old="        if (error := error_of(task)) is None:\n",
        new="        if (error := error_of(task)) is None or self._closed:\n",
        tests=("tests/partition/test_closing.py",),
    ),
    Mutant(
        name="an error of a closed partition's task is not looked at",
        file="service/partition/partition.py",
        old="        if (error := error_of(task)) is None:\n",
        new="        if self._closed or (error := error_of(task)) is None:\n",
        tests=(SIMULATION,),
    ),
    Mutant(
        name="the intent is not written before the POST",
        rule="1",
        file="service/partition/driver.py",
        old="        self._journal_writer.after_commit(partial(self._post_soon, tracked))\n",
        new="        self._post_soon(tracked)\n",
    ),
    Mutant(
        name="no submit window",
        rule="2",
        file="service/partition/submitter.py",
        old=" or self._journal_writer.unconfirmed_for > self._window:",
        new=":",
    ),
    Mutant(
        name="the window is measured by the monotonic clock alone",
        rule="2",
        file="service/partition/journal_writer.py",
        old="        return max(self._clock.monotonic() - self.confirmed_at, by_wall)\n",
        new="        return self._clock.monotonic() - self.confirmed_at\n",
    ),
    Mutant(
        name="the window counts from the commit's answer",
        rule="2",
        file="service/partition/journal_writer.py",
        old="        self.confirmed_at, self._confirmed_at_wall = began, began_at_wall\n",
        new="        self.confirmed_at, self._confirmed_at_wall = self._clock.monotonic(), self._clock.now()\n",
    ),
    Mutant(
        name="a restored intent is POSTed again at once",
        rule="3",
        file="service/sync.py",
        old="        return self.window + self.late\n",
        new="        return timedelta()\n",
    ),
    Mutant(
        name="a restored doubt waits for D without W",
        rule="3",
        file="service/sync.py",
        old="        return self.window + self.late\n",
        new="        return self.late\n",
    ),
    Mutant(
        name="a restored doubt lasts as its new owner's limits say, not those of the process that sent the POST",
        rule="3",
        file="service/sync.py",
        old="    lasts = max(state.doubt_for, policy.restored_doubt)\n",
        new="    lasts = policy.restored_doubt\n",
    ),
    Mutant(
        name="blind second POST: no answer counts as not taken",
        rule="4",
        file="service/sync.py",
        old="""            return Step(
                replace(
                    state,
                    conclusive_from=sent_at + policy.late.total_seconds(),""",
        new="""            return Step(Waiting(request=state.request, attempts=state.attempts))
            return Step(
                replace(
                    state,
                    conclusive_from=sent_at + policy.late.total_seconds(),""",
    ),
    Mutant(
        name="an unanswered POST is concluded at once",
        rule="4",
        file="service/sync.py",
        old="conclusive_from=sent_at + policy.late.total_seconds(),",
        new="conclusive_from=sent_at,",
    ),
    Mutant(
        name="a POST in doubt does not say that the circuit breaker holds back its look-up",
        file="service/partition/waiting.py",
        old="    if (obstacle := lane.obstacle_of_calls()) is not None:\n",
        new="    if (obstacle := None) is not None:\n",
        tests=("tests/partition/test_waiting.py",),
    ),
    Mutant(
        name="a POST in doubt does not say that look-ups fail",
        file="service/partition/waiting.py",
        old="    if lane.look_ups.failing:\n",
        new="    if False:\n",
        tests=("tests/partition/test_waiting.py",),
    ),
    Mutant(
        name="look-ups that fail alone are not degraded on /readyz",
        file="service/app.py",
        old="                reasons.append(failing)\n",
        new="                pass\n",
        tests=("tests/test_app.py",),
    ),
    Mutant(
        name="look-ups that fail alone are no metric",
        file="service/vcda/look_ups.py",
        old="        return 0.0 if self._failing_since is None else self._clock.monotonic() - self._failing_since\n",
        new="        return 0.0\n",
        tests=("tests/partition/test_waiting.py",),
    ),
    Mutant(
        name="look-ups that fail alone are logged by each attempt",
        file="service/vcda/look_ups.py",
        old="        if own and not self.failing:\n",
        new="        if own:\n",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="a look-up counts from its answer",
        rule="5",
        file="service/partition/reconciler.py",
        old="return _Seen(tasks, began=began, account=now,",
        new="return _Seen(tasks, began=self._clock.monotonic(), account=now,",
    ),
    Mutant(
        name="look-ups allow nothing for clocks",
        rule="6",
        file="service/partition/driver.py",
        old="        look_from = now + (there.offset if there is not None else timedelta()) - margin\n",
        new="        look_from = now\n",
    ),
    Mutant(
        name="a site's clock is taken from the Date header alone",
        rule="6",
        file="service/vcda/site_clocks.py",
        old="        if started_at.year in YEARS:\n",
        new="        if started_at.year not in YEARS:\n",
    ),
    Mutant(
        name="a remote site's clock is known before it has shown a task",
        rule="6",
        file="service/vcda/site_clocks.py",
        old="certain=site is None or stamped is not None)",
        new="certain=True)",
    ),
    Mutant(
        name="look-ups end by the slower of two clocks",
        rule="6",
        file="service/vcda/site_clocks.py",
        old="SiteClock(offset, max(known), ",
        new="SiteClock(offset, min(known), ",
    ),
    Mutant(
        name="look-ups pass over tasks that have ended",
        rule="6",
        file="service/sync.py",
        old="        if (task.replication_id is None or task.replication_id.casefold() == replication_id)\n",
        new="        if (task.replication_id or '').casefold() == replication_id and task.ended_at is None\n",
    ),
    Mutant(
        name="tasks of earlier requests are adopted",
        rule="7",
        file="service/sync.py",
        old="        and task.id not in doubt.passed_over\n",
        new="",
    ),
    Mutant(
        name="a timed-out request frees its replication at once",
        rule="8",
        file="service/sync.py",
        old="            return Step(Lingering(of=state, told_at=now, seen_at=now), outcome)\n",
        new="            return Step(_ended(state, Reason.TIMED_OUT, ended_at=now, now=now, policy=policy), outcome)\n",
    ),
    Mutant(
        name="what lingers is not restored",
        rule="8",
        file="service/partition/partition.py",
        old="self._left_behind = opened.in_flight",
        new="self._left_behind = [state for state in opened.in_flight if not isinstance(state, Lingering)]",
    ),
    Mutant(
        name="what lingers holds its place at the site for ever",
        file="service/sync.py",
        old="            return now < state.request.deadline + LINGER_LIMIT\n",
        new="            return True\n",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="what lingers unseen holds its replication for ever",
        file="service/sync.py",
        old="            return _let_go(state, now=now, policy=policy) if now >= let_go_at(state) else Step(state)\n",
        new="            return Step(state)\n",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="a task that VCDA shows as unfinished frees its replication",
        file="service/sync.py",
        old="    return max(limit, state.seen_at + UNSEEN_LIMIT)\n",
        new="    return limit\n",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="tasks that vanish together are never suspected lost",
        file="service/sync.py",
        old="        alone = self.absent_answers - self.absent_together >= LOST_ANSWERS\n",
        new="        alone = self.absent_answers - self.absent_together >= LOST_ANSWERS\n        if not alone:\n"
        "            return False\n",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="what expired behind a request with a later deadline stays if there is more than is written at once",
        file="service/partition/expiry.py",
        old="most=most + LINGERING",
        new="most=most",
        tests=("tests/partition/test_exits.py",),
    ),
    Mutant(
        name="deadlines are checked while a closed partition gives back what it holds",
        file="service/partition/expiry.py",
        old=" and self._in_flight.holds(tracked) and not self._journal_writer.stopped:",
        new=" and self._in_flight.holds(tracked):",
        tests=("tests/partition/test_closing.py",),
    ),
    Mutant(
        name="the end of one postponement drops the site's others from the count",
        file="service/partition/postponements.py",
        old="        if not self.counts[counted]:\n",
        new="        if True:\n",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="one partition without a POST in doubt ends the trouble of other partitions' look-ups",
        file="service/vcda/look_ups.py",
        old="            if self.failing and not self._searches:\n",
        new="            if self.failing:\n",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="what lingers is never looked at again",
        file="service/partition/expiry.py",
        old="        self._deadlines.add(max(sync.let_go_at(state), now + self._dependencies.tick), tracked)\n",
        new="",
        tests=("tests/partition/test_exits.py",),
    ),
    Mutant(
        name="a place at the site is not given back a day after the deadline",
        file="service/partition/expiry.py",
        old="        tracked.vacate(self._dependencies.lanes.lane(tracked.request.site))\n",
        new="",
        tests=("tests/partition/test_exits.py",),
    ),
    Mutant(
        name="a busy replication keeps its place before the others",
        file="service/partition/driver.py",
        old="first=tried and not tracked.busy)",
        new="first=tried)",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="the outcomes of all expired requests are recorded in one turn of the event loop",
        file="service/partition/expiry.py",
        old="                    await self._slices.turn()\n                    checked, enough = ",
        new="                    checked, enough = ",
        tests=("tests/partition/test_exits.py",),
    ),
    Mutant(
        name="the expired requests of one replication count as one piece of work",
        file="service/partition/expiry.py",
        old=" or self._expired >= enough:\n",
        new=":\n",
        tests=("tests/partition/test_exits.py",),
    ),
    Mutant(
        name="slices of several partitions run in one turn of the event loop",
        file="service/event_loop.py",
        old="        async with self._gate:  # first come, first served\n            await asyncio.sleep(0)\n",
        new="        await asyncio.sleep(0)\n",
        tests=(SLICES,),
    ),
    Mutant(
        name="a restored request that was driven meanwhile is taken up once more",
        file="service/partition/driver.py",
        old="            if not isinstance(state, Waiting) or (tracked.state is state and state.repeats <= 1):\n",
        new="            if True:\n",
        tests=(SLICES,),
    ),
    Mutant(
        name="a restored sync counts at its site only when it is taken up",
        file="service/partition/driver.py",
        old="                self._occupy(tracked)  # all of them, before any that waits is given a slot\n",
        new="                pass\n",
        tests=(SLICES,),
    ),
    Mutant(
        name="actions after a commit are dropped where its waiting is cancelled",
        file="service/partition/journal_writer.py",
        old="        except asyncio.CancelledError:\n            while actions:\n",
        new="        except asyncio.CancelledError:\n            while False:\n",
        tests=(SLICES,),
    ),
    Mutant(
        name="all actions after a commit are called in one turn of the event loop",
        file="service/partition/journal_writer.py",
        old="                for _ in range(min(len(actions), size)):\n",
        new="                for _ in range(len(actions)):\n",
        tests=(SLICES,),
    ),
    Mutant(
        name="a read returns so many records of each partition",
        file="service/kafka/consumer.py",
        old="left = None if left is None else left - len(records)",
        new="pass",
        tests=("tests/kafka/test_consumer.py",),
    ),
    Mutant(
        name="one partition's records are all read before another's",
        file="service/kafka/consumer.py",
        old="                self._fetcher._records.move_to_end(place)\n",
        new="                pass\n",
        tests=("tests/kafka/test_consumer.py",),
    ),
    Mutant(
        name="a large commit is encoded in one turn of the event loop",
        file="service/kafka/journal.py",
        old="            if number % size == 0:\n                await self._slices.turn()\n            key,",
        new="            key,",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="all that waits for slots and declines them does so in one turn of the event loop",
        file="service/vcda/lanes.py",
        old="            for _ in range(GRANTED_AT_ONCE):\n",
        new="            while True:\n",
        tests=(LANES,),
    ),
    Mutant(
        name="all answers of a poll are handed on in one turn of the event loop",
        file="service/vcda/poller.py",
        old="            if number % size == 0 and len(batch) > size:\n",
        new="            if False:\n",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="slot requests of a closed partition stay in the lane",
        file="service/partition/driver.py",
        old="            lane.withdraw(tracked.slot_request)\n",
        new="",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="a lane for each site that was ever named",
        file="service/vcda/lanes.py",
        old="            if len(self._lanes) >= self._forget_at:\n",
        new="            if False:\n",
        tests=("tests/vcda/test_lanes.py",),
    ),
    Mutant(
        name="what has ended is restored as in flight",
        file="service/kafka/journal_replay.py",
        old="            self._in_flight.pop(key, None)\n            if expires_at > self._now:\n",
        new="            if expires_at > self._now:\n",
    ),
    Mutant(
        name="a deadline's outcome is recorded before those of older requests",
        rule="9",
        file="service/partition/expiry.py",
        old="            if not isinstance(step.state, Lingering | Ended):\n                break\n",
        new="",
    ),
    Mutant(
        name="a commit of unknown fate is sent again",
        rule="10",
        file="service/partition/journal_writer.py",
        old="        await self._journal.commit(batch)\n",
        new="""        try:
            await self._journal.commit(batch)
        except JournalLost:
            await self._journal.commit(batch)
""",
    ),
    Mutant(
        name="opening ends without a commit",
        rule="11",
        file="service/partition/partition.py",
        old="        self._journal_writer.advance_cursor()\n        await self._journal_writer.commit()\n",
        new="        self._journal_writer.advance_cursor()\n",
    ),
    Mutant(
        name="the journal is read to a mark of before the fence",
        rule="11",
        file="service/kafka/journal.py",
        old="            await journal._mark()\n",
        new="",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="offset before journal",
        rule="12",
        file="service/partition/journal_writer.py",
        old="        await self._journal.commit(batch)\n",
        new="""        await self._journal.commit(Batch(cursor=batch.cursor or self._here()))
        batch.cursor = None
        await self._journal.commit(batch)
""",
        tests=(RULES, SIMULATION),
    ),
    Mutant(
        name="no deduplication of what is in flight",
        rule="13",
        file="service/partition/admission.py",
        old="if asked.identity in self._in_flight or self._deduplication.holds(asked.identity):",
        new="if self._deduplication.holds(asked.identity):",
    ),
    Mutant(
        name="no deduplication of what has ended",
        rule="13",
        file="service/partition/admission.py",
        old="if asked.identity in self._in_flight or self._deduplication.holds(asked.identity):",
        new="if asked.identity in self._in_flight:",
    ),
    Mutant(
        name="no fencing",
        rule="13",
        file="service/kafka/journal.py",
        old="            transactional_id=transactional_id(topic, partition),\n",
        new='            transactional_id=f"{topic}-{partition}-{id(self)}",\n',
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="outcome outside the transaction",
        file="service/partition/journal_writer.py",
        old="        await self._journal.commit(batch)\n",
        new="""        events, batch.events = batch.events, []
        await self._journal.commit(batch)
        await self._journal.commit(Batch(events=events))
""",
        tests=(RULES, SIMULATION),
    ),
    Mutant(
        name="a refusal for an outcome topic names the journal alone",
        file="service/kafka/journal.py",
        old="            self._refused_at, cause = min(",
        new="            _, cause = min(",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="sends are not awaited before the commit",
        file="service/kafka/journal.py",
        old="        if failures:\n",
        new="        if False:\n",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="no quiescing at hand-over",
        file="service/partition/partition.py",
        old="""        self.begin_to_quiesce()
        try:
            async with""",
        new="""        return True
        try:
            async with""",
        tests=("tests/partition/test_hand_over.py",),
    ),
    Mutant(
        name="a partition's supervisor trusts that its cancellation arrives",
        file="service/intake/supervisor.py",
        old="        self._gone = True\n",
        new="",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="partitions are opened on the way out",
        file="service/intake/group.py",
        old="            elif not self._stopping:",
        new="            elif self.joined:",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="a member that was removed opens its partitions again without asking the group",
        file="service/intake/supervisor.py",
        old="            repeats += 1\n            await self._until_confirmed()\n",
        new="            repeats += 1\n",
        tests=("tests/intake/test_group.py",),
    ),
    Mutant(
        name="a refused commit is followed by others while the member joins again",
        file="service/intake/group_commits.py",
        old="                self.rebalancing()  # until the next assignment\n",
        new="",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="offsets are committed during a rebalance",
        file="service/intake/group_commits.py",
        old="                    await self._assigned.wait()\n",
        new="                    pass\n",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="a poison message is passed over",
        file="service/partition/admission.py",
        old=(
            "            self._journal_writer.publish("
            "write_dead_letter(record, asked, topic=self._dependencies.dead_letters))\n"
        ),
        new="",
    ),
    Mutant(
        name="a record that the client can't read trips the consumer",
        file="service/kafka/consumer.py",
        old="            return await self._pass_bad_record(",
        new="            raise\n            return await self._pass_bad_record(",
        tests=("tests/kafka/test_consumer.py",),
    ),
    Mutant(
        name="expired identities leave the journal once an hour, however soon they expire",
        file="service/partition/deduplication.py",
        old="        self._sweep_every = min(SWEEP, max(deduplicate_for, SWEEP_AT_MOST))\n",
        new="        self._sweep_every = SWEEP\n",
        tests=("tests/partition/test_deduplication.py",),
    ),
    Mutant(
        name="the record of an ended sync leaves the journal as soon as its identity has expired",
        file="service/partition/deduplication.py",
        old="self._expired_by(now - KEPT_MS)\n",
        new="self._expired_by(now)\n",
        tests=("tests/partition/test_deduplication.py",),
    ),
    Mutant(
        name="each reading of the journal looks for expired identities from its beginning",
        file="service/partition/deduplication.py",
        old="            elif offset >= begin and not read_on:\n",
        new="            elif not read_on:\n",
        tests=("tests/partition/test_deduplication.py",),
    ),
    Mutant(
        name="an identity that came twice goes as soon as its first record may",
        file="service/partition/deduplication.py",
        old="                gone.pop(identity, None)\n",
        new="                pass\n",
        tests=("tests/partition/test_deduplication.py",),
    ),
    Mutant(
        name="a lost journal gets outcomes again that were committed",
        file="service/partition/journal_writer.py",
        old="        await self._journal.commit(batch)\n        self._committing = None\n",
        new="        await self._journal.commit(batch)\n",
        tests=(REWRITTEN,),
    ),
    Mutant(
        name="a partition that closes goes on to take up what it restored",
        file="service/partition/driver.py",
        old="            if self._stopped:\n                return\n            if not isinstance(state, Waiting)",
        new="            if not isinstance(state, Waiting)",
        tests=("tests/partition/test_closing.py",),
    ),
    Mutant(
        name="a request that expired when the one before it was cancelled ends twice",
        file="service/partition/driver.py",
        old="            return  # it expired when the one before it was cancelled\n",
        new="            pass\n",
        tests=(CANCELS,),
    ),
    Mutant(
        name="tasks whose poll is answered with 429 are asked after no more",
        file="service/vcda/poller.py",
        old="            site.agenda.put_back(question.watches)\n",
        new="",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="a POST that has left counts as held back",
        file="service/partition/submitter.py",
        old="            self._held.pop(tracked, None)\n",
        new="            pass\n",
        tests=("tests/partition/test_submitter.py",),
    ),
    Mutant(
        name="an opening gives each expired identity its tombstone",
        file="service/kafka/journal_replay.py",
        old="if expires_at <= self._now - KEPT_MS and ",
        new="if ",
        tests=("tests/kafka/test_journal_replay.py", "tests/partition/test_deduplication.py"),
    ),
    Mutant(
        name="a new journal is only written back while it is short",
        file="service/intake/supervisor.py",
        old="        if opened.cursor is not None and (opened.begin >= memory.end or ",
        new="        if opened.begin >= memory.end or (opened.cursor is not None and ",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="the group is told of an offset before the journal has a cursor",
        file="service/intake/supervisor.py",
        old="self.topic_id = None if opened.cursor is None else start.offset, start.topic_id\n",
        new="self.topic_id = start.offset, start.topic_id\n",
        tests=("tests/intake/test_group.py",),
    ),
    Mutant(
        name="another journal is opened where the group has committed offset 0",
        file="service/intake/start_position.py",
        old="        if (found := await committed()) is not None:\n",
        new="        if (found := await committed()) and found.offset:\n",
        tests=("tests/intake/test_group.py",),
    ),
    Mutant(
        name="the tasks of the latest ended syncs are not restored",
        file="service/kafka/journal_replay.py",
        old="        while self._latest:\n",
        new="        while False:\n",
        tests=("tests/kafka/test_journal_replay.py",),
    ),
    Mutant(
        name="a replay keeps the task of a day ago and drops that of a minute ago",
        file="service/kafka/journal_replay.py",
        old="ended.expires_at >= since:",
        new="ended.expires_at < since:",
        tests=("tests/kafka/test_journal_replay.py",),
    ),
    Mutant(
        name="one task that was written by a clock ahead makes all others old",
        file="service/kafka/dedup_index.py",
        old=" for place in places)[1]\n",
        new=" for place in places)[2]\n",
        tests=("tests/kafka/test_dedup_index.py",),
    ),
    Mutant(
        name="old tasks are looked for with each task that is added",
        file="service/kafka/dedup_index.py",
        old="        self._share = few // 10 + 1\n",
        new="        self._share = 1\n",
        tests=("tests/kafka/test_dedup_index.py",),
    ),
    Mutant(
        name="a replay packs the tasks of a whole day",
        file="service/kafka/journal_replay.py",
        old="APART: Final = 1_000\n",
        new="APART: Final = 2_500\n",
        tests=("tests/kafka/test_journal_replay.py",),
    ),
    Mutant(
        name="a replay drops the task that a record of a clock ahead makes old",
        file="service/kafka/journal_replay.py",
        old=" for place in (-1, -1 - APART))\n",
        new=" for place in (-1,))\n",
        tests=("tests/kafka/test_journal_replay.py",),
    ),
    Mutant(
        name="an outcome ends before its task began, as VCDA says",
        file="service/sync.py",
        old="    return ended if timedelta() <= ended - began <=",
        new="    return ended if timedelta() <= timedelta() <=",
        tests=("tests/sync/test_sync.py", "tests/partition/test_exits.py"),
    ),
    Mutant(
        name="one identity that a clock ahead has added keeps all later ones in memory",
        file="service/kafka/dedup_index.py",
        old="            elif expiry > self._latest:\n",
        new="            elif False:\n",
        tests=("tests/kafka/test_dedup_index.py",),
    ),
    Mutant(
        name="a process that opens a journal takes up all expired identities at once",
        file="service/kafka/journal_replay.py",
        old=" and len(self._expired) < EXPIRED_AT_MOST:\n",
        new=":\n",
        tests=("tests/kafka/test_journal_replay.py",),
    ),
    Mutant(
        name="further expired identities wait for the next sweep",
        file="service/partition/deduplication.py",
        old="                pause = SWEEP_AT_MOST\n",
        new="                pass\n",
        tests=("tests/partition/test_deduplication.py",),
    ),
    Mutant(
        name="an opening partition asks for the topics of the whole cluster",
        file="service/kafka/topic_descriptions.py",
        old="_any_answer(client, MetadataRequest([name], allow",
        new="_any_answer(client, MetadataRequest(None, allow",
        tests=("tests/intake/test_group.py",),
    ),
    Mutant(
        name="a broker that hangs is waited for before another one is asked",
        file="service/kafka/topic_descriptions.py",
        old="            limit = NEXT_BROKER.total_seconds() if nodes else None\n",
        new="            limit = None\n",
        tests=("tests/kafka/test_topics.py",),
    ),
    Mutant(
        name="the client moves a position that is out of range by itself",
        file="service/kafka/consumer.py",
        old='        super().__init__(*topics, **options | {"auto_offset_reset": "none"})',
        new='        super().__init__(*topics, **options | {"auto_offset_reset": "earliest"})',
        tests=("tests/kafka/test_consumer.py", REPLACED),
    ),
    Mutant(
        name="a record below the cursor is dropped",
        file="service/intake/reading.py",
        old="        if records[0].offset < cursor:\n",
        new="        if records[0].offset < 0:\n",
        tests=(REPLACED,),
    ),
    Mutant(
        name="a topic of the same name passes for the one that was read",
        file="service/intake/topic_comparison.py",
        old="            if identity is not None and supervisor.topic_id not in {None, identity}:\n",
        new="            if identity is not None and supervisor.topic_id is None:\n",
        tests=(REPLACED,),
    ),
    Mutant(
        name="a partition of a replaced topic is read on while another's cursor is disowned",
        file="service/intake/topic_comparison.py",
        old="                supervisor.reading = None  # before anything is awaited, of all of them\n",
        new="",
        tests=("tests/intake/test_topic_comparison.py",),
    ),
    Mutant(
        name="a new topic of three replicas acknowledges what is on one of them",
        file="service/kafka/topics.py",
        old="str(max(1, replicas - 1))",
        new="str(max(1, replicas - 2))",
        tests=("tests/kafka/test_topics.py",),
    ),
    Mutant(
        name="the cursor of a replaced topic stays as it is",
        file="service/partition/partition.py",
        old="        self._admission.stamp = WITHDRAWN\n",
        new="",
        tests=(REPLACED,),
    ),
    Mutant(
        name="retention may outrun a full partition",
        file="service/intake/topic_comparison.py",
        old="            elif begin is not None and begin > self._reached(place, partition.cursor):\n",
        new="            elif begin is not None and begin < 0:\n",
        tests=(REPLACED,),
    ),
    Mutant(
        name="a journal is opened, and its owner fenced, before it is looked at",
        file="service/intake/start_position.py",
        old="                self._check_topic(cursor)\n                await self._check_group(place, cursor, end)\n",
        new="",
        tests=(REPLACED,),
    ),
    Mutant(
        name="deleted records of a journal are not noticed when it is opened",
        file="service/intake/supervisor.py",
        old="        elif start > before:\n",
        new="        elif start < before:\n",
        tests=(REWRITTEN,),
    ),
    Mutant(
        name="deleted records of a journal in use are not noticed",
        file="service/intake/journal_comparison.py",
        old=" or start is None or start <= before or",
        new=" or start is None or start >= before or",
        tests=(DELETED,),
    ),
    Mutant(
        name="a journal is written again while it is being written again",
        file="service/intake/journal_comparison.py",
        old=" or partition.closed or partition.rewriting:\n",
        new=" or partition.closed:\n",
        tests=(REWRITTEN,),
    ),
    Mutant(
        name="a journal of which records are deleted while it is read passes for whole",
        file="service/kafka/journal.py",
        old="            if (start := await self._first_offset(consumer)) != self._start:\n",
        new="            if (start := await self._first_offset(consumer)) < 0:\n",
        tests=(DELETED,),
    ),
    Mutant(
        name="a journal that has lost records at its end is taken for whole",
        file="service/intake/start_position.py",
        old="                if cursor is not None and not remembered:\n",
        new="                if cursor is None and remembered:\n",
        tests=(REPLACED,),
    ),
    Mutant(
        name="a coordinator that moves ends the process where it is asked what is committed",
        file="service/kafka/rights.py",
        old="        if error is NoError:\n            ((_, ((",
        new="        if answer:\n            ((_, ((",
        tests=("tests/kafka/test_check.py",),
    ),
    Mutant(
        name="the group hears seconds later that a journal was written back, and is shorter",
        file="service/intake/supervisor.py",
        old="        await self._until_confirmed()\n        return replace(",
        new="        return replace(",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="nothing is committed to the group where brokers take no note so long",
        file="service/intake/group_commits.py",
        old="                    self._takes_notes = False\n",
        new="                    self._takes_notes = True\n",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="where a journal ends is not committed to the group",
        file="service/intake/group_commits.py",
        old='one.note if self._takes_notes else "")',
        new='"")',
        tests=(REPLACED,),
    ),
    Mutant(
        name="the new first offset of a journal is stored before what was deleted is written again",
        file="service/partition/partition.py",
        old="        size = self._dependencies.slices.size(REWRITTEN_AT_ONCE)\n",
        new="        size, self.journal_start = self._dependencies.slices.size(REWRITTEN_AT_ONCE), start\n",
        tests=(REWRITTEN,),
    ),
    Mutant(
        name="what was deleted from a journal in use is not written again",
        file="service/partition/partition.py",
        old="            if self._in_flight.holds(tracked):  # it may have ended meanwhile\n",
        new="            if tracked is None:\n",
        tests=(REWRITTEN,),
    ),
    Mutant(
        name="a request that came again is overwritten when the journal is written again",
        file="service/partition/partition.py",
        old="            if self._in_flight.holds(tracked):  # it may have ended meanwhile\n",
        new="            if tracked:\n",
        tests=(REWRITTEN,),
    ),
    Mutant(
        name="an append below the journal's end is taken for good",
        file="service/kafka/journal.py",
        old="        if offset < self.end:\n",
        new="        if offset < 0:\n",
        tests=(REPLACED,),
    ),
    Mutant(
        name="what a lost journal held is forgotten",
        file="service/intake/supervisor.py",
        old="        if batch.cursor is None:\n",
        new="        if opened.begin >= 0:\n",
        tests=(REPLACED,),
    ),
    Mutant(
        name="a client that fetches no more goes unnoticed",
        file="service/intake/group.py",
        old="        if (dead := self._consumer.dead()) is not None:\n",
        new="        if (dead := None) is not None:\n",
        tests=("tests/kafka/test_consumer.py",),
    ),
    Mutant(
        name="a Kafka that moves while a process joins is not looked for",
        file="service/intake/group.py",
        old="if self._subscriber.started and await self._reachability.ask_bootstrap_servers():",
        new="if not joining:",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="one partition's error costs the records of others",
        file="service/kafka/consumer.py",
        old="            self._report(errors, self._refused)\n",
        new="            if errors:\n                raise next(iter(errors.values()))\n",
        tests=("tests/intake/test_refusals.py",),
    ),
    Mutant(
        name="a right that a journal lacks is not named",
        file="service/kafka/journal.py",
        old="            self._denials.note(right, lasts=LASTS_AT_JOURNALS)\n",
        new="            pass\n",
        tests=("tests/system/test_rights.py",),
    ),
    Mutant(
        name="a partition that is lost again and again passes for well",
        file="service/intake/supervisor.py",
        old="            self.losses += lasted > 0\n",
        new="",
        tests=("tests/intake/test_group.py",),
    ),
    Mutant(
        name="a Kafka without transactions is tried all the same",
        file="service/kafka/topics.py",
        old="        if lacking := await missing_requests(admin):\n",
        new="        if lacking := ():\n",
        tests=("tests/kafka/test_lacking.py",),
    ),
    Mutant(
        name="a Kafka that is away is taken for a missing topic",
        file="service/kafka/journal.py",
        old="            await topic_id(self._producer.client, topic)\n",
        new="",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="a heartbeat that a refusal has ended is not started again",
        file="service/kafka/consumer.py",
        old="        if _failed(coordinator._heartbeat_task):\n",
        new="        if _failed(None):\n",
        tests=("tests/intake/test_refusals.py",),
    ),
    Mutant(
        name="records that nobody reads go unnoticed",
        file="service/intake/reading.py",
        old="                self._unread_since.setdefault(number, now)\n",
        new="                pass\n",
        tests=("tests/intake/test_reading.py",),
    ),
    Mutant(
        name="reading that Kafka denies is no standstill for Prometheus",
        file="service/intake/group.py",
        old="            unread_for=max(self._watch.unread_for(), denied),\n",
        new="            unread_for=self._watch.unread_for(),\n",
        tests=("tests/intake/test_refusals.py",),
    ),
    Mutant(
        name="a call is counted for the local site, whichever it is for",
        file="service/vcda/http.py",
        old="            self._meter.api_request(operation, label, ended - began, site=site)\n",
        new="            self._meter.api_request(operation, label, ended - began, site=None)\n",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a login that can't be used leaves its session open at VCDA",
        file="service/vcda/session.py",
        old="            await self._log_out(token)\n",
        new="            pass\n",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a site pauses because a session that was replaced meanwhile could not be extended to it",
        file="service/vcda/session.py",
        old="        if _is_about_the_login(answer):  # it",
        new="        if _is_about_the_login(answer) and self._login is login:  # it",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a session that was replaced meanwhile, or an extension, pauses the next one by its late 401",
        file="service/vcda/session.py",
        old="        if not (fresh.disappointed or self._is_replaced(ticket, site)):",
        new="        if not fresh.disappointed:",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a rebalance listener that fails is ignored, as Kafka's client ignores it",
        file="service/intake/group.py",
        old='            log.exception("Rebalance listener failed; the process ends")\n            self.died.set()\n',
        new="            pass\n",
        tests=("tests/intake/test_group_errors.py",),
    ),
    Mutant(
        name="a partition goes on after an admission that failed half-way",
        file="service/intake/group.py",
        old='            supervisor.distrust("admission failed")\n',
        new="            pass\n",
        tests=("tests/intake/test_group_errors.py",),
    ),
    Mutant(
        name="a partition that is full passes for one that is stuck",
        file="service/intake/reading.py",
        old=" and supervisor.reading is not None and not self._pressure.holds(place)\n",
        new=" and supervisor.reading is not None\n",
        tests=("tests/intake/test_reading.py",),
    ),
    Mutant(
        name="a Kafka that is away passes for a partition that is stuck",
        file="service/intake/reading.py",
        old="            if not stands or reached is None or end is None or reached >= end:\n",
        new="            if not stands or reached is None or (end is not None and reached >= end):\n",
        tests=("tests/intake/test_reading.py",),
    ),
    Mutant(
        name="a replication that is busy at a repeated POST is taken for somebody else's",
        file="service/sync.py",
        old="        case NotTaken(trouble, busy_at=float() as at) if state.repeats:\n",
        new="        case NotTaken(trouble, busy_at=float() as at) if False:\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="a refusal of a repeated POST ends the request without a look-up",
        rule="19",
        file="service/sync.py",
        old="        case Refused(error, http_status, at=float() as at) if state.repeats:\n",
        new="        case Refused(error, http_status, at=float() as at) if False:\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="a look-up right after the refusal of a repeated POST concludes that there is no task",
        rule="19",
        file="service/sync.py",
        old="            conclusive_from=at + policy.late.total_seconds(),\n",
        new="            conclusive_from=at,\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="the refusal of a repeated POST is lost at a restart",
        file="service/kafka/journal_codec.py",
        old="        refusal=_refusal(stored),\n",
        new="",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="look-ups for a repeated POST do not reach back to the first one",
        file="service/sync.py",
        old="        return moment if self.look_from is None else min(moment, self.look_from)\n",
        new="        return moment\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="a task of ours whose user is written in another form is another user's",
        file="service/sync.py",
        old="        return user in self.names or _parts(user) in map(_parts, self.names)\n",
        new="        return user in self.names\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="look-ups search for the documented type of tasks alone",
        file="service/vcda/client.py",
        old="            for kind in (SYNC, *self._spellings.types(self.canonical_site(site))):\n",
        new="            for kind in (SYNC,):\n",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="a sender's open transaction passes for a topic without requests",
        file="service/intake/reading.py",
        old="            self.transactions.look(place, reached=reached, stable=end, end=high_watermark)\n",
        new="",
        tests=("tests/intake/test_reading.py",),
    ),
    Mutant(
        name="a leader that does not answer passes for a partition without requests",
        file="service/intake/reading.py",
        old="            self.leaders.look(place, ends.unknown.get(place) if stands else None)\n",
        new="",
        tests=("tests/intake/test_reading.py",),
    ),
    Mutant(
        name="a broker's refusal of one partition hides where the others end",
        file="service/kafka/leader_offsets.py",
        old="            if refusal.invalid_metadata:\n                client.force_metadata_update()\n",
        new="            raise refusal\n",
        tests=("tests/intake/test_reading.py",),
    ),
    Mutant(
        name="a bad record moves reading beyond its batch",
        file="service/kafka/salvage.py",
        old="        if not last < delta < count:\n",
        new="        if delta < last:\n",
        tests=("tests/kafka/test_salvage.py",),
    ),
    Mutant(
        name="a batch may become as large as it likes when it is decompressed",
        file="service/kafka/clients.py",
        old="decompression.bound()\n",
        new="",
        tests=("tests/kafka/test_decompression.py",),
    ),
    Mutant(
        name="a commit that times out does not say what Kafka has refused",
        file="service/kafka/journal.py",
        old="        if isinstance(error, TimeoutError) and (trouble := self._producer.client.last_trouble):\n",
        new="        if isinstance(error, ValueError) and (trouble := self._producer.client.last_trouble):\n",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="a transaction that ends soon counts together with the next one",
        file="service/intake/open_transactions.py",
        old="        if hold is not None and stable != hold.offset:\n",
        new="        if hold is not None and stable < hold.offset:\n",
        tests=("tests/intake/test_open_transactions.py",),
    ),
    Mutant(
        name="bootstrap servers of two clusters are taken for one Kafka",
        file="service/kafka/topics.py",
        old="    if len(found) <= 1:\n",
        new="    if len(found) <= 2:\n",
        tests=("tests/kafka/test_check.py",),
    ),
    Mutant(
        name="a Kafka that has moved is not looked for",
        file="service/intake/group.py",
        old="        if await self._reachability.moved():\n",
        new="        if False:\n",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="idle connections are left to the firewalls",
        file="service/kafka/connection.py",
        old='            "connections_max_idle_ms": milliseconds(MAX_IDLE),\n',
        new='            "connections_max_idle_ms": 540_000,\n',
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="a producer that has timed out is stopped politely",
        file="service/kafka/journal.py",
        old="        within = timedelta() if self._failed else REQUEST_TIMEOUT\n",
        new="        within = REQUEST_TIMEOUT\n",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="a time-out on a connection given up ends the fetching",
        file="service/kafka/clients.py",
        old="AIOKafkaClient.send = _send_or_time_out\n",
        new="",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="a connection that closes during the look-up of a coordinator ends the sending",
        file="service/kafka/clients.py",
        old="AIOKafkaClient.coordinator_lookup = _look_up_or_try_again\n",
        new="",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="a Kafka that has lost brokers counts as one at other addresses",
        file="service/kafka/clients.py",
        old="    return before.isdisjoint(_addresses(client))\n",
        new="    return _addresses(client) != before\n",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="a batch of a producer that was cut is an error in the event loop",
        file="service/kafka/clients.py",
        old="        self.discard(element)\n",
        new="        super().remove(element)\n",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="a connection that closed in the moment of a write ends the sending",
        file="service/kafka/clients.py",
        old="aiokafka.conn.AIOKafkaConnection = _Connection\n",
        new="",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="certificates are verified as each Python has it",
        file="service/certificates.py",
        old="        _verify_alike_on_each_python(context)\n",
        new="",
        tests=("tests/test_certificates.py",),
    ),
    Mutant(
        name="a login that expires is left to the broker",
        file="service/kafka/clients.py",
        old="        if self._login_ends is not None and self._loop.time()",
        new="        if False and self._loop.time()",
        tests=(OAUTH,),
    ),
    Mutant(
        name="a token that Kafka refuses counts as accepted",
        file="service/kafka/clients.py",
        old="            explained = not answer.error_code and answer.sasl_auth_bytes\n",
        new="            explained = False\n",
        tests=(OAUTH,),
    ),
    Mutant(
        name="each client fetches a token of its own",
        file="service/kafka/tokens.py",
        old="        if self._renewal is None:\n            self._renewal = ",
        new="        if True:\n            self._renewal = ",
        tests=(TOKENS,),
    ),
    Mutant(
        name="an internal error in the renewal of a token is not counted as a failure",
        file="service/kafka/tokens.py",
        old="            self._failed(TokenUnavailable(why, answered=False))\n",
        new="",
        tests=(TOKENS,),
    ),
    Mutant(
        name="a renewal of the session at VCDA that ends with an internal error is seen by nobody",
        file="service/vcda/session.py",
        old="        except Exception as error:  # noqa: BLE001 - see above\n            return self._login_failed(",
        new="        except ArithmeticError as error:\n            return self._login_failed(",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a fenced producer leaves a failure behind that nobody retrieves",
        file="service/kafka/clients.py",
        old='TransactionManager.fatal_error = _heard(TransactionManager.fatal_error, "_transaction_waiter")\n',
        new="",
        tests=("tests/kafka/test_clients.py",),
    ),
    Mutant(
        name="a token is renewed only when a client logs in",
        file="service/kafka/tokens.py",
        old="        if self._clock.monotonic() >= max(due, self._not_before):\n",
        new="        if False:\n",
        tests=(TOKENS,),
    ),
    Mutant(
        name="a token file whose volume hangs is read by one more thread each time",
        file="service/kafka/tokens.py",
        old="        if self._reading is None:\n            loop = ",
        new="        if True:\n            loop = ",
        tests=(TOKENS,),
    ),
    Mutant(
        name="request --wait waits for an outcome that has come before",
        file="service/cli/request.py",
        old="            if named and (ended := await _ended_before(place, sent)) is not None:\n",
        new="            if named and (ended := None) is not None:\n",
        tests=("tests/cli/test_cli_kafka.py",),
    ),
    Mutant(
        name="a token that can't be renewed is no longer used",
        file="service/kafka/tokens.py",
        old="        if self._token is None or (self._failure is not None and not self._valid()):\n",
        new="        if self._token is None or self._failure is not None:\n",
        tests=(TOKENS,),
    ),
    Mutant(
        name="a token server that hangs holds up each login",
        file="service/kafka/tokens.py",
        old="timeout=PATIENCE.total_seconds() if self._valid() else None)\n",
        new="timeout=None)\n",
        tests=(TOKENS,),
    ),
    Mutant(
        name="a refused token is used until it expires",
        file="service/kafka/tokens.py",
        old="        self._renew_at = min(self._renew_at, self._fetched_at + REFUSED_AGAIN.total_seconds())\n",
        new="",
        tests=(TOKENS,),
    ),
    Mutant(
        name="the group is told of requests that the journal does not hold yet",
        file="service/intake/group.py",
        old="self._reached(supervisor.place, supervisor.partition.committed_cursor)",
        new="self._reached(supervisor.place, supervisor.partition.cursor)",
        tests=("tests/intake/test_group.py",),
    ),
    Mutant(
        name="two syncs of one replication at a time",
        file="service/partition/in_flight.py",
        old="        return queue[0] if queue else None\n",
        new="        return queue[-1] if queue else None\n",
    ),
    Mutant(
        name="a POST may leave after its deadline",
        file="service/partition/driver.py",
        old="            and self._dependencies.clock.now() < tracked.request.deadline\n",
        new="",
        tests=("tests/partition/test_driver.py",),
    ),
    Mutant(
        name="another account's look-up concludes",
        file="service/sync.py",
        old="    return account == doubt.account\n",
        new="    return True\n",
        tests=("tests/partition/test_reconciler.py", "tests/sync/test_sync.py"),
    ),
    Mutant(
        name="another account of the remote site concludes",
        file="service/vcda/session.py",
        old="None if self.extension is None else self.extension.account)",
        new="None)",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="a POST leaves under another account than its intent names",
        file="service/partition/submitter.py",
        old="        if not self._is_intended(tracked, account):\n            return False\n",
        new="",
        tests=("tests/partition/test_submitter.py",),
    ),
    Mutant(
        name="a task by an unknown user is passed over before VCDA has shown how it spells ours",
        file="service/sync.py",
        old="        and (task.user is None or not names.learnt or names.include(task.user))\n",
        new="        and (task.user is None or names.include(task.user))\n",
        tests=("tests/partition/test_adoption.py", "tests/sync/test_sync.py"),
    ),
    Mutant(
        name="a task that may be ours is adopted before ours would have to be seen",
        file="service/sync.py",
        old="        case _ if state.conclusive_from is None or",
        new="        case Unclear() | NotFound() if state.conclusive_from is None or",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="how VCDA spells our user is forgotten at a restart",
        file="service/partition/partition.py",
        old="            dependencies.api.learn(opened.cursor.spellings)\n",
        new="            pass\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="a task that names no replication is passed over",
        file="service/partition/reconciler.py",
        old="[*self._named.get(replication_id.casefold(), ()), *self._nameless]",
        new="[*self._named.get(replication_id.casefold(), ())]",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="that no task of its replication is shown counts as none",
        file="service/partition/reconciler.py",
        old="        together = [one for one in due if many or _could_conclude(one, now)]\n"
        "        alone = [one for one in due if not many and not _could_conclude(one, now)]\n",
        new="        site.alone = OWN_AFTER\n        together, alone = (due, []) if many else ([], due)\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="repeated POSTs wait for nothing",
        file="service/partition/postponements.py",
        old="        self._postpone(tracked, REPEAT_BACKOFF, waiting.repeats - 2, cause=WaitCause.OTHER)\n",
        new="        self._over(tracked)\n",
        tests=("tests/partition/test_driver.py",),
    ),
    Mutant(
        name="a cache's answers count",
        file="service/vcda/client.py",
        old="    age = age_of(answer.headers)\n",
        new="    age = None\n",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="a POST is written once more where its connection ends without an answer",
        file="service/vcda/transport.py",
        old='frozenset({"GET", "DELETE"})',
        new='frozenset({"GET", "DELETE", "POST"})',
        tests=("tests/vcda/test_http.py",),
    ),
    Mutant(
        name="a POST leaves before it is asked whether it may",
        file="service/vcda/transport.py",
        old="            hook(connection)\n            protocol.transport.write(head + body)\n",
        new="            protocol.transport.write(head + body)\n            hook(connection)\n",
        tests=("tests/vcda/test_http.py",),
    ),
    Mutant(
        name="the reading loop turns all the time where there is nothing to read",
        file="service/kafka/consumer.py",
        old="max(timeout_ms / 1000, self._patience)",
        new="timeout_ms / 1000",
        tests=("tests/kafka/test_consumer.py",),
    ),
    Mutant(
        name="caches are not asked to let a GET through",
        file="service/vcda/http.py",
        old='(self._headers_of_get if method == "GET" else self._headers).copy()',
        new="self._headers.copy()",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="our wall clock moves VCDA's",
        file="service/vcda/http.py",
        old="        there = self._there.at(self._clock.monotonic())\n",
        new="        there = self._clock.now()\n",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="one absence is a loss",
        file="service/sync.py",
        old="""self.absent_answers < LOST_ANSWERS:
            return False
        alone = self.absent_answers - self.absent_together >= LOST_ANSWERS
""",
        new="""self.absent_answers < 1:
            return False
        alone = not self.absent_together
""",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="a task that is seen again keeps its absences together with others",
        file="service/sync.py",
        old="            absent_together=0,\n",
        new="",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="tasks that vanish together are lost",
        file="service/vcda/poller.py",
        old="        together = absent >= VANISHED_TOGETHER and 2 * absent > len(batch)\n",
        new="        together = False\n",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="a poll that fails is repeated unchanged",
        file="service/vcda/poller.py",
        old="        if len(question.watches) > 1 and question.failures >= SPLIT_AFTER:\n",
        new="        if False:\n",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="a poll that is asked to come later is repeated unchanged",
        file="service/vcda/poller.py",
        old='        if trouble.label == "429":',
        new='        if trouble.label == "429" or trouble.retry_after is not None:',
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="a task that breaks its calls speaks for its site",
        file="service/vcda/poller.py",
        old="        lane.record_result(judged, since=question.since)\n",
        new="        lane.record_result(trouble, since=question.since)\n",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="a task that breaks its calls is asked for without a pause",
        file="service/vcda/poller.py",
        old="        watch.pause = min(max(2 * watch.pause, first), longest)\n",
        new="        watch.pause = first\n",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="every probe of an open breaker is the same poll",
        file="service/vcda/poller.py",
        old="            if site.probes_failed % 2:\n",
        new="            if False:\n",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="what fails is always asked first",
        file="service/vcda/poller.py",
        old="        if self.apart and (self.apart_next or not others):\n",
        new="        if self.apart:\n",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="a POST that had its slot before a pause leaves during the pause",
        file="service/partition/driver.py",
        old="            and tracked.pauses == self._lane(tracked).pauses\n",
        new="",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="more POSTs at once than allowed",
        file="service/partition/submitter.py",
        old="        async with self._lane(tracked).posts:\n",
        new="        if True:\n",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="Retry-After is not obeyed",
        file="service/vcda/lanes.py",
        old="asked if asked > 0 else BACKOFF",
        new="BACKOFF",
        tests=("tests/vcda/test_lanes.py",),
    ),
    Mutant(
        name="a Retry-After holds for one of the local site's two names",
        file="service/vcda/lanes.py",
        old="            self._told_to_wait(now + asked)\n",
        new="            pass\n",
        tests=("tests/vcda/test_lanes.py",),
    ),
    Mutant(
        name="a dead site holds the others up",
        file="service/vcda/lanes.py",
        old="        lane = self._lanes.get(site)\n",
        new="        site = None\n        lane = self._lanes.get(site)\n",
        tests=("tests/vcda/test_lanes.py", "tests/partition/test_slots.py"),
    ),
    Mutant(
        name="a proxy's error page is a refusal",
        file="service/vcda/client.py",
        old=" and status != 408 and trouble.error is not None:",
        new=" and status != 408:",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="the Date of a cached answer counts for VCDA's clock",
        file="service/vcda/http.py",
        old="        if isinstance(seen, Answer) and label != CACHED:\n",
        new="        if isinstance(seen, Answer):\n",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="a task's result is copied whole",
        file="service/vcda/translate.py",
        old='        warnings=_warnings(value.get("warnings"), clean),\n',
        new='        warnings=(*_warnings(value.get("warnings"), clean), ApiError("R", str(value.get("result")))),\n',
        tests=("tests/vcda/test_translate.py",),
    ),
    Mutant(
        name="an answer that repeats a password or a token is shown as it is",
        file="service/vcda/http.py",
        old="        clean = _redactor(secrets if token is None else (*secrets, token)).clean_beginning\n",
        new="        clean = str\n",
        tests=("tests/vcda/test_session.py", "tests/vcda/test_check.py"),
    ),
    Mutant(
        name="an instance's answer to a command may be endless",
        file="service/cli/instances.py",
        old="            if len(body) > LONGEST:\n",
        new="            if len(body) > 100 * LONGEST:\n",
        tests=("tests/cli/test_instances.py",),
    ),
    Mutant(
        name="JSON of a command controls the terminal",
        file="service/cli/output.py",
        old='    print("\\n".join([line if line.isprintable() else _escaped(line) for line in lines]))\n',
        new='    print("\\n".join(lines))\n',
        tests=("tests/cli/test_output.py",),
    ),
    Mutant(
        name="an Accept header makes /metrics fail",
        file="service/ops/server.py",
        old="        except (TypeError, ValueError):  # a version in it",
        new="        except ValueError:  # a version in it",
        tests=("tests/ops/test_server.py",),
    ),
    Mutant(
        name="the AsyncAPI document is made for each request",
        file="service/ops/server.py",
        old="                if made is None:\n",
        new="                if made is None or made.content:\n",
        tests=("tests/ops/test_server.py",),
    ),
    Mutant(
        name="an answer of VCDA may have any number of values",
        file="service/vcda/translate.py",
        old="    return len(body) > MOST_VALUES and ",
        new="    return len(body) > 100 * MOST_VALUES and ",
        tests=("tests/vcda/test_translate.py",),
    ),
    Mutant(
        name="each site that an answer to a login names gets its own series",
        file="service/observability/metrics.py",
        old="        if site not in self._site_labels and len(self._site_labels) < MOST_SITES:\n",
        new="        if site not in self._site_labels:\n",
        tests=("tests/observability/test_metrics.py",),
    ),
    Mutant(
        name="texts of VCDA are copied whole",
        file="service/vcda/translate.py",
        old="    return value[:MAX_TEXT] if isinstance(value, str) and value else None\n",
        new="    return value if isinstance(value, str) and value else None\n",
        tests=("tests/vcda/test_translate.py",),
    ),
    Mutant(
        name="a closing partition gives its slots back after it has waited",
        file="service/partition/partition.py",
        old="            await self._driver.release()\n",
        new="            await self._journal.close()\n            await self._driver.release()\n",
        tests=("tests/partition/test_closing.py",),
    ),
    Mutant(
        name="a cancelled closing leaves the producer open",
        file="service/partition/partition.py",
        old="        await to_its_end(self._give_back())\n",
        new="        await self._give_back()\n",
        tests=("tests/partition/test_closing.py",),
    ),
    Mutant(
        name="an answer after the closing is counted",
        file="service/partition/driver.py",
        old="""        if self._stopped or not isinstance(tracked.state, Submitting | Lingering):
            return
        step = sync.answered""",
        new="""        if not isinstance(tracked.state, Submitting | Lingering):
            return
        step = sync.answered""",
        tests=("tests/partition/test_closing.py",),
    ),
    Mutant(
        name="what became of a record is counted before its commit stands",
        file="service/partition/admission.py",
        old="        self._journal_writer.after_commit(partial(self._balance.reached, taken.until))\n",
        new="        self._balance.reached(taken.until)\n",
        tests=("tests/partition/test_balance.py",),
    ),
    Mutant(
        name="a commit of unknown fate counts as lost though it stood",
        file="service/partition/balance.py",
        old="        self.reached(cursor)\n        self.give_up()\n",
        new="        self.give_up()\n",
        tests=("tests/partition/test_balance.py",),
    ),
    Mutant(
        name="records that never arrive are not missed by the next",
        file="service/intake/reading.py",
        old="        if (follows := self._subscriber.consumer.follows[place]) > cursor:\n",
        new="        if (follows := cursor) > cursor:\n",
        tests=("tests/system/test_records_balance.py",),
    ),
    Mutant(
        name="records that never arrive are not missed where none follow",
        file="service/intake/group.py",
        old="        self._arrivals.look(self._supervisors.values())\n",
        new="",
        tests=("tests/system/test_records_balance.py",),
    ),
    Mutant(
        name="reading goes on however much waits for its commit",
        file="service/intake/reading.py",
        old="partition.behind or partition.without_outcome >= share",
        new="partition.without_outcome >= share",
        tests=("tests/partition/test_backlog.py",),
    ),
    Mutant(
        name="outcomes are taken however much waits for its commit",
        file="service/partition/driver.py",
        old="            if self._journal_writer.behind:\n",
        new="            if False:\n",
        tests=("tests/partition/test_backlog.py",),
    ),
    Mutant(
        name="a large read is one commit",
        file="service/partition/admission.py",
        old="                if self._journal_writer.full:\n                    self._journal_writer.cut()\n",
        new="",
        tests=("tests/partition/test_backlog.py",),
    ),
    Mutant(
        name="polls do not teach how our user is spelled",
        file="service/partition/driver.py",
        old="            self._learn_name(state.of if isinstance(state, Lingering) else state, seen)\n",
        new="            pass\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="the user of a task that was taken for ours is learnt",
        file="service/partition/driver.py",
        old="isinstance(of, Running) and not of.adopted and",
        new="isinstance(of, Running) and",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="an intent lacks the spellings learnt since its request was admitted",
        file="service/partition/driver.py",
        old="        if cursor is None or cursor.spellings is not api.spellings():\n",
        new="        if cursor is None:\n",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="a look-up that changes nothing is written down and logged",
        file="service/partition/driver.py",
        old="        if step.state is before or step.state == before:\n            return\n",
        new="",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="outcomes of deadlines are recorded however much waits for its commit",
        file="service/partition/expiry.py",
        old="                while self._journal_writer.behind:",
        new="                while False:",
        tests=("tests/partition/test_backlog.py",),
    ),
    Mutant(
        name="look-ups that fail are the first at the end of each pause",
        file="service/partition/reconciler.py",
        old="        if own and asked:\n",
        new="        if False:\n",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="each look-up that fails speaks for its site, however many fail in a row",
        file="service/vcda/look_ups.py",
        old="own = self.failed >= OWN_AFTER or good_answers > self._good_answers",
        new="own = False",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="look-ups of several partitions that fail together are so many failures",
        file="service/vcda/look_ups.py",
        old="        if began >= self._failed_at:\n",
        new="        if True:\n",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="a site without credentials is named until the restart",
        file="service/vcda/lanes.py",
        old="return self.without_credentials and (lately or self._occupied > 0)",
        new="return self.without_credentials",
        tests=("tests/vcda/test_lanes.py",),
    ),
    Mutant(
        name="a site's answers to other calls do not excuse it for a look-up that fails",
        file="service/vcda/look_ups.py",
        old=" or good_answers > self._good_answers\n",
        new="\n",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="a replication in another letter case is another one",
        file="service/partition/in_flight.py",
        old="        key = tracked.request.replication_id.casefold()\n",
        new="        key = tracked.request.replication_id\n",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="a sweep is one commit",
        file="service/partition/deduplication.py",
        old="        if self._journal_writer.full:\n            self._journal_writer.cut()\n",
        new="",
        tests=("tests/partition/test_backlog.py",),
    ),
    Mutant(
        name="an empty commit counts as a proof",
        file="service/partition/journal_writer.py",
        old="        if batch.empty:\n",
        new="        if False:\n",
        tests=("tests/partition/test_backlog.py",),
    ),
    Mutant(
        name="commits are not cut between two steps",
        file="service/partition/journal_writer.py",
        old="        if self.full and self._cutting is None:\n",
        new="        if False:\n",
        tests=("tests/partition/test_backlog.py",),
    ),
    Mutant(
        name="proofs for a slow Kafka follow each other without a pause",
        file="service/partition/submitter.py",
        old="                    await self._pause(tracked, tries - TRIES_TO_TELL_OF)\n",
        new="",
        tests=("tests/partition/test_submitter.py",),
    ),
    Mutant(
        name="POSTs that a slow Kafka holds back are logged once",
        file="service/partition/submitter.py",
        old="        self._say_at = now + SAY_AGAIN.total_seconds()\n",
        new="        self._say_at = float('inf')\n",
        tests=("tests/partition/test_submitter.py",),
    ),
    Mutant(
        name="POSTs that a slow Kafka holds back are not seen",
        file="service/partition/submitter.py",
        old=" if self._journal_writer.took > self._window / 2 else None\n",
        new=" if False else None\n",
        tests=("tests/partition/test_submitter.py",),
    ),
    Mutant(
        name="a pausing POST holds quiescing up",
        file="service/partition/submitter.py",
        old="        while self._may_begin(tracked) and (left",
        new="        while (left",
        tests=("tests/partition/test_submitter.py",),
    ),
    Mutant(
        name="/syncs looks through all that is in flight in one go",
        file="service/ops/syncs_page.py",
        old="        if number % SYNCS_AT_ONCE == 0:\n",
        new="        if False:\n",
        tests=("tests/ops/test_syncs_page.py",),
    ),
    Mutant(
        name="/syncs writes all rows of a page in one go",
        file="service/ops/syncs_page.py",
        old="        if number % at_once == 0:\n",
        new="        if False:\n",
        tests=("tests/ops/test_syncs_page.py",),
    ),
    Mutant(
        name="the page at / looks through all that is in flight in one go",
        file="service/partition/in_flight_view.py",
        old="            if looked_at % LOOKED_AT_ONCE == 0:\n",
        new="            if False:\n",
        tests=("tests/partition/test_in_flight_view.py",),
    ),
    Mutant(
        name="the page at / is made for each who looks at it",
        file="service/ops/server.py",
        old="            if self._clock.monotonic() >= self._until:\n",
        new="            if True:\n",
        tests=("tests/ops/test_server.py",),
    ),
    Mutant(
        name="a text from outside is markup on the pages",
        file="service/ops/html.py",
        old="child if isinstance(child, Html) else escape(str(child))",
        new="str(child)",
        tests=("tests/ops/test_html.py", "tests/ops/test_overview_page.py"),
    ),
    Mutant(
        name="a text from outside ends an attribute on the pages",
        file="service/ops/html.py",
        old="escape(str(value))",
        new="value",
        tests=("tests/ops/test_html.py", "tests/ops/test_overview_page.py"),
    ),
    Mutant(
        name="a secret in a text from outside is shown on the page at /",
        file="service/ops/overview_page.py",
        old="cut(clean(failure.error))",
        new="cut(failure.error)",
        tests=("tests/ops/test_overview_page.py",),
    ),
    Mutant(
        name="programs get the table instead of JSON",
        file="service/ops/accept.py",
        old="    return html > json\n",
        new="    return html >= json\n",
        tests=("tests/ops/test_accept.py", "tests/ops/test_server.py"),
    ),
    Mutant(
        name="failures are kept without end",
        file="service/partition/recent_outcomes.py",
        old="deque(maxlen=KEPT)",
        new="deque()",
        tests=("tests/partition/test_outcome_log.py",),
    ),
    Mutant(
        name="the event loop waits for the log's reader",
        file="service/observability/logs.py",
        old="            self._report_dropped()\n            self._put(line)\n",
        new="            self._write(line.text)\n",
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="dropped log lines are not reported",
        file="service/observability/logs.py",
        old="                    elif not self._queue:\n                        self._report_dropped()\n",
        new="",
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="the last log lines are not waited for",
        file="service/observability/logs.py",
        old="            self._changed.wait_for(lambda: not self._size, timeout=LAST_LINES.total_seconds())\n",
        new="            pass\n",
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="certificates are read once",
        file="service/certificates.py",
        old="        changed = stamp != self._seen\n",
        new="        changed = False\n",
        tests=("tests/test_certificates.py",),
    ),
    Mutant(
        name="certificates that can't be used replace good ones",
        file="service/certificates.py",
        old="            except Unusable as error:\n",
        new="            except Unusable as error:\n                self._latest = ssl.create_default_context()\n",
        tests=("tests/test_certificates.py",),
    ),
    Mutant(
        name="connections on which nothing is asked stay open",
        file="service/ops/server.py",
        old="self.loop.call_later(self._answer_within, self.cut)",
        new="self.loop.call_later(3600, self.cut)",
        tests=("tests/ops/test_server.py",),
    ),
    Mutant(
        name="idle connections turn probes away",
        file="service/ops/server.py",
        old="            http=connection,\n",
        new="            http=H11Protocol,\n            limit_concurrency=CONNECTIONS,\n",
        tests=("tests/ops/test_server.py",),
    ),
    Mutant(
        name="a collector of traces holds up the end",
        file="service/observability/tracing.py",
        old='name="tracing\'s end", daemon=True)',
        new='name="tracing\'s end")',
        tests=("tests/observability/test_tracing.py",),
    ),
    Mutant(
        name="the first process of a container ignores an early SIGTERM",
        file="service/cli/process.py",
        old='    if arguments[1:2] == ["run"]:\n',
        new="    if False:\n",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="libraries see variables that are meant for others",
        file="service/cli/process.py",
        old="        given.pop(name, None)\n",
        new="        given.get(name)\n",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="a newline becomes part of a password",
        file="service/settings/loading.py",
        old='.rstrip("\\r\\n")',
        new="",
        tests=("tests/settings/test_loading.py",),
    ),
    Mutant(
        name="a duration may be longer than a date can hold",
        file="service/settings/types.py",
        old="    if value > LONGEST:\n",
        new="    if False:\n",
        tests=("tests/settings/test_types.py",),
    ),
    Mutant(
        name="a trace context that is not UTF-8 makes a dead letter",
        file="service/messages/requests.py",
        old="            if name in _UNDERSTOOD:\n",
        new="            if name:\n",
        tests=("tests/messages/test_trace_context.py",),
    ),
    Mutant(
        name="names of headers are read as spelled",
        file="service/messages/requests.py",
        old="        name = given.lower()\n",
        new="        name = given\n",
        tests=("tests/messages/test_requests.py",),
    ),
    Mutant(
        name="a commit on its way is given up when its partition closes",
        file="service/partition/partition.py",
        old="            for task in pending - {self._committing}:\n",
        new="            for task in pending:\n",
        tests=("tests/partition/test_balance.py",),
    ),
    Mutant(
        name="a check whose base failed is made all the same",
        file="service/checks.py",
        old="        cause = next((failed[base] for base in check.needs if base in failed), None)\n",
        new="        cause = None\n",
        tests=("tests/test_checks.py",),
    ),
    Mutant(
        name="checks have no bound together",
        file="service/checks.py",
        old="        for verdict in await _made(check, min(check.limit.total_seconds(), left)):\n",
        new="        for verdict in await _made(check, check.limit.total_seconds()):\n",
        tests=("tests/test_checks.py",),
    ),
    Mutant(
        name="a check for a transactional id starts its producer's successor",
        file="service/kafka/rights.py",
        old="        answer = await client.send(node, EndTxnRequest(transactional_id, NOBODY, 0, "
        "transaction_result=False))\n",
        new="        from aiokafka.protocol.transaction import InitProducerIdRequest\n\n"
        "        answer = await client.send(node, InitProducerIdRequest(transactional_id, 12_000))\n"
        "        if answer.error_code == 0:\n"
        "            return True\n",
        tests=("tests/kafka/test_check.py",),
    ),
    Mutant(
        name="a right that is lacking passes the check",
        file="service/kafka/check.py",
        old="            if name in allowed and (lacking := needed - (allowed[name] or frozenset()))\n",
        new="            if name in allowed and not allowed[name] and (lacking := needed)\n",
        tests=("tests/cli/test_check.py",),
    ),
    Mutant(
        name="the check's session at VCDA stays open",
        file="service/vcda/check.py",
        old="            if self._token is not None:\n",
        new="            if self._token is None:\n",
        tests=("tests/vcda/test_check.py",),
    ),
    Mutant(
        name="a filter that VCDA ignores passes the check",
        file="service/vcda/check.py",
        old="        if others := {_resource(task) for task in found} - {resource}:\n",
        new="        if others := {_resource(task) for task in found[:0]} - {resource}:\n",
        tests=("tests/vcda/test_check.py",),
    ),
    Mutant(
        name="a login whose body stops half way is taken for one without sites",
        file="service/vcda/session.py",
        old="        session = translate.read_session(answer.body)\n",
        new="        session = translate.read_session(answer.body) or (None, frozenset())\n",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a task is polled at a site that there are no credentials for",
        file="service/vcda/client.py",
        old="        if task.site is None or self._session.may_call(task.site):\n",
        new="        if task.site is None or task.site:\n",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="missing credentials leave the slots to the limit of running syncs",
        file="service/vcda/lanes.py",
        old="            or self.without_credentials  # so that",
        new="            or False  # so that",
        tests=("tests/partition/test_waiting.py",),
    ),
    Mutant(
        name="a poll without credentials pauses its site",
        file="service/vcda/client.py",
        old="return Trouble(label=NO_CREDENTIALS, detail=_without_credentials(site), own=True)",
        new="return Trouble(label=NO_CREDENTIALS, detail=_without_credentials(site))",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a request that is the first of its replication now still counts as waiting for an elder",
        file="service/partition/in_flight.py",
        old="            _one_less(self.behind, queue[0].request.site)\n",
        new="            pass\n",
        tests=("tests/partition/test_waiting.py",),
    ),
    Mutant(
        name="a request that ends while it waits by itself stays counted",
        file="service/partition/driver.py",
        old="        self.postponements.end(tracked)\n",
        new="",
        tests=("tests/partition/test_waiting.py",),
    ),
    Mutant(
        name="the error of an outcome is not kept for list and show",
        file="service/kafka/journal_codec.py",
        old='                "trouble": _words(state.error),\n',
        new="",
        tests=("tests/kafka/test_journal_codec.py",),
    ),
    Mutant(
        name="a restored doubt is not marked in the journal",
        file="service/partition/driver.py",
        old="            if isinstance(tracked.state, Submitting):  # in doubt",
        new="            if False:  # in doubt",
        tests=("tests/partition/test_in_flight_view.py",),
    ),
    Mutant(
        name="a process that is not ready yet is looked at as seldom as one that is",
        file="service/app.py",
        old="        pause = WATCH_START\n",
        new="        pause = WATCH\n",
        tests=("tests/test_app.py",),
    ),
    Mutant(
        name="a process that has failed waits for its threads",
        file="service/app.py",
        old="            except Exception:\n                log.critical(",
        new="            except ImportError:\n                log.critical(",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="a command waits for the threads of its event loop",
        file="service/cli/interrupts.py",
        old="asyncio.Runner(loop_factory=_Loop)",
        new="asyncio.Runner()",
        tests=("tests/cli/test_interrupts.py",),
    ),
    Mutant(
        name="a name that DNS does not resolve in time passes for a broker that does not answer",
        file="service/kafka/clients.py",
        old="            await self._look_up()\n",
        new="",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="a look-up of a name that nothing awaits any more is an error in the log",
        file="service/observability/logs.py",
        old="        return not text.startswith(FUTURE)\n",
        new="        return True\n",
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="each commit waits a minute for an assignment, however long ago the rebalance began",
        file="service/intake/group_commits.py",
        old="asyncio.timeout(self._rebalancing_since + REBALANCE_LIMIT - self._clock.monotonic())",
        new="asyncio.timeout(REBALANCE_LIMIT)",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="a log line fails the code that logs where no thread can be started",
        file="service/observability/logs.py",
        old="            with suppress(RuntimeError):  # the system has none to give: the next line tries again\n",
        new="            with suppress():\n",
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="a log line is written behind one that was cut off",
        file="service/observability/logs.py",
        old='        begin = b"\\n" if self._torn else b""\n',
        new='        begin = b""\n',
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="the lines of a notice that was not written are never reported",
        file="service/observability/logs.py",
        old="        self._unreported += dropped + sum([line.notice_of for line in lines])\n",
        new="        self._unreported += dropped\n",
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="a token file is not read again after a thread could not be started",
        file="service/kafka/tokens.py",
        old="            begun: asyncio.Future[str] = loop.create_future()\n",
        new="            begun = self._reading = loop.create_future()\n",
        tests=(TOKENS,),
    ),
    Mutant(
        name="the limit of open files stays at the soft limit",
        file="service/cli/process.py",
        old="            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))\n",
        new="            pass\n",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="without file descriptors, VCDA's address is what to check",
        file="service/vcda/http.py",
        old="    if lacks_descriptors(why):\n",
        new="    if False:\n",
        tests=("tests/vcda/test_http.py",),
    ),
    Mutant(
        name="a redirect to an invalid international name ends the poller, and so the process",
        file="service/vcda/http.py",
        old="    except (httpx.InvalidURL, UnicodeError):",
        new="    except httpx.InvalidURL:",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="a bug in the reading of an answer ends the poller, and so the process",
        file="service/vcda/client.py",
        old='        tasks = await _or_trouble(self._pages("poll", query, site=site), "poll", site)\n',
        new='        tasks = await self._pages("poll", query, site=site)\n',
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="a dead letter that is refused for its size without its value, too, is not shortened further",
        file="service/kafka/journal.py",
        old="        while event.shorter is not None and not self._refusals.fits(event):\n",
        new="        if event.shorter is not None and not self._refusals.fits(event):\n",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="why no bootstrap server can be reached is not said when a partition is opened",
        file="service/kafka/journal.py",
        old="                if not errors:\n                    raise\n",
        new="                raise\n",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="one look at what is degraded hides what another one has found",
        file="service/ops/health.py",
        old="        self._degraded[look] = tuple(reasons)\n",
        new="        self._degraded = {look: tuple(reasons)}\n",
        tests=("tests/test_app.py",),
    ),
    Mutant(
        name="gauges of Kafka and of the partitions show nothing",
        file="service/wiring.py",
        old="        metrics.set_intake(intake.seen)\n",
        new="",
        tests=("tests/intake/test_group.py",),
    ),
    Mutant(
        name="a process without CPU time blames Kafka",
        file="service/app.py",
        old="        self._health.late(seconds)\n",
        new="",
        tests=("tests/test_app.py",),
    ),
    Mutant(
        name="certificate files that could not be read are never read again",
        file="service/certificates.py",
        old="        if changed or self._unread:\n",
        new="        if changed:\n",
        tests=("tests/test_certificates.py",),
    ),
    Mutant(
        name="a folder of secrets that can't be read is an internal error",
        file="service/settings/loading.py",
        old='    except OSError as error:\n        return {}, [f"{SECRETS_DIR}: the folder',
        new='    except KeyError as error:\n        return {}, [f"{SECRETS_DIR}: the folder',
        tests=("tests/settings/test_credentials.py",),
    ),
    Mutant(
        name="a clean stop without a file descriptor left is a failure",
        file="service/app.py",
        old="        if code is None:\n            raise\n",
        new="        raise\n",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="nobody says that no file descriptor is left",
        file="service/ops/descriptors.py",
        old="        return lacks_descriptors(error)\n",
        new="        return False\n",
        tests=("tests/ops/test_descriptors.py",),
    ),
    Mutant(
        name="a process without threads fails at its end",
        file="service/event_loop.py",
        old="    except RuntimeError:  # the system has no thread to give, so nothing would end a wait\n",
        new="    except KeyError:\n",
        tests=("tests/test_event_loop.py",),
    ),
    Mutant(
        name="a crash in native code leaves nothing in the log",
        file="service/app.py",
        old="        faulthandler.enable()  # of",
        new="        pass  # of",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="a process that has stopped waits for its threads",
        file="service/app.py",
        old="            loop.end_soon(code)\n",
        new="",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="the service imports the command of a library",
        file="service/cli/process.py",
        old="    sys.modules.setdefault(LEFT_OUT, None)",
        new="    sys.modules.get(LEFT_OUT, None)",
        tests=("tests/system/test_process.py",),
    ),
    Mutant(
        name="a login that works again leaves the pauses that its failures began",
        file="service/wiring.py",
        old="        syncs.lanes.retry(site)\n",
        new="        pass\n",
        tests=("tests/test_wiring.py",),
    ),
    Mutant(
        name="an extension that works again leaves the site's pause",
        file="service/vcda/session.py",
        old="            self._established(site)\n",
        new="",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a login that works again ends a pause that VCDA has asked for",
        file="service/vcda/lanes.py",
        old="        until = max(self._clock.monotonic(), self._asked_until)\n",
        new="        until = self._clock.monotonic()\n",
        tests=(LANES,),
    ),
    Mutant(
        name="a login that works again ends the pause of a site that is sick itself",
        file="service/vcda/lanes.py",
        old="        if early > 0.0 and self._trouble is not None and self._trouble.no_session:\n",
        new="        if early > 0.0:\n",
        tests=(LANES,),
    ),
    Mutant(
        name="withdrawn slot requests gather where they come before the others",
        file="service/vcda/lanes.py",
        old="            self._first = deque(request for request in self._first if request.waits)\n",
        new="",
        tests=(LANES,),
    ),
    Mutant(
        name="a task that has ended in an unknown state is waited for until the deadline",
        file="service/sync.py",
        old="    if over_since is not None and now - over_since >= policy.lost_after:\n",
        new="    if over_since is not None and now - over_since >= timedelta(days=999):\n",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="what comes on an idle connection is taken for the next answer",
        file="service/vcda/transport.py",
        old="            if not protocol.should_close and age < LONGEST_KEPT:\n",
        new="            if age < LONGEST_KEPT:\n",
        tests=("tests/vcda/test_transport.py",),
    ),
    Mutant(
        name="a busy connection is kept for ever",
        file="service/vcda/transport.py",
        old="            if not protocol.should_close and age < LONGEST_KEPT:\n",
        new="            if not protocol.should_close:\n",
        tests=("tests/vcda/test_transport.py",),
    ),
    Mutant(
        name="the task of another replication under the same id ends a request",
        file="service/vcda/poller.py",
        old="    if is_of_another(task, watch.replication_id):\n",
        new="    if task.id is None:\n",
        tests=("tests/vcda/test_poller.py", "tests/partition/test_driver.py"),
    ),
    Mutant(
        name="requests that linger keep a partition full",
        file="service/partition/in_flight.py",
        old="        return len(self._tracked_syncs) - len(self._lingering)\n",
        new="        return len(self._tracked_syncs)\n",
        tests=("tests/intake/test_reading.py",),
    ),
    Mutant(
        name="a dead letter of another deployment is redriven",
        file="service/cli/dead_letters.py",
        old="""        if at_most is not None and self.sent_to not in {"", requests}:\n""",
        new="        if at_most is None and requests is None:\n",
        tests=("tests/cli/test_dead_letters.py",),
    ),
    Mutant(
        name="dead letters of another deployment are discarded",
        file="service/cli/dead_letters.py",
        old="""            if letter.sent_to in {"", requests} or (letter.record.partition""",
        new="""            if True or (letter.record.partition""",
        tests=("tests/cli/test_dead_letters.py",),
    ),
    Mutant(
        name="a task's id that another replication has is logged only where the task was shown before",
        file="service/partition/driver.py",
        old="    if another == tracked.shown_with:\n",
        new="    if another == tracked.shown_with or tracked.state.absent_since is not None:\n",
        tests=("tests/partition/test_driver.py",),
    ),
    Mutant(
        name="nobody says that a certificate expires",
        file="service/certificates.py",
        old="        if self.ends - now <= min(RENEW, (self.ends - self.begins) / 5):",
        new="        if now >= self.ends:",
        tests=("tests/test_certificates.py",),
    ),
    Mutant(
        name="all of many doubts are looked up one by one where the list of all tasks fails",
        file="service/partition/reconciler.py",
        old="is not first][: self._one_by_one]\n",
        new="is not first]\n",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="the doubt whose look-up fails is tried first again",
        file="service/partition/reconciler.py",
        old="min(together, key=lambda one: one.failures)",
        new="together[0]",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="a POST is accepted by the task of another replication",
        file="service/vcda/client.py",
        old="            if is_of_another(task, replication_id):  # a proxy has mixed up answers\n",
        new="            if task.id is None:\n",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="credentials that VCDA refuses are tried each minute",
        file="service/vcda/session.py",
        old="        if refused and self._refusals >= REFUSED_QUICKLY:\n",
        new="        if refused and self._refusals < 0:\n",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="new credentials of a site are found at the next login only",
        file="service/vcda/session.py",
        old="        self._look()\n        if self._known.of_site(site) is None:\n",
        new="        if self._known.of_site(site) is None:\n",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="each copy of a duplicate is logged",
        file="service/partition/admission.py",
        old="        self._duplicates[asked.identity] = None\n",
        new="        self._duplicates = {}\n",
        tests=("tests/partition/test_admission_log.py",),
    ),
    Mutant(
        name="a commit whose time is over waits for what no broker acknowledges",
        file="service/kafka/journal.py",
        old="            for *_, arrived in sent:\n                arrived.cancel()\n",
        new="",
        tests=("tests/kafka/test_journal.py",),
    ),
    Mutant(
        name="credentials that were read for something else before are no new ones for a pause",
        file="service/vcda/session.py",
        old="        self._look()\n        if self._known == pause.credentials:\n",
        new="        before = self._known\n        self._look()\n        if self._known == before:\n",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="a partition that is opened while it is revoked begins POSTs",
        file="service/intake/supervisor.py",
        old="        seek = None if self._revoked else self._member.read_from(self.place, partition.cursor)\n",
        new="        seek = self._member.read_from(self.place, partition.cursor)\n",
        tests=("tests/partition/test_hand_over.py",),
    ),
    Mutant(
        name="a partition that is opened while the process stops begins POSTs",
        file="service/intake/supervisor.py",
        old="            partition.begin_to_quiesce()\n",
        new="",
        tests=("tests/partition/test_hand_over.py",),
    ),
    Mutant(
        name="progress that no broker acknowledges is waited for for ever",
        file="service/kafka/progress_publisher.py",
        old="timeout(WIRE_LIMIT.total_seconds()):\n                await wire.send(",
        new="timeout(None):\n                await wire.send(",
        tests=("tests/kafka/test_progress_publisher.py",),
    ),
    Mutant(
        name="a second POST in doubt is looked for as seldom as the first one was",
        file="service/partition/reconciler.py",
        old="        if before is None or before.attempts != attempts:\n",
        new="        if before is None:\n",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="a partition that was stopped is opened without asking the group",
        file="service/intake/supervisor.py",
        old="total_seconds())\n        await self._until_confirmed()\n",
        new="total_seconds())\n",
        tests=("tests/partition/test_hand_over.py",),
    ),
    Mutant(
        name="a stopped partition that goes elsewhere is counted as stopped here",
        file="service/intake/group.py",
        old="        supervisor = self._supervisors.pop(number)\n",
        new="        supervisor = self._supervisors[number]\n",
        tests=("tests/intake/test_supervisor.py",),
    ),
    Mutant(
        name="a page of too many values is never asked for with fewer tasks",
        file="service/vcda/client.py",
        old="            if limit > 1 and translate.has_too_many_values(reply.seen.body):\n",
        new="            if False:\n",
        tests=("tests/vcda/test_client.py",),
    ),
    Mutant(
        name="new certificate files are not looked at before a connection needs them",
        file="service/app.py",
        old="            one.latest()  # connections may last longer than the certificates\n",
        new="            pass\n",
        tests=("tests/test_app.py",),
    ),
    Mutant(
        name="the system's authorities are read again as long as an own certificate can't be",
        file="service/certificates.py",
        old="        self._load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))\n",
        new="",
        tests=("tests/test_certificates.py",),
    ),
    Mutant(
        name="secrets are looked for in a text however long it is",
        file="service/observability/logs.py",
        old="text[: LONG + self._longest], LONG",
        new="text, len(text)",
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="a long text of VCDA's ends with the first half of a secret",
        file="service/observability/logs.py",
        old="if found.start() < LONG < found.end():\n",
        new="if False:\n",
        tests=("tests/observability/test_logs.py",),
    ),
    Mutant(
        name="the name of a tenant at the collector is hidden in each line of the log",
        file="service/observability/tracing.py",
        old="if len(text) >= SHORTEST_KEY)",
        new="if text)",
        tests=("tests/observability/test_tracing.py",),
    ),
    Mutant(
        name="a probe that is not sent after all holds its site back for a minute",
        file="service/partition/driver.py",
        old="        if withheld(answer):\n            lane.not_made(since=tracked.pauses)\n        else:\n",
        new="        if not withheld(answer):\n",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="the probe of a partition that is closed holds its site back for a minute",
        file="service/partition/driver.py",
        old="                self._lane(tracked).not_made(since=tracked.pauses)  #",
        new="                pass  #",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="a look-up of a partition that is closed stays the site's probe for a minute",
        file="service/partition/reconciler.py",
        old="            lane.not_made(since=pauses)\n            raise\n",
        new="            raise\n",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="a slot from before the circuit breaker opened that is given up lets a second probe go",
        file="service/vcda/lanes.py",
        old="        if since == self._probe_since:\n            self._probe_until = 0.0\n            self.wake()\n",
        new="        self._probe_until = 0.0\n        self.wake()\n",
        tests=("tests/vcda/test_lanes.py",),
    ),
    Mutant(
        name="an outcome has the end of 1970 that VCDA gives a task",
        file="service/sync.py",
        old="        return None\n    return moment\n",
        new="        return moment\n    return moment\n",
        tests=("tests/sync/test_sync.py", "tests/partition/test_exits.py"),
    ),
    Mutant(
        name="an impossible beginning of a task is copied into the outcome",
        file="service/sync.py",
        old="            submitted_at=_possible(state.submitted_at, state.request, now=now),\n",
        new="            submitted_at=state.submitted_at,\n",
        tests=("tests/sync/test_sync.py",),
    ),
    Mutant(
        name="what any client of Kafka logs is taken for the reason of another one",
        file="service/kafka/diagnosis.py",
        old="        if self not in _listening.get():\n",
        new="        if False:\n",
        tests=("tests/kafka/test_diagnosis.py",),
    ),
    Mutant(
        name="own trouble of a call from before the circuit breaker opened lets a second probe go",
        file="service/vcda/lanes.py",
        old="            self.not_made(since=since)  # the site is as unknown as before\n",
        new="            self._probe_until = 0.0\n            self.wake()\n",
        tests=("tests/vcda/test_lanes.py",),
    ),
    Mutant(
        name="what waits for room at a site waits on when its credentials are missing",
        file="service/vcda/lanes.py",
        old="            self.wake()  # what waits for room is rejected now\n",
        new="",
        tests=("tests/vcda/test_lanes.py",),
    ),
    Mutant(
        name="a poll that was the probe and failed by itself holds its site back for a minute",
        file="service/vcda/poller.py",
        old="                question.since = lane.pauses\n",
        new="                pass\n",
        tests=("tests/vcda/test_poller.py",),
    ),
    Mutant(
        name="a POST that was the probe and was refused holds its site back for a minute",
        file="service/partition/driver.py",
        old="or trouble, since=tracked.pauses)",
        new="or trouble)",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="a look-up that was the probe and failed by itself holds its site back for a minute",
        file="service/partition/reconciler.py",
        old="(own and not asked)), since=since)",
        new="(own and not asked)))",
        tests=("tests/partition/test_slots.py",),
    ),
    Mutant(
        name="a task that a library cancels by itself ends without a word",
        file="service/event_loop.py",
        old="    return None if task.cancelling() else CancelledFromWithin()\n",
        new="    return None\n",
        tests=("tests/partition/test_exits.py",),
    ),
    Mutant(
        name="a call that a library cancels by itself is taken for one that nobody wants any more",
        file="service/vcda/http.py",
        old="            if is_cancelled():\n                raise\n",
        new="            raise\n",
        tests=("tests/vcda/test_http.py",),
    ),
    Mutant(
        name="a socket that the event loop refuses ends the process",
        file="service/vcda/transport.py",
        old="            except RuntimeError as error:  # of a socket",
        new="            except LookupError as error:  # of a socket",
        tests=("tests/vcda/test_http.py",),
    ),
    Mutant(
        name="the last report to the group takes as long as any, however short the time for a clean stop is",
        file="service/intake/group.py",
        old="            async with asyncio.timeout(limit * 0.2):\n",
        new="            async with asyncio.timeout(None):\n",
        tests=("tests/intake/test_group_errors.py",),
    ),
    Mutant(
        name="a Kafka without a controller ends the process at its start",
        file="service/kafka/clients.py",
        old="AIOKafkaAdminClient._send_to_controller = _to_controller_if_there_is_one\n",
        new="",
        tests=("tests/kafka/test_topics.py",),
    ),
    Mutant(
        name="a dead letter is logged before its commit",
        file="service/partition/admission.py",
        old="after_commit(partial(log.warning, written, record.offset, self._number, asked.detail))",
        new="after_commit(log.warning(written, record.offset, self._number, asked.detail) or (lambda: None))",
        tests=("tests/partition/test_balance.py",),
    ),
    Mutant(
        name="a commit's first failure is taken for its cause, also where it follows from another",
        file="service/kafka/journal.py",
        old="min(failures, key=lambda failure: isinstance(failure[1], InvalidTxnState))",
        new="failures[0]",
        tests=("tests/intake/test_refusals.py",),
    ),
    Mutant(
        name="a POST in doubt is looked up twice in a round where the list of all tasks fails",
        file="service/partition/reconciler.py",
        old="[one for one in due if one is not first]",
        new="[one for one in due]",
        tests=("tests/partition/test_reconciler.py",),
    ),
    Mutant(
        name="a Kafka that answered nobody for minutes ends the process with its first answer",
        file="service/intake/reachability.py",
        old="            self._answers_others_since = None  # from here on, Kafka answers nobody\n",
        new="",
        tests=("tests/intake/test_group_errors.py",),
    ),
    Mutant(
        name="an outage of Kafka is given the cause of an earlier one",
        file="service/kafka/outage.py",
        old="        self._trouble.text = NO_ANSWER\n",
        new="",
        tests=("tests/kafka/test_outage.py",),
    ),
    Mutant(
        name="an adoption is counted before its commit",
        file="service/partition/driver.py",
        old="self._journal_writer.after_commit(partial(self._adopted, tracked, task))",
        new="self._adopted(tracked, task)",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="a repeated POST is counted before the commit of its intent",
        file="service/partition/driver.py",
        old="self._journal_writer.after_commit(partial(self._repeated, tracked, waiting))",
        new="self._repeated(tracked, waiting)",
        tests=(ADOPTION,),
    ),
    Mutant(
        name="an internal error of an extension at VCDA ends the partition of the POST",
        file="service/vcda/session.py",
        old="        except Exception as error:  # noqa: BLE001 - see above\n            trouble = ",
        new="        except ArithmeticError as error:\n            trouble = ",
        tests=("tests/vcda/test_session.py",),
    ),
    Mutant(
        name="of dead letters whose marks Kafka denies, no right is named",
        file="service/cli/dead_letters.py",
        old="    for result in (*results, *errors):\n",
        new="    for result in (*errors, *results):\n",
        tests=("tests/cli/test_dead_letters.py",),
    ),
    Mutant(
        name="a journal of many reads passes for one that has stalled",
        file="service/kafka/journal.py",
        old="                silent = 0 if got else silent + 1\n",
        new="                silent += 1\n",
        tests=("tests/kafka/test_journal_bounds.py",),
    ),
    Mutant(
        name="a request that begins to linger still counts as one without an outcome",
        file="service/partition/driver.py",
        old="                    self._in_flight.lingers(tracked)\n",
        new="",
        tests=("tests/partition/test_in_flight_view.py",),
    ),
    Mutant(
        name="an outcome stands in another partition than the one that Java's client would choose",
        file="service/kafka/journal.py",
        old="(murmur2(key) & 0x7FFFFFFF) % count",
        new="murmur2(key) % count",
        tests=("tests/kafka/test_journal_bounds.py",),
    ),
)


def broken(mutant: Mutant, folder: Path) -> None:
    """Copy the tree and break it.

    Raises:
        ValueError: the text isn't there exactly once: the code has changed, and the mutant has to follow.
    """
    ignored = shutil.ignore_patterns("__pycache__", ".*", "build")
    shutil.copytree(HERE, folder, dirs_exist_ok=True, ignore=ignored)
    if mutant.name == NOTHING.name:
        return
    path = folder / mutant.file
    path.write_text(_replaced(mutant, path.read_text(encoding="utf-8")), encoding="utf-8")


def _replaced(mutant: Mutant, text: str) -> str:
    if text.count(mutant.old) != 1:
        msg = f"{mutant.name}: its text stands {text.count(mutant.old)} times in {mutant.file}, not once"
        raise ValueError(msg)
    return text.replace(mutant.old, mutant.new)


NOTHING: Final = Mutant(name="nothing", file="service/sync.py", old="", new="")


def whole(mutants: Sequence[Mutant]) -> str | None:
    """Return a test that is red although nothing is broken; None: all are green, and what turns red can be trusted."""
    tests = tuple(sorted({file for mutant in mutants for file in mutant.tests}))
    return try_out(replace(NOTHING, tests=tests)).test


def try_out(mutant: Mutant) -> Found:
    """Break a copy, and run the tests that have to notice, up to the first that does."""
    with tempfile.TemporaryDirectory(prefix="vm-sync-mutant-") as name:
        folder = Path(name)
        broken(mutant, folder)
        for chosen in _choices(mutant):
            if (test := _red(folder, chosen)) is not None:
                return Found(mutant, test)
    return Found(mutant, None)


def _choices(mutant: Mutant) -> list[tuple[str, ...]]:
    """Return what to run: the rule's own tests first, then all."""
    own = [(*mutant.tests, "-k", f"rule_{mutant.rule}_")] if mutant.rule and RULES in mutant.tests else []
    return [*own, mutant.tests]


def _red(folder: Path, tests: tuple[str, ...]) -> str | None:
    """Run tests up to the first that is red, and return its name."""
    options = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", f"--timeout={PATIENCE}")
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if failed is None and done.returncode not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        msg = f"{tests} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        raise RuntimeError(msg)
    return failed[1] if failed else None


def write(one: Found) -> None:
    """Put what was seen of a mutant into the table; rows of mutants that are no more are left out."""
    before, inside, after = _parts()
    rows = _rows(inside) | {one.mutant.name: _row(one)}
    lines = [rows[mutant.name] for mutant in MUTANTS if mutant.name in rows]
    PAGE.write_text(before + "\n".join(["", *HEAD, *lines, ""]) + after, encoding="utf-8")


def _parts() -> tuple[str, str, str]:
    """Return the page before, within, and after the table."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


def _rows(inside: str) -> dict[str, str]:
    """Return the table's rows by their mutants' names."""
    lines = [line for line in inside.splitlines() if line and line not in HEAD]
    return {line.removeprefix("| ").split(" | ")[0]: line for line in lines}


def _row(one: Found) -> str:
    test = "**nobody**"
    if one.test is not None:
        file, _, name = one.test.partition("::")
        test = f"`{Path(file).name}`: {name.partition('[')[0].removeprefix('test_').replace('_', ' ')}"
    return f"| {one.mutant.name} | {one.mutant.rule} | {test} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all out."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.mutants", description="Can the tests fail?")
    parser.add_argument("--only", help="those with this in their name")
    parser.add_argument("--new", action="store_true", help="those that the table in docs/removed-mechanisms.md lacks")
    parser.add_argument("--write", action="store_true", help="put what is seen into docs/removed-mechanisms.md")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--green", action="store_true", help="`make test` was green just now: don't run the tests unbroken"
    )
    given = parser.parse_args(arguments)
    known = _rows(_parts()[1]) if given.new else {}
    chosen = [mutant for mutant in MUTANTS if (given.only or "") in mutant.name and mutant.name not in known]
    console = Console(width=150)
    if not given.green and (red := whole(chosen)) is not None:
        console.print(f"{red} is red although nothing is broken: nothing could be learnt", style="bold red")
        return 1
    found = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for one in pool.map(try_out, chosen):
            found.append(one)
            if given.write:
                write(one)
            noticed = one.test or "[bold red]nobody notices[/]"
            console.print(f"{one.mutant.name}: {noticed}")
    return 0 if all(one.test is not None for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
