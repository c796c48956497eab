"""How every client of the service reaches Kafka."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from service.certificates import Current
from service.kafka.clients import MAX_IDLE
from service.kafka.tokens import Tokens
from service.moments import milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConnection:
    """How every client of the service reaches Kafka."""

    bootstrap_servers: tuple[str, ...]
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """aiokafka's own arguments: security_protocol, ssl_context, sasl_mechanism, sasl_plain_username ..."""

    @property
    def tokens(self) -> Tokens | None:
        """What gives all clients their OAuth token; None: they log in with something else, or not at all."""
        return self.security.get("sasl_oauth_token_provider")

    @property
    def certificates(self) -> list[Current]:
        """The certificates from files, those for the token server included."""
        used = self.security.get("ssl_context"), None if self.tokens is None else self.tokens.source.tls
        return [one for one in used if isinstance(one, Current)]

    def arguments(self) -> dict[str, Any]:
        """Return what any aiokafka client takes; a list, since it takes one string with commas for one host."""
        return {
            "bootstrap_servers": list(self.bootstrap_servers),
            "connections_max_idle_ms": milliseconds(MAX_IDLE),
            **self.security,
        }


_OPS: Final = "vm-sync-ops-"


def client_id(ops_port: int) -> str:
    """Return the client id of a member of the consumer group, by which the commands find its operations server."""
    return f"{_OPS}{ops_port}"


def ops_port_of(client_id: str) -> int | None:
    """Return the port of the operations server of the member with this client id; None: it is not the service's."""
    text = client_id.removeprefix(_OPS)
    return int(text) if text != client_id and text.isdecimal() else None
