"""Files of requests in a run of chaos: `vm-sync request --from` is run, interrupted, and run again until it has ended.

It is the real command, in processes of its own, with an operator's account where Kafka asks for one. What stands on the
requests topic is read beside it, all the time, since a run may have records deleted once the service has read them.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from service.sandbox.child_processes import dying_with_us
from tests.stress.oracle import INTERRUPTED, Asked, CommandRun, FileSent
from tests.stress.schedule import Interruption, RequestFile
from tests.support.process_harness import Ledger

STANDS_WITHIN: Final = 40.0
"""Seconds after which a run is interrupted, wherever it is: Kafka may be away."""

ENDS_WITHIN: Final = 60.0
"""Seconds from Ctrl-C to the end of a command."""

AGAIN: Final = 1.0
"""Seconds between two runs in the calm: Kafka may just have come back."""


class Run(Protocol):
    """What is needed of a run of chaos."""

    @property
    def ledger(self) -> Ledger: ...

    def told(self) -> set[str]:
        """Return the operations whose outcomes a reader has seen."""

    def find(self, sentence: str) -> None:
        """Note what must not be."""


@dataclass(slots=True)
class _Sent:
    file: RequestFile
    path: Path
    failed_to: Path
    operations: dict[str, str] = field(default_factory=dict)
    """The operation of each replication that stands on the topic."""
    records: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: list[CommandRun] = field(default_factory=list)
    answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of its requests that stand on the topic."""
        return len(self.operations) / len(self.file.lines)

    @property
    def ended(self) -> bool:
        """Whether its last run came to an end that is final."""
        return bool(self.runs) and self.runs[-1].interrupted is None and self.runs[-1].code in {0, 1}


class RequestFiles:
    """The files of one run. `account`: settings with which the command logs in."""

    def __init__(self, run: Run, files: Sequence[RequestFile], *, account: Mapping[str, str]) -> None:
        self._run = run
        self._account = account
        folder = run.ledger.folder
        self._sent = [
            _Sent(one, folder / f"requests-{one.name}.txt", folder / f"failed-{one.name}.jsonl") for one in files
        ]
        self._of = {replication: one for one in self._sent for replication, _ in one.file.lines}
        self._changed = asyncio.Condition()
        self._runs = 0

    async def play(self) -> None:
        """Run each file's command once for each of its interruptions."""
        await asyncio.gather(*(self._play(one) for one in self._sent))

    async def finish(self, *, within: float) -> None:
        """Run each file's command until it comes to its end; call it when nothing goes wrong any more."""
        await asyncio.gather(*(self._finish(one, within=within) for one in self._sent))

    def found(self) -> list[FileSent]:
        """Return what the judge is to see."""
        return [
            FileSent(
                name=one.file.name,
                replications=frozenset(replication for replication, _ in one.file.lines),
                records=one.records,
                runs=one.runs,
                answer=one.answer,
                failed_to=one.failed_to.read_text(encoding="utf-8") if one.failed_to.exists() else "",
            )
            for one in self._sent
        ]

    @property
    def interrupted(self) -> int:
        """How many runs were ended by a signal."""
        runs = [run for one in self._sent for run in one.runs]
        return sum(run.interrupted is not None and run.code == INTERRUPTED[run.interrupted] for run in runs)

    async def read(self) -> None:
        """Note what stands on the requests topic, until cancelled."""
        consumer = AIOKafkaConsumer(
            self._run.ledger.topics["requests"],
            bootstrap_servers=self._run.ledger.bootstrap,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            while True:
                with suppress(KafkaError):
                    got: dict[TopicPartition, Any] = await consumer.getmany(timeout_ms=500)
                    await self._note([record for records in got.values() for record in records])
        finally:
            await consumer.stop()

    async def _note(self, records: Sequence[Any]) -> None:
        for record in records:
            with suppress(ValueError, TypeError, KeyError):
                body = json.loads(record.value)
                replication, operation = body["replicationId"], body["operationID"]
                one = self._of[replication]
                one.records[replication, operation] += 1
                one.operations.setdefault(replication, operation)
                asked = Asked(operation, replication, record.partition, record.offset)
                self._run.ledger.asked.setdefault(operation, asked)
        async with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------ one file

    async def _play(self, one: _Sent) -> None:
        await asyncio.sleep(one.file.at)
        lines = [f"{replication} {site or ''}".rstrip() + "\n" for replication, site in one.file.lines]
        one.path.write_text("".join(lines), encoding="utf-8")
        for number, interruption in enumerate(one.file.interruptions):
            await self._command(one, interruption)
            if number == 0:
                there = [name for name in one.file.cancelled if name in one.operations]
                standing = [await self._run.ledger.begin_to_cancel(one.operations[name], name) for name in there]
                await asyncio.gather(*standing)

    async def _finish(self, one: _Sent, *, within: float) -> None:
        until = time.monotonic() + within
        while not one.ended and (left := until - time.monotonic()) > 0:
            await self._command(one, None, wait=left)
            await asyncio.sleep(AGAIN)
        if not one.ended:
            self._run.find(f"file {one.file.name}: no run came to its end within {within:.0f} s")

    async def _command(self, one: _Sent, interruption: Interruption | None, *, wait: float = 600.0) -> None:
        """Run the command, and interrupt it."""
        self._runs += 1
        output, messages = (self._run.ledger.folder / f"command-{self._runs}.{name}" for name in ("out", "err"))
        known = frozenset(self._run.told() & set(one.operations.values()))
        arguments = ["--from", str(one.path), "--rate", str(one.file.rate), "--failed-to", str(one.failed_to)]
        arguments += ["--wait", "--timeout", f"{wait:.0f}", "--json"]
        with output.open("wb") as stdout, messages.open("wb") as stderr:
            child = await asyncio.create_subprocess_exec(
                *dying_with_us([sys.executable, "-m", "service.cli", "request", *arguments]),
                env=os.environ | self._run.ledger.environment(**self._account),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
            ending = asyncio.create_task(child.wait())
            if interruption is not None:
                await self._interrupt(one, child, ending, interruption)
            code = await ending
        number = None if interruption is None else signal.SIGKILL if interruption.kill else signal.SIGINT
        said = messages.read_text(encoding="utf-8", errors="replace")
        one.runs.append(CommandRun(code=code, said=said, interrupted=number, known=known))
        if code in {0, 1}:
            one.answer = json.loads(output.read_text(encoding="utf-8") or "{}")

    async def _interrupt(
        self, one: _Sent, child: asyncio.subprocess.Process, ending: asyncio.Task[int], interruption: Interruption
    ) -> None:
        async def sent() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: one.share >= interruption.share)

        standing = asyncio.create_task(sent())
        await asyncio.wait([ending, standing], timeout=STANDS_WITHIN, return_when=asyncio.FIRST_COMPLETED)
        standing.cancel()
        await asyncio.wait([ending], timeout=interruption.seconds)
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL if interruption.kill else signal.SIGINT)
        await asyncio.wait([ending], timeout=ENDS_WITHIN)
        if not ending.done():
            self._run.find(f"file {one.file.name}: a run did not end within {ENDS_WITHIN:.0f} s after Ctrl-C")
            child.kill()
