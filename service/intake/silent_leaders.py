"""Finds partitions of the requests topic that can't be read, since no broker leads them, or the leader doesn't answer.

The other brokers answer meanwhile. Causes are a firewall between this process and a broker that was added, or a
partition all of whose replicas are down. Kafka's client tries again without end and logs nothing, and it is not known
whether there are records. A restart would not help; so the log names the cause.

It never asks Kafka for anything.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta

from aiokafka import TopicPartition

from service.clock import Clock

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Silence:
    """One partition about which nobody answers."""

    why: str
    since: float
    """When this was first seen (monotonic)."""
    logged: bool = False


class SilentLeaders:
    """Measures how long nobody has answered for each partition that is to be read."""

    def __init__(self, *, limit: timedelta, clock: Clock) -> None:
        self._limit = limit.total_seconds()
        self._clock = clock
        self._silences: dict[TopicPartition, _Silence] = {}

    def look(self, place: TopicPartition, why: str | None) -> None:
        """Look at a partition: why its leader doesn't say where it ends; None: it does, or need not."""
        silence = self._silences.get(place)
        if why is None:
            self.forget(place)
        elif silence is None:
            self._silences[place] = _Silence(why, self._clock.monotonic())
        else:
            silence.why = why
            if not silence.logged and self._seconds(silence) > self._limit:
                silence.logged = True
                log.warning(
                    "Partition %d of %s has not been readable for %.0f s: %s",
                    place.partition,
                    place.topic,
                    self._seconds(silence),
                    why,
                )

    def forget(self, place: TopicPartition) -> None:
        """The partition is read, or is no longer to be read here."""
        silence = self._silences.pop(place, None)
        if silence is not None and silence.logged:
            log.info("Partition %d of %s is no longer unreadable", place.partition, place.topic)

    def longest(self) -> float:
        """Return for how many seconds the partition that has waited longest has not been readable; 0: each is."""
        return max(map(self._seconds, self._silences.values()), default=0.0)

    def reasons(self) -> list[str]:
        """Return which partitions have not been readable for long, as sentences."""
        return [
            f"partition {place.partition} has not been readable for {self._seconds(silence):.0f} s: {silence.why}"
            for place, silence in sorted(self._silences.items())
            if self._seconds(silence) > self._limit
        ]

    def _seconds(self, silence: _Silence) -> float:
        return self._clock.monotonic() - silence.since
