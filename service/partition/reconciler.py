"""Looks up the tasks of POSTs in doubt, repeatedly, until each task is found or known not to exist.

A POST is in doubt if VCDA may have received it and there is no complete, understood answer: its connection or its
process failed. Each site has its own look-ups, so a dead site does not delay others. `sync` decides what follows from a
look-up, by the time when it began and its account.

The list of one replication's tasks is enough to find a task. That there is no task is concluded only from the list of
all sync tasks of the site: VCDA leaves a task out of the list of a replication if the task has no replication id, or
has it in another letter case. Only if the list of all tasks can't be read, the list of the replication's tasks is used.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from service import sync
from service.clock import Clock
from service.partition.in_flight import TrackedSync
from service.sync import Account, Found, LookUp, Names, Submitting, Task, Trouble
from service.vcda.lanes import Lane
from service.vcda.look_ups import OWN_AFTER
from service.vcda.site_clocks import SiteClock

log = logging.getLogger(__name__)

LOOK_AGAIN = (timedelta(seconds=1), timedelta(seconds=15))
"""First and longest pause between two look-ups for a POST in doubt. The moment when a look-up becomes conclusive is
never slept past."""

LOOK_SELDOM = timedelta(minutes=5)
"""The longest pause once look-ups could conclude and don't, or fail alone: it may be hours until that changes."""

ONE_BY_ONE = 20
"""With more doubts than this at a site, all its sync tasks are paged through instead of asking for each replication."""

LATEST_START = timedelta(hours=1)
"""How long after VCDA can no longer take a POST its task may have begun, by the site's clock, which may have been set.
An end is needed: without one there are more and more tasks to page through while a doubt lasts."""


class FindApi(Protocol):
    """The calls to VCDA of look-ups."""

    async def find(
        self,
        *,
        site: str | None,
        replication_id: str | None,
        since: datetime,
        until: datetime | None = None,
        operation_id: str | None = None,
    ) -> list[Task] | Trouble:
        """Return all sync tasks since then, complete, or why not."""

    def account(self, site: str | None) -> Account | None:
        """Return the account of calls to the site."""

    def names(self, site: str | None, account: Account | None) -> Names:
        """Return the possible names of an account's user on tasks; None: the current account."""

    def site_clock(self, site: str | None) -> SiteClock | None:
        """Return what is known of the clock that stamps the site's tasks."""


@dataclass(slots=True, eq=False)
class _Sought:
    """A POST in doubt with the moment of its next look-up (monotonic) and the pause after it."""

    tracked: TrackedSync
    attempts: int
    """The number of the POST. A round of look-ups may last: the request's next POST may be in doubt before it ends."""
    due: float
    pause: float = LOOK_AGAIN[0].total_seconds()
    failures: int = 0
    """In a row, of looking for it alone."""


@dataclass(slots=True)
class _Site:
    """The POSTs in doubt at one site; `more` is set when one was added."""

    sought: dict[TrackedSync, _Sought] = field(default_factory=dict)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    alone: int = 0
    """How often in a row looking among all tasks failed while looking among one replication's worked."""


class _Seen:
    """The tasks of a look-up's answer, by replication."""

    def __init__(self, tasks: Sequence[Task], *, began: float, account: Account | None, settled: bool) -> None:
        self.began = began
        self.account = account
        self.settled = settled
        """It was made under one account from its beginning to its end."""
        self._named: dict[str, list[Task]] = {}
        self._nameless: list[Task] = []
        for task in tasks:
            if task.replication_id is None:
                self._nameless.append(task)
            else:
                self._named.setdefault(task.replication_id.casefold(), []).append(task)

    def of(self, replication_id: str) -> list[Task]:
        """Return the tasks that may be of this replication."""
        return [*self._named.get(replication_id.casefold(), ()), *self._nameless]


