"""Finds the instances of the service through their consumer group, and asks their operations servers for live facts.

Kafka says which member has which partition, and from which address it connected; the port of its operations server is
part of its client id. Where Kafka or an instance doesn't answer, the facts are missing, and nothing fails.

Something else may answer at that address. So an answer is bounded in size and time, and whoever reads a page finds in
it what `Page` says, and nothing else of another type; texts may be anything.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from io import BytesIO
from typing import Annotated, Any, Final, TypeVar

import httpx
import msgspec
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError
from pydantic_core import from_json

from service.cli import kafka
from service.kafka.clients import end
from service.kafka.connection import ops_port_of

T = TypeVar("T")
V = TypeVar("V")

PATIENCE: Final = 3.0
"""Seconds for each answer: what is asked for is a comfort."""

WHOLE: Final = 2 * PATIENCE
"""Seconds for an answer from its first byte to its last."""

LONGEST: Final = 32 * 1024 * 1024
"""Bytes of an answer: 1,000 syncs with long errors have a few millions."""

PAGES: Final = 5
"""Pages of 1,000 syncs that are read of an instance: a list shows far fewer."""


class WaitsFor(msgspec.Struct):
    """What a request or a site waits for, as far as it is read here."""

    cause: str
    detail: str
    until: str | None = None


class Sync(msgspec.Struct, rename="camel"):
    """A sync in flight."""

    request_id: str
    state: str
    progress: Annotated[int, msgspec.Meta(ge=0, le=100)] | None
    waits_for: WaitsFor | None = None


class Pause(msgspec.Struct):
    """An operator's pause of a site."""

    until: str


class Site(msgspec.Struct):
    """A site."""

    site: str | None
    pause: Pause | None = None
    obstacle: WaitsFor | None = None


class Page(msgspec.Struct):
    """A page of `/syncs`: the fields that are read here. Older releases know of no sites."""

    syncs: list[Sync]
    next: str | None
    sites: list[Site] | None = None


async def read_page(client: httpx.AsyncClient, url: str, parameters: Mapping[str, str]) -> Mapping[str, Any]:
    """Ask an instance for a page of its `/syncs`, of the form of `Page`.

    Raises:
        httpx.HTTPError, TimeoutError, ValueError: it doesn't answer, or not as an instance does.
    """
    body = bytearray()
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    async with (
        asyncio.timeout(WHOLE),
        client.stream("GET", f"{url}/syncs", params=parameters, headers=headers) as answer,
    ):
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > LONGEST:
                msg = f"the answer is longer than {LONGEST} bytes"
                raise ValueError(msg)
    found: Mapping[str, Any] = from_json(bytes(body))
    msgspec.convert(found, Page)
    return found


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

    def read(page: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        return {sync["requestId"]: sync for sync in page["syncs"] if sync["requestId"] in identities}

    narrow = {} if replication is None else {"replicationId": replication}
    return _merged(await _ask(urls, read, pages=PAGES, limit="1000", **narrow))


async def sites(urls: Collection[str]) -> dict[str, list[Mapping[str, Any]] | None]:
    """Return what the instances at these URLs say of their sites; None of one that is of a release that says nothing.

    Who does not answer is missing.
    """

    def read(page: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
        return page.get("sites")

    return {url: first for url, (first, *_) in (await _ask(urls, read, limit="1")).items()}


async def progress(urls: Collection[str]) -> dict[str, int]:
    """Return the progress of running syncs in percent, by identity: of the first 1,000 of each instance."""

    def read(page: Mapping[str, Any]) -> dict[str, int]:
        return {sync["requestId"]: sync["progress"] for sync in page["syncs"] if sync["progress"] is not None}

    return _merged(await _ask(urls, read, state="running", limit="1000"))


async def _ask(
    urls: Collection[str], read: Callable[[Mapping[str, Any]], T], *, pages: int = 1, **parameters: str
) -> dict[str, list[T]]:
    """Ask each instance for pages of its `/syncs`; return what `read` makes of them, by URL.

    What does not answer, or not as an instance does, is missing.
    """

    async def of_one(url: str) -> list[T]:
        found: list[T] = []
        after: dict[str, str] = {}
        with contextlib.suppress(httpx.HTTPError, TimeoutError, ValueError):
            for _ in range(pages):
                page = await read_page(client, url, parameters | after)
                found.append(read(page))
                if page["next"] is None:
                    break
                after = {"after": page["next"]}
        return found

    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
        answers = await asyncio.gather(*[of_one(url) for url in urls])
    return {url: found for url, found in zip(urls, answers, strict=True) if found}


def _merged(answers: Mapping[str, Iterable[Mapping[str, V]]]) -> dict[str, V]:
    return {identity: value for pages in answers.values() for page in pages for identity, value in page.items()}
