"""Constructs and connects all parts of a process: the only module that does. It runs nothing.

Three functions: `for_service` makes everything from the settings; `for_tests` takes a substitute for VCDA and a test's
limits, and shares the construction code; `for_checks` makes what `vm-sync check` runs.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any, Protocol

from pydantic import SecretStr

from service.certificates import Current, Unusable
from service.clock import Clock
from service.event_loop import Slices
from service.intake.group import Intake, Plan
from service.intake.start_position import KafkaStartPositions
from service.intake.timings import DEFAULT_TIMINGS, IntakeTimings
from service.kafka import control
from service.kafka.check import KafkaChecks
from service.kafka.connection import KafkaConnection, client_id
from service.kafka.control import Control, ControlReader
from service.kafka.denials import Account, Denials
from service.kafka.journal import KafkaJournal, Refusals
from service.kafka.journal_api import Opened
from service.kafka.progress_publisher import KafkaWire, Progress, Progressing
from service.kafka.topics import TopicNames
from service.messages.outcomes import OutcomeTopics
from service.observability.logs import Redactor
from service.observability.metrics import Metrics, SitePausesSeen
from service.observability.tracing import Tracing
from service.partition import dependencies
from service.partition.recent_outcomes import RecentOutcomes
from service.settings import CredentialsReader, Logins, Settings, SettingsError, kafka_security, secrets_of
from service.sync import Policy
from service.vcda import poller
from service.vcda.check import VcdaChecks
from service.vcda.client import Vcda
from service.vcda.credentials import Credentials, CredentialType, SiteCredentials
from service.vcda.http import Tls
from service.vcda.lanes import LaneLimits, Lanes

log = logging.getLogger(__name__)

SUBMIT_WINDOW = timedelta(seconds=2)
"""W: a POST is sent only within this time after the sending of a successful commit. Commits take 3-25 ms and
connections some more; every doubt that a successor restores waits for it as well, so it should not be long."""


class Misfit(Exception):
    """Settings, topics or certificates are invalid; exit code 2. Each line says what to do."""


class Api(dependencies.Api, poller.PollApi, Protocol):
    """All calls to VCDA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Limits, time limits, and the consumer group."""

    group_id: str
    session_timeout: timedelta
    max_in_flight: int
    deadline: timedelta
    """Of requests that name none."""
    policy: Policy
    limits: LaneLimits
    poll_min: timedelta
    poll_max: timedelta
    client_id: str | None = None
    """Of the member of the group."""
    intake: IntakeTimings = DEFAULT_TIMINGS
    """How patient the intake is; no setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts that work on syncs, with VCDA or a test's substitute."""

    lanes: Lanes
    poller: poller.Poller
    progress: Progress
    control: Control
    recent_outcomes: RecentOutcomes
    make_intake: Callable[[], Intake]
    """Makes the intake. Call it once the topics exist: from then on the intake measures how long Kafka is silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceParts:
    """All parts of a process of the service."""

    vcda: Vcda
    kafka: KafkaConnection
    account: Account
    topics: TopicNames
    syncs: Parts
    certificates: Sequence[Current]
    """All that were read from files."""


# ---------------------------------------------------------------- the three doors


def for_service(
    settings: Settings,
    *,
    clock: Clock,
    metrics: Metrics,
    tracing: Tracing,
    redactor: Redactor,
    version: str,
    ops_port: int | None = None,
) -> ServiceParts:
    """Make the parts of the service. Nothing is connected to yet. `ops_port` is told to the consumer group.

    Raises:
        Misfit: certificates can't be used.
    """

    def established(site: str | None) -> None:
        syncs.lanes.retry(site)

    vcda = _vcda(settings, clock=clock, metrics=metrics, redactor=redactor, version=version, established=established)
    kafka = _kafka(settings, clock)
    topics = _topics(settings)
    syncs = _connected(
        vcda,
        connection=kafka.arguments(),
        topics=topics,
        tuning=_tuning(settings, ops_port=ops_port),
        clock=clock,
        metrics=metrics,
        tracing=tracing,
        random=Random,
        canonical_site=vcda.canonical_site,
    )
    account = topics.account(kafka.arguments(), group=settings.kafka.group_id)
    certificates = [*kafka.certificates, *vcda.certificates]
    return ServiceParts(vcda=vcda, kafka=kafka, account=account, topics=topics, syncs=syncs, certificates=certificates)


def for_checks(settings: Settings, *, clock: Clock, version: str) -> tuple[KafkaChecks, VcdaChecks]:
    """Make what checks Kafka and VCDA as the settings name them. Nothing is connected to yet.

    Raises:
        Misfit: certificates can't be used.
    """
    kafka = KafkaChecks(_kafka(settings, clock), settings=settings.kafka, names=_topics(settings), clock=clock)
    try:
        vcda = VcdaChecks(
            settings.vcda.url,
            credentials=_credentials(Logins(settings.vcda.credentials, settings.vcda.sites)),
            tls=_tls(settings),
            request_timeout=settings.vcda.request_timeout,
            clock=clock,
            version=version,
        )
    except Unusable as error:
        raise Misfit(str(error)) from None
    return kafka, vcda


def for_tests(
    api: Api,
    *,
    connection: Mapping[str, Any],
    topics: TopicNames,
    tuning: Tuning,
    clock: Clock,
    metrics: Metrics,
    random: Callable[[], Random],
    opening: Callable[[int], None],
) -> Parts:
    """Make the parts that work on syncs, as the service does, with a substitute for VCDA.

    `connection` are aiokafka's arguments; `opening` is told the partition of each journal that is to be opened.
    """
    return _connected(
        api,
        connection=connection,
        topics=topics,
        tuning=tuning,
        clock=clock,
        metrics=metrics,
        tracing=Tracing(),
        random=random,
        canonical_site=lambda site: site,
        opening=opening,
    )


# ---------------------------------------------------------------- behind the first two


def _connected(
    api: Api,
    *,
    connection: Mapping[str, Any],
    topics: TopicNames,
    tuning: Tuning,
    clock: Clock,
    metrics: Metrics,
    tracing: Tracing,
    random: Callable[[], Random],
    canonical_site: Callable[[str | None], str | None],
    opening: Callable[[int], None] = lambda _: None,
) -> Parts:
    slices = Slices()
    lanes = Lanes(limits=tuning.limits, clock=clock, metrics=metrics, random=random(), canonical_site=canonical_site)
    polls = poller.Poller(
        api=api,
        lane=lanes.lane,
        clock=clock,
        metrics=metrics,
        random=random(),
        shortest=tuning.poll_min,
        longest=tuning.poll_max,
        tracing=tracing,
        slices=slices,
    )
    metrics.set_overdue(polls.overdue)
    metrics.set_look_ups_failing(lanes.look_ups_failing)
    recent_outcomes = RecentOutcomes()
    refusals = Refusals(clock)
    account = topics.account(connection, group=tuning.group_id)
    denials = Denials(account, clock=clock)
    progress = _progress(topics, connection, clock=clock, metrics=metrics)
    pauses = _control(topics, connection, account=account, clock=clock, lanes=lanes)
    metrics.set_site_pauses(
        lambda: SitePausesSeen(
            [pause.site for pause in lanes.operator_pauses.current()], pauses.unreadable_for(), pauses.invalid()
        )
    )

    async def open_journal(partition: int) -> Opened:
        opening(partition)
        return await KafkaJournal.open(
            topic=topics.journal,
            partition=partition,
            connection=connection,
            clock=clock,
            refusals=refusals,
            denials=denials,
            slices=slices,
        )

    def make_intake() -> Intake:
        intake = Intake(
            connection=connection,
            plan=Plan(
                group_id=tuning.group_id,
                session_timeout=tuning.session_timeout,
                max_in_flight=tuning.max_in_flight,
                positions=KafkaStartPositions(
                    connection=connection,
                    requests=topics.requests,
                    journal=topics.journal,
                    group_id=tuning.group_id,
                    clock=clock,
                    timings=tuning.intake,
                    denials=denials,
                ),
                open_journal=open_journal,
                journal=topics.journal,
                denials=denials,
                timings=tuning.intake,
                client_id=tuning.client_id,
            ),
            dependencies=dependencies.Dependencies(
                api=api,
                lanes=lanes,
                poller=polls,
                clock=clock,
                policy=tuning.policy,
                metrics=metrics,
                requests=topics.requests,
                outcomes=OutcomeTopics(completed=topics.completed, failed=topics.failed),
                dead_letters=topics.dead_letter,
                deadline=tuning.deadline,
                group=tuning.group_id,
                random=random(),
                tracing=tracing,
                progress=progress,
                recent_outcomes=recent_outcomes,
                slices=slices,
            ),
            metrics=metrics,
        )
        metrics.set_intake(intake.seen)
        return intake

    return Parts(
        lanes=lanes,
        poller=polls,
        progress=progress,
        control=pauses,
        recent_outcomes=recent_outcomes,
        make_intake=make_intake,
    )


def _progress(topics: TopicNames, connection: Mapping[str, Any], *, clock: Clock, metrics: Metrics) -> Progress:
    if topics.progress is None:
        return Progress()
    return Progressing(
        topic=topics.progress,
        wire=lambda: KafkaWire(connection),
        clock=clock,
        dropped=metrics.progress_dropped,
    )


def _control(
    topics: TopicNames, connection: Mapping[str, Any], *, account: Account, clock: Clock, lanes: Lanes
) -> Control:
    if (topic := topics.control) is None:
        return Control()
    return ControlReader(
        topic=topic,
        wire=lambda: control.KafkaWire(topic, connection),
        clock=clock,
        account=account,
        changed=lanes.operator_pauses.replace,
    )


# ---------------------------------------------------------------- from the settings


def _tuning(settings: Settings, *, ops_port: int | None) -> Tuning:
    sync = settings.sync
    return Tuning(
        client_id=None if ops_port is None else client_id(ops_port),
        group_id=settings.kafka.group_id,
        session_timeout=settings.kafka.session_timeout,
        max_in_flight=sync.max_in_flight,
        deadline=sync.deadline,
        policy=Policy(
            window=SUBMIT_WINDOW,
            late=settings.vcda.request_timeout + sync.settle,
            lost_after=sync.lost_after,
            deduplicate_for=sync.deduplicate_for,
        ),
        limits=LaneLimits(
            max_concurrent_submits=sync.max_concurrent_submits,
            max_running=sync.max_running,
            slots_ahead=sync.max_concurrent_submits,
        ),
        poll_min=sync.poll_min,
        poll_max=sync.poll_max,
    )


def _vcda(
    settings: Settings,
    *,
    clock: Clock,
    metrics: Metrics,
    redactor: Redactor,
    version: str,
    established: Callable[[str | None], None],
) -> Vcda:
    try:
        return Vcda(
            settings.vcda.url,
            credentials=_login(CredentialsReader(settings), redactor),
            request_timeout=settings.vcda.request_timeout,
            clock=clock,
            meter=metrics,
            version=version,
            tls=_tls(settings),
            established=established,
        )
    except Unusable as error:
        raise Misfit(str(error)) from None


def _login(reader: CredentialsReader, redactor: Redactor) -> Callable[[], Credentials]:
    """Return what reads the credentials as they are now; the log knows new secrets before they are used."""
    logged: tuple[str, ...] = ()

    def read() -> Credentials:
        nonlocal logged
        logins = reader()
        if reader.trouble != logged:  # they are read each second while VCDA refuses the previous ones
            logged = reader.trouble
            for line in logged:
                log.warning("New credentials are invalid (%s); continuing with the previous ones", line)
        redactor.hide(secrets_of(logins))
        return _credentials(logins)

    return read


def _credentials(logins: Logins) -> Credentials:
    given = logins.credentials
    return Credentials(
        type=CredentialType(given.type),
        user=given.login,
        password=_text(given.password),
        token=_text(given.token),
        org=given.org,
        sites=tuple(
            SiteCredentials(name=site.name, user=site.user, password=_text(site.password), token=_text(site.token))
            for site in logins.sites
        ),
    )


def _text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _tls(settings: Settings) -> Tls:
    return Tls(ca_file=settings.vcda.ca_file, thumbprint=settings.vcda.thumbprint)


def _topics(settings: Settings) -> TopicNames:
    return TopicNames(**settings.topics.model_dump())


def _kafka(settings: Settings, clock: Clock) -> KafkaConnection:
    try:
        security = kafka_security(settings, clock=clock)
    except SettingsError as error:
        raise Misfit("\n".join(error.lines)) from None
    return KafkaConnection(bootstrap_servers=tuple(settings.kafka.servers), security=security)
