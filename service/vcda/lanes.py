"""One site's limits: concurrent POSTs and syncs, pauses, and the circuit breaker.

Each site has a lane of its own, so a dead site does not delay other sites. A lane counts two things, slots to POST that
are taken and syncs that VCDA has, and hands out slots in the order they were asked for; `posts` lets so many of them
POST at once. It pauses the whole site, submits and polls alike, after a failed call:

    free --trouble--> paused --time passes--> free
                        |
                        +--the BREAKER_AFTER-th in a row--> paused --time passes--> half-open: one call, the probe
                               ^                                                       |           |
                               +-----------------------trouble-------------------------+           +--good--> free

Where the site failed for want of a session, a new session ends the pause at once (`retry`).

An operator may pause a site, too: then no slots are handed out until the pause is over, and polls go on.

It never makes a call, and never repeats one: the caller decides whether and when to ask for another slot. Limits
on POSTs don't touch polls. Everything happens on the event loop, without threads or polling: a pause ends by a timer.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Protocol

from service.backoff import Backoff
from service.clock import Clock
from service.messages.site_pause import SitePause
from service.messages.wait_cause import WaitCause
from service.sync import NO_CREDENTIALS, Trouble
from service.vcda.look_ups import LookUps
from service.vcda.operator_pauses import OperatorPauses

log = logging.getLogger(__name__)

BACKOFF = Backoff(first=timedelta(seconds=1), longest=timedelta(minutes=1), jitter=1.0)
"""Pauses after troubles in a row. Half a second on average after the first, so that a lone 500 costs next to nothing;
and a site that comes back is noticed within a minute. Retry-After may ask for more."""

BREAKER_AFTER = 3
"""Troubles in a row that open the breaker. Few, since each round to a hanging site may leave POSTs in doubt; more than
one, since a single 500 proves nothing. Calls that fail together count once: those under way when a pause begins don't
add to it."""

GRANTED_AT_ONCE = 50
"""Slots handed out between two turns of the event loop, each with an intent to be written: some milliseconds. What
declines counts, too: tens of thousands may have expired while the site was paused."""

FEW = 100
"""Lanes that aren't worth forgetting: more than the sites of any deployment, less than a megabyte."""

CREDENTIALS_MISSED = timedelta(minutes=15)
"""For how long after the last call it is said that a site has no credentials, where no sync runs there: a misspelt name
in one request would be said until the restart. As long as the runbook's query looks back."""

PROBE_PATIENCE = timedelta(minutes=1)
"""How long a probe without a reported result holds back other calls. Longer than a call with a login takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """The limits of one process at one site."""

    max_concurrent_submits: int
    max_running: int
    """Syncs at VCDA at once; 0: no limit."""
    slots_ahead: int = 0
    """Slots handed out beyond the POSTs at once, so that their intents are committed while the others POST. Without
    them a place for a POST stands empty while its intent is committed; each is one more to look for after a crash."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The reason why a lane hands out no slot now."""

    cause: WaitCause
    seconds: float | None
    """How long at least; None: unknown."""
    detail: str
    """A sentence for people."""


class LaneMetrics(Protocol):
    """The metrics of a lane."""

    def paused(self, site: str | None, value: bool) -> None:  # noqa: FBT001 - reads as the gauge it sets
        """Show whether requests to the site are held back."""

    def without_credentials(self, site: str | None) -> None:
        """Count a call that was not made, since there are no credentials for the site."""


class SlotRequest:
    """A slot to POST that was asked for; the request waits until the lane grants it, or the asker withdraws it."""

    __slots__ = ("take",)

    def __init__(self, take: Callable[[], bool]) -> None:
        self.take: Callable[[], bool] | None = take
        """None: it no longer waits."""

    @property
    def waits(self) -> bool:
        """Whether it is still in the queue."""
        return self.take is not None


