"""What is asked and what goes wrong in a run of chaos, drawn from a seed: the same seed, the same schedule.

Pure; `chaos_runner` carries it out. A fault that would exceed what the service can know (a POST taken later than the
request timeout and SETTLE together) is drawn only for replications of their own, which the oracle counts apart.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import Any, Final

from tests.stress.oracle import Header

REQUEST_TIMEOUT: Final = 5.0
SETTLE: Final = 5.0
LATE: Final = 5.5
"""The latest that VCDA takes a POST here, after it came: D is 10 s, and a machine under load delays both ends."""
TOO_LATE: Final = 18.0
"""Later than D: not promised."""

LISTED_AFTER: Final = 14.0
"""Later than D after its POST, and earlier than D after a repeated one."""
UNLISTED_LASTS: Final = 26.0
"""Seconds of a sync whose task is listed so late: long enough for a repeated POST to be refused."""
REFUSALS: Final = (403, 404, 409, 410, 422)

SESSION_TIMEOUT: Final = 6.0
DEADLINE: Final = 80
"""Seconds. Long enough to outlive every fault, short enough to wait for where a doubt can't be resolved."""

PARTITIONS: Final = 8
MOST_MEMBERS: Final = 4
AT_LEAST, A_SECOND = 15.0, 60
"""Seconds that a run lasts, and requests for each second more."""

PAUSES: Final = (1.5, 5.0)
"""Seconds between two happenings; most last longer, so that several are there at once."""

SITES: Final = (None, None, None, "site1", "site2", "site2", "site3")
PAUSABLE: Final = ("local", "site1", "site2", "site3")
"""As an operator names sites; the first two are one."""
REMOTE_SITES: Final = ("site2", "site3")
SITE_CLOCKS: Final = (0.0, 0.0, -600.0, 600.0, 25_200.0)
"""Seconds by which a remote site's clock is fast: some minutes, as without NTP, or a time zone. Slow by less than the
margin of the first look-ups at a site, which know nothing of its clock."""
OTHER_ACCOUNT: Final = "second@System"

SPELLINGS: Final[tuple[str | None, ...]] = (None, "{org}@{site}", "VCDA's name for {org}")
"""How VCDA may name a user on tasks where a session's user is `name@Org`; None: as in the session."""
CACHES: Final[tuple[Mapping[str, Any], ...]] = ({"obeys": True, "tells": False}, {"obeys": False, "tells": True})
"""One that does neither can't be noticed by anybody."""

OWN_USERS: Final[tuple[bool, ...]] = (False, True)


class What(StrEnum):
    """What happens, in words for the progress bar."""

    KILL = "kill -9"
    STOP = "SIGTERM"
    FREEZE = "SIGSTOP"
    JOIN = "one joins"
    LEAVE = "one leaves"
    JOIN_AND_FREEZE = "one joins, another freezes while it quiesces"
    JOIN_AS_ANOTHER = "one joins under another account"
    ALL_DIE = "all die, and the group's offsets with them"
    KAFKA_STOPS = "Kafka stops"
    KAFKA_DIES = "Kafka is killed"
    KAFKA_FREEZES = "Kafka freezes"
    EXPIRE = "sessions expire"
    KAFKA_MOVES = "Kafka comes back under another address"
    KAFKA_DROPS = "connections to Kafka fall silent"
    VCDA_DROPS = "connections to VCDA fall silent"
    VCDA_UNASKED = "idle connections to VCDA get an answer that nothing has asked for"
    VCDA_REFUSES = "VCDA's port is closed"
    VCDA_CERTIFICATE = "VCDA's certificate and its authority are replaced"
    ACCOUNT = "the account of a site is replaced"
    PURGE = "VCDA forgets its tasks"
    CACHE = "a cache in front of VCDA"
    LOG_STANDS = "nobody reads the log"
    VCDA_CLOCK = "VCDA's clock jumps"
    WRONG = "VCDA answers wrong"
    SITE_PAUSED = "an operator pauses a site"
    PAUSE_ENDS_UNSEEN = "a site's pause ends while no process lives"
    KAFKA_LONG_AWAY = "Kafka is away for more than a minute"

    BROKER_RESTARTS = "a broker is restarted"
    BROKER_DIES = "a broker is killed"
    BROKER_FREEZES = "a broker freezes"
    MAJORITY_DIES = "two of three brokers are killed"
    BROKER_CLOCK = "a broker comes back with a wrong clock"
    LEADERS_ELECTED = "preferred leaders are elected"
    PARTITIONS_MOVED = "partitions are moved to other brokers"
    RIGHT_TAKEN = "a right is taken away"
    TOPIC_SETTINGS = "a topic's settings are changed"
    RECORDS_DELETED = "requests that were read are deleted"
    THROTTLED = "a quota throttles the service"


