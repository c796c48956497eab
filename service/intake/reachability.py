"""Whether Kafka answers this process, and whether its brokers have moved.

aiokafka knows only the addresses that it has heard last. While Kafka is silent, the bootstrap servers are asked where
the brokers are now.
"""

import logging
from collections.abc import Mapping
from typing import Any

from service.clock import Clock
from service.intake.subscriber import Subscriber
from service.intake.timings import IntakeTimings
from service.kafka.clients import rebootstrap
from service.kafka.outage import Outage

log = logging.getLogger(__name__)


class Reachability:
    """What the group's consumer knows of Kafka. `note` is called with each answer, or silence."""

    def __init__(
        self, *, connection: Mapping[str, Any], subscriber: Subscriber, timings: IntakeTimings, clock: Clock
    ) -> None:
        self.answered_at = clock.monotonic()
        """When Kafka has answered the consumer last (monotonic)."""
        self.answers = False
        """Whether it has, when it was asked last."""
        self._connection = connection
        self._subscriber = subscriber
        self._timings = timings
        self._clock = clock
        self._outage = Outage(servers=",".join(connection["bootstrap_servers"]), clock=clock)
        self._answers_others_since: float | None = None

    @property
    def silent_for(self) -> float:
        """The seconds since Kafka has answered the consumer."""
        return self._clock.monotonic() - self.answered_at

    def note(self, *, answered: bool) -> None:
        """Kafka has answered the consumer, or has not."""
        self.answers = answered
        if answered:
            self.answered_at = self._clock.monotonic()
            self._outage.answered()
        else:
            self._outage.silent(self.answered_at)

    def close(self) -> None:
        """Nothing is asked any more."""
        self._outage.close()

    async def moved(self) -> bool:
        """Whether Kafka, silent for long, has answered the bootstrap servers' clients at new addresses.

        The consumer uses them from now on.

        Raises:
            RuntimeError: Kafka answers a new client, but has not answered this process's client for long.
        """
        if self.silent_for <= self._timings.ask_bootstrap.total_seconds():
            self._answers_others_since = None
            return False
        moved = await self.ask_bootstrap_servers()
        if moved is None:
            self._answers_others_since = None  # from here on, Kafka answers nobody
            return False
        if moved:
            log.warning("The addresses of Kafka's brokers have changed; all partitions are reopened with the new ones")
        now = self._clock.monotonic()
        if self._answers_others_since is None:
            self._answers_others_since = now
        if now - self._answers_others_since > self._timings.give_up.total_seconds():
            msg = f"Kafka has answered new clients, but not the consumer, for {now - self._answers_others_since:.0f} s"
            raise RuntimeError(msg)
        return moved

    async def ask_bootstrap_servers(self) -> bool | None:
        """Update the consumer's broker addresses. Returns whether they changed; None: no answer."""
        try:
            return await rebootstrap(self._subscriber.consumer.client, connection=self._connection)
        except Exception as error:  # noqa: BLE001 - a source of tokens may raise anything, and Kafka is away already
            log.debug("Asking the bootstrap servers for the brokers' addresses failed: %r", error)
            return None
