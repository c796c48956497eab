"""The calls of VCDA's API for a sync, and the interpretation of their answers.

    POST /vm-replications/{id}/sync     submit    the one call that changes something there
    GET  /tasks?type=sync&...           find      look-up: the task of a POST in doubt
    GET  /tasks?ids=...                 poll      the states of up to 100 tasks
    GET  /tasks/{id}                    ask       the same for one task, to distinguish "deleted" from "not shown"

The interpretation of a POST's answer depends on whether VCDA can have created a task, and whether a repetition could
help:

    2xx with a task         Accepted, unless the task is of another replication
    401                     not accepted; repeated once after a new login, then NotTaken
    409                     NotTaken: the replication is busy
    429                     NotTaken: too many requests
    other 4xx, ApiError     Refused: a refusal by VCDA itself; also 405, an unknown call. Where an earlier POST of the
                            request was in doubt, `sync` looks for its task first, as after a 409
    408, and everything     Unanswered. A 4xx without an ApiError is a proxy's, as is the 405 with which nginx's error
    else                    pages answer a POST; a 5xx, also a 501, says nothing about how far VCDA had come

An error is a value here. Only wrong use raises: an id that neither a message nor an answer of VCDA can contain.
"""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeGuard, TypeVar
from urllib.parse import quote

from service.certificates import Current
from service.clock import Clock
from service.messages.schemas import MAX_ID, OPERATION_ID, REPLICATION_ID
from service.sync import (
    EPOCH,
    NO_CREDENTIALS,
    WITHOUT_CREDENTIALS,
    Accepted,
    Account,
    ApiError,
    Gone,
    Names,
    NotTaken,
    Refused,
    Spelling,
    SubmitAnswer,
    Task,
    Trouble,
    Unanswered,
    is_of_another,
)
from service.vcda import http, session, translate
from service.vcda.credentials import Credentials
from service.vcda.http import CACHED, LARGE, SMALL, Answer, NoAnswer, Tls, Wire, age_of, redirection, status_label
from service.vcda.http_dates import retry_after
from service.vcda.session import LOGOUT_LIMIT, Login, NoCredentials, Session, Ticket, unauthorized
from service.vcda.site_clocks import SiteClock, SiteClocks
from service.vcda.spellings import Spellings
from service.vcda.translate import BATCH

log = logging.getLogger(__name__)

SYNC: Final = "sync"
"""The type of a sync's task (`workflowInfo.type`), as documented."""
SMALLER: Final = 10
"""Where a page is longer than an answer may be, pages have so many times fewer tasks, and in the end one."""
NEWEST_FIRST: Final = "startTime-"
"""VCDA's default, as documented; set explicitly, since paging relies on it."""
MAX_PAGES: Final = 1000
"""A bound for a look-up, regardless of the total that VCDA reports."""
FINDS_AT_ONCE: Final = 4
"""Look-ups that run at once at one site. After a restart there can be thousands, and none of them is urgent."""

MAX_KIND: Final = 60
"""Characters of a content type in a sentence."""

T = TypeVar("T")