class Whom(StrEnum):
    """Which broker something is done to, chosen by what it does for the service at that moment."""

    GROUP = "the group's coordinator"
    TRANSACTIONS = "the coordinator of a partition's transactions"
    REQUESTS = "the leader of a partition of the requests topic"
    JOURNAL = "the leader of a partition of the journal"
    COMPLETED = "the leader of a partition of the completed topic"


class Odd(StrEnum):
    """What is wrong with a replication of its own from the beginning to the end of a run; others must not notice."""

    ABORTED = "a state that never ends"
    RUNNING = "a sync that never ends"
    POISON = "a task that fails whatever asks for it"
    BLIND = "a look-up that always fails, and a POST in doubt"
    """Its task may be found by other means."""


class Ending(StrEnum):
    """What happens when a run has been judged fit, and all of it can't be put right again."""

    OVERTAKEN = "retention overtakes the reading"
    REQUESTS_REPLACED = "the requests topic is created again"
    JOURNAL_REPLACED = "the journal is created again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that goes wrong. `who` from 0 to 1 chooses among the members that there are then."""

    at: float
    what: What
    who: float = 0.0
    seconds: float = 0.0
    words: str = ""
    fault: Mapping[str, Any] = field(default_factory=dict)
    """For the simulated VCDA."""
    whom: Whom | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """Something done to a broker while nothing else is wrong: how long do outcomes stay away? `who` as above."""

    what: What
    whom: Whom
    who: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A request to put on the topic."""

    at: float
    operation_id: str
    replication_id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelling:
    """A cancel to put on the topic; it may come before its request, or after its end."""

    at: float
    operation_id: str
    replication_id: str
    release: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """How a run of `vm-sync request --from` is ended: once this share of the file's requests stands on the topic."""

    share: float
    """1: the run only waits for outcomes any more."""
    seconds: float
    """So much later."""
    kill: bool
    """Whether by SIGKILL, not by SIGINT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFile:
    """A file for `vm-sync request --from`, whose runs are interrupted one after another; each goes on with it."""

    at: float
    name: str
    lines: tuple[tuple[str, str | None], ...]
    """Replications that nobody else asks for, each with its site; None: the local one."""
    rate: float
    """Requests per second."""
    interruptions: tuple[Interruption, ...]
    cancelled: frozenset[str]
    """Replications whose requests are cancelled after the first interruption, if they are on the topic by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoiling:
    """Something unreadable to put on the topic; `below`: not even Kafka's client can read it."""

    at: float
    partition: int
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[Header, ...] = ()
    below: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A run. What is not promised is provoked on `late`, `unlisted`, `by_hand` and `released` replications.

    `odd` are others.
    """

    seed: int
    brokers: int
    members: int
    skews: tuple[float, ...]
    """By how many seconds the wall clock of each process is wrong."""
    site_clocks: Mapping[str, float]
    """By how many seconds the clocks of the remote sites differ from that of the local one."""
    length: float
    sendings: tuple[Sending | Spoiling | Cancelling, ...]
    files: tuple[RequestFile, ...]
    happenings: tuple[Happening, ...]
    late: tuple[str, ...]
    unlisted: Mapping[str, int]
    """Replications whose tasks are listed later than D, with the status by which repeated POSTs are refused until their
    syncs have ended."""
    by_hand: tuple[str, ...]
    released: tuple[str, ...]
    spelling: str | None
    own_user: bool
    """Whether site2 knows the service by a user of its own, who sees their own tasks only."""
    odd: Mapping[str, Odd]
    measurings: tuple[Measuring, ...]
    ending: Ending | None
    gentle: bool
    """Whether each record that was produced must have been counted in the end."""


STORMS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("429 for half of all calls", {"answer": "status", "status": 429, "retry_after": 4, "probability": 0.5}),
    ("429 for POSTs, as a date", {"operation": "submit", "answer": "status", "status": 429, "retry_after": 5,
                                  "http_date": True, "probability": 0.5}),
    ("500 for a third", {"answer": "status", "status": 500, "probability": 0.35}),
    ("503, a proxy's page", {"answer": "status", "status": 503, "html": True, "probability": 0.6}),
    ("redirects to a host that can't be", {"answer": "status", "status": 302, "html": True,
                                           "location": "https://xn--/login", "probability": 0.5}),
    ("maintenance", {"answer": "status", "status": 503, "retry_after": "rest"}),
    ("answers to POSTs lost", {"operation": "submit", "answer": "cut", "effect": "first", "probability": 0.6}),
    ("answers to POSTs torn", {"operation": "submit", "answer": "torn", "probability": 0.6}),
    ("answers to POSTs too slow", {"operation": "submit", "effect": "first", "seconds": 6.5, "probability": 0.4}),
    ("tasks created late, after the time-out", {"operation": "submit", "effect": "last", "seconds": LATE,
                                                "probability": 0.4}),
    ("tasks created late, behind a 504", {"operation": "submit", "answer": "status", "status": 504, "html": True,
                                          "effect": "behind", "seconds": 3.0, "probability": 0.5}),
    ("tasks created late, behind a reset", {"operation": "submit", "answer": "cut", "effect": "behind",
                                            "seconds": LATE, "probability": 0.5}),
    ("connections cut", {"answer": "cut", "probability": 0.4}),
    ("connections closed without a word", {"answer": "close", "probability": 0.4}),
    ("answers half", {"answer": "half", "probability": 0.4}),
    ("polls without an answer", {"operation": "poll", "answer": "silent", "probability": 0.5}),
    ("empty task pages", {"operation": "poll", "answer": "empty page", "probability": 0.5}),
    ("look-ups fail", {"operation": "find", "answer": "status", "status": 500, "probability": 0.7}),
    ("logins fail", {"operation": "login", "answer": "status", "status": 500, "probability": 0.7}),
    ("answers to logins half", {"operation": "login", "answer": "half", "probability": 0.7}),
)  # fmt: skip


WITHOUT_KAFKA: Final = frozenset(
    {What.KAFKA_STOPS, What.KAFKA_DIES, What.KAFKA_FREEZES, What.KAFKA_MOVES, What.KAFKA_LONG_AWAY}
)
"""All brokers at once."""

TO_BROKERS: Final = frozenset(
    {
        *(What.BROKER_RESTARTS, What.BROKER_DIES, What.BROKER_FREEZES, What.MAJORITY_DIES, What.BROKER_CLOCK),
        *(What.LEADERS_ELECTED, What.PARTITIONS_MOVED, What.RIGHT_TAKEN, What.TOPIC_SETTINGS),
        *(What.RECORDS_DELETED, What.THROTTLED),
    }
)
"""Only where there are several brokers, which ask for rights."""

BROKERS_AWAY: Final = WITHOUT_KAFKA | {
    *(What.BROKER_RESTARTS, What.BROKER_DIES, What.BROKER_FREEZES, What.MAJORITY_DIES, What.BROKER_CLOCK)
}
"""One at a time: a second broker down is a majority gone, which has a happening of its own."""

APART: Final = 12.0
"""Seconds between two of these on several brokers; a killed one is away for 9 s and more."""

HARSH: Final = (
    frozenset({What.KILL, What.ALL_DIE, What.FREEZE, What.JOIN_AND_FREEZE, What.KAFKA_DROPS, What.PAUSE_ENDS_UNSEEN})
    | WITHOUT_KAFKA
    | TO_BROKERS
)
"""After which some records have a fate that nobody has counted, or two have: who is killed takes what it has counted
last with it, and who loses a partition while a commit is under way never hears whether it stood."""

GENTLE: Final = 0.25
"""The share of runs without these: there, the sum of all fates is what was produced."""

CANCELLED: Final = 0.06
"""The share of requests for which there is a cancel."""
RELEASED: Final = 0.8
"""The share of these that are releases, on replications of their own."""

FILE_LINES: Final = (60, 300)
"""The fewest and the most requests of a file: a fifth of those that are sent otherwise."""
FILE_SECONDS: Final = 5.0
"""How long it takes to send a file's requests."""
FILE_CANCELLED: Final = 0.1
"""The share of a file's requests that are cancelled, of those that may be on the topic early."""

