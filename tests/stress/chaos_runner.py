"""Carries a schedule out on real processes, a real Kafka and the simulated VCDA, then has the ledger judged.

run     requests are asked, unreadable messages come between them, things happen
calm    everything that was broken is whole again; every request must get its outcome
probe   one more request for each partition: each must work, so each process must
silence on several brokers: how long outcomes stay away when one is restarted or dies; see `silences`
ending  something that can't be made whole: see `endings`
stop    SIGTERM to all; each must end by itself, with 0
"""

import asyncio
import json
import shutil
import signal
import ssl
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import trustme
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.partitioner import murmur2
from aiokafka.protocol.admin import DeleteGroupsRequest

from service.intake.timings import DEFAULT_TIMINGS
from service.messages.site_pause import LOCAL
from service.sandbox.kafka import LOGIN, EmbeddedKafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan, User
from tests.stress import endings, silences
from tests.stress.broker_faults import BrokerFaults, service_grants
from tests.stress.oracle import OTHER_END, Disturbance
from tests.stress.request_files import RequestFiles
from tests.stress.routes import Routes
from tests.stress.schedule import (
    DEADLINE,
    LISTED_AFTER,
    MOST_MEMBERS,
    OTHER_ACCOUNT,
    PARTITIONS,
    PAUSABLE,
    REQUEST_TIMEOUT,
    SESSION_TIMEOUT,
    SETTLE,
    SITES,
    TO_BROKERS,
    TOO_LATE,
    UNLISTED_LASTS,
    WITHOUT_KAFKA,
    Cancelling,
    Happening,
    Odd,
    Schedule,
    Spoiling,
    What,
)
from tests.stress.site_pauses import SitePauses
from tests.stress.watch import Watch
from tests.support.cluster import OPERATOR, PASSWORDS, SERVICE, Cluster
from tests.support.grants import grants_of
from tests.support.process_harness import PASSWORD, Ledger, Process, Verdict, appliance
from tests.support.simulator_thread import Apart

BROKER: Final = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000"}
"""So that a transaction past its time-out is noticed while its writer is still frozen."""

RELAYED: Final = "RELAYED"
"""The listener that the service finds behind relays; we take the other, so that we see what is there."""

INTERRUPTED: Final = "vm-sync request --from was interrupted"
"""How often is counted among what happened."""

UNTIL_QUIET: Final = DEADLINE + 75.0
"""Seconds from the calm to the last outcome: two wall clocks that differ by a minute, and a deadline."""

AT_MOST: Final = 900.0
"""Seconds for a whole run: one that hangs is a finding, too."""

PROBED: Final = 25.0
"""Seconds in which each partition has to do a short sync when all is well."""

ACCOUNTED: Final = 20.0
"""Seconds until the last records that were put on the topic have been read: duplicates, say, that nobody waits for."""

ANSWERS: Final = 5.0
"""Seconds in which a process must say that it lives while nobody reads its log."""

CACHED: Final = 5.0
"""Seconds for which a cache in front of VCDA answers what was true then."""

FORGETS: Final = 2.0
"""Seconds that a task must have been polled for before VCDA forgets it: by then the journal knows it."""

STOPPED: Final = 35.0
"""Seconds for a clean stop: the drain's limit of 25 s, and a busy machine."""

MEMBERS_ARE_MISSED: Final = DEFAULT_TIMINGS.rebalance_timeout.total_seconds() + 2 * SESSION_TIMEOUT
"""Seconds after which the group has noticed that its members are dead: one that died in the middle of a rebalance is
waited for until the service's rebalance timeout is over."""

USER: Final = "administrator@System"
OWN: Final = User(name="vm-sync@org2", password=PASSWORD, org="org2")
"""Whom site2 may know the service by."""
SUCCESSOR: Final = "successor@System"
"""Who takes the place of the user at site3."""

