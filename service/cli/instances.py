"""Finds the instances of the service through their consumer group, and asks their operations servers for live facts.

Kafka says which member has which partition, and from which address it connected; the port of its operations server is
part of its client id. Where Kafka or an instance doesn't answer, the facts are missing, and nothing fails.
"""

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Any, Final

import httpx
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError

from service.cli import kafka
from service.kafka.clients import end
from service.kafka.connection import ops_port_of

PATIENCE: Final = 3.0
"""Seconds for each answer: what is asked for is a comfort."""

PAGES: Final = 5
"""Pages of 1,000 syncs that are read of an instance: a list shows far fewer."""


async def owners(place: kafka.KafkaContext) -> dict[int, str]:
    """Return for each partition of the requests topic the URL of its owner's operations server, as far as is known."""
    group, topic = place.settings.kafka.group_id, place.names.requests
    admin = AIOKafkaAdminClient(**place.arguments)
    found: dict[int, str] = {}
    try:
        with contextlib.suppress(KafkaError, OSError, TimeoutError, ValueError, IndexError):
            async with asyncio.timeout(PATIENCE):
                await admin.start()
                (response,) = await admin.describe_consumer_groups([group])
                for _, _, _, _, _, members, *_ in response.groups:
                    for _, client_id, host, _, assigned in members:
                        port = ops_port_of(client_id)
                        if port is None or not assigned:
                            continue
                        address = host.lstrip("/")
                        url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
                        decoded = ConsumerProtocolMemberAssignment.decode(BytesIO(assigned))
                        found |= {one.partition: url for one in decoded.partitions() if one.topic == topic}
    finally:
        await end(admin)
    return found


async def in_flight(
    place: kafka.KafkaContext, wanted: Collection[tuple[int, str]], *, replication: str | None = None
) -> dict[str, Mapping[str, Any]]:
    """Return what the owners' `/syncs` say of these requests, given as partition and identity, by identity.

    `replication` narrows it down where all of them are of one.
    """
    if not wanted:
        return {}
    of_partition = await owners(place)
    urls = {of_partition[partition] for partition, _ in wanted if partition in of_partition}
    identities = {identity for _, identity in wanted}
    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
        parts = await asyncio.gather(*[_syncs(client, url, replication=replication) for url in urls])
    return {sync["requestId"]: sync for part in parts for sync in part if sync["requestId"] in identities}


async def sites(urls: Collection[str]) -> dict[str, list[Mapping[str, Any]] | None]:
    """Return what the instances at these URLs say of their sites; None of one that is of a release that says nothing.

    Who does not answer is missing.
    """

    async def ask(url: str) -> tuple[str, list[Mapping[str, Any]] | None] | None:
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            page = (await client.get(f"{url}/syncs", params={"limit": "1"})).json()
            _ = page["syncs"]  # whatever else answers there is no instance
            return url, page.get("sites")
        return None

    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
        answers = await asyncio.gather(*[ask(url) for url in urls])
    return dict(answer for answer in answers if answer is not None)


async def progress(urls: Collection[str]) -> dict[str, int]:
    """Return the progress of running syncs in percent, by identity: of the first 1,000 of each instance."""
    parameters = {"state": "running", "limit": "1000"}

    async def of_one(client: httpx.AsyncClient, url: str) -> dict[str, int]:
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            found = (await client.get(f"{url}/syncs", params=parameters)).json()["syncs"]
            return {sync["requestId"]: sync["progress"] for sync in found if sync["progress"] is not None}
        return {}

    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
        parts = await asyncio.gather(*[of_one(client, url) for url in urls])
    return {identity: percent for part in parts for identity, percent in part.items()}


async def _syncs(client: httpx.AsyncClient, url: str, *, replication: str | None) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    parameters = {"limit": "1000"} | ({} if replication is None else {"replicationId": replication})
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
        for _ in range(PAGES):
            page = (await client.get(f"{url}/syncs", params=parameters)).json()
            found += page["syncs"]
            if page["next"] is None:
                break
            parameters |= {"after": page["next"]}
    return found