ODD: Final = tuple(Odd)
ENDINGS: Final = tuple(Ending)

LONG_AWAY: Final = 0.2
"""The share of runs in which Kafka is away for more than a minute, towards the end."""
AWAY_FOR: Final = (60.0, 75.0)
"""Seconds."""

SHORT_PAUSE: Final = (8.0, 12.0)
"""Seconds of a pause that ends while no process lives."""

PAUSED_FIRST: Final = 2.0
"""Seconds before something is done to a broker at which a site is paused, now and then."""

MEASURED: Final = (What.BROKER_RESTARTS, What.BROKER_RESTARTS, What.BROKER_DIES, What.BROKER_DIES)

ODD_DEADLINE: Final = 20
"""Seconds: requests on odd replications end by their deadlines, and these are all that a run has to wait for."""


def draw(
    seed: int,
    *,
    requests: int,
    only: Collection[What] = (),
    odd: Collection[Odd] = ODD,
    ending: Ending | None = None,
    brokers: int = 1,
    measured: Sequence[What] = MEASURED,
    short: bool = False,
) -> Schedule:
    """Draw a run; of `only` some happenings, where there are any, and with an ending of one's choice.

    A `short` one has no ending. On several brokers it is `measured` how long outcomes stay away.
    """
    rng = Random(seed)
    length = AT_LEAST + requests / A_SECOND
    late = tuple(_replication(rng) for _ in range(2))
    by_hand = (_replication(rng),)
    asked = _sendings(rng, requests, length)
    sendings: list[Sending | Spoiling | Cancelling] = [*asked, *_spoilings(rng, requests // 60, length)]
    sendings += _cancellings(rng, asked, share=CANCELLED, release=False)
    released = tuple(_replication(rng) for _ in range(1 + requests // 60))
    freed = _bursts(rng, released, length)
    sendings += [*freed, *_cancellings(rng, freed, share=0.5, release=True)]
    for replication_id in (*late, *by_hand):
        at = rng.uniform(0, length)
        sendings.append(Sending(at=at, operation_id=f"not-promised-{at:.3f}", replication_id=replication_id, fields={}))
    unlisted = _unlisted(Random(f"{seed} unlisted"))
    for number, replication_id in enumerate(unlisted):
        at = (number + 0.5) * length / 4
        sendings.append(Sending(at=at, operation_id=f"unlisted-{number}", replication_id=replication_id, fields={}))
    strange = {_replication(rng): kind for kind in odd}
    for replication_id in strange:
        for number in range(3):
            at = rng.uniform(1.0, 3.0) + number * (length - 3.0) / 3
            name = f"odd-{replication_id[3:11]}-{number}"
            fields = {"deadlineSeconds": ODD_DEADLINE}
            sendings.append(Sending(at=at, operation_id=name, replication_id=replication_id, fields=fields))
    gentle = brokers == 1 and (rng.random() < GENTLE if not only else not HARSH & set(only))
    make_deck = _deck if brokers == 1 else _cluster_deck
    drawn = _happenings(rng, length, only, make_deck)
    if rng.random() < LONG_AWAY and not short and (not only or What.KAFKA_LONG_AWAY in only):
        away = rng.uniform(*AWAY_FOR)
        drawn.append(Happening(at=0.6 * length, what=What.KAFKA_LONG_AWAY, seconds=away, words=What.KAFKA_LONG_AWAY))
    drawn += _pauses(Random(f"{seed} pauses"), [one for one in drawn if one.what in TO_BROKERS], length, only)
    drawn.sort(key=lambda one: one.at)
    happenings = [one for one in drawn if not gentle or one.what not in HARSH]
    return Schedule(
        seed=seed,
        brokers=brokers,
        members=rng.randint(1, MOST_MEMBERS),
        skews=tuple(rng.choice((0.0, 0.0, 30.0, -30.0, 15.0)) for _ in range(64)),
        site_clocks={site: Random(f"{seed} clock of {site}").choice(SITE_CLOCKS) for site in REMOTE_SITES},
        length=length,
        sendings=tuple(sorted(sendings, key=lambda sending: sending.at)),
        files=tuple(_file(Random(f"{seed} {number}"), requests, length) for number in range(1 + requests // 2000)),
        happenings=tuple(happenings),
        late=late,
        unlisted=unlisted,
        by_hand=by_hand,
        released=released,
        spelling=rng.choice(SPELLINGS),
        own_user=rng.choice(OWN_USERS),
        odd=strange,
        ending=None if short else ending or rng.choice(ENDINGS),
        gentle=gentle,
        measurings=_measurings(rng, measured) if brokers > 1 else (),
    )


def _replication(rng: Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return f"C4-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _unlisted(rng: Random) -> dict[str, int]:
    """Draw with a generator of its own, so that whatever else a seed draws is what it always drew."""
    return {_replication(rng): status for status in rng.sample(REFUSALS, k=2)}


def _sendings(rng: Random, requests: int, length: float) -> list[Sending]:
    """Requests over a fifth as many replications, each at a site of its own; some are asked for many times."""
    replications = [(_replication(rng), rng.choice(SITES)) for _ in range(max(1, requests // 5))]
    sendings = []
    for number in range(requests):
        replication_id, site = rng.choice(replications)
        fields: dict[str, Any] = {} if site is None else {"site": site}
        kind = rng.random()
        if kind < 0.01:
            replication_id = f"R-{number}"  # VCDA knows no such replication
        elif kind < 0.02:
            replication_id, fields = _replication(rng), {"site": "nowhere"}
        elif kind < 0.05:
            fields["deadlineSeconds"] = rng.randint(1, 6)
        one = Sending(
            at=rng.uniform(0, length), operation_id=f"op-{number}", replication_id=replication_id, fields=fields
        )
        again = rng.choice((1, 2, 5)) if rng.random() < 0.05 else 0
        sendings.append(one)
        sendings.extend(replace(one, at=rng.uniform(one.at, length)) for _ in range(again))
    return sendings


def _file(rng: Random, requests: int, length: float) -> RequestFile:
    """Draw a file; with a generator of its own, so that whatever else a seed draws is what it always drew."""
    fewest, most = FILE_LINES
    count = min(most, max(fewest, requests // 5))
    lines: list[tuple[str, str | None]] = [(_replication(rng), rng.choice(SITES)) for _ in range(count)]
    for number in rng.sample(range(count), k=2):
        lines[number] = (f"R-{rng.getrandbits(64):x}", None)  # VCDA knows no such replication
    shares = (rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.9), 1.0)
    early = [replication_id for replication_id, _ in lines[: count // 2]]
    return RequestFile(
        at=rng.uniform(0.0, length / 3),
        name=f"{rng.getrandbits(64):x}",
        lines=tuple(lines),
        rate=count / FILE_SECONDS,
        interruptions=tuple(
            Interruption(share=share, seconds=rng.uniform(0.0, 1.0), kill=kill)
            for share, kill in zip(shares, rng.sample((True, True, False), k=3), strict=True)
        ),
        cancelled=frozenset(rng.sample(early, k=max(1, int(FILE_CANCELLED * len(early))))),
    )


def _bursts(rng: Random, replications: Collection[str], length: float) -> list[Sending]:
    """Several requests for each of these replications, so that some of them wait."""
    sendings = []
    for replication_id in replications:
        at = rng.uniform(0, length)
        for number in range(6):
            name = f"freed-{replication_id[3:11]}-{number}"
            at = min(length, at + rng.uniform(0.0, 2.0))
            sendings.append(Sending(at=at, operation_id=name, replication_id=replication_id, fields={}))
    return sendings


def _cancellings(rng: Random, asked: Collection[Sending], *, share: float, release: bool) -> list[Cancelling]:
    """Cancels of some of these requests, now and then twice: most while they wait, are on their way or run."""
    return [
        Cancelling(
            at=max(0.0, one.at + rng.choice((-0.1, 0.0, 0.05, rng.uniform(0.0, 8.0)))),
            operation_id=one.operation_id,
            replication_id=one.replication_id,
            release=release and rng.random() < RELEASED,
        )
        for one in asked
        for _ in range(rng.choice((1, 1, 1, 2)) if rng.random() < share else 0)
    ]


def _spoilings(rng: Random, count: int, length: float) -> list[Spoiling]:
    values: tuple[tuple[bytes | None, tuple[Header, ...]], ...] = (
        (b"{", ()),
        (b"\xff\xfe\x00", (("x", b"1"), ("x", b"2"))),
        (b'{"operationID": "op", "replicationId": "C4-1", "operationID": 7}', ()),
        (b'{"operationID": "op"}', (("content-type", b"application/json"),)),
        (b'{"operationID": "op", "replicationId": "C4-1"}', (("content-type", b"\xff\xfe"),)),
        (b"x" * 70_000, ()),
        (None, ()),
    )
    spoilings = []
    for _ in range(count):
        value, headers = rng.choice(values)
        spoilings.append(
            Spoiling(
                at=rng.uniform(0, length),
                partition=rng.randrange(PARTITIONS),
                key=rng.choice((None, b"key", b"\xff")) if value is not None else b"key",  # Kafka's client wants one
                value=value,
                headers=headers,
                below=rng.random() < 0.15,
            )
        )
    return spoilings


def _happenings(
    rng: Random, length: float, only: Collection[What], make_deck: Callable[[Random], list[Happening]]
) -> list[Happening]:
    """Draw from a shuffled deck, so that a run sees as many kinds as it has room for; none, if none is in it."""
    deck: list[Happening] = []
    happenings: list[Happening] = []
    at, whole = 2.0, 0.0
    while at < length:
        for _ in range(10):  # what is asked for may be one of two that are drawn
            deck = deck or [card for card in make_deck(rng) if not only or card.what in only]
        if not deck:
            return happenings
        apart = make_deck is _cluster_deck
        soon = [card for card in deck if not (apart and card.what in BROKERS_AWAY and at < whole)]
        if not soon:
            at = whole
            continue
        card = soon[-1]
        deck.remove(card)
        if card.what in BROKERS_AWAY:
            whole = at + APART
        happenings.append(replace(card, at=at, who=rng.random()))
        if rng.random() > 0.25:  # otherwise the next comes at once
            at += rng.uniform(*PAUSES)
    return happenings


def _pauses(
    rng: Random, to_brokers: Collection[Happening], length: float, only: Collection[What]
) -> Iterator[Happening]:
    """Draw pauses that brokers disturb, and one that ends while no process lives.

    With a generator of their own, so that whatever else a seed draws is what it always drew.
    """

    def pause(what: What, at: float, seconds: float) -> Happening:
        return Happening(at=at, what=what, seconds=seconds, words=what, fault={"site": rng.choice(PAUSABLE)})

    if not only or What.SITE_PAUSED in only:
        for one in [one for one in to_brokers if one.what in BROKERS_AWAY]:
            if rng.random() < 0.5:
                yield pause(What.SITE_PAUSED, max(0.0, one.at - PAUSED_FIRST), rng.uniform(2.0, 6.0))
    if not only or What.PAUSE_ENDS_UNSEEN in only:
        yield pause(What.PAUSE_ENDS_UNSEEN, rng.uniform(0.2, 0.7) * length, rng.uniform(*SHORT_PAUSE))


def _measurings(rng: Random, measured: Sequence[What]) -> tuple[Measuring, ...]:
    whoms = [*rng.sample(list(Whom), k=len(Whom))]
    return tuple(
        Measuring(what=what, whom=whoms[number % len(whoms)], who=rng.random()) for number, what in enumerate(measured)
    )


def _cluster_deck(rng: Random) -> list[Happening]:
    """Half of what else happens, and all that can be done to brokers. Not all are killed at once.

    A Kafka that is killed whole may leave a committed transaction without its marker for ever, which no client can
    stand up to (see `service/sandbox/kafka.py` on fencing).
    """

    def card(what: What, seconds: float = 0.0, whom: Whom | None = None) -> Happening:
        return Happening(at=0.0, what=what, seconds=seconds, words=what, whom=whom)

    others = [card for card in _deck(rng) if card.what is not What.KAFKA_DIES]
    whoms = rng.sample(list(Whom), k=len(Whom))
    deck = [
        *others[: len(others) // 2],
        *(card(What.BROKER_RESTARTS, rng.uniform(0.0, 4.0), whom) for whom in whoms[:2]),
        *(card(What.BROKER_DIES, rng.uniform(0.0, 6.0), whom) for whom in whoms[2:4]),
        card(What.BROKER_DIES, rng.uniform(0.0, 6.0), whoms[4]),
        card(What.BROKER_FREEZES, rng.uniform(2.0, 8.0), whoms[0]),
        card(What.BROKER_FREEZES, rng.uniform(10.0, 15.0), whoms[3]),
        card(What.MAJORITY_DIES, rng.uniform(0.0, 4.0), whoms[1]),
        card(What.BROKER_CLOCK, rng.choice((-30.0, 30.0)), whoms[2]),
        *(card(What.LEADERS_ELECTED) for _ in range(2)),
        card(What.PARTITIONS_MOVED),
        *(card(What.RIGHT_TAKEN, rng.uniform(2.0, 8.0)) for _ in range(2)),
        *(card(What.TOPIC_SETTINGS, rng.uniform(3.0, 8.0)) for _ in range(2)),
        card(What.RECORDS_DELETED),
        card(What.THROTTLED, rng.uniform(3.0, 8.0)),
    ]
    rng.shuffle(deck)
    return deck


def _deck(rng: Random) -> list[Happening]:
    def card(what: What, seconds: float = 0.0, words: str = "", **fault: Any) -> Happening:
        return Happening(at=0.0, what=what, seconds=seconds, words=words or what, fault=fault)

    away = rng.uniform(2.0, 8.0)
    storms = rng.sample(STORMS, 7)
    deck = [
        card(What.KILL, rng.uniform(0.0, 4.0)),
        card(What.KILL, rng.uniform(0.0, 4.0)),
        card(What.STOP, rng.uniform(0.0, 4.0)),
        card(What.STOP, rng.uniform(0.0, 4.0)),
        card(What.FREEZE, rng.uniform(SESSION_TIMEOUT + 2, SESSION_TIMEOUT + 8)),
        card(What.FREEZE, rng.uniform(1.0, SESSION_TIMEOUT + 4)),
        card(What.JOIN),
        card(What.LEAVE),
        card(What.JOIN_AND_FREEZE, rng.uniform(SESSION_TIMEOUT + 1, SESSION_TIMEOUT + 6)),
        card(rng.choice((What.JOIN_AS_ANOTHER, What.ALL_DIE)), rng.uniform(0.0, 3.0)),
        card(rng.choice((What.KAFKA_STOPS, What.KAFKA_DIES, What.KAFKA_FREEZES)), away),
        card(rng.choice((What.KAFKA_STOPS, What.KAFKA_DIES, What.KAFKA_FREEZES)), rng.uniform(2.0, 8.0)),
        card(What.EXPIRE, words=rng.choice(("sessions", "extensions", "cloud-director"))),
        card(What.EXPIRE, words="sessions"),
        card(What.KAFKA_MOVES, rng.uniform(0.0, 4.0)),
        card(What.KAFKA_DROPS),
        card(What.VCDA_DROPS),
        card(What.VCDA_UNASKED),
        card(What.VCDA_CERTIFICATE),
        card(What.ACCOUNT),
        card(What.PURGE),
        card(What.CACHE, rng.uniform(4.0, 10.0), **rng.choice(CACHES)),
        card(What.LOG_STANDS, rng.uniform(5.0, 12.0)),
        card(What.VCDA_REFUSES, rng.uniform(1.0, 5.0)),
        *(card(What.SITE_PAUSED, rng.uniform(2.0, 6.0), site=rng.choice(PAUSABLE)) for _ in range(2)),
        card(What.VCDA_CLOCK, rng.choice((-20.0, 0.0, 20.0))),
        card(
            What.WRONG,
            words="a site is dead",
            site=rng.choice(("site2", "site3")),
            answer="silent",
            lasting=rng.uniform(10.0, 20.0),
        ),
        *(card(What.WRONG, words=words, **fault, lasting=rng.uniform(3.0, 8.0)) for words, fault in storms),
    ]
    rng.shuffle(deck)
    return deck