SETTINGS: Final = {
    "PYTHONFAULTHANDLER": "1",
    "VM_SYNC_KAFKA__SESSION_TIMEOUT": f"PT{SESSION_TIMEOUT:.0f}S",
    "VM_SYNC_VCDA__REQUEST_TIMEOUT": f"PT{REQUEST_TIMEOUT:.0f}S",
    "VM_SYNC_SYNC__SETTLE": f"PT{SETTLE:.0f}S",
    "VM_SYNC_SYNC__DEADLINE": f"PT{DEADLINE}S",
    "VM_SYNC_SYNC__LOST_AFTER": "PT8S",
}


@dataclass(slots=True, eq=False)
class Member:
    """A process of the service, and what we did to it."""

    process: Process
    watch: Watch
    watching: "asyncio.Task[None]"
    frozen: bool = False
    doomed: bool = False
    """We have told it to end."""
    killed: bool = False

    @property
    def free(self) -> bool:
        return self.process.running and not self.frozen and not self.doomed


@dataclass(slots=True)
class Report:
    """How a run went."""

    schedule: Schedule
    verdict: Verdict
    happened: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    """Answers that went wrong at VCDA."""
    calm: float = 0.0
    """Seconds from the calm to the last outcome."""
    took: float = 0.0


class Authority:
    """Who vouches for the simulated VCDA, as a bundle on disk, until another does."""

    def __init__(self, folder: Path) -> None:
        self.bundle = folder / "vcda-ca.pem"
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._next = trustme.CA()
        self.replace_bundle()
        self.replace_certificate()

    def replace_bundle(self) -> None:
        """Have another vouch from now on, in one step, as a mounted secret is replaced."""
        self._next = trustme.CA()
        new = self.bundle.with_suffix(".new")
        self._next.cert_pem.write_to_path(new)
        new.replace(self.bundle)

    def replace_certificate(self) -> None:
        """Show new connections a certificate that the new one vouches for."""
        self._next.issue_cert("127.0.0.1").configure_cert(self.server)


def kafka_of(brokers: int) -> EmbeddedKafka:
    """A Kafka for a run, not started. One of several brokers asks the service for its login and its rights."""
    if brokers > 1:
        return EmbeddedKafka(brokers=brokers, properties=BROKER, users=PASSWORDS, authorizer=True)
    return EmbeddedKafka(properties=BROKER, listeners={RELAYED: "PLAINTEXT"})


