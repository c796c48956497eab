"""A sync in each of its states is handed to another release by `kill -9`, and back again; then everything is counted.

`python -m tests.stress.upgrade_states [--before REVISION]`: a process of one release brings syncs into every state that
a journal can hold. It is killed, and a process of the other release takes over; a few seconds later that one is killed
in turn. Once the release of today begins, and once the earlier one. What was asked before is asked again in between.

Judged from outside: one outcome and at most one task for each request, one dead letter for the invalid message, and
nothing left in flight. `upgrade` does the same under load, with two processes of each release.
"""

import argparse
import asyncio
import json
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from service.sandbox.kafka import EmbeddedKafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.stress.upgrade import BEFORE, ROOT, judged, knows_cancels, start
from tests.support.process_harness import Ledger, Process, appliance, counts

CHAINS: Final = (("now", "before", "now"), ("before", "now", "before"))

LONG: Final = 30.0
"""Seconds that a sync takes which is to be handed over while it runs."""

UNLISTED: Final = 600.0
"""Seconds for which VCDA doesn't list a task whose POST had no answer: it does so at the hand-over."""

REPEATED: Final = 13.0
"""Seconds after which a POST whose task isn't listed was repeated: D and a look-up."""

REPEATED_WITHIN: Final = 60.0
"""The same on a busy machine. It lasts for D, until look-ups find no task once more."""

SOON: Final = 1.5
"""Seconds for what is to happen, but not to end, before the hand-over."""

HELD: Final = 6.0
"""Seconds until the second hand-over: doubts last longer."""

WITHIN: Final = 150.0

REACHED: Final = ("waiting", "submitting", "in doubt", "repeated and refused", "running", "lingering", "ended")
"""States that the journal has to hold when the first process is killed."""

SETTINGS: Final = {"VM_SYNC_SYNC__LOST_AFTER": "PT8S", "VM_SYNC_SYNC__POLL_MAX": "PT1S"}


class Syncs:
    """Requests, each for a replication of its own by the name of what happens to it."""

    def __init__(self, ledger: Ledger, vcda: Simulator) -> None:
        self._ledger = ledger
        self._vcda = vcda
        self._replications: dict[str, str] = {}

    def plan(self, name: str, **plan: Any) -> str:
        """Say how syncs of a replication go."""
        replication = self._replications[name] = f"C4-{uuid.uuid4()}"
        self._vcda.world.plan(replication=replication, **plan)
        return replication

    async def ask(self, name: str, *, number: int = 1, **fields: Any) -> None:
        """Put a request on the topic, or the same one again."""
        replication = self._replications.get(name) or self.plan(name, duration=LONG)
        await self._ledger.ask(f"{name}-{number}", replication, **fields)

    async def bring_into_states(self, *, cancels: bool, reached: Callable[[], Awaitable[None]]) -> None:
        """Begin the syncs that take a while to get into their states, await `reached`, then begin the others."""
        vcda, ledger = self._vcda, self._ledger
        self.plan("short", duration=0.5)
        await self.ask("short")
        await self.ask("running")
        await self.ask("running", number=2)  # and waits
        self.plan("lost", duration=2 * LONG)
        await self.ask("lost")
        await self.ask("lingering", deadlineSeconds=4)
        await self.ask("lingering", number=2)
        await self.refused("refused")
        someone = self.plan("busy", duration=REPEATED, refuses=409)
        ledger.foreseen[someone] = "somebody else synced it by hand"
        vcda.world.by_hand(replication=someone)
        await self.ask("busy")
        if cancels:
            self.plan("cancelled", duration=5)
            await self.ask("cancelled")
            await self.ask("cancelled", number=2)
            await (await ledger.begin_to_cancel("cancelled-2", self._replications["cancelled"]))
        await ledger.spoil(partition=0, key=b"k", value=b"not JSON")
        await reached()
        silent = self.plan("posting", duration=LONG)
        vcda.fault(operation="submit", replication=silent, answer="silent", effect="first", times=1)
        await self.ask("posting")
        await asyncio.sleep(SOON)
        vcda.fault(operation="find", answer="status", status=500)
        for name, effect in (("taken", "first"), ("not-taken", "none")):
            vcda.fault(
                operation="submit", replication=self.plan(name, duration=5), answer="cut", effect=effect, times=1
            )
            await self.ask(name)
        await asyncio.sleep(SOON)

    async def refused(self, name: str) -> None:
        """Have a POST repeated, since its task isn't listed, and refused, since it runs."""
        replication = self.plan(name, duration=2 * LONG, listed_after=UNLISTED, refuses=409)
        self._ledger.foreseen[replication] = "VCDA listed the task of a POST later than D"
        self._vcda.fault(operation="submit", replication=replication, answer="cut", effect="first", times=1)
        await self.ask(name)

    async def after_the_first(self) -> None:
        """Let look-ups succeed, list all tasks, lose one, and ask again for what was asked before."""
        self._vcda.faults.remove()
        for task in self._vcda.world.tasks_of(self._replications["refused"], "refused-1"):
            task.plan = replace(task.plan, listed_after=0.0)
        self._vcda.world.forget(replication=self._replications["lost"])
        for name in ("short", "running", "posting", "taken", "lingering"):
            await self.ask(name)


