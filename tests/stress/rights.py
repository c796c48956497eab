"""Takes each right of the Strimzi overlay away from the service and the operator, and writes down what happens.

`python -m tests.stress.rights` runs a service on a real Kafka with an authorizer, takes some minutes, and writes
`docs/rights.md`; a test checks that no right is missing there.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from service.sandbox.kafka import LOGIN, EmbeddedKafka
from tests.support.cluster import PASSWORDS
from tests.support.grants import Grant
from tests.support.process_harness import Process
from tests.support.rights_scene import COMMANDS, RightsScene, warnings, without

PAGE: Final = Path(__file__).parents[2] / "docs" / "rights.md"

HEAD: Final = """\
# Rights, and what happens without each

Made by `python -m tests.stress.rights`; not to be edited by hand. It takes each right of the overlay's
[users.yaml](../deploy/kubernetes/overlays/strimzi/users.yaml) away on a real Kafka with an authorizer.

The service needs no right beyond these, and an operator's account none beyond its own. While a right is missing,
`/readyz` and the log name it, with the user, the resource and the setting that has the resource's name; nothing is lost
meanwhile, and no restart is needed once the right is back. The times are from the right's return to the outcomes of
requests that are sent right then: a sync, a rejected one and a dead letter. Requests whose POST was in doubt meanwhile
take as long as [after a crash](testing.md#upgrades-recovery-memory).
"""

OPERATORS: Final = "\n## An operator\n\n"

SAID_WITHIN: Final = 120.0
"""Seconds after which a process that has said nothing goes on without the right."""

BACK_WITHIN: Final = 60.0

CLASSES: Final = (2, 5, 10, 15)


class Waiting:
    """What is put on the requests topic in each case: something for each topic that the service writes."""

    def __init__(self, scene: RightsScene) -> None:
        self._scene = scene
        self._operations: set[str] = set()
        self._dead_letters = 0

    async def ask(self) -> None:
        """Ask for a sync, for one that VCDA rejects, and for nothing that can be understood."""
        self._dead_letters = len(await self._scene.ledger.read("dead_letter"))
        rejected = f"op-{time.monotonic_ns()}"
        self._operations = {await self._scene.ask(), rejected}
        await self._scene.ledger.ask(rejected, f"C4-{time.monotonic_ns()}")
        await self._scene.ledger.spoil(partition=0, key=b"C4-9", value=b"?")

    async def done(self) -> bool:
        """Tell whether all three have come to their ends."""
        outcomes, letters = await self._scene.ledger.outcomes(), await self._scene.ledger.read("dead_letter")
        ended = {one.event["operationID"] for one in outcomes}
        return self._operations <= ended and len(letters) > self._dead_letters


async def _said(scene: RightsScene, process: Process, since: int, waiting: Waiting) -> tuple[str, str]:
    """Return what the process says without the right, and what it does."""
    until = time.monotonic() + SAID_WITHIN
    while time.monotonic() < until:
        reasons = [reason for reason in await scene.not_ready(process) or [] if "denies" in reason]
        if reasons:
            return reasons[0], "not ready; waits"
        if not process.running:
            return warnings(process)[-1], f"ends with exit code {process.child.returncode}"
        if await waiting.done():
            break
        await asyncio.sleep(0.2)
    told = [line for line in warnings(process)[since:] if "DescribeConfigs" in line or "denies" in line]
    return (told[0].partition("; trying again")[0] if told else "nothing"), "goes on"


async def _recovered(waiting: Waiting) -> str:
    back = time.monotonic()
    await waiting.ask()
    while not await waiting.done():
        if time.monotonic() - back > BACK_WITHIN:
            return f"not within {BACK_WITHIN:.0f} s"
        await asyncio.sleep(0.2)
    took = time.monotonic() - back
    return next((f"within {limit} s" for limit in CLASSES if took <= limit), f"after {took:.0f} s")


async def at_the_start(scene: RightsScene, grant: Grant) -> tuple[str, str, str]:
    """Start a process without the right, then give it."""
    waiting = Waiting(scene)
    await scene.service_acls.only(without(scene.service, grant))
    await waiting.ask()
    process = scene.start()
    said, does = await _said(scene, process, 0, waiting)
    await scene.service_acls.grant(grant)
    took = "" if does == "goes on" else await _recovered(waiting)
    await process.stop()
    return said, does, took


async def while_running(scene: RightsScene, grant: Grant, process: Process) -> tuple[str, str, str]:
    """Take the right from a running process, then give it back."""
    waiting = Waiting(scene)
    before = len(warnings(process))
    await scene.service_acls.take(grant)
    await waiting.ask()
    said, does = await _said(scene, process, before, waiting)
    await scene.service_acls.grant(grant)
    took = "" if does == "goes on" else await _recovered(waiting)
    until = time.monotonic() + BACK_WITHIN
    while await scene.not_ready(process) != [] and time.monotonic() < until:
        await asyncio.sleep(0.2)
    return said, does, took


async def of_the_operator(scene: RightsScene) -> Iterable[str]:
    """Run each command without each right; return a row where it can't do its work."""
    rows = []
    await scene.operator_acls.only(scene.operator)
    usual = {name: (await scene.run(*command)).exit_code for name, command in COMMANDS.items()}
    for grant in scene.operator:
        await scene.operator_acls.only(without(scene.operator, grant))
        found = []
        for name, command in COMMANDS.items():
            result = await scene.run(*command)
            text = [
                line for line in (result.stderr + result.stdout).splitlines() if "denies" in line or "can't" in line
            ]
            if result.exit_code != usual[name] or text:
                found.append(f"| {grant} | `{name}` | {result.exit_code} | {' '.join(' '.join(text[:1]).split())} |")
        rows += found or [f"| {grant} | | | every command works |"]
        say(f"operator without {grant}: {len(found)} commands")
    return rows


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - a program


async def operators_part(kafka: EmbeddedKafka) -> str:
    """Take each right of the operator away, and return the part of the page."""
    async with RightsScene(bootstrap=kafka.bootstrap, login=kafka.address(LOGIN), prefix="vm-sync") as scene:
        await scene.service_acls.only(scene.service)
        process = scene.start()
        await scene.ledger.ready(process, within=90)
        await scene.spoil()
        table = "| without | command | exit code | it says |\n|---|---|---|---|\n"
        rows = await of_the_operator(scene)
        await process.stop()
        return OPERATORS + table + "".join(f"{row}\n" for row in rows)


async def services_part(kafka: EmbeddedKafka) -> str:
    """Take each right of the service away, and return the part of the page."""
    parts = [HEAD]
    async with RightsScene(bootstrap=kafka.bootstrap, login=kafka.address(LOGIN), prefix="vm-sync") as scene:
        columns = "| without | it says | it does | once granted |\n|---|---|---|---|\n"
        rows = []
        for grant in scene.service:
            rows.append(_row(grant, await at_the_start(scene, grant)))
            say(f"at the start: {rows[-1]}")
        parts.append("\n## The service, started without a right\n\n" + columns + "".join(rows))
        await scene.service_acls.only(scene.service)
        process = scene.start()
        await scene.ledger.ready(process, within=90)
        rows = []
        for grant in scene.service:
            rows.append(_row(grant, await while_running(scene, grant, process)))
            say(f"while running: {rows[-1]}")
        parts.append("\n## The service, when a right is taken from it\n\n" + columns + "".join(rows))
        await process.stop()
    return "".join(parts)


def _row(grant: Grant, found: tuple[str, str, str]) -> str:
    said, does, took = found
    return f"| {grant} | {said} | {does} | {took} |\n".replace("|  |", "| |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or its second part alone."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.rights", description=__doc__.splitlines()[0])
    parser.add_argument("--operator", action="store_true", help="only the operator's part; the other one stays")
    given = parser.parse_args(arguments)
    services = PAGE.read_text(encoding="utf-8").partition(OPERATORS)[0]
    if not given.operator:
        with EmbeddedKafka(users=PASSWORDS, authorizer=True) as kafka:
            services = asyncio.run(services_part(kafka))
    with EmbeddedKafka(users=PASSWORDS, authorizer=True) as kafka:  # the names of the topics are the same
        operators = asyncio.run(operators_part(kafka))
    PAGE.write_text(services + operators, encoding="utf-8")


if __name__ == "__main__":
    main()
