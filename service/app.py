"""Runs the service: the life of a process, from its start to its exit code. `wiring` makes the parts.

A process' life, which its log shows line by line:

    start   logs; the operations server (alive, not ready); Kafka, tried until it is there; topics; the group
    run     until SIGTERM, or until an essential task has ended
    drain   not ready; nothing new is begun; POSTs in flight are answered; the group is left; VCDA's session is closed;
            the operations server goes last

Exit codes: 0 after a clean stop, 1 when Kafka could not be reached or after an internal error, 2 for invalid settings
or topics.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import datetime, timedelta
from functools import partial
from importlib.metadata import version

from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from service import asyncapi, garbage, wiring
from service import event_loop as loop
from service.backoff import Backoff
from service.clock import Clock
from service.intake.group import Intake
from service.kafka.connection import KafkaConnection
from service.kafka.denials import Account
from service.kafka.diagnosis import diagnosis, overheard
from service.kafka.journal_api import StopReason
from service.kafka.tokens import Tokens
from service.kafka.topics import Advice, Created, Denied, Refusal, TopicNames, cluster_id, ensure_topics
from service.messages.requests import DeadLetterReason
from service.messages.site_pause import public_name
from service.messages.wait_cause import without_credentials
from service.observability import logs
from service.observability.metrics import Metrics
from service.observability.tracing import header_secrets, tracing
from service.ops import descriptors, health, overview, server
from service.ops.sites_view import SiteView, site_views
from service.partition.in_flight_view import in_flight_views, oldest_accepted
from service.partition.partition import Partition
from service.partition.waiting import waiting_by_cause
from service.settings import Settings, fingerprint, secrets
from service.wiring import Misfit

log = logging.getLogger(__name__)

START_BACKOFF = Backoff(first=timedelta(seconds=1), longest=timedelta(seconds=10))
"""Pauses between attempts to reach Kafka at the start."""

START_SAID_AGAIN = timedelta(minutes=1)
"""How often the same cause for that is logged."""

AWAY_FOR_LONG = timedelta(seconds=30)
"""How long Kafka may be silent before the process is not ready: longer than a broker's restart."""

READING_STALLED = timedelta(seconds=60)
"""How long the reading loop may not turn: a rebalance holds it for 30 s at most."""

WATCH = timedelta(milliseconds=500)
"""How often liveness and readiness are checked."""

WATCH_START = timedelta(milliseconds=50)
"""The same until the process is ready for the first time: a rollout waits for it."""

KAFKA_SILENT = timedelta(seconds=12)
"""Kafka counts as away when it has not answered for so long; it is asked every few seconds."""

LOOK = timedelta(seconds=1)
"""How often it is looked whether the session stands, and what else is degraded. A call is made only where a login or an
extension is due."""

SIGNALS = signal.SIGTERM, signal.SIGINT
"""The signals that stop a process cleanly."""

OPS_SHARE = timedelta(seconds=2)
"""Of the drain's limit, what is kept for closing VCDA's session and the operations server."""


class NotReached(Exception):
    """Kafka can't be used yet; the text has the cause and what to check."""


def serve(settings: Settings) -> int:
    """Run the service until a stop signal, and return the exit code."""
    hidden = secrets(settings) | header_secrets(os.environ)
    output = logs.configure(form=settings.log.format, level=settings.log.level, secrets=hidden)
    with suppress(RuntimeError, OSError, ValueError):  # standard error is closed
        faulthandler.enable()  # of a crash in native code, the log has at least where; it prints no values
    garbage.configure()
    code: int | None = None
    try:
        with asyncio.Runner(loop_factory=loop.factory()) as runner:
            runner.get_loop().set_exception_handler(loop.report)
            try:
                code = runner.run(_serve(settings, output))
            except Exception:
                log.critical("Internal error; the process ends", exc_info=True)  # now: there may be no later
                code = 1
            loop.end_soon(code)
    except Exception:
        if code is None:
            raise
        log.debug("The event loop could not be closed", exc_info=True)  # uvloop's needs file descriptors for that
    for number in SIGNALS:  # the loop has removed its handlers, and a second signal is to change nothing
        signal.signal(number, signal.SIG_IGN)
    return code


