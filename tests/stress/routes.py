"""The ways by which the service reaches the brokers in a run of chaos: a relay to each, and a first door to each."""

from collections.abc import Iterable
from typing import Self

from service.sandbox.kafka import EmbeddedKafka
from tests.support.relay import Address, Relay


class Routes:
    """Two relays for each broker, an async context: its listener as it is advertised, and a bootstrap server before it.

    So connections can fall silent, and the brokers come back under other addresses.
    """

    def __init__(self, kafka: EmbeddedKafka, *, listener: str) -> None:
        self._kafka = kafka
        self._name = listener
        self._listeners = {number: self._relay(number) for number in kafka.brokers}
        self._doors = {number: self._door(number) for number in kafka.brokers}

    def _relay(self, number: int) -> Relay:
        def target() -> Address:
            host, _, port = self._kafka.brokers[number].address(self._name).partition(":")
            return host, int(port)

        return Relay(target)

    def _door(self, number: int) -> Relay:
        return Relay(lambda: self._listeners[number].place)

    @property
    def bootstrap(self) -> str:
        """Where the service is to look for Kafka, comma-separated."""
        return ",".join(door.address for door in self._doors.values())

    def advertise(self) -> None:
        """Have each broker send clients to its relay, from its next start on."""
        for number, relay in self._listeners.items():
            self._kafka.brokers[number].advertise(self._name, relay.address)

    async def open(self, numbers: Iterable[int] | None = None) -> None:
        """Open the ways to these brokers, or to all, where they were."""
        for number in self._listeners if numbers is None else numbers:
            await self._listeners[number].open()
            await self._doors[number].open()

    def close(self, numbers: Iterable[int] | None = None) -> None:
        """Close them, with every connection: nobody listens there."""
        for number in self._listeners if numbers is None else numbers:
            self._listeners[number].close()
            self._doors[number].close()

    def drop(self) -> None:
        """Let every connection fall silent, without an end."""
        for relay in (*self._listeners.values(), *self._doors.values()):
            relay.drop()

    async def move(self) -> None:
        """Give all listeners other addresses, which the brokers advertise from their next start on."""
        for relay in self._listeners.values():
            await relay.move()
        self.advertise()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