async def hand_over(chain: Sequence[str], *, before: Path, console: Console) -> list[str]:
    """Go through a chain of releases, and return what is wrong."""
    folders = {"now": ROOT, "before": before}
    today = chain[0] == "now"
    cancels = today or knows_cancels(before)
    wrong: list[str] = []
    with EmbeddedKafka() as kafka:
        async with (
            Simulator(appliance(Plan(queued=Durations.of("0.1")))) as vcda,
            Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix="states", partitions=4) as ledger,
        ):
            syncs = Syncs(ledger, vcda)
            process = await _started(ledger, folders, chain[0])
            reached = partial(_until_refused, ledger) if today else partial(asyncio.sleep, REPEATED)
            await syncs.bring_into_states(cancels=cancels, reached=reached)
            states = await _states(ledger)
            console.print(f"{chain[0]} hands over: {', '.join(sorted(states))}")
            missed = [state for state in REACHED if state not in states and today]
            wrong.extend(f"no sync was {state} at the hand-over: this shows nothing" for state in missed)
            for number, release in enumerate(chain[1:]):
                await process.kill()
                process = await _started(ledger, folders, release)
                if number == 0:
                    await syncs.after_the_first()
                    await asyncio.sleep(HELD)
            told = await ledger.wait(within=WITHIN)
            await asyncio.sleep(SOON)  # for outcomes that nobody waits for
            foreign = frozenset((one.partition, one.offset) for one in ledger.cancels)
            verdict = await ledger.judge(foreign=foreign)
            console.print(f"{' -> '.join(chain)}: {dict(counts(told))}")
            wrong += [*verdict.violations, *ledger.tracebacks()]
            if today:  # the earlier release may have forgotten the first POST of a repeated one
                wrong += [case for case in verdict.not_promised if case.startswith("two tasks")]
            left = [key for key, record in (await _journal(ledger)).items() if record["state"] != "ended"]
            if left:
                wrong.append(f"in flight although all have outcomes: {left}")
    return wrong


async def _started(ledger: Ledger, folders: Mapping[str, Path], release: str) -> Process:
    process = start(ledger, folders[release], newer=release == "now", **SETTINGS)
    await ledger.ready(process)
    return process


async def _journal(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Return the syncs' last records."""
    last = {(one.key or b"").decode(): one.value for one in await ledger.read("journal")}
    return {key: json.loads(value) for key, value in last.items() if value and key.startswith(("op:", "ce:"))}


async def _states(ledger: Ledger) -> list[str]:
    return [_state(record) for record in (await _journal(ledger)).values()]


async def _until_refused(ledger: Ledger) -> None:
    """Wait until a repeated POST was refused, for a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REPEATED_WITHIN):
            while "repeated and refused" not in await _states(ledger):
                await asyncio.sleep(0.5)


def _state(record: Mapping[str, Any]) -> str:
    if record["state"] != "submitting":
        return str(record["state"])
    if "refusal" in record:
        return "repeated and refused"
    return "in doubt" if record.get("inDoubt") else "submitting"


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand over in both directions."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.upgrade_states", description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="the revision of the earlier release")
    given = parser.parse_args(arguments)
    console = Console()

    def play(before: Path) -> list[str]:
        return [
            sentence for chain in CHAINS for sentence in asyncio.run(hand_over(chain, before=before, console=console))
        ]

    return judged(given.before, console, play)


if __name__ == "__main__":
    sys.exit(main())
