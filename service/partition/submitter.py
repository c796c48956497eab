"""Sends POSTs, each within the submit window of a successful commit, which is checked as late as possible.

A process that was suspended, or disconnected from Kafka, doesn't know that its partition has a new owner, although its
last commit succeeded. So a POST is sent only within a short time after the sending of a successful commit, and the new
owner waits that much longer before it concludes anything from a look-up. If a login or a connection takes longer, the
window closes: then another commit confirms the ownership, and the POST is tried again. If Kafka is too slow for that,
the pauses between the tries grow, a warning is logged, and `/readyz` reports it.

A POST is also not sent under another account than its intent names, for example the first POST, whose intent is written
before the first login: VCDA shows a user only their own tasks, so a look-up has to know the account.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Final

from service.backoff import Backoff
from service.clock import Clock
from service.observability.tracing import Tracing
from service.partition.dependencies import Api
from service.partition.in_flight import TrackedSync
from service.partition.journal_writer import JournalWriter
from service.sync import WITHHELD, Account, NotTaken, SubmitAnswer, Submitting, Trouble
from service.vcda.lanes import Lane

log = logging.getLogger(__name__)

TRIES_TO_TELL_OF = 3
"""A slow login closes the window once, a busy machine twice; more often, and the way to VCDA or Kafka is too slow."""

SAY_AGAIN = timedelta(minutes=1)
"""How often a partition logs it while it lasts, regardless of the number of POSTs held back."""

BACKOFF: Final = Backoff(first=timedelta(milliseconds=100), longest=timedelta(seconds=10))
"""Pauses before the ownership is proved once more: each proof is a commit for a Kafka that is too slow already. Ten
seconds of delay after Kafka's recovery are acceptable."""

LOOK = timedelta(milliseconds=500)
"""How soon a pausing POST notices that it isn't wanted any more: quiescing waits for that."""


HELD_BACK = NotTaken(Trouble(label=WITHHELD, detail="The POST was cancelled before it was sent."), sent=False)
"""The answer of a POST that was not sent, since its site paused or the partition quiesces meanwhile."""


class Submitter:
    """Sends the POSTs of one partition. `may_begin` checks whether a sync's POST is still wanted."""

    def __init__(
        self,
        number: int,
        *,
        api: Api,
        lane: Callable[[TrackedSync], Lane],
        journal_writer: JournalWriter,
        clock: Clock,
        tracing: Tracing,
        window: timedelta,
        may_begin: Callable[[TrackedSync], bool],
    ) -> None:
        self._number = number
        self._api = api
        self._lane = lane
        self._journal_writer = journal_writer
        self._clock = clock
        self._tracing = tracing
        self._window = window.total_seconds()
        self._may_begin = may_begin
        self._held: dict[TrackedSync, float] = {}
        """POSTs that did not leave for want of a young proof, and since when (monotonic)."""
        self._say_at = 0.0

    @property
    def held_since(self) -> float | None:
        """Since when (monotonic) a POST is held back as Kafka's commits take too long; None: none is.

        Too long is half of the window: login and connection seldom need the rest.
        """
        return min(self._held.values(), default=None) if self._journal_writer.took > self._window / 2 else None

    async def post(self, tracked: TrackedSync) -> SubmitAnswer:
        """Send the POST of a sync, in several tries if the window closes, and return the answer.

        Raises:
            JournalLost: the partition has, or may have, another owner.
        """
        tries = 0
        began = self._clock.monotonic()
        try:
            while True:
                tries += 1
                async with self._lane(tracked).posts:
                    answer = await self._submit(tracked) if self._may_begin(tracked) else HELD_BACK
                if tracked.left or not self._may_begin(tracked) or not withheld(answer):
                    return answer
                if not self._is_intended(tracked, self._api.account(tracked.request.site)):
                    return answer  # a new intent has to name the account that it is now
                self._held[tracked] = began
                if tries >= TRIES_TO_TELL_OF:
                    self._say(tracked)
                    await self._pause(tracked, tries - TRIES_TO_TELL_OF)
                await self._journal_writer.confirm_ownership()
        finally:
            self._held.pop(tracked, None)

    async def _pause(self, tracked: TrackedSync, repeats: int) -> None:
        until = self._clock.monotonic() + BACKOFF.pause(repeats)
        while self._may_begin(tracked) and (left := until - self._clock.monotonic()) > 0:  # noqa: ASYNC110 - see LOOK
            await asyncio.sleep(min(left, LOOK.total_seconds()))

    def _say(self, tracked: TrackedSync) -> None:
        now = self._clock.monotonic()
        if now < self._say_at:
            return
        self._say_at = now + SAY_AGAIN.total_seconds()
        log.warning(
            "Partition %d: %d POSTs have missed their submit windows (the POST of %s has waited for %.0f s): a "
            "commit to Kafka (%.1f s) plus login and connection to VCDA take longer than the window of %.0f s",
            self._number,
            len(self._held),
            tracked.request.identity,
            now - self._held[tracked],
            self._journal_writer.took,
            self._window,
            extra=tracked.ids,
        )

    async def _submit(self, tracked: TrackedSync) -> SubmitAnswer:
        request = tracked.request
        with self._tracing.submitting(request):
            return await self._api.submit(
                replication_id=request.replication_id,
                site=request.site,
                operation_id=request.operation_id,
                may_leave=partial(self._may_leave, tracked),
            )

    def _is_intended(self, tracked: TrackedSync, account: Account | None) -> bool:
        """Whether the intent names this account: a look-up for the POST has to be made with it."""
        return isinstance(tracked.state, Submitting) and tracked.state.account == account

    def _may_leave(self, tracked: TrackedSync, account: Account | None) -> bool:
        if not self._may_begin(tracked) or self._journal_writer.unconfirmed_for > self._window:
            return False
        if not self._is_intended(tracked, account):
            return False
        tracked.left = True
        return True


def withheld(answer: SubmitAnswer) -> bool:
    """Whether the POST was not sent because the service itself forbade it; that says nothing about the site."""
    return isinstance(answer, NotTaken) and answer.trouble.label == WITHHELD