class Lane:
    """The way to one site. Each caller of the site reports its result to `record_result`: the lane makes no calls."""

    def __init__(
        self,
        site: str | None,
        *,
        limits: LaneLimits,
        clock: Clock,
        metrics: LaneMetrics,
        random: Random,
        told_to_wait: Callable[[float], None] = lambda _: None,
        operator_pause: Callable[[], SitePause | None] = lambda: None,
    ) -> None:
        self.site = site
        self.operator_pause = operator_pause
        """Returns the pause of the site that an operator ordered and that is not over, if there is one."""
        self._told_to_wait = told_to_wait
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._submitting = 0
        self._occupied = 0
        self._first: deque[SlotRequest] = deque()
        self._rest: deque[SlotRequest] = deque()
        self._withdrawn = 0
        """Slot requests in the queues that were withdrawn."""
        self.posts = asyncio.Semaphore(limits.max_concurrent_submits)
        """Held while a POST is on its way."""
        self.pauses = 0
        """How many have begun: what was to be POSTed before one began is not to be POSTed in it, or right after it."""
        self.good_answers = 0
        """How many calls of the site went well: whether it answered others while one call failed again and again."""
        self.look_ups = LookUps(site, clock=clock)
        self._troubles = 0
        self._trouble: Trouble | None = None
        """The last trouble of the site, while a pause or the circuit breaker lasts."""
        self._opened_at: datetime | None = None
        """Since when the circuit breaker is open."""
        self.without_credentials = False
        """This process has no credentials for the site: requests are rejected, and what runs there is not polled."""
        self._credentials_missed_at = 0.0
        self._paused_until = 0.0
        self._asked_until = 0.0
        """Until when VCDA has asked for a pause (Retry-After)."""
        self._probe_until = 0.0
        self._probe_since = 0
        """How many pauses had begun when the last probe began."""
        self._reported_paused = False
        self._granting = False
        self._callers: list[asyncio.Future[None]] = []
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def submitting(self) -> int:
        """Slots taken whose POSTs are not answered yet: they are on their way, or their intents are being committed."""
        return self._submitting

    @property
    def occupied(self) -> int:
        """Syncs at VCDA, those on their way there included."""
        return self._occupied

    @property
    def queued(self) -> int:
        """Slot requests that wait, those that will decline included."""
        return len(self._first) + len(self._rest) - self._withdrawn

    @property
    def paused(self) -> bool:
        """Whether calls are held back: all of them, or in half-open state all but the probe."""
        return self._half_open or self._clock.monotonic() < self._paused_until

    @property
    def lacks_credentials(self) -> bool:
        """Whether it is to be shown that there are none: syncs run there, or a call needed them lately."""
        lately = self._clock.monotonic() - self._credentials_missed_at < CREDENTIALS_MISSED.total_seconds()
        return self.without_credentials and (lately or self._occupied > 0)

    @property
    def idle(self) -> bool:
        """Whether nothing is going on, and nothing is remembered that would be missed."""
        busy = self._submitting or self._occupied or self.queued or self._callers
        return not busy and self._troubles == 0 and not self.paused and not self._reported_paused

    # ------------------------------------------------------------ slots to POST

    def queue(self, take: Callable[[], bool], *, first: bool = False) -> SlotRequest:
        """Ask for a slot to POST; `first`: before all that aren't.

        `take` is called once, in order, when a slot is free and the site isn't paused: before `queue` returns if that
        is now, else from the event loop, never from within another's call. It returns True to take the slot, which
        counts as a POST (until `answered`) and as a sync at VCDA (until `vacate`), or False if it isn't wanted.
        """
        request = SlotRequest(take)
        busy = self.queued or self._granting or self._soon is not None
        if not busy and self._has_slot() and self.held_for() == 0.0:
            self._grant(request)
        else:
            (self._first if first else self._rest).append(request)
            self.wake()
        return request

    def withdraw(self, request: SlotRequest) -> None:
        """Withdraw a request that waits: its callback is released at once, its place in the queue soon."""
        if not request.waits:
            return
        request.take = None
        self._withdrawn += 1
        if self._withdrawn > self.queued:  # so that each request is passed over once or twice, however long the pause
            self._first = deque(request for request in self._first if request.waits)
            self._rest = deque(request for request in self._rest if request.waits)
            self._withdrawn = 0

    def answered(self) -> None:
        """Count one POST less: answered, or given up. If VCDA has no sync of it, `vacate` as well."""
        self._submitting = _one_less(self._submitting, "answered() without a slot that was taken")
        self.wake()

    def occupy(self) -> None:
        """Count a sync that VCDA has already, a restored one, even past the limit. No slot is free until below it."""
        self._occupied += 1

    def vacate(self) -> None:
        """Count one sync less: it is no longer at VCDA, or no longer counted by this process."""
        self._occupied = _one_less(self._occupied, "vacate() of an empty lane")
        self.wake()

    # ------------------------------------------------------------ pauses

    def record_result(self, trouble: Trouble | None, *, since: int | None = None) -> None:
        """Learn from a call's result; None: a success. Trouble that is a request's own says nothing of the site.

        `since` is what `pauses` was when the call had leave, as for `not_made`: trouble of its own ends no other probe.

        During a pause no call begins, so what is recorded then was begun before it and is out of date: it can't shorten
        the pause nor add to the backoff. Only a Retry-After still counts, if it asks for longer.
        """
        now = self._clock.monotonic()
        self._note_credentials(trouble)
        self.good_answers += trouble is None
        asked = trouble.retry_after.total_seconds() if trouble and not trouble.own and trouble.retry_after else 0.0
        if asked > 0:
            self._asked_until = max(self._asked_until, now + asked)
            self._told_to_wait(now + asked)
        if now < self._paused_until:
            if now + asked > self._paused_until:
                self._trouble = trouble
                self._pause(now + asked)
        elif trouble is None:
            self._well()
        elif trouble.own:
            self.not_made(since=since)  # the site is as unknown as before
        else:
            self._probe_until = 0.0
            self._troubles += 1
            self._trouble = trouble
            pause = asked if asked > 0 else BACKOFF.pause(self._troubles - 1, chance=self._random.random())
            self._pause(now + pause)
            if self._troubles == BREAKER_AFTER:
                self._opened_at = self._clock.now()
                log.warning(
                    "Circuit breaker of site %s opened after %d consecutive failures (%s: %s); probing with one call "
                    "at a time",
                    self.site or "local",
                    self._troubles,
                    trouble.label,
                    trouble.detail,
                )

    def hold(self, until: float) -> None:
        """Pause until a moment: the same site, under its other name, has answered with Retry-After."""
        self._asked_until = max(self._asked_until, until)
        if until > self._paused_until:
            self._pause(until)

    def retry(self) -> None:
        """End a pause that the want of a session began: there is one now. A Retry-After is obeyed nevertheless.

        An open circuit breaker stays open, since it is not known that the site works: the next call is the probe.
        """
        until = max(self._clock.monotonic(), self._asked_until)
        early = self._paused_until - until
        if early > 0.0 and self._trouble is not None and self._trouble.no_session:
            self._paused_until = until
            self._set_timer(until)
            log.info(
                "Pause of site %s ends %.0f s early: there is a session at VCDA again",
                self.site or "local",
                early,
                extra={"site": self.site},
            )

    def open_breaker(self) -> Obstacle | None:
        """Return the circuit breaker as what holds calls back; None: it is closed."""
        if not self._half_open:
            return None
        since = "" if self._opened_at is None else f" since {self._opened_at:%Y-%m-%d %H:%M:%SZ}"
        detail = f"the circuit breaker of site {self.site or 'local'} has been open{since}{self._said}"
        return Obstacle(WaitCause.CIRCUIT_OPEN, self.held_for() or None, detail)

    def obstacle_of_calls(self) -> Obstacle | None:
        """Return what holds back polls and look-ups, but for an operator's pause, which does not; None: nothing."""
        if (breaker := self.open_breaker()) is not None:
            return breaker
        if (left := self.held_for()) > 0.0:
            detail = f"calls to site {self.site or 'local'} are paused{self._said}"
            return Obstacle(WaitCause.SITE_PAUSED, left, detail)
        return None

    def obstacle(self) -> Obstacle | None:
        """Return what holds back the slots that are asked for; None: nothing, the next one is handed out now."""
        site = self.site or "local"
        if (pause := self.operator_pause()) is not None:
            seconds = max(0.0, (pause.until - self._clock.now()).total_seconds())
            return Obstacle(WaitCause.SITE_PAUSED, seconds, str(pause))
        if (obstacle := self.obstacle_of_calls()) is not None:
            return obstacle
        limits = self._limits
        if limits.max_running and self._occupied >= limits.max_running:
            detail = f"site {site} has {self._occupied} running (VM_SYNC_SYNC__MAX_RUNNING is {limits.max_running})"
            return Obstacle(WaitCause.LIMIT, None, detail)
        if not self._has_slot():
            detail = (
                f"site {site} has {self._submitting} being submitted "
                f"(VM_SYNC_SYNC__MAX_CONCURRENT_SUBMITS is {limits.max_concurrent_submits})"
            )
            return Obstacle(WaitCause.LIMIT, None, detail)
        return None

    def held_for(self) -> float:
        """Return the seconds until a call may go. What holds it back may end sooner, when the probe succeeds."""
        until = max(self._paused_until, self._probe_until if self._half_open else 0.0)
        return max(0.0, until - self._clock.monotonic())

    def try_acquire(self) -> bool:
        """Ask for leave to make one call now; its result must be reported to `record_result`, or `not_made` be called.

        In half-open state that call is the probe, and until its result is known no other call may start.
        """
        if self.held_for() > 0.0:
            return False
        self._begin_probe()
        return True

    def not_made(self, *, since: int | None) -> None:
        """A call that had leave, or a slot, was not made or is given up: if it was the probe, the next call is.

        `since` is what `pauses` was when it had it. Slots from before the circuit breaker opened are not the probe's.
        """
        if since == self._probe_since:
            self._probe_until = 0.0
            self.wake()

    async def wait_until_open(self) -> None:
        """Wait until a call may go. That isn't yet leave for it: `try_acquire` it, without an await in between.

        Callers that wait here come before the slots to POST. So the probe is a poll where there is one: a poll that
        hangs does no harm, a POST that hangs leaves a doubt. A poll that keeps failing leaves some probes to others.
        """
        while self.held_for() > 0.0:
            caller = asyncio.get_running_loop().create_future()
            self._callers.append(caller)
            await caller

    def wake(self) -> None:
        """Look again at what waits: what held it back may be over."""
        if self._soon is None and (self._callers or self._first or self._rest):
            self._soon = asyncio.get_running_loop().call_soon(self._go_on)

    def close(self) -> None:
        """Grant no more slots, and leave no timer behind."""
        self._first.clear()
        self._rest.clear()
        self._withdrawn = 0
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = None

    # ------------------------------------------------------------ how it works

    @property
    def _half_open(self) -> bool:
        return self._troubles >= BREAKER_AFTER

    @property
    def _said(self) -> str:
        return f": {self._trouble.detail}" if self._trouble else ""

    def _has_slot(self) -> bool:
        limits = self._limits
        return (
            self._submitting < limits.max_concurrent_submits + limits.slots_ahead
            and (
                limits.max_running == 0
                or self._occupied < limits.max_running
                or self.without_credentials  # so that what would be rejected doesn't wait for what can't be polled
            )
            and self.operator_pause() is None
        )

    def _begin_probe(self) -> None:
        if self._half_open:
            self._probe_since = self.pauses
            self._probe_until = self._clock.monotonic() + PROBE_PATIENCE.total_seconds()
            self._set_timer(self._probe_until)

    def _grant(self, request: SlotRequest) -> None:
        take, request.take = request.take, None
        if take is None:
            self._withdrawn -= 1
            return
        self._granting = True
        try:
            taken = take()
        finally:
            self._granting = False
        if taken:
            self._submitting += 1
            self._occupied += 1
            self._begin_probe()

    def _note_credentials(self, trouble: Trouble | None) -> None:
        missing = trouble is not None and trouble.label == NO_CREDENTIALS
        if missing:
            self._credentials_missed_at = self._clock.monotonic()
            self._metrics.without_credentials(self.site)
        if missing == self.without_credentials:
            return
        self.without_credentials = missing
        if missing:
            self.wake()  # what waits for room is rejected now
            log.warning(
                "This process has no credentials for site %s: its requests are rejected, and its running syncs are not "
                "polled; add the site to VM_SYNC_VCDA__SITES",
                self.site,
                extra={"site": self.site},
            )

    def _pause(self, until: float) -> None:
        if self._clock.monotonic() >= self._paused_until:
            self.pauses += 1
        self._paused_until = until
        self._set_timer(until)
        self._report(paused=True)

    def _well(self) -> None:
        if self._half_open:
            log.info("Circuit breaker of site %s closed: the probe succeeded", self.site or "local")
        self._troubles = 0
        self._trouble = self._opened_at = None
        self._probe_until = 0.0
        self._report(paused=False)
        self.wake()

    def _report(self, *, paused: bool) -> None:
        if paused != self._reported_paused:
            self._reported_paused = paused
            self._metrics.paused(self.site, paused)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._go_on)

    def _go_on(self) -> None:
        """Release waiting calls and slots that may start now, calls first."""
        self._soon = None
        left = self.held_for()
        if left > 0.0:  # the loop's timers may be a nanosecond early
            self._set_timer(self._clock.monotonic() + left)
            return
        self._report(paused=self._half_open)
        if self._callers:
            for caller in self._callers:
                if not caller.done():
                    caller.set_result(None)
            self._callers.clear()
            self._soon = asyncio.get_running_loop().call_soon(self._go_on)  # the slots come after them
            return
        try:
            for _ in range(GRANTED_AT_ONCE):
                if not (self._first or self._rest) or not self._has_slot() or self.held_for() > 0.0:
                    return
                self._grant((self._first or self._rest).popleft())
        except BaseException:
            self.wake()  # a bug of one asker must not stop the others
            raise
        self.wake()