class Conductor:
    """One run. `show` is told what happens, and how many were asked and told."""

    def __init__(
        self, schedule: Schedule, *, kafka: EmbeddedKafka, show: Callable[[str, int, int], None], prefix: str
    ) -> None:
        self._schedule = schedule
        self._kafka = kafka
        self._cluster = Cluster(kafka)
        self._several = len(kafka.brokers) > 1
        self._show = show
        self._routes = Routes(kafka, listener=LOGIN if self._several else RELAYED)
        self._folder = tempfile.TemporaryDirectory(prefix="vm-sync-chaos-")
        self._authority = Authority(Path(self._folder.name))
        self._vcda = Apart(
            appliance(
                Plan(
                    queued=Durations.of("0.1"),
                    duration=Durations.of("uniform:0.5:3"),
                    failing=0.08,
                    failed=OTHER_END if schedule.seed % 2 else "FAILED",
                    warned=0.1,
                ),
                spelled=schedule.spelling,
                others=(User(name=OTHER_ACCOUNT, password=PASSWORD, administrator=True),),
                site_users={"site2": (replace(OWN, on_tasks=schedule.spelling),)} if schedule.own_user else {},
                submit_latency=Durations.of("uniform:0.01:0.1"),
                pause_grace=2.5,  # on a busy machine answers and POSTs alike are read late; of pauses of 4 s and more
                seed=schedule.seed,
            ),
            tls=self._authority.server,
        )
        self._ledger = Ledger(bootstrap=kafka.bootstrap, simulator=self._vcda, prefix=prefix, partitions=PARTITIONS)
        self._users = {"site2": OWN.name if schedule.own_user else USER, "site3": USER}
        self._replaced: set[tuple[str, str]] = set()
        self._write_users()
        self._members: list[Member] = []
        self._skews = iter(schedule.skews)
        self._findings: list[str] = []
        self._told: set[str] = set()
        self._settings: Mapping[str, str] = {}
        self._broker = asyncio.Lock()
        self._broker_away = False
        self._restless_until = 0.0
        self._happened: Counter[str] = Counter()
        self._asked = 0
        self._pauses = SitePauses(self)
        account = _login(OPERATOR) if self._several else {}
        self._files = RequestFiles(self, schedule.files, account=account)
        self._faults = BrokerFaults(
            self._cluster, routes=self._routes, ledger=self._ledger, away=self._broker, note=self._note
        )

    def _note(self, words: str) -> None:
        """Have it stand in the logs' folder, beside what the processes say at that moment."""
        with (self._ledger.folder / "happenings.log").open("a") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {words}\n")

    # ------------------------------------------------------------ what an ending sees of it

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def vcda(self) -> Apart:
        return self._vcda

    def free(self) -> Sequence[Member]:
        return self._free()

    def living(self) -> Sequence[tuple[Process, bool]]:
        return [(member.process, member.free) for member in self._members if member.process.running]

    def find(self, sentence: str) -> None:
        """Note what must not be."""
        self._findings.append(sentence)

    def told(self) -> set[str]:
        """Return the operations that a reader has heard of."""
        return self._told

    def untold(self) -> set[str]:
        """Return the operations that a reader hasn't heard of."""
        return set(self._ledger.asked) - self._told

    async def begin_again(self, **settings: str) -> None:
        """End all members, and start as many, as the ledger has it now, with these settings from now on."""
        self._settings = {**self._settings, **settings}
        members = self._free()
        await asyncio.gather(*(self._stop(member) for member in members))
        for _ in members:
            self._start()

    # ------------------------------------------------------------ the run

    async def run(self, *, keep: Path) -> Report:
        """Carry it out, and judge. The processes' logs are copied to `keep`."""
        began = time.monotonic()
        schedule, ledger = self._schedule, self._ledger
        async with asyncio.timeout(AT_MOST), self._kafka_there(), self._vcda, ledger, keeping(ledger.folder, keep):
            for site, seconds in schedule.site_clocks.items():
                await self._vcda.do(partial(_set_clock, site=site, seconds=seconds))
            for _ in range(schedule.members):
                self._start()
            await asyncio.gather(*(ledger.ready(member.process) for member in self._members))
            reading = asyncio.create_task(self._read())
            standing = asyncio.create_task(self._files.read())
            by_hand = await self._provoke()
            await asyncio.gather(self._ask(), self._happen(), self._files.play())
            calm_at = time.time()
            calm = await self._calm()
            by_hand.cancel()
            standing.cancel()
            await self._probe()
            evidence = await self._accounts() | {"calm": (calm_at, time.time())}
            if schedule.measurings:
                evidence["disturbances"] = await self._measure()
            if schedule.ending is not None:
                self._happened[schedule.ending] += 1
                self._tell(schedule.ending)
                await endings.play(schedule.ending, self)
            reading.cancel()
            await self._stop_all()
            lost = sum(member.watch.lost for member in self._members)
            evidence |= {"counted_lost": lost, "replaced": frozenset(self._replaced), "odd": frozenset(schedule.odd)}
            evidence |= {"site_pauses": self._pauses.found, "sites": frozenset(name for name in SITES if name)}
            evidence["files"] = self._files.found()
            self._happened[INTERRUPTED] += self._files.interrupted
            self._happened["VCDA refused a repeated POST"] += self._vcda.world.counters()["refusedWhileRunning"]
            self._happened["a paused site was looked after"] += len(self._pauses.found)
            evidence["endless"] = {name: odd.value for name, odd in schedule.odd.items() if odd is not Odd.BLIND}
            verdict = await ledger.judge(**evidence)
            verdict.violations.extend(self._findings)
            for member in self._members:
                verdict.violations.extend(member.watch.findings)
            verdict.violations.extend(f"a bug in a log: {line[:600]}" for line in ledger.tracebacks()[:3])
            faults = sum(self._vcda.world.counters()["faults"].values())
            return Report(schedule, verdict, self._happened, faults=faults, calm=calm, took=time.monotonic() - began)

    @asynccontextmanager
    async def _kafka_there(self) -> AsyncIterator[None]:
        async with self._routes:
            self._ledger.door = self._routes.bootstrap
            self._routes.advertise()
            try:
                await asyncio.to_thread(self._cluster.open)
                if self._several:
                    prefix = self._ledger.prefix
                    await self._cluster.grant(SERVICE, *service_grants(prefix))
                    await self._cluster.grant(OPERATOR, *(grant.under(prefix) for grant in grants_of(OPERATOR)))
                yield
            finally:
                await asyncio.to_thread(self._cluster.close)
                self._folder.cleanup()

    # ------------------------------------------------------------ members

    def _start(self, **more: str) -> Member:
        skew = next(self._skews)
        command = (sys.executable, "-m", "tests.stress.skewed", str(skew)) if skew else ()
        authority = {"VM_SYNC_VCDA__CA_FILE": str(self._authority.bundle)}
        settings = {**SETTINGS, **(_login(SERVICE) if self._several else {}), **self._settings}
        process = self._ledger.start(command=command, **settings, **authority, **more)
        holder: list[Member] = []
        watch = Watch(process, excused=lambda: not holder[0].free or self._restless)
        member = Member(process, watch, asyncio.create_task(watch.look()))
        holder.append(member)
        self._members.append(member)
        return member

    @property
    def _restless(self) -> bool:
        return self._broker_away or time.monotonic() < self._restless_until

    def _free(self) -> list[Member]:
        for member in self._members:
            if not member.process.running and not member.doomed:
                member.doomed = True
                code = member.process.child.returncode
                self._findings.append(f"{member.process.log.name} ended by itself, with {code}")
                self._start()
        return [member for member in self._members if member.free]

    def _running(self) -> int:
        return sum(member.process.running and not member.doomed for member in self._members)

    async def _kill(self, member: Member) -> None:
        member.doomed = member.killed = True
        await member.process.kill()

    async def _stop(self, member: Member) -> None:
        member.doomed = True
        began = time.monotonic()
        started = member.process.port() is not None
        last = asyncio.create_task(member.watch.until_ended())
        try:
            code = await member.process.stop(within=STOPPED)
        except Exception as error:  # noqa: BLE001 - subprocess's own
            self._findings.append(f"{member.process.log.name} did not stop within {STOPPED} s: {error!r}")
            member.process.signal(signal.SIGABRT)  # so that its log says where it stands
            await asyncio.sleep(1.0)
            await member.process.kill()
            return
        finally:
            await last
        if code != 0 and not member.killed and (started or code != -signal.SIGTERM):
            took = time.monotonic() - began
            self._findings.append(
                f"{member.process.log.name} was told to stop, and ended with {code} after {took:.1f} s"
            )

    async def _freeze(self, member: Member, seconds: float) -> None:
        member.frozen = True
        member.process.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            member.process.signal(signal.SIGCONT)
            member.frozen = False

    # ------------------------------------------------------------ asking

    async def _ask(self) -> None:
        began = time.monotonic()
        standing: list[asyncio.Task[None]] = []
        for one in self._schedule.sendings:
            await asyncio.sleep(max(0.0, began + one.at - time.monotonic()))
            if isinstance(one, Spoiling):
                await self._spoil(one)
            elif isinstance(one, Cancelling):
                standing.append(
                    await self._ledger.begin_to_cancel(one.operation_id, one.replication_id, release=one.release)
                )
            else:
                standing.append(await self._ledger.begin_to_ask(one.operation_id, one.replication_id, **one.fields))
            self._asked = len(self._ledger.asked)
        await asyncio.gather(*standing)

    async def _spoil(self, one: Spoiling) -> None:
        if not one.below:
            await self._ledger.spoil(partition=one.partition, key=one.key, value=one.value, headers=one.headers)
            return
        while True:
            with suppress(KafkaError):  # raised when it isn't there at all: nothing was sent
                await self._ledger.spoil_below(partition=one.partition)
                return
            await asyncio.sleep(1.0)

    async def _provoke(self) -> "asyncio.Task[None]":
        """Switch on what is not promised, for replications of their own."""
        for replication in self._schedule.released:
            self._ledger.foreseen[replication] = "a request was released while VCDA worked on it"
        await self._provoke_lateness()
        numbers = {}
        for replication in self._schedule.by_hand:
            self._ledger.foreseen[replication] = "somebody else synced it by hand"
            numbers[replication] = await self._switch(
                operation="submit", replication=replication, answer="cut", effect="none", times=1
            )
        for replication, odd in self._schedule.odd.items():
            if odd is Odd.BLIND:
                await self._switch(operation="submit", replication=replication, answer="cut", effect="first", times=1)
            elif odd is not Odd.POISON:
                word = "ABORTED" if odd is Odd.ABORTED else "RUNNING"
                await self._vcda.do(partial(_never_ends, replication=replication, word=word))
        await self._vcda.do(self._be_odd)

        async def by_hand() -> None:
            """Start a sync as soon as the POST has been cut off."""
            while numbers:
                there = {fault["id"] for fault in await self._vcda.do(_faults)}
                for replication in [name for name, number in numbers.items() if number not in there]:
                    del numbers[replication]
                    await self._vcda.do(partial(_by_hand, replication=replication))
                await asyncio.sleep(0.1)

        return asyncio.create_task(by_hand())

    async def _provoke_lateness(self) -> None:
        """Have VCDA take POSTs, or list tasks, later than D."""
        for replication in self._schedule.late:
            self._ledger.foreseen[replication] = "VCDA took the POST later than D"
            await self._switch(
                operation="submit", replication=replication, answer="cut", effect="behind", seconds=TOO_LATE, times=1
            )
        for replication, status in self._schedule.unlisted.items():
            self._ledger.foreseen[replication] = "VCDA listed the task of a POST later than D"
            await self._switch(operation="submit", replication=replication, answer="cut", effect="first", times=1)
            await self._vcda.do(partial(_unlisted, replication=replication, status=status))

    def _be_odd(self, sim: Simulator) -> None:
        """Switch on what stays wrong to the end."""
        for replication, odd in self._schedule.odd.items():
            for operation in {Odd.POISON: ("poll", "ask"), Odd.BLIND: ("find",)}.get(odd, ()):
                sim.fault(operation=operation, replication=replication, answer="status", status=500)

    async def _switch(self, **fault: Any) -> int:
        return await self._vcda.do(lambda sim: sim.fault(**fault))

    # ------------------------------------------------------------ happenings

    async def _happen(self) -> None:
        began = time.monotonic()
        going: list[asyncio.Task[None]] = []
        for one in self._schedule.happenings:
            await asyncio.sleep(max(0.0, began + one.at - time.monotonic()))
            going.append(asyncio.create_task(self._one(one)))
        await asyncio.gather(*going)

    async def _one(self, one: Happening) -> None:
        free = self._free()
        chosen = free[int(one.who * len(free))] if free else None
        self._happened[one.words] += 1
        self._tell(one.words)
        self._note(one.words)
        if one.what in self._to_members:
            if chosen is not None:
                await self._to_members[one.what](chosen, one.seconds)
        elif one.what in WITHOUT_KAFKA:
            await self._without_kafka(one)
        elif one.what in TO_BROKERS:
            await self._faults.do(one)
        elif one.what is What.SITE_PAUSED:
            await self._pauses.play(one.fault["site"], seconds=one.seconds)
        elif one.what is What.PAUSE_ENDS_UNSEEN:
            held = await self._pauses.end_unseen(one.fault["site"], seconds=one.seconds, gone=self._nobody_lives)
            self._happened["a pause that a process had read ended while none lived"] += held
        else:
            await self._to_others(one)

    @property
    def _to_members(self) -> Mapping[What, Callable[[Member, float], Awaitable[None]]]:
        return {
            What.KILL: self._kill_and_replace,
            What.STOP: self._stop_and_replace,
            What.FREEZE: self._freeze,
            What.LEAVE: self._leave,
            What.JOIN_AND_FREEZE: self._join_and_freeze,
            What.LOG_STANDS: self._leave_log_unread,
        }

    async def _to_others(self, one: Happening) -> None:
        match one.what:
            case What.JOIN:
                await self._start_after(0.0)
            case What.JOIN_AS_ANOTHER:
                await self._start_after(0.0, VM_SYNC_VCDA__CREDENTIALS__USER=OTHER_ACCOUNT)
            case What.ALL_DIE:
                await self._all_die(one.seconds)
            case What.KAFKA_DROPS:
                self._routes.drop()
            case _:
                await self._to_vcda(one)

    async def _to_vcda(self, one: Happening) -> None:
        match one.what:
            case What.EXPIRE:
                await self._vcda.do(lambda sim: sim.world.expire(what=one.words))
            case What.VCDA_REFUSES:
                await self._vcda.refuse(seconds=one.seconds)
            case What.VCDA_DROPS | What.VCDA_UNASKED:
                await self._vcda.do(Simulator.drop if one.what is What.VCDA_DROPS else Simulator.answer_unasked)
            case What.VCDA_CERTIFICATE:
                self._authority.replace_bundle()
                await self._vcda.do(lambda _: self._authority.replace_certificate())
                await self._vcda.refuse(seconds=0.1)
            case What.ACCOUNT:
                if not self._replaced:
                    self._replaced.add(("site3", self._users["site3"]))
                    self._users["site3"] = SUCCESSOR
                    self._write_users()
                    await self._vcda.do(_replace_account)
            case What.PURGE:
                await self._vcda.do(lambda sim: sim.world.purge(polled_for=FORGETS))
            case What.CACHE:
                await self._vcda.do(lambda sim: sim.cache(seconds=CACHED, **one.fault))
                await asyncio.sleep(one.seconds)
                await self._vcda.do(lambda sim: sim.cache(seconds=0))
            case What.VCDA_CLOCK:
                await self._vcda.do(lambda sim: sim.world.clock_offset(seconds=one.seconds))
            case _:
                await self._switch(**one.fault)

    async def _kill_and_replace(self, member: Member, seconds: float) -> None:
        await self._kill(member)
        await self._start_after(seconds)

    async def _stop_and_replace(self, member: Member, seconds: float) -> None:
        await self._stop(member)
        await self._start_after(seconds)

    async def _leave(self, member: Member, _: float) -> None:
        if len(self._free()) > 1:
            await self._stop(member)

    async def _start_after(self, seconds: float, **more: str) -> None:
        await asyncio.sleep(seconds)
        if self._running() < MOST_MEMBERS:
            self._start(**more)

    async def _join_and_freeze(self, frozen: Member, seconds: float) -> None:
        """Start one, and freeze another about when it hears that it has to let its POSTs be answered."""
        await self._start_after(0.0)
        newest = self._members[-1].process
        until = time.monotonic() + 10
        while time.monotonic() < until and newest.port() is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(self._schedule.seed % 7 * 0.1)
        if frozen.free:
            await self._freeze(frozen, seconds)

    def _write_users(self) -> None:
        """Put down who the service is at remote sites, where it looks when it logs in."""
        sites = [{"name": name, "user": user, "password": PASSWORD} for name, user in self._users.items()]
        file = self._ledger.folder / "secrets" / "VCDA__SITES"
        new = file.with_name(".sites")  # such a name is passed over by who reads the folder
        new.write_text(json.dumps(sites))
        new.replace(file)

    async def _leave_log_unread(self, member: Member, seconds: float) -> None:
        """Stop reading a process' log: it must go on, and say so."""
        until = time.monotonic() + seconds
        with member.process.unread():
            while time.monotonic() < until and member.free:
                try:
                    await member.process.get("/livez", timeout=ANSWERS)
                except httpx.HTTPError as error:
                    if not member.doomed and member.process.port() is not None:
                        self.find(f"{member.process.log.name} does not answer while nobody reads its log: {error!r}")
                        return
                await asyncio.sleep(0.2)

    async def _all_die(self, seconds: float) -> None:
        async with self._broker:
            await self._forget_offsets()
            await asyncio.sleep(seconds)
            for _ in range(self._schedule.members):
                await self._start_after(0.0)

    async def _nobody_lives(self, until: datetime) -> None:
        """Kill all there are until a moment, and start as many as there shall be."""
        while True:
            for member in [member for member in self._members if member.process.running]:
                await self._kill(member)  # in later rounds: who was to replace an earlier victim
            if datetime.now(UTC) > until:
                break
            await asyncio.sleep(0.2)
        for _ in range(self._schedule.members):
            await self._start_after(0.0)

    async def _forget_offsets(self) -> None:
        """Kill all there are, and delete the group's offsets once it has noticed."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._kafka.bootstrap)
        await admin.start()
        try:
            code, until = -1, time.monotonic() + MEMBERS_ARE_MISSED
            while time.monotonic() < until:
                for member in [member for member in self._members if member.process.running]:
                    await self._kill(member)  # in later rounds: who was to replace an earlier victim
                node = await admin.find_coordinator(self._ledger.group)
                answer = await admin._send_request(DeleteGroupsRequest([self._ledger.group]), node)
                ((_, code),) = answer.results
                if code == 0:
                    return
                await asyncio.sleep(0.5)
            self._findings.append(f"the group's offsets could not be deleted: {for_code(code).__name__}")
        finally:
            await admin.close()

    async def _without_kafka(self, one: Happening) -> None:
        async with self._broker:
            self._broker_away = True
            try:
                if one.what is What.KAFKA_FREEZES:
                    for broker in self._kafka.brokers.values():
                        broker.freeze()
                    await asyncio.sleep(one.seconds)
                else:
                    await self._cluster.run(self._kafka.kill if one.what is What.KAFKA_DIES else self._kafka.stop)
                    self._routes.close()
                    await asyncio.sleep(one.seconds)
                    if one.what is What.KAFKA_MOVES:
                        await self._routes.move()
                    await self._cluster.run(self._kafka.start)
                    await self._routes.open()
                await self._cluster.heal()
            finally:
                self._broker_away = False
                self._restless_until = time.monotonic() + 10.0

    # ------------------------------------------------------------ reading

    async def _read(self) -> None:
        """Note who has been told, as a read_committed reader; only to know when to go on. The judge reads anew."""
        names = [self._ledger.topics[name] for name in ("completed", "failed")]
        consumer = AIOKafkaConsumer(
            *names,
            bootstrap_servers=self._kafka.bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            while True:
                with suppress(KafkaError):
                    got: dict[TopicPartition, Any] = await consumer.getmany(timeout_ms=500)
                    for records in got.values():
                        self._told.update(json.loads(record.value)["operationID"] for record in records)
                self._tell()
        finally:
            await consumer.stop()

    def _tell(self, words: str = "") -> None:
        self._show(words, self._asked, len(self._told))

    # ------------------------------------------------------------ the end

    async def _calm(self) -> float:
        await self._vcda.do(_whole)
        await self._vcda.do(self._be_odd)
        for _ in range(self._schedule.members - len(self._free())):
            self._start()
        self._tell("calm")
        began = time.monotonic()
        await self._files.finish(within=UNTIL_QUIET)
        while self.untold() and time.monotonic() - began < UNTIL_QUIET:
            self._free()
            await asyncio.sleep(0.2)
        return time.monotonic() - began

    async def _probe(self) -> None:
        """Ask for one more at each partition, and at each site that an operator has paused."""
        await asyncio.gather(*(self._ledger.ready(member.process) for member in self._free()))
        self._tell("one more for each partition, and each site")
        await asyncio.sleep(max(0.0, self._pauses.over_at - time.monotonic()))
        places: dict[int, str] = {}
        while len(places) < PARTITIONS:
            replication = f"C4-{uuid.uuid4()}"
            places.setdefault((murmur2(replication.encode()) & 0x7FFFFFFF) % PARTITIONS, replication)
        await self._ledger.ask_all([(f"probe-{number}", name) for number, name in places.items()])
        for site in (site for site in PAUSABLE if site != LOCAL):
            await self._ledger.ask(f"probe-{site}", f"C4-{uuid.uuid4()}", site=site)
        until = time.monotonic() + PROBED
        while self.untold() and time.monotonic() < until:
            await asyncio.sleep(0.1)
        stuck = sorted(name for name in self.untold() if name.startswith("probe-"))
        if stuck:
            self._findings.append(f"partitions or sites that don't work at the end: {stuck}")

    async def _measure(self) -> Sequence[Disturbance]:
        """Measure how long outcomes stay away, then wait for the last ones."""
        self._tell("how long outcomes stay away")
        found = await silences.measure(self, self._cluster, self._faults, self._schedule.measurings)
        until = time.monotonic() + UNTIL_QUIET
        while self.untold() and time.monotonic() < until:
            await asyncio.sleep(0.2)
        return found

    async def _accounts(self) -> dict[str, Any]:
        """Wait until each record has been read, then return what was counted and what there is to count."""
        produced = await self._ledger.produced()
        until = time.monotonic() + ACCOUNTED
        while True:
            for member in self._free():
                with suppress(httpx.HTTPError):
                    await member.watch.scrape()
            read: Counter[str] = Counter()
            for member in self._members:
                read.update(member.watch.fates)
            complete = self._schedule.gentle and not any(member.killed for member in self._members)
            skipped = sum(member.watch.unaccounted for member in self._free())
            counted = sum(read.values()) - read["reread"]
            if (skipped == 0 and (counted == produced or not complete)) or time.monotonic() > until:
                return {"read": read, "produced": produced, "accounted": complete, "skipped": skipped}
            await asyncio.sleep(0.5)

    async def _stop_all(self) -> None:
        self._tell("SIGTERM to all")
        await asyncio.gather(*(self._stop(member) for member in self._free()))
        for member in self._members:
            member.watching.cancel()


@asynccontextmanager
async def keeping(folder: Path, keep: Path) -> AsyncIterator[None]:
    """Copy the logs before the ledger removes them."""
    try:
        yield
    finally:
        await asyncio.to_thread(shutil.copytree, folder, keep, dirs_exist_ok=True)


def _login(user: str) -> dict[str, str]:
    return {
        "VM_SYNC_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "VM_SYNC_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
        "VM_SYNC_KAFKA__SASL_USERNAME": user,
        "VM_SYNC_KAFKA__SASL_PASSWORD": PASSWORDS[user],
    }


def _faults(sim: Simulator) -> list[dict[str, object]]:
    return sim.faults.list(now=sim.world.now())


def _by_hand(sim: Simulator, *, replication: str) -> str:
    return sim.world.by_hand(replication=replication)


def _set_clock(sim: Simulator, *, site: str, seconds: float) -> None:
    sim.world.clock_offset(seconds=seconds, site=site)


def _replace_account(sim: Simulator) -> None:
    sim.world.replace_account(name=USER, by=SUCCESSOR, site="site3", password=PASSWORD)


def _never_ends(sim: Simulator, *, replication: str, word: str) -> None:
    sim.world.plan(replication=replication, word=word, duration=1e9)


def _unlisted(sim: Simulator, *, replication: str, status: int) -> None:
    sim.world.plan(replication=replication, listed_after=LISTED_AFTER, duration=UNLISTED_LASTS, refuses=status)


def _whole(sim: Simulator) -> None:
    sim.cache(seconds=0)
    sim.faults.remove()
    sim.world.clock_offset(seconds=0.0)
