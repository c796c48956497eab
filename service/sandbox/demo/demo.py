"""Runs the demo: a real Kafka, a simulated VCDA, the service as a separate process, and requests.

The demo sends requests and reads outcomes like another team, and checks the guarantees at the end: every request has
exactly one outcome for readers of committed records, VCDA has exactly one task for each, and never two at once for one
replication. It uses only the service's command line, topics and operations server.
"""

import asyncio
import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Self

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from service.sandbox.child_processes import dying_with_us
from service.sandbox.demo.seen import Outcome, Seen, Sent, broken_promises
from service.sandbox.demo.view import View, say, summary
from service.sandbox.kafka import EmbeddedKafka, free_ports
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Config, Durations, Plan, User

REQUESTS, OUTCOMES, DEAD_LETTERS = "vm-sync.requests", ("vm-sync.completed", "vm-sync.failed"), "vm-sync.dead-letter"

PLAN = Plan(
    queued=Durations.of("uniform:0.1:0.5"),
    duration=Durations.of("lognormal:5:0.5"),  # long enough to be watched, short enough to be waited for
    failing=0.04,
    warned=0.05,
)

REMOTE = "site2"

SPREAD = 6.0
"""Seconds over which the requests are sent, so that they can be seen coming."""

READY_LIMIT = 60.0
"""Seconds for the service to be ready; 3 on an idle machine."""

OUTCOME_LIMIT = 120.0
"""Seconds after the last request for the last outcome: no sync of the plan takes a minute, and 200 run at once."""

STOP_LIMIT = 30.0
"""Seconds for the service's clean stop; its own limit is 25."""


class DemoError(Exception):
    """The demo can't continue; the text has the cause."""


def run(*, requests: int, keep: bool) -> int:
    """Run it and return the exit code: 0 if all was as promised, 1 if not, 130 if stopped half-way."""
    for sign in (signal.SIGINT, signal.SIGTERM):  # both clean up, even where a shell had Ctrl-C ignored
        signal.signal(sign, signal.default_int_handler)
    seen = Seen(total=requests)
    try:
        say("Starting a real Kafka ...")
        with EmbeddedKafka() as kafka:
            return asyncio.run(_demo(kafka.bootstrap, seen, keep=keep))
    except DemoError as error:
        say(str(error))
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("Stopped; no process is left running.")
        return 130


async def _demo(bootstrap: str, seen: Seen, *, keep: bool) -> int:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with Simulator(Config(plan=PLAN)) as vcda:
        with Service(bootstrap=bootstrap, vcda=vcda) as service:
            say(f"Kafka is at {bootstrap}, a simulated VCDA at {vcda.url}; the service logs to {service.log}")
            await service.ready()
            async with _reading(bootstrap, seen) as consumer:
                await _flow(bootstrap, seen, service, vcda)
                if not keep:
                    await asyncio.to_thread(service.stop)
                await _read_to_end(consumer)
            counters = vcda.world.counters()
            broken = list(broken_promises(seen, counters, exit_code=service.exit_code))
            summary(seen, counters, broken)
            if keep:
                await _keep(bootstrap, service)
    return 1 if broken else 0


async def _keep(bootstrap: str, service: "Service") -> None:
    """Leave all of it running until Ctrl-C, which is then no failure."""
    example = next(_requests(1))[0]
    say(
        "\n".join(
            [
                "",
                "Kafka, the simulated VCDA and the service keep running until Ctrl-C. In another shell:",
                "",
                f"  export VM_SYNC_KAFKA__BOOTSTRAP_SERVERS={bootstrap} VM_SYNC_OPS__PORT={service.port}",
                *[f"  export {line}" for line in service.exports],
                f"  vm-sync request {example} --wait",
                "  vm-sync list",
                "  vm-sync dead-letters list",
                "",
                f"  the page       {service.url}/",
                f"  metrics        {service.url}/metrics",
                f"  in flight      {service.url}/syncs",
                f"  the messages   {service.url}/asyncapi",
                f"  Kafka          {bootstrap}",
                f"  the log        {service.log}",
            ]
        )
    )
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    say("Stopping ...")


# ---------------------------------------------------------------- the service