class Lanes:
    """The lanes of one process.

    Those of a few sites stay; beyond that, idle ones are forgotten, since a request may name any site.

    The local site may be named in requests or not, and what its name is turns out at the login: so it can have two
    lanes, each with its own limits and backoff. `canonical_site` makes one name of both; a Retry-After holds for both,
    and so does an operator's pause.
    """

    def __init__(
        self,
        *,
        limits: LaneLimits,
        clock: Clock,
        metrics: LaneMetrics,
        random: Random,
        canonical_site: Callable[[str | None], str | None] = lambda site: site,
    ) -> None:
        self._canonical_site = canonical_site
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._lanes: dict[str | None, Lane] = {}
        self._forget_at = FEW
        self.operator_pauses = OperatorPauses(clock=clock, canonical_site=canonical_site, changed=self._wake_all)

    def lane(self, site: str | None) -> Lane:
        """Return the site's lane; None: the local site."""
        lane = self._lanes.get(site)
        if lane is None:
            if len(self._lanes) >= self._forget_at:
                self._forget_idle()
            lane = self._lanes[site] = Lane(
                site,
                limits=self._limits,
                clock=self._clock,
                metrics=self._metrics,
                random=self._random,
                told_to_wait=partial(self._hold_namesakes, site),
                operator_pause=partial(self.operator_pauses.of, site),
            )
        return lane

    def retry(self, site: str | None) -> None:
        """End the pauses of a site, under both names, that the want of a session began; None: the local site."""
        for lane in self:
            if self._canonical_site(lane.site) == self._canonical_site(site):
                lane.retry()

    def _forget_idle(self) -> None:
        for site in [lane.site for lane in self if lane.idle]:
            self._lanes.pop(site).close()
        self._forget_at = 2 * len(self._lanes) + FEW

    def _wake_all(self) -> None:
        for lane in self:
            lane.wake()

    def _hold_namesakes(self, site: str | None, until: float) -> None:
        for lane in self:
            if lane.site != site and self._canonical_site(lane.site) == self._canonical_site(site):
                lane.hold(until)

    def look_ups_failing(self) -> dict[str | None, float]:
        """Return for how many seconds look-ups have failed, of the sites where they do."""
        return {lane.site: seconds for lane in self if (seconds := lane.look_ups.failing_for)}

    def __iter__(self) -> Iterator[Lane]:
        """Iterate over the lanes there are now."""
        return iter(tuple(self._lanes.values()))

    def close(self) -> None:
        """Close every lane."""
        self.operator_pauses.close()
        for lane in self:
            lane.close()


def _one_less(count: int, bug: str) -> int:
    if count < 1:
        raise RuntimeError(bug)
    return count - 1