class Reconciler:
    """Looks up tasks of POSTs in doubt. `spawn` runs a look-up as a task; `looked_up` takes the result for a sync."""

    def __init__(
        self,
        *,
        api: FindApi,
        lane: Callable[[str | None], Lane],
        clock: Clock,
        spawn: Callable[[Coroutine[None, None, None]], object],
        looked_up: Callable[[TrackedSync, LookUp], None],
        one_by_one: int = ONE_BY_ONE,
    ) -> None:
        self._one_by_one = one_by_one
        self._api = api
        self._lane = lane
        self._clock = clock
        self._spawn = spawn
        self._looked_up = looked_up
        self._sites: dict[str | None, _Site] = {}

    def add(self, tracked: TrackedSync) -> None:
        """Start look-ups for a POST in doubt."""
        name = tracked.request.site
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site()
            self._spawn(self._search(name, site))
        before, attempts = site.sought.get(tracked), 0 if tracked.doubt is None else tracked.doubt.attempts
        if before is None or before.attempts != attempts:
            site.sought[tracked] = _Sought(tracked, attempts, self._clock.monotonic())
            site.more.set()

    async def _search(self, name: str | None, site: _Site) -> None:
        """Make look-ups for the POSTs in doubt at a site until none is left."""
        with self._lane(name).look_ups.searching():
            await self._search_until_none(name, site)

    async def _search_until_none(self, name: str | None, site: _Site) -> None:
        while True:
            site.more.clear()
            await self._look(name, site, self._due(site))
            site.sought = {tracked: one for tracked, one in site.sought.items() if tracked.doubt is not None}
            if not site.sought:
                del self._sites[name]
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(min(one.due for one in site.sought.values()) - self._clock.monotonic()):
                    await site.more.wait()

    # ------------------------------------------------------------ one round

    def _due(self, site: _Site) -> list[_Sought]:
        """Return those to look for now; of many also those whose turn is near, so that one look-up does for all."""
        now = self._clock.monotonic()
        if len(site.sought) > self._one_by_one and any(one.due <= now for one in site.sought.values()):
            now += LOOK_AGAIN[1].total_seconds()
        return [one for one in site.sought.values() if one.due <= now]

    async def _look(self, name: str | None, site: _Site, due: list[_Sought]) -> None:
        """Look for those that are due, until a look-up fails: those left over then come next."""
        now = self._clock.monotonic()
        many = len(due) > self._one_by_one
        together = [one for one in due if many or _could_conclude(one, now)]
        alone = [one for one in due if not many and not _could_conclude(one, now)]
        if together and not await self._look_together(name, site, together):
            first = min(together, key=lambda one: one.failures)
            if not await self._look_alone(name, first, conclude=site.alone + 1 >= OWN_AFTER):
                return
            site.alone += 1
            if site.alone == OWN_AFTER:
                log.warning(
                    "Site %s: reading the list of all sync tasks has failed %d times in a row, but reading the list "
                    "of one replication's tasks succeeds; look-ups for POSTs in doubt use the latter",
                    name or "local",
                    site.alone,
                )
            alone = [one for one in due if one is not first][: self._one_by_one]
        for one in alone:
            if not await self._look_alone(name, one, conclude=site.alone >= OWN_AFTER):
                return

    async def _look_together(self, name: str | None, site: _Site, sought: list[_Sought]) -> bool:
        """Look among all sync tasks; return whether they were shown."""
        seen = await self._find(name, None, sought)
        failed = isinstance(seen, Trouble)
        if site.alone >= OWN_AFTER and not failed:
            log.warning("Site %s: reading the list of all sync tasks succeeds again", name or "local")
        site.alone = site.alone if failed else 0
        for one in sought:
            if isinstance(seen, Trouble):
                self._look_again(one, seldom=False)
            else:
                self._hand_on(name, one, seen, conclude=True)
        return not failed

    async def _look_alone(self, name: str | None, one: _Sought, *, conclude: bool) -> bool:
        """Look among the tasks of its replication; return whether they were shown."""
        seen = await self._find(name, one.tracked.request.replication_id, [one])
        if isinstance(seen, Trouble):
            one.failures += 1
            self._look_again(one, seldom=one.failures >= OWN_AFTER)
            return False
        one.failures = 0
        self._hand_on(name, one, seen, conclude=conclude)
        return True

    async def _find(self, name: str | None, replication_id: str | None, sought: list[_Sought]) -> _Seen | Trouble:
        """Make one look-up, which may fail.

        The account is compared before and after: a look-up under two accounts concludes nothing.
        """
        api, lane = self._api, self._lane(name)
        while True:
            await lane.wait_until_open()
            if (rest := lane.look_ups.rest_until - self._clock.monotonic()) > 0.0:
                await asyncio.sleep(rest)
                continue
            doubts = [doubt for one in sought if (doubt := one.tracked.doubt) is not None]
            if not doubts:
                return _Seen((), began=0.0, account=None, settled=False)
            if lane.try_acquire():
                break
        began, account, pauses = self._clock.monotonic(), api.account(name), lane.pauses
        try:
            tasks = await api.find(
                site=name,
                replication_id=replication_id,
                since=min(doubt.look_from for doubt in doubts),
                until=self._latest_start(name, doubts),
                operation_id=doubts[0].request.operation_id if len(doubts) == 1 else None,
            )
        except asyncio.CancelledError:  # the partition is closed
            lane.not_made(since=pauses)
            raise
        self._record_result(lane, tasks if isinstance(tasks, Trouble) else None, began=began, since=pauses)
        if isinstance(tasks, Trouble):
            return tasks
        now = api.account(name)
        return _Seen(tasks, began=began, account=now, settled=account == now)

    def _latest_start(self, name: str | None, doubts: list[Submitting]) -> datetime | None:
        """Return the moment of the site's clock from which on no task can be of these POSTs; None: it is unknown."""
        there = self._api.site_clock(name)
        latest = max(doubt.conclusive_from or 0.0 for doubt in doubts)
        if there is None or not there.certain:
            return None
        left = timedelta(seconds=latest - self._clock.monotonic())
        return self._clock.now() + there.latest + left + LATEST_START

    def _hand_on(self, name: str | None, one: _Sought, seen: _Seen, *, conclude: bool) -> None:
        """Hand on what was seen of a POST: that its task was, or if it may be concluded, also that it was not."""
        doubt = one.tracked.doubt
        if doubt is None:
            return
        names = self._api.names(name, doubt.account)
        tasks = seen.of(one.tracked.request.replication_id)
        look_up = sync.recognised(tasks, doubt, names=names, began=seen.began, account=seen.account)
        self._look_again(one, seldom=conclude and _could_conclude(one, seen.began))
        if isinstance(look_up, Found) or (conclude and seen.settled):
            self._looked_up(one.tracked, look_up)

    def _record_result(self, lane: Lane, trouble: Trouble | None, *, began: float, since: int) -> None:
        """Report a look-up's result to the lane: its trouble is the site's, or that of look-ups alone.

        A pause that an answer asks for (Retry-After) is obeyed in any case. Look-ups that keep asking for one would
        begin the next pause at the end of each, so they rest then for as long again, and other calls come first.
        """
        own = lane.look_ups.record_result(trouble, began=began, good_answers=lane.good_answers)
        if trouble is None:
            lane.record_result(None)
            return
        asked = trouble.retry_after is not None
        lane.record_result(replace(trouble, own=trouble.own or (own and not asked)), since=since)
        if own and asked:
            paused = lane.held_for()
            lane.look_ups.rest_until = self._clock.monotonic() + paused + min(paused, LOOK_SELDOM.total_seconds())

    def _look_again(self, one: _Sought, *, seldom: bool) -> None:
        """Set the time of the next look-up."""
        now = self._clock.monotonic()
        longest = LOOK_SELDOM if seldom else LOOK_AGAIN[1]
        one.due = now + one.pause
        one.pause = min(2 * one.pause, longest.total_seconds())
        doubt = one.tracked.doubt
        if doubt is not None and doubt.conclusive_from is not None and doubt.conclusive_from > now:
            one.due = min(one.due, doubt.conclusive_from)


def _could_conclude(one: _Sought, began: float) -> bool:
    """Whether a look-up that begins then can conclude that there is no task."""
    doubt = one.tracked.doubt
    return doubt is not None and doubt.conclusive_from is not None and began >= doubt.conclusive_from
