"""The rights that the Strimzi overlay grants, read from its users.yaml, and given to users of a real Kafka."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Self

import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest
from typing_extensions import override

USERS: Final = Path(__file__).parents[2] / "deploy" / "kubernetes" / "overlays" / "strimzi" / "users.yaml"


class Resource(IntEnum):
    """What a right is about, as Kafka's protocol numbers it."""

    topic = 2
    group = 3
    cluster = 4
    transactionalId = 5  # noqa: N815 - so Strimzi calls it


class Operation(IntEnum):
    """What a right allows, likewise."""

    All = 2
    Read = 3
    Write = 4
    Create = 5
    Describe = 8
    DescribeConfigs = 10


class Pattern(IntEnum):
    """Whether a right is about one name, or all that begin like it."""

    literal = 3
    prefix = 4


@dataclass(frozen=True, slots=True)
class Grant:
    """One right."""

    resource: Resource
    name: str
    pattern: Pattern
    operation: Operation

    @override
    def __str__(self) -> str:
        return f"{self.operation.name} on {self.resource.name} {self.name}{'*' * (self.pattern is Pattern.prefix)}"

    def under(self, prefix: str) -> Self:
        """Return the same right for topics, a group and ids that begin with another word than `vm-sync`."""
        return replace(self, name=self.name.replace("vm-sync", prefix, 1))


def grants_of(user: str) -> list[Grant]:
    """Return the rights that users.yaml gives to a user, one for each operation."""
    documents = yaml.safe_load_all(USERS.read_text(encoding="utf-8"))
    (found,) = [document for document in documents if document["metadata"]["name"] == user]
    return [
        Grant(
            Resource[acl["resource"]["type"]],
            acl["resource"]["name"],
            Pattern[acl["resource"].get("patternType", "literal")],
            Operation[operation],
        )
        for acl in found["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    ]


class Acls:
    """What one user may do at a Kafka with an authorizer. An async context; what was granted is taken at its end."""

    def __init__(self, bootstrap: str, user: str) -> None:
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        self._principal = f"User:{user}"
        self._granted: set[Grant] = set()

    async def __aenter__(self) -> Self:
        await self._admin.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.take(*self._granted)
        await self._admin.close()

    async def grant(self, *grants: Grant) -> None:
        """Give rights; returns once the brokers have them."""
        for grant in grants:
            response = await self._ask(CreateAclsRequest, grant)
            assert all(code == 0 for code, *_ in response.creation_responses), response
            self._granted.add(grant)

    async def take(self, *grants: Grant) -> None:
        """Take rights away."""
        for grant in grants:
            response = await self._ask(DeleteAclsRequest, grant)
            assert all(code == 0 for code, *_ in response.filter_responses), response
            self._granted.discard(grant)

    async def only(self, grants: Sequence[Grant]) -> None:
        """Give exactly these."""
        await self.take(*(self._granted - set(grants)))
        await self.grant(*(set(grants) - self._granted))

    async def _ask(self, request: Any, grant: Grant) -> Any:
        return await self._admin._send_request(acl_request(request, grant, self._principal))


def acl_request(request: Any, grant: Grant, principal: str) -> Any:
    """Return a request that gives or takes a right: a CreateAclsRequest or a DeleteAclsRequest."""
    return request(grant.resource, grant.name, grant.pattern, principal, "*", grant.operation, _ALLOW)


_ALLOW: Final = 3
