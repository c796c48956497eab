"""A Kafka with a listener for each way to be sure, or not, who is at the other end; and the certificates for it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest
from cryptography.hazmat.primitives import serialization

from service.sandbox.kafka import EmbeddedKafka

USER: Final = "vm-sync"
PASSWORD: Final = "Kafka-Secret+4711/ä"
"""With signs that addresses, JSON and SCRAM's normalisation could stumble over."""

LISTENERS: Final = {
    "TLS": "SSL",
    "MUTUAL": "SSL",
    "EXPIRED": "SSL",
    "ELSEWHERE": "SSL",
    "LOGIN": "SASL_PLAINTEXT",
    "LOGIN_TLS": "SASL_SSL",
    "SCRAM_ONLY": "SASL_SSL",
}
"""By name: TLS alone; with a certificate wanted of us; with one of theirs that has expired, or is for another host;
and with a login: any of three mechanisms, without and with TLS, and one that takes no plain password."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """What lies in the folder that tests hand to the service."""

    authority: Path
    another_authority: Path
    own: Path
    own_of_another: Path


def certificates(folder: Path) -> Certificates:
    """Make ours and the brokers': `<listener>.pem` is a key as Kafka wants it (PKCS #8), with its certificate."""
    ours, theirs = trustme.CA(), trustme.CA()
    found = Certificates(
        folder / "ca.pem", folder / "another-ca.pem", folder / "own.pem", folder / "own-of-another.pem"
    )
    ours.cert_pem.write_to_path(found.authority)
    theirs.cert_pem.write_to_path(found.another_authority)
    ours.issue_cert("vm-sync").private_key_and_cert_chain_pem.write_to_path(found.own)
    theirs.issue_cert("vm-sync").private_key_and_cert_chain_pem.write_to_path(found.own_of_another)
    past = datetime.now(UTC) - timedelta(days=1)
    _write_for_kafka(ours.issue_cert("127.0.0.1"), folder / "good.pem")
    _write_for_kafka(ours.issue_cert("127.0.0.1", not_after=past), folder / "expired.pem")
    _write_for_kafka(ours.issue_cert("kafka.example"), folder / "elsewhere.pem")
    return found


def _write_for_kafka(certificate: trustme.LeafCert, path: Path) -> None:
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(kind, form, serialization.NoEncryption()) + chain)


def secured(
    folder: Path,
    *,
    asking: bool = False,
    also: Mapping[str, str] = MappingProxyType({}),
    properties: Mapping[str, str] = MappingProxyType({}),
    java_properties: Mapping[str, str] = MappingProxyType({}),
) -> EmbeddedKafka:
    """Return one, not started, with the certificates of `certificates(folder)`.

    `asking`: for rights, as `guarded` does. `also` are further listeners, by the protocol that they speak; `properties`
    are theirs.
    """
    properties = dict(properties)
    for listener, protocol in LISTENERS.items():
        prefix = f"listener.name.{listener.lower()}"
        if protocol.endswith("SSL"):
            name = {"EXPIRED": "expired", "ELSEWHERE": "elsewhere"}.get(listener, "good")
            properties |= {
                f"{prefix}.ssl.keystore.type": "PEM",
                f"{prefix}.ssl.keystore.location": str(folder / f"{name}.pem"),
                f"{prefix}.ssl.truststore.type": "PEM",
                f"{prefix}.ssl.truststore.location": str(folder / "ca.pem"),
                f"{prefix}.ssl.client.auth": "required" if listener == "MUTUAL" else "none",
            }
        if protocol.startswith("SASL"):
            plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
            scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            mechanisms = ["SCRAM-SHA-256", "SCRAM-SHA-512"] + ["PLAIN"] * (listener != "SCRAM_ONLY")
            properties |= {
                f"{prefix}.sasl.enabled.mechanisms": ",".join(mechanisms),
                f"{prefix}.plain.sasl.jaas.config": f'{plain} user_{USER}="{PASSWORD}";',
                f"{prefix}.scram-sha-256.sasl.jaas.config": scram,
                f"{prefix}.scram-sha-512.sasl.jaas.config": scram,
            }
    return EmbeddedKafka(
        properties=properties,
        java_properties=java_properties,
        listeners={**LISTENERS, **also},
        scram={USER: PASSWORD},
        authorizer=asking,
    )


