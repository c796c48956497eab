"""How much of everything is measured: `FULL` for the published page, `QUICK` for daily work, `TINY` for a test."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One form of the benchmark. Times in seconds."""

    form: str
    rounds: int
    few: int
    """Rounds of what takes minutes each."""

    burst: int
    """S1: requests with tasks of 100 ms, and how many replications they are for."""
    burst_replications: int

    long: int
    """S2: requests, each for a replication of its own, and the mean of their log-normal durations (sigma 0.5)."""
    long_mean: float
    wide: int
    """The same with a sigma of 0.8: of so many, the longest runs for fourteen times the mean."""

    flight: tuple[int, ...]
    """How many are in flight at once, and between which two durations their tasks end."""
    flight_between: tuple[float, float]
    idle: float
    """How long a process is watched doing nothing, to know what that costs."""

    restored: int
    remembered: int
    """What stands in the journals that are taken over: syncs in flight, and ended ones."""

    partitions: tuple[int, int]
    """Partitions of one process, few and many."""

    rate: float
    trickle: float
    """Requests a second that arrive at random moments, and for how long."""

    hand_over_rate: float
    hand_over_pause: float
    """Requests a second while processes come and go, and the time between two such events."""

    policy: float
    """Part of the polling bench's tasks to simulate."""
    virtual_sites: int
    virtual_seconds: float


FULL = Sizes(
    form="full",
    rounds=2,
    few=1,
    burst=10_000,
    burst_replications=1_000,
    long=20_000,
    long_mean=20.0,
    wide=10_000,
    flight=(500, 1_000, 10_000, 50_000),
    flight_between=(120.0, 180.0),
    idle=10.0,
    restored=50_000,
    remembered=500_000,
    partitions=(8, 100),
    rate=200.0,
    trickle=30.0,
    hand_over_rate=50.0,
    hand_over_pause=20.0,
    policy=1.0,
    virtual_sites=100,
    virtual_seconds=120.0,
)

QUICK = Sizes(
    form="quick",
    rounds=1,
    few=1,
    burst=2_000,
    burst_replications=200,
    long=1_500,
    long_mean=3.0,
    wide=1_000,
    flight=(200, 1_000),
    flight_between=(5.0, 10.0),
    idle=2.0,
    restored=2_000,
    remembered=20_000,
    partitions=(8, 40),
    rate=200.0,
    trickle=3.0,
    hand_over_rate=50.0,
    hand_over_pause=8.0,
    policy=0.02,
    virtual_sites=5,
    virtual_seconds=20.0,
)

TINY = Sizes(
    form="tiny",
    rounds=1,
    few=1,
    burst=40,
    burst_replications=20,
    long=20,
    long_mean=0.3,
    wide=20,
    flight=(10, 20),
    flight_between=(0.5, 1.0),
    idle=0.2,
    restored=20,
    remembered=100,
    partitions=(2, 6),
    rate=50.0,
    trickle=0.4,
    hand_over_rate=20.0,
    hand_over_pause=1.0,
    policy=0.005,
    virtual_sites=1,
    virtual_seconds=5.0,
)