_REPLICATION_ID: Final = re.compile(REPLICATION_ID)
_OPERATION_ID: Final = re.compile(OPERATION_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiLimits:
    """Limits of what VCDA may send, and of the time for the logout. Tests lower them."""

    page_bytes: int = LARGE
    pages: int = MAX_PAGES
    logout: timedelta = LOGOUT_LIMIT


class Meter(http.Meter, session.Meter, Protocol):
    """The metrics of calls and logins."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """The result of a call, with the ticket it was sent with; `tried`: an earlier POST of the call got a 401."""

    seen: Answer | NoAnswer | Trouble | NoCredentials
    ticket: Ticket | None = None
    tried: bool = False

    @property
    def local(self) -> frozenset[str]:
        """The names of the local site."""
        return _local_sites(None if self.ticket is None else self.ticket.login)

    @property
    def account(self) -> Account | None:
        """The account of the call."""
        return None if self.ticket is None else self.ticket.account


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """Whether there is a session at VCDA, and for which sites it is good."""

    age: timedelta | None
    """None: there is none."""
    sites: frozenset[str]
    """The sites that the login authenticated, and those that it was extended to."""


class Vcda:
    """VCDA's API, as one account at one appliance. Make it inside the event loop that it will be used in.

    `credentials` is called at each login; `site` arguments are as in the request, None for the local site.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Callable[[], Credentials],
        request_timeout: timedelta,
        clock: Clock,
        meter: Meter,
        version: str,
        tls: Tls | None = None,
        limits: ApiLimits = ApiLimits(),
        established: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """Prepare; the first call connects and logs in. `established` is called as `Session` says.

        Raises:
            ValueError: of the URL or the thumbprint, as `Wire` and `Tls` say.
            OSError: the CA file can't be read.
        """
        self._clock = clock
        self._wire = Wire(
            url,
            tls=tls or Tls(),
            request_timeout=request_timeout,
            user_agent=f"vm-sync/{version}",
            clock=clock,
            meter=meter,
        )
        self._limits = limits
        self._session = Session(
            self._wire,
            credentials=credentials,
            clock=clock,
            meter=meter,
            established=established,
            logout_limit=limits.logout,
        )
        self._spellings = Spellings()
        self._site_clocks = SiteClocks()
        self._finding: defaultdict[str | None, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(FINDS_AT_ONCE)
        )

    # ------------------------------------------------------------ the calls

    async def submit(
        self, *, replication_id: str, site: str | None, operation_id: str, may_leave: Callable[[Account | None], bool]
    ) -> SubmitAnswer:
        """Send the POST for a sync, once.

        `may_leave` is called with the account just before the first byte is sent, and again if the POST is repeated
        after a 401.

        Raises:
            ValueError: an id that doesn't belong in a URL or a header.
        """
        _check(replication_id, _REPLICATION_ID)
        _check(operation_id, _OPERATION_ID)
        reply = await self._call(
            "submit",
            method="POST",
            target=f"/vm-replications/{replication_id}/sync" + ("" if site is None else f"?{site_parameter(site)}"),
            site=site,
            operation_id=operation_id,
            may_leave=may_leave,
        )
        try:
            return self._submitted(reply, site, replication_id)
        except Exception as error:  # noqa: BLE001 - see `_bug`
            return _unanswered(reply, _bug(error, "submit", site))

    async def find(
        self,
        *,
        site: str | None,
        replication_id: str | None,
        since: datetime,
        until: datetime | None = None,
        operation_id: str | None = None,
    ) -> list[Task] | Trouble:
        """Return all sync tasks that began at `since` (VCDA's clock) or later, and before `until` if it is given.

        Sync tasks are those of the documented type, and of each type that an answer to a POST at the site has shown.
        The list is complete: a task that isn't in it did not exist when the call began. With a replication, the list
        has only tasks with exactly this replication id; tasks without an id, or with another letter case, are only in
        the list of all tasks.

        Raises:
            ValueError: an id that doesn't belong in a URL or a header.
        """
        # "After" means after: one less than the millisecond that `since` falls into.
        milliseconds = (since - EPOCH) // timedelta(milliseconds=1) - 1
        query = f"startTimeAfter={max(milliseconds, 0)}"
        if until is not None:
            query += f"&startTimeBefore={-((EPOCH - until) // timedelta(milliseconds=1))}"
        if replication_id is not None:
            query += f"&resourceId={_check(replication_id, _REPLICATION_ID)}"
        if operation_id is not None:
            _check(operation_id, _OPERATION_ID)
        found: dict[str, Task] = {}
        async with self._finding[site]:
            for kind in (SYNC, *self._spellings.types(self.canonical_site(site))):
                tasks = await _or_trouble(
                    self._pages("find", f"type={kind}&{query}", site=site, operation_id=operation_id, kind=kind),
                    "find",
                    site,
                )
                if isinstance(tasks, Trouble):
                    return tasks
                found |= {task.id: self._reachable(task) for task in tasks}
        return list(found.values())

    async def poll(self, *, site: str | None, ids: Sequence[str]) -> list[Task] | Trouble:
        """Return the tasks with these ids, at most 100, as far as VCDA shows them.

        Raises:
            ValueError: too many ids, or one that doesn't belong in a list in a URL.
        """
        if len(ids) > BATCH:
            msg = f"{len(ids)} tasks are more than VCDA returns in one page"
            raise ValueError(msg)
        asked = frozenset(ids)
        if not asked:
            return []
        query = "ids=" + ",".join(_check(name, translate.ID) for name in ids)
        tasks = await _or_trouble(self._pages("poll", query, site=site), "poll", site)
        return tasks if isinstance(tasks, Trouble) else [task for task in tasks if task.id in asked]

    async def ask(self, *, site: str | None, task_id: str) -> Task | Gone | Trouble:
        """Return one task, or `Gone` if VCDA itself answers that it does not exist.

        Raises:
            ValueError: an id that doesn't belong in a URL.
        """
        query = "" if site is None else f"?{site_parameter(site)}"
        return await _or_trouble(
            self._ask(f"/tasks/{_check(task_id, translate.ID)}{query}", site=site, task_id=task_id), "poll", site
        )

    async def _ask(self, target: str, *, site: str | None, task_id: str) -> Task | Gone | Trouble:
        reply = await self._call("poll", method="GET", target=target, site=site)
        if not isinstance(reply.seen, Answer):
            return self._trouble(reply.seen, site)
        if (old := _from_a_cache(reply.seen)) is not None:
            return old
        if reply.seen.is_good:
            task = translate.read_task(reply.seen.body, local=reply.local, clean=reply.seen.clean)
            return task if task is not None and task.id == task_id else _unreadable(reply.seen)
        trouble = self._trouble(reply.seen, site)
        # A site that isn't known (paired again, say) is a 404 too, and says nothing of its tasks.
        if trouble.http_status == 404 and trouble.error is not None and trouble.error.code != "SiteNotFound":  # noqa: PLR2004
            return Gone(self._clock.monotonic(), reply.account)
        return trouble

    # ------------------------------------------------------------ what is known on the side

    def account(self, site: str | None) -> Account | None:
        """Return the account of calls to the site; None before the first login."""
        return self._session.account(site)

    def names(self, site: str | None, account: Account | None) -> Names:
        """Return the possible names of an account's user on tasks of this site; None: the current account."""
        return self._spellings.names(account or self.account(site), self.canonical_site(site))

    def spellings(self) -> tuple[Spelling, ...]:
        """Return the learnt spellings: the same object until another is learnt."""
        return self._spellings.known

    def learn(self, spellings: Iterable[Spelling]) -> None:
        """Add spellings that an earlier process learnt."""
        self._spellings.learn(spellings)

    def learn_name(self, account: Account, *, site: str | None, name: str) -> None:
        """Learn a spelling from a task that certainly belongs to the account."""
        self._spellings.learn([Spelling(account, self.canonical_site(site), name)])

    def canonical_site(self, site: str | None) -> str | None:
        """Return None for the local site, also if it is given by its name (known after the login), else the site."""
        return None if site in _local_sites(self._session.login) else site

    def site_clock(self, site: str | None) -> SiteClock | None:
        """Return what is known of the clock that stamps the site's tasks; None before the first answer."""
        return self._site_clocks.of(
            self.canonical_site(site),
            dated=self._wire.offset(),
            now=self._clock.now(),
            monotonic=self._clock.monotonic(),
        )

    async def unusable(self) -> list[str]:
        """Log in, and extend the session to each configured site, where that is due; return what fails, and why."""
        return await self._session.unusable()

    @property
    def certificates(self) -> list[Current]:
        """The certificates from files."""
        return self._wire.certificates

    def session_status(self) -> SessionStatus:
        """Return what is known of the session."""
        login = self._session.login
        if login is None:
            return SessionStatus(age=None, sites=frozenset())
        return SessionStatus(
            age=timedelta(seconds=self._clock.monotonic() - login.born),
            sites=login.local | login.extensions.keys(),
        )

    def about(self) -> str:
        """Say what is known of the appliance: the version of its API, and until when its certificate is valid."""
        ends, version = self._wire.certificate_ends, self._session.api_version
        parts = [
            *([f"API {version}"] if version else []),
            *([f"certificate valid until {ends:%Y-%m-%d}"] if ends else []),
            *([] if self._session.login else ["not logged in"]),
        ]
        return ", ".join(parts)

    async def close(self) -> None:
        """Log out and close all connections; takes a few seconds at most."""
        try:
            await self._session.close()
        finally:
            await self._wire.close()

    # ------------------------------------------------------------ how

    async def _call(
        self,
        operation: Literal["submit", "poll", "find"],
        *,
        method: Literal["GET", "POST"],
        target: str,
        site: str | None,
        operation_id: str | None = None,
        may_leave: Callable[[Account | None], bool] | None = None,
        limit: int = SMALL,
    ) -> _Reply:
        """Make a call with a session; one that meets a 401 is made once more, if there is a new session for it."""

        async def attempt(ticket: Ticket) -> Answer | NoAnswer:
            return await self._wire.call(
                operation,
                method=method,
                target=target,
                site=site,
                token=ticket.login.token,
                operation_id=operation_id,
                may_leave=None if may_leave is None else partial(may_leave, ticket.account),
                limit=limit,
            )

        admission = await self._session.admit(site)
        if not isinstance(admission, Ticket):
            return _Reply(admission)
        seen = await attempt(admission)
        if not _is_unauthorized(seen):
            return _Reply(seen, admission)
        renewed = await self._session.readmit(admission, site=site, answer=seen)
        if isinstance(renewed, Trouble):
            return _Reply(renewed, admission, tried=True)
        seen = await attempt(renewed)
        if _is_unauthorized(seen):
            trouble = self._session.refused_again(renewed, site=site, trouble=unauthorized(seen))
            return _Reply(trouble, renewed, tried=True)
        return _Reply(seen, renewed, tried=True)

    async def _pages(
        self,
        operation: Literal["poll", "find"],
        query: str,
        *,
        site: str | None,
        operation_id: str | None = None,
        kind: str | None = None,
    ) -> list[Task] | Trouble:
        """Return all tasks that a query matched when it began, from as many pages as that takes.

        The newest tasks come first, so that tasks that begin meanwhile only move others to the next page, where they
        are seen twice. Tasks deleted meanwhile move others to earlier pages, where they are missed; hence the count at
        the end. A page that is too long, or has too many values, is requested again with fewer tasks.
        """
        query += f"&sort={NEWEST_FIRST}" + ("" if site is None else f"&{site_parameter(site)}")
        limit = BATCH
        tasks: dict[str, Task] = {}
        seen: set[str] = set()
        offset, matched = 0, None
        for _ in range(self._limits.pages):
            reply = await self._call(
                operation,
                method="GET",
                target=f"/tasks?{query}&limit={limit}" + (f"&offset={offset}" if offset else ""),
                site=site,
                operation_id=operation_id,
                limit=self._limits.page_bytes,
            )
            if isinstance(reply.seen, NoAnswer) and reply.seen.too_long and limit > 1:
                limit //= SMALLER
                continue
            if not isinstance(reply.seen, Answer) or not reply.seen.is_good:
                trouble = self._trouble(reply.seen, site)
                return replace(trouble, own=True) if operation == "find" and _barred(reply.seen) else trouble
            if (old := _from_a_cache(reply.seen)) is not None:
                return old
            if limit > 1 and translate.has_too_many_values(reply.seen.body):
                limit //= SMALLER
                continue
            page = translate.read_page(reply.seen.body, local=reply.local, kind=kind, clean=reply.seen.clean)
            if page is None:
                return _unreadable(reply.seen)
            tasks |= {task.id: task for task in page.tasks}
            seen |= page.seen
            offset += page.count
            matched = page.total if matched is None else matched
            if page.count == 0 or offset >= page.total:
                break
        if matched is None or len(seen) < matched:
            return Trouble(label="incomplete", detail=f"VCDA showed {len(seen)} of {matched} tasks.")
        return list(tasks.values())

    def _learn(self, account: Account, *, site: str | None, name: str, kind: str | None) -> None:
        """Learn what an answer to a POST shows: how the task names the user, and its type."""
        here = self.canonical_site(site)
        other = None if kind == SYNC else kind
        if other is not None and other not in self._spellings.types(here):
            log.warning(
                "Site %s: VCDA gives the task of a sync the type %r instead of %r; look-ups for POSTs in doubt search "
                "for tasks of both types",
                site or "local",
                other,
                SYNC,
                extra={"site": site},
            )
        self._spellings.learn([Spelling(account, here, name, other)])

    def _reachable(self, task: Task) -> Task:
        """Return a task with a site that this process can ask for it.

        The task of a call without a site may name one that there are no credentials for: the local site by a name that
        the login did not give. It is asked for as the call was made, without a site.
        """
        if task.site is None or self._session.may_call(task.site):
            return task
        return replace(task, site=None)

    def _submitted(self, reply: _Reply, site: str | None, replication_id: str) -> SubmitAnswer:
        """Read a POST's answer, as the table at the top says."""
        match reply.seen:
            case NoCredentials():
                return Refused(ApiError(WITHOUT_CREDENTIALS, _without_credentials(site)), None, sent=reply.tried)
            case Trouble(http_status=404, error=ApiError(code="SiteNotFound") as error):
                # VCDA's answer to the extension of the session; the POST would get the same.
                return Refused(error, 404, sent=reply.tried)
            case Trouble() as trouble:
                return NotTaken(trouble, sent=reply.tried)
            case NoAnswer() as nothing:
                return _unanswered(reply, self._trouble(nothing, site))
            case Answer() as answer:
                return self._answered(answer, reply, site, replication_id)

    def _answered(self, answer: Answer, reply: _Reply, site: str | None, replication_id: str) -> SubmitAnswer:
        account = reply.account
        if answer.is_good:
            created = translate.read_created(answer.body, local=reply.local, clean=answer.clean)
            if created is None:
                return Unanswered(_unreadable(answer), answer.sent_at, account)
            task, kind = created
            if is_of_another(task, replication_id):  # a proxy has mixed up answers
                detail = f"VCDA answered with task {task.id} of another replication, {task.replication_id}."
                return Unanswered(Trouble(label="unreadable", detail=detail), answer.sent_at, account)
            if task.user is not None and account is not None:
                self._learn(account, site=site, name=task.user, kind=kind)
            if task.started_at is not None:
                self._site_clocks.heard(
                    self.canonical_site(site), task.started_at, sent=answer.sent_at, received=self._clock.monotonic()
                )
            return Accepted(self._reachable(task), account)
        trouble = self._trouble(answer, site)
        match answer.status:
            case 409:
                return NotTaken(replace(trouble, own=True), sent=True, busy_at=self._clock.monotonic())
            case 429:
                return NotTaken(trouble, sent=True)
            case status if 400 <= status < 500 and status != 408 and trouble.error is not None:  # noqa: PLR2004
                return Refused(trouble.error, status, at=self._clock.monotonic())
            case _:
                return Unanswered(trouble, answer.sent_at, account)

    def _trouble(self, seen: Answer | NoAnswer | Trouble | NoCredentials, site: str | None) -> Trouble:
        match seen:
            case Trouble():
                return seen
            case NoAnswer(label, detail):
                return Trouble(label=label, detail=detail)
            case NoCredentials():
                return Trouble(label=NO_CREDENTIALS, detail=_without_credentials(site), own=True)
            case Answer(status, headers, body, clean=clean):
                error = translate.read_api_error(body, clean=clean)
                said = f": {error.msg or error.code}" if error else f"{redirection(headers)}."
                return Trouble(
                    label=status_label(status),
                    detail=f"VCDA answered with {status}{said}",
                    http_status=status,
                    error=error,
                    retry_after=retry_after(
                        headers.get("retry-after"), date=headers.get("date"), now=self._clock.now()
                    ),
                )


def _unanswered(reply: _Reply, trouble: Trouble) -> SubmitAnswer:
    """Return what a POST without an answer that can be understood means: it is in doubt, unless it wasn't sent."""
    sent_at = reply.seen.sent_at if isinstance(reply.seen, Answer | NoAnswer) else None
    return NotTaken(trouble, sent=reply.tried) if sent_at is None else Unanswered(trouble, sent_at, reply.account)


async def _or_trouble(reading: Coroutine[Any, Any, T], operation: str, site: str | None) -> T | Trouble:
    """Return what a call has read. A bug in the reading is trouble as well: see `_bug`."""
    try:
        return await reading
    except Exception as error:  # noqa: BLE001 - see `_bug`
        return _bug(error, operation, site)


def _bug(error: Exception, operation: str, site: str | None) -> Trouble:
    """Log a bug in the reading of an answer, and return it as trouble.

    What one site, or a proxy, may answer is without end; raised, it would end the polls of all sites.
    """
    log.error(
        "Internal error while reading VCDA's answer to a %s call%s; the call has failed",
        operation,
        "" if site is None else f" for site {site}",
        exc_info=error,
        extra={"site": site},
    )
    return Trouble(label="error", detail=f"An answer of VCDA led to an internal error ({type(error).__name__}).")


def _barred(seen: Answer | NoAnswer | Trouble | NoCredentials) -> bool:
    """Whether the site can't be called (no credentials), so its requests are refused without waiting for a look-up."""
    return isinstance(seen, NoCredentials) or (
        isinstance(seen, Trouble) and seen.error is not None and seen.error.code == "SiteNotFound"
    )


def _local_sites(login: Login | None) -> frozenset[str]:
    """Return the names of the local site, which requests and tasks may omit.

    If a login opens several sites, VCDA does not say which of them is the local site; then the result is empty.
    """
    return login.local if login is not None and len(login.local) == 1 else frozenset()


def site_parameter(site: str) -> str:
    """Return the part of a query that names a site."""
    return f"site={quote(site, safe='')}"


def _without_credentials(site: str | None) -> str:
    return f"No credentials are configured for site {site} (VM_SYNC_VCDA__SITES)."


def _check(name: str, allowed: re.Pattern[str]) -> str:
    if len(name) > MAX_ID or not allowed.fullmatch(name):
        msg = f"{name!r} can't be part of a call to VCDA: it must match {allowed.pattern}, {MAX_ID} characters at most"
        raise ValueError(msg)
    return name


def _is_unauthorized(seen: Answer | NoAnswer) -> TypeGuard[Answer]:
    return isinstance(seen, Answer) and seen.status == 401  # noqa: PLR2004


def _from_a_cache(answer: Answer) -> Trouble | None:
    """Return the trouble of an answer that comes from a cache, since it may be outdated. None: the answer is VCDA's."""
    age = age_of(answer.headers)
    if age is None:
        return None
    return Trouble(
        label=CACHED,
        detail=f"A cache between this service and VCDA has answered (Age: {age}): exclude /tasks from the cache.",
        http_status=answer.status,
    )


def _unreadable(answer: Answer) -> Trouble:
    """Return the trouble of a body that isn't what VCDA sends: a login page with status 200, say."""
    kinds = [answer.headers.get(name, "")[:MAX_KIND] for name in ("content-type", "content-encoding")]
    kind = ", ".join(text for text in kinds if text.isascii() and text.isprintable() and text)
    said = f"VCDA answered with {answer.status} and a body that can't be understood"
    return Trouble(label="unreadable", detail=f"{said} ({kind})." if kind else f"{said}.")
