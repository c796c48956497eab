"""POSTs in doubt: their tasks are looked for, again and again, until each is found or known not to be.

A POST is in doubt when it may have been received and there is no whole, understood answer: its connection broke, or
its process did. Each site has a search of its own, so a dead site delays nobody else. What a look-up has seen is
handed on; what follows from it, `sync` decides, by when the look-up began and under which account.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from service import sync
from service.clock import Clock
from service.lanes import Lane
from service.sync import Found, LookUp, NotFound, Submitting, Task, Trouble
from service.work import Work

LOOK_AGAIN = (timedelta(seconds=1), timedelta(seconds=15))
"""First and longest pause between two look-ups for POSTs in doubt. The moment when a look-up becomes conclusive is
never slept past."""

ONE_BY_ONE = 20
"""With more doubts than this at a site, all its sync tasks are paged through instead of asking for each replication."""


class FindApi(Protocol):
    """What is asked of VCDA here."""

    async def find(
        self, *, site: str | None, replication_id: str | None, since: datetime, operation_id: str | None = None
    ) -> list[Task] | Trouble:
        """Return all sync tasks since then, complete, or why not."""

    def account(self) -> str | None:
        """Return the user of the session."""

    def names(self, site: str | None) -> frozenset[str]:
        """Return the ways in which VCDA spells our user there."""


_Doubt: TypeAlias = tuple[Work, Submitting]


@dataclass(slots=True)
class _Site:
    """The POSTs in doubt at one site; `more` when one has come that was not looked for yet."""

    works: set[Work] = field(default_factory=set)
    more: asyncio.Event = field(default_factory=asyncio.Event)


class Doubts:
    """See the module. `spawn` runs a search beside the caller; `looked_up` takes what was seen of a work's POST."""

    def __init__(
        self,
        *,
        api: FindApi,
        lane: Callable[[str | None], Lane],
        clock: Clock,
        spawn: Callable[[Coroutine[None, None, None]], None],
        looked_up: Callable[[Work, LookUp], None],
    ) -> None:
        self._api = api
        self._lane = lane
        self._clock = clock
        self._spawn = spawn
        self._looked_up = looked_up
        self._sites: dict[str | None, _Site] = {}

    def add(self, work: Work) -> None:
        """Look for the task of a POST in doubt, from now on."""
        name = work.request.site
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site()
            self._spawn(self._search(name, site))
        site.works.add(work)
        site.more.set()

    async def _search(self, name: str | None, site: _Site) -> None:
        """Look for the tasks of the POSTs in doubt at a site until none is left."""
        first, longest = (pause.total_seconds() for pause in LOOK_AGAIN)
        pause = first
        while True:
            if site.more.is_set():
                site.more.clear()
                pause = first
            await self._look_up_all(name, [(work, doubt) for work in site.works if (doubt := work.doubt) is not None])
            site.works = {work for work in site.works if work.doubt is not None}
            if not site.works:
                del self._sites[name]
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(min([pause, *self._until_conclusive(site)])):
                    await site.more.wait()
            pause = min(2 * pause, longest)

    def _until_conclusive(self, site: _Site) -> list[float]:
        """Return how long it is until look-ups become conclusive that aren't yet."""
        now = self._clock.monotonic()
        moments = [doubt.conclusive_from for work in site.works if (doubt := work.doubt) is not None]
        return [moment - now for moment in moments if moment is not None and moment > now]

    async def _look_up_all(self, site: str | None, doubts: list[_Doubt]) -> None:
        if len(doubts) > ONE_BY_ONE:
            await self._look_up(site, None, doubts)
            return
        for work, doubt in doubts:
            await self._look_up(site, work.request.replication_id, [(work, doubt)])

    async def _look_up(self, site: str | None, replication_id: str | None, doubts: list[_Doubt]) -> None:
        """Make one look-up, for one replication or for all.

        The account is compared before and after: a look-up under two sessions concludes nothing. Trouble concludes
        nothing either, and the lane says when the next may go: so a replication that breaks VCDA holds nobody up.
        """
        api, lane = self._api, self._lane(site)
        await lane.clear()
        while lane.pause_left() > 0.0:
            await lane.clear()
        began, account = self._clock.monotonic(), api.account()
        tasks = await api.find(
            site=site,
            replication_id=replication_id,
            since=min(doubt.look_from for _, doubt in doubts),
            operation_id=doubts[0][0].request.operation_id if len(doubts) == 1 else None,
        )
        lane.heard(tasks if isinstance(tasks, Trouble) else None)
        if isinstance(tasks, Trouble):
            return
        names, now = api.names(site), api.account()
        by_replication: dict[str | None, list[Task]] = {}
        for task in tasks:
            by_replication.setdefault(task.replication_id, []).append(task)
        for work, doubt in doubts:
            own = sync.adoptable(by_replication.get(work.request.replication_id, ()), doubt, names=names)
            if own is not None:
                self._looked_up(work, Found(own, now))
            elif account is not None and account == now:
                self._looked_up(work, NotFound(began, account))
