"""Rights on the group or a topic that Kafka refuses to the consumer at present.

The consumer retries by itself and reports each refusal; this module logs a lasting refusal once a minute, and regards
it as over when it has not been reported for some seconds. It never decides what follows from a refusal.
"""

import logging
from dataclasses import dataclass

from aiokafka import TopicPartition

from service.clock import Clock
from service.intake.timings import IntakeTimings

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refusal:
    """A right that Kafka refuses repeatedly. Moments are monotonic."""

    heard_at: float
    logged_at: float


class ConsumerRefusals:
    """The refusals that last, by their texts."""

    def __init__(self, *, timings: IntakeTimings, clock: Clock) -> None:
        self._counts = timings.refusal_counts.total_seconds()
        self._again = timings.refusal_again.total_seconds()
        self._clock = clock
        self._refusals: dict[str, _Refusal] = {}

    def note(self, place: TopicPartition | None, error: Exception) -> None:
        """Take what a broker has refused: of the partition's topic, or (None) of the group."""
        about = "the consumer group" if place is None else f"topic {place.topic}"
        text = f"Kafka refuses {about}: {error!r}"
        now = self._clock.monotonic()
        refusal = self._refusals.get(text)
        if refusal is None:
            self._refusals[text] = _Refusal(heard_at=now, logged_at=now)
            log.warning("%s; trying again every second", text)
            return
        if now - refusal.logged_at >= self._again:
            refusal.logged_at = now
            log.warning("%s; still trying again every second", text)
        refusal.heard_at = now

    def current(self) -> list[str]:
        """Return what Kafka refuses at present; nothing when it refuses nothing."""
        now = self._clock.monotonic()
        return [text for text, refusal in self._refusals.items() if now - refusal.heard_at <= self._counts]

    def forget_past(self) -> None:
        """Forget the refusals that are over, and log it."""
        for text in self._refusals.keys() - set(self.current()):
            del self._refusals[text]
            log.info("No longer refused: %s", text)
