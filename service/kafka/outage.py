"""Says in one line when Kafka stops answering, and in one when it answers again.

Which broker, and why, is in the log of Kafka's client and nowhere else: it is listened to here.
"""

import logging
import re
from datetime import timedelta
from typing import Final

from typing_extensions import override

from service.clock import Clock
from service.kafka.denials import explain

log = logging.getLogger(__name__)

SILENT: Final = timedelta(seconds=10)
"""How long Kafka has to be silent until that is said: a broker's restart is over by then, or another one leads."""

AGAIN: Final = timedelta(minutes=10)
"""How often an outage that lasts is mentioned again."""

NO_ANSWER: Final = "no answer in time"
"""The cause where Kafka's client has said nothing."""


class LastTrouble(logging.Handler):
    """Remembers what Kafka's client said last of a broker that it can't reach."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = NO_ANSWER

    @override
    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        errors = [argument for argument in arguments if isinstance(argument, BaseException)]
        if not errors:
            return
        node = re.match(r"Unable connect to node with id (\d+)", record.getMessage())
        self.text = f"broker {node[1]}: {explain(errors[-1])}" if node else explain(errors[-1])


class Outage:
    """Whether Kafka answers, as it is said. `close` it at the end."""

    def __init__(self, *, servers: str, clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._said_at: float | None = None
        self._since = 0.0
        self._trouble = LastTrouble()
        logging.getLogger("aiokafka").addHandler(self._trouble)

    def close(self) -> None:
        """Listen no longer."""
        logging.getLogger("aiokafka").removeHandler(self._trouble)

    def silent(self, since: float) -> None:
        """Kafka has not answered since a moment (monotonic); said once, and seldom again."""
        now = self._clock.monotonic()
        if now - since < SILENT.total_seconds():
            return
        if self._said_at is not None and now - self._said_at < AGAIN.total_seconds():
            return
        self._said_at, self._since = now, since
        moment = self._clock.now() - timedelta(seconds=now - since)
        log.warning(
            "Kafka at %s has not answered since %s: %s",
            self._servers,
            f"{moment:%Y-%m-%d %H:%M:%SZ}",
            self._trouble.text,
        )

    def answered(self) -> None:
        """Kafka has answered: what its client said before is no cause of a later outage."""
        self._trouble.text = NO_ANSWER
        if self._said_at is not None:
            log.warning("Kafka answers again, after %.0f s", self._clock.monotonic() - self._since)
            self._said_at = None
