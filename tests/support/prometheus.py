"""A real Prometheus on this machine: its targets may come and go, its rules may be in a hurry."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from service.sandbox.child_processes import dying_with_us
from service.sandbox.kafka import free_ports
from tests.support.expressions import MONITORING

SCRAPED_EVERY: Final = 1
"""Seconds; a scrape may take as long, and the rules are evaluated as often."""

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

SPAN: Final = re.compile(r"(\[|offset |for: |(?<=[smhd]):)(\d+)([smhd])\b")

SELECTOR: Final = re.compile(r"(?<![\w:])((?:vm_sync|process|kafka)_\w+|up\b|ALERTS\b|namespace:\w+:\w+)(\{[^}]*\})?")


LONGEST_FOR: Final = 30
"""Seconds; of rules in a hurry. A quarter of an hour in a hurry of 30; longer is only a `for` of a day."""


def hurried(text: str, *, by: int) -> str:
    """Return rules or a query with each window, its step, offset and `for` a fraction as long; nothing else is changed.

    No `for` is longer than `LONGEST_FOR`.
    """

    def shorter(found: re.Match[str]) -> str:
        before, number, unit = found.groups()
        millis = int(number) * UNITS[unit] * 1000 // by
        if before == "for: " and by > 1:
            millis = min(millis, LONGEST_FOR * 1000)
        return f"{before}{millis}ms"

    return SPAN.sub(shorter, text)


def within(promql: str, namespace: str) -> str:
    """Return a query that asks for one deployment's series alone, as a Prometheus of its own would have them."""

    def narrowed(found: re.Match[str]) -> str:
        name, matchers = found.groups()
        inside = (matchers or "{}").strip("{}").strip().rstrip(",")
        return f'{name}{{namespace="{namespace}"{f", {inside}" if inside else ""}}}'

    return SELECTOR.sub(narrowed, promql)


@dataclass(frozen=True, slots=True)
class Series:
    """One row of an answer."""

    labels: Mapping[str, str]
    value: float


@dataclass(slots=True)
class Prometheus:
    """A running one."""

    client: httpx.AsyncClient
    folder: Path
    _targets: dict[str, dict[str, str]] = field(default_factory=dict)

    def scrape(self, address: str, *, job: str, namespace: str) -> None:
        """Scrape a target from now on."""
        self._targets[address] = {"job": job, "namespace": namespace}
        self._write()

    def leave(self, address: str) -> None:
        """Scrape a target no longer, as if its pod had been removed."""
        del self._targets[address]
        self._write()

    def _write(self) -> None:
        found = [{"targets": [address], "labels": labels} for address, labels in self._targets.items()]
        new = self.folder / "targets.new"
        new.write_text(json.dumps(found))
        new.replace(self.folder / "targets.json")

    async def rows(self, query: str, *, moment: float | None = None) -> list[Series]:
        """Return what a query yields now or at a moment.

        Raises:
            ValueError: Prometheus can't evaluate it; the text is its own.
        """
        params = {"query": query} | ({} if moment is None else {"time": str(moment)})
        response = await self._get(params)
        if response.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise ValueError(response.text)  # it says in plain words that it is still starting
        answer = response.json()
        if answer["status"] != "success":
            msg = f"{query}: {answer['error']}"
            raise ValueError(msg)
        result = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            return [Series({}, float(result[1]))]
        return [Series(sample["metric"], float(sample["value"][1])) for sample in result]

    async def _get(self, params: Mapping[str, str]) -> httpx.Response:
        """Ask; once more where the connection ended, as an idle one may at any moment."""
        try:
            return await self.client.get("/api/v1/query", params=params)
        except (httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout):
            return await self.client.get("/api/v1/query", params=params)

    async def ask(self, query: str, *, moment: float | None = None) -> list[float] | str:
        """Return the values that a query yields now or at a moment, or what is wrong with it."""
        try:
            return [row.value for row in await self.rows(query, moment=moment)]
        except ValueError as error:
            return str(error)

    async def until(self, query: str, *, seconds: float, empty: bool = False) -> bool:
        """Wait until a query yields something, or nothing any more; return whether it does in time."""
        return await self._waited(query, seconds=seconds, empty=empty) is not None

    async def moment_of(self, query: str, *, seconds: float) -> float | None:
        """Wait until a query yields something; return the time of the latest sample that it found. None: not in time.

        What Prometheus has recorded can be asked of that moment later on, however long this machine took meanwhile.
        """
        rows = await self._waited(f"timestamp({query})", seconds=seconds)
        return None if rows is None else max(row.value for row in rows)

    async def _waited(self, query: str, *, seconds: float, empty: bool = False) -> list[Series] | None:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        rows = await self.rows(query)
                        if bool(rows) is not empty:
                            return rows
                    except (httpx.HTTPError, ValueError):  # it has just been started
                        pass
                    await asyncio.sleep(0.25)
        except TimeoutError:
            return None

    async def unhealthy_rules(self) -> list[str]:
        """Return the rules that could not be evaluated."""
        groups: list[Any] = (await self.client.get("/api/v1/rules")).json()["data"]["groups"]
        return [
            f"{rule['name']}: {rule.get('lastError')}"
            for group in groups
            for rule in group["rules"]
            if rule["health"] != "ok"
        ]


@asynccontextmanager
async def prometheus(program: str, *, folder: Path, hurry: int = 1) -> AsyncIterator[Prometheus]:
    """Run one with the repository's rules, each of their times divided by `hurry`; nothing is scraped yet."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    (folder / "rules.yaml").write_text(hurried((MONITORING / "rules.yaml").read_text(), by=hurry))
    config = {
        "global": dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{SCRAPED_EVERY}s"),
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [
            {"job_name": "files", "file_sd_configs": [{"files": [f"{folder}/targets.json"], "refresh_interval": "1s"}]}
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(  # noqa: ASYNC220 - it takes a moment
            dying_with_us(
                [
                    program,
                    f"--config.file={folder}/prometheus.yaml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={address}",
                    "--log.level=warn",
                ]
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
            made = Prometheus(client, folder)
            made._write()
            yield made
    finally:
        child.kill()
        await asyncio.to_thread(child.wait, 10)


async def good_moment(found: Prometheus, targets: Collection[str], *, now: float) -> float | None:
    """Return a moment of the last seconds at which all targets had been scraped; None: there is none yet.

    On a busy machine a scrape now and then takes longer than it may, and the target's series are then gone until the
    next one. A scrape that has begun can't change anything any more at a moment longer ago than its limit.
    """
    moment = now - 2 * SCRAPED_EVERY
    return moment if await found.ask("count(up == 1)", moment=moment) == [len(targets)] else None