class Service:
    """The service's process, with settings of its own whatever this process's are."""

    def __init__(self, *, bootstrap: str, vcda: Simulator) -> None:
        folder = Path(tempfile.mkdtemp(prefix="vm-sync-demo-"))
        user: User = vcda.world.config.users[0]
        self.log = folder / "service.log"
        (self.port,) = free_ports(1)
        own = {
            "KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "KAFKA__PARTITIONS": "4",
            "VCDA__URL": vcda.url,
            "VCDA__CREDENTIALS__USER": user.name,
            "VCDA__CREDENTIALS__PASSWORD": user.password,
            "VCDA__SITES": json.dumps([{"name": REMOTE, "user": user.name, "password": user.password}]),
            "SYNC__DEADLINE": "PT10M",
            "OPS__HOST": "127.0.0.1",
            "OPS__PORT": str(self.port),
            "LOG__FORMAT": "text",
            "SECRETS_DIR": str(folder),
        }
        self._environ = {name: text for name, text in os.environ.items() if not name.upper().startswith("VM_SYNC_")}
        self._environ |= {f"VM_SYNC_{name}": text for name, text in own.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def exports(self) -> list[str]:
        """Variables for a second process beside this one, in a shell's words."""
        names = ("VCDA__URL", "VCDA__CREDENTIALS__USER", "VCDA__CREDENTIALS__PASSWORD", "VCDA__SITES")
        return [f"VM_SYNC_{name}={shlex.quote(self._environ[f'VM_SYNC_{name}'])}" for name in names]

    @property
    def url(self) -> str:
        """Of its operations server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - all of it is ours
                dying_with_us([sys.executable, "-m", "service.cli", "run"]),
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: we stop it when nobody needs it any more
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it in an orderly manner, or else by force."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def ready(self) -> None:
        """Wait until it is. Raises `DemoError` if it ends or takes too long."""
        give_up = time.monotonic() + READY_LIMIT
        async with httpx.AsyncClient(base_url=self.url) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get("/readyz")).is_success:
                        return
                if self.exit_code is not None or time.monotonic() > give_up:
                    last = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
                    msg = "\n".join(["The service does not start. The end of the service's log:", *last])
                    raise DemoError(msg)
                await asyncio.sleep(0.1)


# ---------------------------------------------------------------- its neighbours


async def _flow(bootstrap: str, seen: Seen, service: Service, vcda: Simulator) -> None:
    """Send the requests, and watch until all is answered, or nothing more is to be expected."""
    with View(seen, log=service.log) as view:
        sending = asyncio.create_task(_send(bootstrap, seen, vcda))
        watching = asyncio.create_task(_watch(service.url, seen))
        try:
            give_up = time.monotonic() + SPREAD + OUTCOME_LIMIT
            while not seen.complete and service.exit_code is None and time.monotonic() < give_up:
                view.draw()
                for task in (sending, watching):
                    if task.done():
                        task.result()
                await asyncio.sleep(0.2)
            view.draw()
        finally:
            for task in (sending, watching):
                task.cancel()
            await asyncio.wait([sending, watching])


async def _send(bootstrap: str, seen: Seen, vcda: Simulator) -> None:
    """Publish the requests, two of three for replications of their own, and one message that nobody understands."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        requests = list(_requests(seen.total))
        # Whatever the dice say, one failure is to be seen.
        vcda.world.plan(replication=requests[0][0], times=1, failing=1.0)
        for number, (replication_id, site) in enumerate(requests, start=1):
            sent = Sent(operation_id=f"demo-{number:04d}", replication_id=replication_id, site=site)
            seen.sent[sent.identity] = sent
            body = {"operationID": sent.operation_id, "replicationId": replication_id}
            body |= {"site": site} if site else {}
            await producer.send_and_wait(REQUESTS, json.dumps(body).encode(), key=replication_id.encode())
            if number == (seen.total + 1) // 2:
                await producer.send_and_wait(REQUESTS, b"sync the big one, please", key=replication_id.encode())
            await asyncio.sleep(SPREAD / seen.total)
    finally:
        await producer.stop()


def _requests(total: int) -> Iterator[tuple[str, str | None]]:
    """Draw replications, every third of them asked for twice, every fourth at the remote site."""
    dice = random.Random()  # other ones each time: with --keep and a second demo, nothing is a duplicate
    known: list[tuple[str, str | None]] = []
    for number in range(total):
        if number % 3 == 2:  # noqa: PLR2004 - the third
            yield dice.choice(known)
            continue
        known.append((f"C4-{uuid.UUID(int=dice.getrandbits(128), version=4)}", REMOTE if number % 4 == 1 else None))
        yield known[-1]


async def _watch(url: str, seen: Seen) -> None:
    """Keep what `/syncs` tells."""
    async with httpx.AsyncClient(base_url=url) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                seen.in_flight = (await client.get("/syncs", params={"limit": 1000})).json()["syncs"]
            await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def _reading(bootstrap: str, seen: Seen) -> AsyncIterator[AIOKafkaConsumer]:
    """Read outcomes and dead letters as another team would: committed ones only."""
    consumer = AIOKafkaConsumer(
        *OUTCOMES,
        DEAD_LETTERS,
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    reading = asyncio.create_task(_read(consumer, seen))
    try:
        yield consumer
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        await consumer.stop()
        if not reading.cancelled():
            reading.result()  # else an error of it would look like outcomes that are missing


async def _read(consumer: AIOKafkaConsumer, seen: Seen) -> None:
    async for record in consumer:
        if record.topic == DEAD_LETTERS:
            seen.dead_letters += 1
            continue
        data = json.loads(record.value)
        ended = datetime.fromisoformat(data["endedAt"]).timestamp()
        seen.hear(Outcome(at=seen.now(), lag=max(record.timestamp / 1000 - ended, 0.0), data=data))


async def _read_to_end(consumer: AIOKafkaConsumer) -> None:
    """Wait until all that is there has been read; one more outcome than expected would be a broken promise."""
    ends = await consumer.end_offsets(list(consumer.assignment()))
    while any([await consumer.position(place) < end for place, end in ends.items()]):  # noqa: ASYNC110 - nor has aiokafka
        await asyncio.sleep(0.05)
