"""All time limits and intervals of the intake, with their reasons. Tests use other values."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from service.backoff import Backoff

REOPEN: Final = Backoff(first=timedelta(milliseconds=100), longest=timedelta(seconds=10), jitter=0.5)
"""Pauses between attempts to open a partition again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeTimings:
    """The defaults are those of every process; none of them is a setting."""

    # ------------------------------------------------------------ Kafka's client

    heartbeat: timedelta = timedelta(milliseconds=500)
    """Members hear of a join at once, instead of after aiokafka's 3 s."""

    rebalance_timeout: timedelta = timedelta(seconds=30)
    """How long the group waits for a member that quiesces. aiokafka's default is the session timeout: a joiner then
    took over while the old member still quiesced (measured)."""

    kafka_request_timeout: timedelta = timedelta(seconds=10)
    """A killed broker leaves requests hanging for so long; with aiokafka's 40 s the service was blocked with them."""

    records_at_once: int = 100
    """Records that a `getmany` returns, of all partitions together: some 5 ms of work between two turns of the event
    loop."""

    # ------------------------------------------------------------ one partition

    quiesce_limit: timedelta = timedelta(seconds=20)
    """How long a revoked partition may take to let its POSTs be answered; well within the rebalance timeout."""

    reopen: Backoff = REOPEN

    proven: timedelta = timedelta(minutes=1)
    """If a partition is lost sooner than this after it was opened, opening counts as failed, and the pauses continue to
    double, so that it isn't tried ten times a second."""

    lost_often: int = 3
    """A partition that was lost so often, without staying open in between, makes the process unready: its outcomes are
    not written. Once or twice is a broker's restart."""

    settled: timedelta = timedelta(seconds=20)
    """How long such a partition has to stay open to count as well again: longer than the longest pause before the next
    attempt, so that an outcome that can't be written is tried meanwhile."""

    opening_limit: timedelta = timedelta(minutes=2)
    """How long a partition may be closed before the process is not ready: its predecessor's hand-over takes half a
    minute at most, reading the journal of half a million requests some seconds."""

    mismatch_recheck: timedelta = timedelta(seconds=30)
    """How often a journal that doesn't fit is checked again, so that its partition goes on by itself once it fits."""

    leader_settles: timedelta = timedelta(seconds=10)
    """A new leader's end of the topic may lag behind for a moment: only after this does a cursor beyond it count."""

    # ------------------------------------------------------------ the group and Kafka

    report: timedelta = timedelta(seconds=5)
    """How often the cursors are committed to the group, and Kafka is asked whether it is there."""

    ask_bootstrap: timedelta = timedelta(seconds=10)
    """Kafka silent for so long may have other addresses: the bootstrap servers are asked. A broker's restart takes
    5 s."""

    give_up: timedelta = timedelta(minutes=2)
    """If Kafka answers new clients, but not this process's client for so long, the fault is in this process, which
    ends."""

    # ------------------------------------------------------------ reading

    unread_limit: timedelta = timedelta(seconds=90)
    """If nothing was read for so long of a partition that has unread records and is not full, reading has stalled,
    whatever the cause: a slow broker answers within `kafka_request_timeout`, and records come with its next answer."""

    open_transaction_limit: timedelta = timedelta(seconds=90)
    """If a sender's open transaction has held back a partition for so long, it is reported. Kafka itself ends one whose
    producer has died, within 70 s with the default settings: `transaction.timeout.ms` of the producer is a minute, and
    the brokers look every 10 s."""

    assignment_limit: timedelta = timedelta(minutes=2)
    """How long the group may take to assign partitions: each member has the rebalance timeout, and some join late."""

    say_paused: timedelta = timedelta(minutes=1)
    """The shortest interval between two log lines about paused reading: with a slow Kafka it pauses often."""

    compare: timedelta = timedelta(seconds=5)
    """How often the requests topic is compared with what was read of it, and the journals with what they began with:
    three requests and one, for all partitions together."""

    compare_limit: timedelta = timedelta(seconds=10)
    """How long that may take. A leader that is away lets it fail, and the next time comes soon."""


DEFAULT_TIMINGS: Final = IntakeTimings()