# ---------------------------------------------------------------- rights


LOGIN: Final = {
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "SCRAM-SHA-256",
    "sasl_plain_username": USER,
    "sasl_plain_password": PASSWORD,
}
"""How clients of `guarded` log in, as aiokafka's arguments."""


def guarded() -> EmbeddedKafka:
    """Return one, not started, that asks for `USER`'s rights at the listener LOGIN; without a login one may do all."""
    return EmbeddedKafka(users={USER: PASSWORD}, authorizer=True)


class Resource(IntEnum):
    """What a right is about, as Kafka's protocol numbers it."""

    TOPIC = 2
    GROUP = 3
    CLUSTER = 4
    TRANSACTIONAL_ID = 5


class Operation(IntEnum):
    """What a right allows."""

    ALL = 2
    READ = 3
    WRITE = 4
    CREATE = 5
    DESCRIBE = 8
    DESCRIBE_CONFIGS = 10


class Rights:
    """What `USER` may do at a guarded Kafka: everything, but for what is denied. An async context."""

    def __init__(self, bootstrap: str) -> None:
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)

    async def __aenter__(self) -> Self:
        await self._admin.start()
        await self._all(CreateAclsRequest)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._admin.close()

    @asynccontextmanager
    async def only(self, *rights: tuple[Resource, str, tuple[Operation, ...]]) -> AsyncIterator[None]:
        """Leave `USER` these rights alone for a while; a name that ends with `-*` stands for all that begin so."""
        granted = [(resource, name, operation) for resource, name, some in rights for operation in some]
        await self._all(DeleteAclsRequest)
        for right in granted:
            await self._ask(CreateAclsRequest, *right, permission=_ALLOW)
        yield
        for right in granted:
            await self._ask(DeleteAclsRequest, *right, permission=_ALLOW)
        await self._all(CreateAclsRequest)

    async def _all(self, request: "type[CreateAclsRequest | DeleteAclsRequest]") -> None:
        for resource in Resource:
            name = "kafka-cluster" if resource is Resource.CLUSTER else "*"
            await self._ask(request, resource, name, Operation.ALL, permission=_ALLOW)

    async def deny(self, resource: Resource, name: str, operation: Operation = Operation.READ) -> None:
        """Take a right away."""
        await self._ask(CreateAclsRequest, resource, name, operation, permission=_DENY)

    async def give_back(self, resource: Resource, name: str, operation: Operation = Operation.READ) -> None:
        """Give it back."""
        await self._ask(DeleteAclsRequest, resource, name, operation, permission=_DENY)

    async def _ask(
        self,
        request: "type[CreateAclsRequest | DeleteAclsRequest]",
        resource: Resource,
        name: str,
        operation: Operation,
        *,
        permission: int,
    ) -> None:
        pattern = _LITERAL
        if name.endswith("-*"):
            name, pattern = name.removesuffix("*"), _PREFIXED
        asked = request(resource, name, pattern, f"User:{USER}", "*", operation, permission)
        response = await self._admin._send_request(asked)
        ((code, *_),) = response.creation_responses if request is CreateAclsRequest else response.filter_responses
        assert code == 0, response
        # The controller has taken it; wait until the broker has heard of it.
        look = DescribeAclsRequest(resource, name, pattern, f"User:{USER}", "*", operation, permission)
        async with asyncio.timeout(60):
            while bool((await self._admin._send_request(look)).resources) != (request is CreateAclsRequest):
                await asyncio.sleep(0.02)


_DENY, _ALLOW, _LITERAL, _PREFIXED = 2, 3, 3, 4