async def _serve(settings: Settings, output: logs.Output) -> int:
    app = App(settings, output=output)
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        code = await app.run(stop)
    except Misfit as error:
        for line in str(error).splitlines():
            log.error(line)  # noqa: TRY400 - it is for the operator, not for us
        return 2
    log.info("Stopped")
    return code


class App:
    """One process of the service. `run` it once."""

    def __init__(self, settings: Settings, *, output: logs.Output, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self._version = version("vm-sync")
        self._redactor = output.redactor
        self._instance = overview.Instance(
            name=socket.gethostname(),
            version=self._version,
            settings_hash=fingerprint(settings),
            started_at=self._clock.now(),
            kafka=settings.kafka.bootstrap_servers,
            vcda=settings.vcda.url,
            requests=settings.topics.requests,
            group=settings.kafka.group_id,
            sites=frozenset(site.name for site in settings.vcda.sites),
        )
        self._registry = CollectorRegistry()
        self._metrics = Metrics(
            self._registry,
            clock=self._clock,
            version=self._version,
            config_hash=self._instance.settings_hash,
            sites=[site.name for site in settings.vcda.sites],
            dead_reasons=list(DeadLetterReason),
            stop_reasons=list(StopReason),
        )
        self._metrics.set_oldest(lambda: oldest_accepted(self._partitions()))
        self._metrics.set_log_lines_dropped(output.dropped)
        self._health = health.Health(away_for_long=AWAY_FOR_LONG)
        self._tracing = tracing()
        self._parts: wiring.ServiceParts | None = None
        self._intake: Intake | None = None
        self._account = Account()

    async def run(self, stop: asyncio.Event) -> int:
        """Start, work until `stop` is set or something essential has ended, drain. Returns the exit code.

        Raises:
            Misfit: topics, certificates or the operations server's address don't fit.
        """
        operations = server.operations(
            health=self._health,
            clock=self._clock,
            registry=self._registry,
            documents=self._documents(),
            in_flight=lambda: in_flight_views(self._partitions()),
            sites=self._sites,
            overview=self._overview,
            clean=self._redactor.clean,
        )
        settings = self._settings.ops
        async with AsyncExitStack() as stack:
            try:
                port = await stack.enter_async_context(
                    server.serving(operations, host=settings.host, port=settings.port)
                )
            except OSError as error:
                msg = (
                    f"VM_SYNC_OPS__PORT: the operations server can't listen on port {settings.port} of {settings.host} "
                    f"(VM_SYNC_OPS__HOST): {error.strerror or error}"
                )
                raise Misfit(msg) from None
            log.info("Operations server listens on port %d", port, extra={"port": port})
            probe = health.probe_loop(self._clock, lag=self._lagged)
            lag = loop.log_death(asyncio.create_task(probe), "the measuring of the event loop's lag")
            collector = garbage.GarbageCollector(self._clock, partitions=self._partitions)
            collecting = loop.log_death(asyncio.create_task(collector.run()), "the collecting of garbage")
            watch = descriptors.watch(self._clock)
            watching = loop.log_death(asyncio.create_task(watch), "the watch over file descriptors")
            try:
                return await self._work(stop, ops_port=port)
            finally:
                for task in (lag, collecting, watching):
                    task.cancel()

    async def _work(self, stop: asyncio.Event, *, ops_port: int) -> int:
        parts = wiring.for_service(
            self._settings,
            clock=self._clock,
            metrics=self._metrics,
            tracing=self._tracing,
            redactor=self._redactor,
            version=self._version,
            ops_port=ops_port,
        )
        syncs, self._account = parts.syncs, parts.account
        self._parts = parts
        self._metrics.set_waiting(lambda: waiting_by_cause(self._partitions(), syncs.lanes))
        self._metrics.set_certificates_invalid(lambda: len(_troubles(parts)))
        self._metrics.set_certificates_expire(lambda: _expiries(parts))
        if tokens := parts.kafka.tokens:
            self._metrics.set_token_failing(lambda: tokens.failing_for)
        polling = asyncio.create_task(syncs.poller.run())
        # Each by itself: a login at a VCDA that doesn't answer takes half a minute.
        keeping = asyncio.create_task(self._show_degraded("the regular login to VCDA", parts.vcda.unusable))
        looking = asyncio.create_task(
            self._show_degraded("the look at what is degraded", partial(self._degraded_by, parts))
        )
        watching: asyncio.Task[None] | None = None
        starting: asyncio.Task[None] | None = None
        try:
            if not await self._topics(parts.kafka, parts.topics, stop):
                return 0 if stop.is_set() else 1
            syncs.control.open()
            if not await _unless(stop, syncs.control.first_reading()):
                return 0
            intake = self._intake = syncs.make_intake()
            if not await self._until_reached(stop, intake.start):
                return 0 if stop.is_set() else 1
            syncs.control.retry()
            syncs.progress.open()
            watching = asyncio.create_task(self._watch(intake, parts.kafka.tokens))
            starting = loop.log_death(asyncio.create_task(self._log_start(parts, intake)), "the log line of the start")
            code = await self._until_over(
                stop,
                intake,
                {
                    "the poller of VCDA's tasks": polling,
                    "the check of liveness and readiness": watching,
                    "the regular login to VCDA": keeping,
                    "the look at what is degraded": looking,
                },
            )
            self._health.draining()
            await intake.stop((self._settings.ops.drain_limit - OPS_SHARE).total_seconds())
            return code
        finally:
            self._health.draining()
            for task in (watching, polling, keeping, looking, starting):
                if task is not None:
                    task.cancel()
            syncs.lanes.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(OPS_SHARE.total_seconds()):
                    await asyncio.gather(
                        parts.vcda.close(), syncs.progress.close(), syncs.control.close(), self._tracing.close()
                    )

    async def _overview(self) -> overview.Overview:
        parts = self._parts
        return await overview.read(
            self._instance,
            None
            if parts is None
            else overview.Parts(
                lanes=parts.syncs.lanes,
                session=parts.vcda.session_status,
                recent_outcomes=parts.syncs.recent_outcomes,
                intake=self._intake,
            ),
            health=self._health,
            clock=self._clock,
            in_flight=self._metrics.in_flight,
        )

    def _documents(self) -> Mapping[str, Callable[[], server.Document]]:
        topics, kafka = self._settings.topics, self._settings.kafka
        document = asyncapi.document(
            asyncapi.Topics(
                requests=topics.requests,
                completed=topics.completed,
                failed=topics.failed,
                dead_letter=topics.dead_letter,
                progress=topics.progress,
            ),
            version=self._version,
            server=asyncapi.Server(
                hosts=kafka.servers,
                security_protocol=kafka.security_protocol,
                sasl_mechanism=kafka.sasl_mechanism,
            ),
            group_id=kafka.group_id,
        )
        return {
            "/asyncapi.json": lambda: server.Document(asyncapi.to_json(document).encode(), "application/json"),
            "/asyncapi.yaml": lambda: server.Document(asyncapi.to_yaml(document).encode(), "application/yaml"),
            "/asyncapi": lambda: server.Document(asyncapi.to_page(document).encode(), "text/html; charset=utf-8"),
        }

    # ------------------------------------------------------------ starting

    async def _topics(self, kafka: KafkaConnection, names: TopicNames, stop: asyncio.Event) -> bool:
        """Make and check the topics, as soon as Kafka is there."""
        refusals: list[str] = []
        said: set[str] = set()

        async def ensure() -> None:
            found = await ensure_topics(
                kafka,
                names=names,
                partitions=self._settings.kafka.partitions,
                create=self._settings.kafka.create_topics,
            )
            refusals.extend(finding.text for finding in found if isinstance(finding, Refusal))
            for finding in found:
                if isinstance(finding, Advice | Created) and finding.text not in said:
                    said.add(finding.text)
                    log.log(logging.WARNING if isinstance(finding, Advice) else logging.INFO, "%s", finding.text)
            denied = [finding.text for finding in found if isinstance(finding, Denied)]
            if denied and not refusals:
                raise NotReached(" ".join(denied))

        reached = await self._until_reached(stop, ensure)
        if refusals:
            raise Misfit("\n".join(refusals))
        return reached

    async def _until_reached(self, stop: asyncio.Event, attempt: Callable[[], Coroutine[None, None, None]]) -> bool:
        """Try until Kafka can be used; False after the start limit, or after a stop signal."""
        began = self._clock.monotonic()
        limit = self._settings.kafka.start_limit
        servers = self._settings.kafka.bootstrap_servers
        repeats, logged, logged_at = 0, "", began
        while not stop.is_set():
            pause = START_BACKOFF.pause(repeats)
            try:
                done = await self._diagnosed(_unless(stop, attempt()))
            except NotReached as error:
                why, now = str(error), self._clock.monotonic()
                self._health.refused([why])
                if now - began + pause > limit.total_seconds():
                    log.error(  # noqa: TRY400 - the cause is in the sentence
                        "Kafka at %s (VM_SYNC_KAFKA__BOOTSTRAP_SERVERS) could not be used for %.0f s; giving up, since "
                        "the limit is %.0f s (VM_SYNC_KAFKA__START_LIMIT): %s",
                        servers,
                        now - began,
                        limit.total_seconds(),
                        why,
                    )
                    return False
                if why != logged or now - logged_at > START_SAID_AGAIN.total_seconds():
                    logged, logged_at = why, now
                    log.warning("Kafka at %s can't be used yet, trying again: %s", servers, why)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await stop.wait()
                repeats += 1
            else:
                self._health.refused(())
                return done  # also after a stop signal: whatever was started has to be stopped
        return False

    async def _diagnosed(self, attempt: Coroutine[None, None, bool]) -> bool:
        kafka = self._settings.kafka
        with overheard() as errors:
            try:
                return await attempt
            except (KafkaError, OSError, TimeoutError) as error:
                raise NotReached(
                    diagnosis(error, errors, kafka=kafka, account=self._account, group=kafka.group_id)
                ) from None

    # ------------------------------------------------------------ while it works

    async def _until_over(
        self, stop: asyncio.Event, intake: Intake, essential: "Mapping[str, asyncio.Task[None]]"
    ) -> int:
        """Wait for a stop signal, or until one of the tasks has ended that must not end; return the exit code."""
        stopped = asyncio.create_task(stop.wait())
        died = asyncio.create_task(intake.died.wait())
        await asyncio.wait([stopped, died, *essential.values()], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        died.cancel()
        if stop.is_set():
            log.info("Shutting down: received SIGTERM or SIGINT")
            return 0
        if intake.died.is_set():
            self._health.died("intake", "see the log")
        for name, task in essential.items():
            if task.done() and (error := loop.error_of(task)) is not None:
                log.critical("Internal error in %s; the process ends", name, exc_info=error)
                self._health.died(name, repr(error))
        return 1

    async def _watch(self, intake: Intake, tokens: Tokens | None) -> None:
        """Update the state behind `/livez` and `/readyz` periodically."""
        health, clock = self._health, self._clock
        health.watch("the reading loop", limit=READING_STALLED, now=clock.monotonic())
        stopped: set[int] = set()
        pause = WATCH_START
        while True:
            now = clock.monotonic()
            health.beat("the reading loop", intake.read_at)
            if intake.joined:
                health.joined()
                if not intake.opening():
                    health.restored()
            if now - intake.kafka_seen_at > KAFKA_SILENT.total_seconds():
                health.away(now)
            else:
                health.back()
            health.missing(intake.missing())
            health.stalled(intake.stalled())
            token = None
            if tokens:
                tokens.renew_if_due()
                token = tokens.unusable
            health.refused([*intake.refused(), *([token] if token else [])])
            health.unopened(intake.unopened())
            health.unreadable(intake.unreadable())
            held = [since for one in intake.partitions() if (since := one.held_since) is not None]
            health.posts_held(min(held, default=None))
            mismatched = intake.mismatched()
            for partition in stopped - set(mismatched):
                health.working(partition)
            for partition, why in mismatched.items():
                health.stopped(partition, why)
            stopped = set(mismatched)
            if not health.not_ready(now):
                pause = WATCH
            await asyncio.sleep(pause.total_seconds())

    async def _show_degraded(self, what: str, look: Callable[[], Awaitable[list[str]]]) -> None:
        """Look at what is degraded, and why, again and again. Never returns.

        VCDA is logged in to from the start on, so that wrong settings show before the first request.
        """
        while True:
            try:
                reasons = await look()
            except Exception as error:
                # Nothing but an early warning is lost: each call logs in by itself.
                log.exception("Internal error in %s", what)
                reasons = [f"an internal error hides what is degraded ({type(error).__name__}); see the log"]
            self._health.degraded(what, reasons)
            await asyncio.sleep(LOOK.total_seconds())

    async def _degraded_by(self, parts: wiring.ServiceParts) -> list[str]:
        """Return what is degraded but for the session, and why. Waits for nothing."""
        lanes, tokens = parts.syncs.lanes, parts.kafka.tokens
        for one in parts.certificates:
            one.latest()  # connections may last longer than the certificates
        reasons = []
        for lane in lanes:
            if lane.lacks_credentials:
                reasons.append(without_credentials(public_name(lane.site)))
            elif (breaker := lane.open_breaker()) is not None:
                reasons.append(breaker.detail)
            if (failing := lane.look_ups.complaint()) is not None:
                reasons.append(failing)
        if tokens and tokens.warning:
            reasons.append(tokens.warning)
        invalid = _troubles(parts)
        reasons += [f"new certificate files are invalid, so the previous ones are used: {why}" for why in invalid]
        now = self._clock.now()
        reasons += [said for one in parts.certificates for said in one.complaints(now)]
        reasons += map(str, lanes.operator_pauses.current())
        reasons += parts.syncs.control.trouble()
        if self._intake is not None:
            reasons += self._intake.held_back()
        return reasons

    async def _log_start(self, parts: wiring.ServiceParts, intake: Intake) -> None:
        """Say in one line what runs here, and with what, once the group is joined; what isn't known is left out."""
        while not (intake.joined and intake.partition_count):  # noqa: ASYNC110 - looked at like all else in `_watch`
            await asyncio.sleep(WATCH.total_seconds())
        settings = self._settings
        about = parts.vcda.about()
        log.info(
            "vm-sync %s started: Kafka %s (cluster %s), group %s, topic %s with %d partitions; VCDA %s%s; sites %s; "
            "settings %s",
            self._version,
            settings.kafka.bootstrap_servers,
            await cluster_id(parts.kafka) or "unknown",
            settings.kafka.group_id,
            parts.topics.requests,
            intake.partition_count,
            settings.vcda.url,
            f" ({about})" if about else "",
            ", ".join(["local", *(site.name for site in settings.vcda.sites)]),
            self._instance.settings_hash,
            extra={"version": self._version},
        )

    def _lagged(self, seconds: float) -> None:
        self._metrics.loop_lag(seconds)
        self._health.late(seconds)

    async def _sites(self) -> list[SiteView]:
        if self._parts is None:
            return []
        configured = [site.name for site in self._settings.vcda.sites]
        return await site_views(self._parts.syncs.lanes, configured, self._clock)

    def _partitions(self) -> tuple[Partition, ...]:
        return () if self._intake is None else tuple(self._intake.partitions())


def _troubles(parts: wiring.ServiceParts) -> list[str]:
    """Return why certificate files that have changed are invalid."""
    return [one.trouble for one in parts.certificates if one.trouble is not None]


def _expiries(parts: wiring.ServiceParts) -> dict[str, datetime]:
    """Return when the certificates in use from files expire, by setting."""
    return {setting: dates.ends for one in parts.certificates for setting, dates in one.validity.items()}


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do the work, but cancel it after a stop signal: connecting to a Kafka that drops packets takes long.

    Returns whether it was done.
    """
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return task.done()
    finally:
        for one in (task, stopped):
            one.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
