"""Checks that VCDA provides all that the service needs. Each check comes after those that it depends on.

Nothing is changed: it logs in once, extends the session to the configured sites, lists tasks, and logs out. No sync is
requested, so the right to do so is not checked; the first request shows it.

Polls and look-ups of the service depend on how VCDA lists tasks. So the format of a page, its order, paging, the
filters, and the answers about a task that doesn't exist are compared with what the service expects.
"""

import asyncio
import hashlib
import json
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from service import endpoints
from service.checks import Check, Result, Verdict, clocks, failure, ok, results, warning
from service.clock import Clock
from service.endpoints import Endpoint
from service.messages.schemas import MAX_SITE
from service.sync import MAX_LIST
from service.vcda import translate
from service.vcda.client import NEWEST_FIRST, site_parameter
from service.vcda.credentials import Credentials, CredentialType, SiteCredentials
from service.vcda.http import LARGE, Answer, NoAnswer, Tls, Wire, age_of, distrust, session_token
from service.vcda.session import LOGOUT_LIMIT

if TYPE_CHECKING:
    import aiohttp

GROUP: Final = "VCDA"

STEP: Final = timedelta(seconds=30)
"""For one check of some calls; one call takes at most VM_SYNC_VCDA__REQUEST_TIMEOUT, too."""

CONNECT: Final = timedelta(seconds=8)
"""For a name, a connection or a handshake."""

ALL: Final = timedelta(seconds=60)
SITE: Final = timedelta(seconds=30)
"""For all checks together: so long, and so much longer for each remote site."""

AGED: Final = 1.1
"""Seconds after which an answer that was kept says so: `Age` counts whole seconds, and 0 may be a proxy's habit."""

LIST: Final = f"type=sync&limit={translate.BATCH}"


class _Meter:
    def api_request(self, operation: str, status: str, seconds: float, *, site: str | None) -> None:
        """Count nothing."""


class _Unexpected(Exception):
    """VCDA's answer is not what the service expects, or there is none; the text is for an operator."""

    def __init__(self, text: str, *, answered: bool = True) -> None:
        super().__init__(text)
        self.answered = answered


@dataclass(slots=True)
class _Site:
    """A site of which tasks are asked for, and what is found out there."""

    name: str | None
    """None: the appliance's own."""
    setting: str
    """The settings of the account that is used there, up to their last word."""
    user: str | None = None
    sample: list[dict[str, Any]] = field(default_factory=list)
    """Tasks that exist there, newest first: of syncs, or of any kind where there is no sync."""
    kind: str = "type=sync&"
    """The filter that they were found with."""


class VcdaChecks:
    """The checks of one VCDA. Make it inside the event loop that it will be used in, and use it once."""

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials,
        tls: Tls,
        request_timeout: timedelta,
        clock: Clock,
        version: str,
        aged: float = AGED,
    ) -> None:
        """Prepare; nothing is connected yet. `aged`: seconds after which the answer of a cache shows its age.

        Raises:
            ValueError: of the URL or the thumbprint, as `Wire` and `Tls` say.
            Unusable: no certificate can be read from the CA file.
        """
        self._url = url
        self._credentials = credentials
        self._clock = clock
        self._wire = Wire(
            url, tls=tls, request_timeout=request_timeout, user_agent=f"vm-sync/{version}", clock=clock, meter=_Meter()
        )
        parts = urlsplit(url)
        self._verification = tls.verification() if parts.scheme == "https" else None
        self._address = Endpoint(parts.hostname or "", parts.port or (80 if self._verification is None else 443))
        self._token: str | None = None
        self._listed_at = 0.0
        self._aged = aged

    async def results(self) -> AsyncIterator[Result]:
        """Make the checks, and give each result as soon as it is known: of the appliance, then of each remote site."""
        try:
            async for result in results(self._checks(), within=ALL + len(self._credentials.sites) * SITE):
                yield result
        finally:
            if self._token is not None:
                try:
                    async with asyncio.timeout(LOGOUT_LIMIT.total_seconds()):
                        await self._wire.call("logout", method="DELETE", target="/sessions", token=self._token)
                except TimeoutError:
                    pass
            await self._wire.close()

    def _checks(self) -> Sequence[Check]:
        silent = "check VM_SYNC_VCDA__URL, and whether a firewall or a network policy drops packets to VCDA"
        here = _Site(None, "VM_SYNC_VCDA__CREDENTIALS__")
        check = partial(self._check, GROUP)
        name = check("name resolution", self._name_resolves, silent)
        connection = check("TCP connection", self._connects, silent, name)
        trust = self._verification
        secured = (
            () if trust is None else (check("certificate", partial(self._certificate, trust), silent, connection),)
        )
        login = check("login", partial(self._login, here), silent, connection, *secured)
        checks = [name, connection, *secured, login, check("clock", self._clocks, silent, login)]
        tasks, *others = self._checks_of_tasks(GROUP, here, login)
        checks += [tasks, *others]
        checks.append(check("caches", partial(self._caches, here), silent, tasks))
        for number, of_site in enumerate(self._credentials.sites):
            there = _Site(of_site.name, f"VM_SYNC_VCDA__SITES__{number}__", of_site.user)
            group = f"site {of_site.name}"
            extension = self._check(group, "extension", partial(self._extension, there, of_site), silent, login)
            checks += [extension, *self._checks_of_tasks(group, there, extension)]
        return checks

    def _checks_of_tasks(self, group: str, site: _Site, base: Check) -> Sequence[Check]:
        slow = "look at the load of VCDA, or of the site"
        tasks = self._check(group, "tasks", partial(self._tasks, site), slow, base)
        return [
            tasks,
            self._check(group, "order", partial(self._order, site), slow, tasks),
            self._check(group, "task ids", partial(self._task_ids, site), slow, tasks),
            self._check(group, "paging", partial(self._paging, site), slow, tasks),
            self._check(group, "filters", partial(self._filters, site), slow, tasks),
            self._check(group, "users on tasks", partial(self._users, site), slow, tasks),
        ]

    def _check(
        self, group: str, name: str, run: Callable[[], Awaitable[Sequence[Verdict]]], overdue: str, *needs: Check
    ) -> Check:
        async def explained() -> Sequence[Verdict]:
            try:
                return await run()
            except _Unexpected as error:
                return [failure(str(error), answered=error.answered)]

        return Check(group=group, name=name, run=explained, limit=STEP, overdue=overdue, needs=needs)

    # ------------------------------------------------------------ the way there

    async def _name_resolves(self) -> Sequence[Verdict]:
        try:
            async with asyncio.timeout(CONNECT.total_seconds()):
                addresses = await endpoints.resolve(self._address)
        except OSError:
            text = f"There is no address for the name {self._address.host}: check VM_SYNC_VCDA__URL."
            return [failure(text, answered=False)]
        return [endpoints.resolved(self._address, addresses)]

    async def _connects(self) -> Sequence[Verdict]:
        try:
            async with asyncio.timeout(CONNECT.total_seconds()):
                await endpoints.connect(self._address)
        except OSError as error:
            return [
                failure(
                    f"{self._address} can't be reached, {endpoints.why(error)}: check VM_SYNC_VCDA__URL, and whether a "
                    "firewall or a network policy is in between.",
                    answered=False,
                )
            ]
        return [ok(f"{self._address} accepts connections.")]

    async def _certificate(self, trust: "ssl.SSLContext | aiohttp.Fingerprint") -> Sequence[Verdict]:
        try:
            async with asyncio.timeout(CONNECT.total_seconds()):
                if isinstance(trust, ssl.SSLContext):
                    shown = await endpoints.handshake(self._address, trust)
                    now = self._clock.now()
                    return [endpoints.expiry(shown, now=now), *endpoints.expiring(trust, now=now)]
                return await self._pinned(trust.fingerprint)
        except ssl.SSLCertVerificationError as error:
            return [failure(f"{distrust(error)}.")]
        except OSError as error:
            why = error.reason if isinstance(error, ssl.SSLError) else endpoints.why(error)
            return [
                failure(
                    f"The TLS handshake with {self._address} failed ({why}): check whether VM_SYNC_VCDA__URL names the "
                    "port on which VCDA's API is served.",
                    answered=isinstance(error, ssl.SSLError),
                )
            ]

    async def _pinned(self, fingerprint: bytes) -> Sequence[Verdict]:
        shown = await endpoints.shown_certificate(self._address)
        seen = hashlib.sha256(shown).digest()
        if seen != fingerprint:
            return [
                failure(
                    "VCDA's certificate does not match VM_SYNC_VCDA__THUMBPRINT; its SHA-256 is "
                    f"{seen.hex(':').upper()}. Set it to that, if the appliance shows the same one."
                )
            ]
        try:
            certificate = await endpoints.handshake(self._address, endpoints.trusting(shown))
        except ssl.SSLCertVerificationError as error:
            return [warning(f"The certificate matches VM_SYNC_VCDA__THUMBPRINT, but: {error.verify_message}.")]
        return [endpoints.expiry(certificate, now=self._clock.now())]

    # ------------------------------------------------------------ who we are there

    async def _login(self, here: _Site) -> Sequence[Verdict]:
        credentials = self._credentials
        answer = await self._wire.call(
            "login",
            method="POST",
            target="/sessions",
            content=json.dumps(credentials.login_body()).encode(),
            secrets=credentials.secrets,
        )
        self._token = session_token(answer.headers)
        if isinstance(answer, NoAnswer):
            cure = "" if "VM_SYNC_" in answer.detail else ": check VM_SYNC_VCDA__URL, and the appliance"
            return [failure(f"{answer.detail.rstrip('.')}{cure}.", answered=False)]
        if not answer.is_good or self._token is None:
            return [failure(_login_refused(answer, credentials, self._url), answered=_is_answer(answer))]
        session = translate.read_session(answer.body)
        if session is None:
            text = f"Login answered with {answer.status}, and its body is no JSON object: check VM_SYNC_VCDA__URL."
            return [failure(text, answered=True)]
        here.user, sites = session
        roles = (translate.read_object(answer.body) or {}).get("roles")
        known = [str(role)[:MAX_SITE] for role in roles[:MAX_LIST]] if isinstance(roles, list) else []
        named = ", ".join(sorted(sites)[:MAX_LIST])
        return [
            ok(
                f"Logged in as {here.user or 'a user that VCDA does not name'} at {named or 'VCDA'}"
                f"{await self._release()}; roles {', '.join(known) or 'unknown'}."
            )
        ]

    async def _release(self) -> str:
        answer = await self._get("/diagnostics/about")
        build = (translate.read_object(answer.body) or {}).get("buildVersion") if isinstance(answer, Answer) else None
        return f", version {build}" if isinstance(build, str) else ""

    async def _extension(self, site: _Site, credentials: SiteCredentials) -> Sequence[Verdict]:
        answer = await self._wire.call(
            "extend",
            method="POST",
            target="/sessions/extend",
            token=self._token,
            content=json.dumps(credentials.extend_body()).encode(),
            secrets=credentials.secrets,
        )
        if isinstance(answer, Answer) and answer.is_good:
            return [ok(f"The session is extended to {site.name} as {credentials.account}.")]
        secret = "TOKEN" if credentials.token is not None else "PASSWORD"
        error = translate.read_api_error(answer.body) if isinstance(answer, Answer) else None
        match error.code if error else None:
            case "SiteNotFound":
                cure = f"check {site.setting}NAME; it has to be spelled as VCDA's list of sites has it"
            case "RemoteAuthenticationFailure" | "NotAuthenticated":
                cure = f"check {site.setting}USER and {site.setting}{secret}"
            case "BadUserInput" | "BadRequest":
                cure = f"check {site.setting}NAME; the local site needs no entry in VM_SYNC_VCDA__SITES"
            case _:
                cure = f"look at the pairing with the site, and check {site.setting}NAME"
        text = f"The session can't be extended to {site.name}, {_said(answer)}: {cure}."
        return [failure(text, answered=_is_answer(answer))]

    async def _clocks(self) -> Sequence[Verdict]:
        offset = self._wire.offset()
        if offset is None:
            return [
                warning(
                    "VCDA's answers have no Date, so that its clock can't be compared: let what stands between this "
                    "service and VCDA pass the header on."
                )
            ]
        return [clocks("VCDA's", offset)]

    # ------------------------------------------------------------ tasks, as they are relied on

    async def _tasks(self, site: _Site) -> Sequence[Verdict]:
        total, site.sample = await self._page(site, LIST)
        self._listed_at = self._clock.monotonic()
        if not site.sample:
            site.kind = ""
            _, site.sample = await self._page(site, f"limit={translate.BATCH}")
        return [ok(f"Tasks of syncs that can be seen: {total}." if total else "No sync has a task yet.")]

    async def _order(self, site: _Site) -> Sequence[Verdict]:
        if any(earlier < later for earlier, later in pairwise(_starts(site.sample))):
            return unlike(f"VCDA ignores sort={NEWEST_FIRST}: the newest task is not the first.")
        if len(site.sample) > translate.BATCH:
            return unlike(f"VCDA ignores limit={translate.BATCH}: it lists {len(site.sample)} tasks at once.")
        return [ok("Tasks are listed in pages, the newest first." if site.sample else NOTHING)]

    async def _task_ids(self, site: _Site) -> Sequence[Verdict]:
        nobody = str(uuid.uuid4())
        total, found = await self._page(site, f"ids={nobody}")
        if found or total:
            return unlike(f"VCDA ignores the filter ids: asked for a task that does not exist, it lists {total} tasks.")
        known = site.sample[0]["id"] if site.sample else None
        if known is not None:
            _, found = await self._page(site, f"ids={known},{nobody}")
            if [task["id"] for task in found] != [known]:
                return unlike(f"Asked for task {known} and one that does not exist, VCDA lists {len(found)} tasks.")
        answer = await self._get(f"/tasks/{nobody}{_site('?', site)}")
        if not isinstance(answer, Answer) or answer.status != 404 or translate.read_api_error(answer.body) is None:  # noqa: PLR2004
            said = _said(answer)
            return [
                warning(
                    f"For a task that does not exist VCDA should answer 404 with an error of its own; {said}. A task "
                    "that VCDA loses would be waited for until its request's deadline (VM_SYNC_SYNC__DEADLINE)."
                )
            ]
        return [ok("Tasks are found by their ids, and unknown ids are left out.")]

    async def _caches(self, site: _Site) -> Sequence[Verdict]:
        """Ask for what was asked for before, once an answer out of a cache would be old enough to show it."""
        await asyncio.sleep(max(0.0, self._listed_at + self._aged - self._clock.monotonic()))
        await self._page(site, LIST)
        return [ok("No cache answers for VCDA.")]

    async def _paging(self, site: _Site) -> Sequence[Verdict]:
        starts = _starts(site.sample)
        if len(starts) < 2:  # noqa: PLR2004 - two pages of one
            return [ok("Not compared: there are fewer than two tasks so far.")]
        # Only those that exist by now: a task that begins meanwhile would move the others.
        bounded = f"{site.kind}startTimeBefore={max(starts) + 1}&limit=1"
        total, first = await self._page(site, bounded)
        _, second = await self._page(site, f"{bounded}&offset=1")
        if [len(first), len(second)] != [1, 1] or first[0]["id"] == second[0]["id"] or total <= 1:
            return unlike(
                f"VCDA ignores limit or offset: two pages of one task each show {len(first)} and {len(second)} tasks."
            )
        return [ok("Pages follow one another without gaps, and name the number of all tasks.")]

    async def _filters(self, site: _Site) -> Sequence[Verdict]:
        strangers = [task for task in site.sample if site.kind and _workflow(task, "type") not in {"sync", None}]
        if strangers:
            return unlike(f"VCDA ignores the filter type=sync: task {strangers[0]['id']} is none of a sync.")
        known = [task for task in site.sample if translate.ID.fullmatch(_resource(task)) and _starts([task])]
        if not known:
            return [ok(NOTHING)]
        oldest = known[-1]
        resource, starts = _resource(oldest), _starts(known)
        then = starts[-1]
        _, found = await self._page(site, f"resourceId={resource}&startTimeAfter={then - 1}&startTimeBefore={then + 1}")
        if oldest["id"] not in [task["id"] for task in found]:
            return unlike(f"Task {oldest['id']} is not found by its replication and its start.")
        _, found = await self._page(site, f"resourceId={resource}")
        if others := {_resource(task) for task in found} - {resource}:
            return unlike(f"VCDA ignores the filter resourceId: asked for {resource}, it lists tasks of {min(others)}.")
        for name, moment, holds in (("After", max(starts), int.__gt__), ("Before", min(starts), int.__lt__)):
            _, found = await self._page(site, f"startTime{name}={moment}")
            if not all(holds(start, moment) for start in _starts(found)):
                return unlike(f"VCDA ignores the filter startTime{name}.")
        return [ok("Tasks are found by their replication and by their start.")]

    async def _users(self, site: _Site) -> Sequence[Verdict]:
        users = sorted({user for task in site.sample if isinstance(user := task.get("user"), str) and user})
        if site.user is None or not users:
            return [ok(NOTHING)]
        if site.user in users:
            return [ok(f"Tasks name the service's user as its session does: {site.user}.")]
        return [
            ok(
                f"No task names {site.user}; tasks name {', '.join(users[:3])}. Which of them is the service's user, "
                "if any, the service learns from the answer to its first request."
            )
        ]

    async def _page(self, site: _Site, query: str) -> tuple[int, list[dict[str, Any]]]:
        """Ask for tasks, the newest first; return how many there are, and those of the page."""
        answer = await self._get(f"/tasks?{query}&sort={NEWEST_FIRST}{_site('&', site)}")
        if isinstance(answer, Answer) and age_of(answer.headers) is not None:
            msg = "A cache between this service and VCDA answers for it: exclude /tasks from the cache."
            raise _Unexpected(msg)
        if not isinstance(answer, Answer) or not answer.is_good:
            where = "VCDA" if site.name is None else f"VCDA's connection to {site.name}"
            cure = f"look at {where}"
            if isinstance(answer, Answer) and answer.status in {401, 403}:
                cure = f"check whether {site.setting}USER may see tasks"
            elif isinstance(answer, NoAnswer) and answer.label == "timeout":
                cure += ", or raise VM_SYNC_VCDA__REQUEST_TIMEOUT"
            msg = f"The tasks can't be listed, {_said(answer)}: {cure}."
            raise _Unexpected(msg, answered=_is_answer(answer))
        page = translate.read_page(answer.body)
        value = translate.read_object(answer.body) or {}
        items = value.get("items")
        if page is None or not isinstance(items, list):
            msg = (
                "The list of tasks can't be understood, since it has no items with ids, or no total: look for a proxy "
                "that changes answers between the service and VM_SYNC_VCDA__URL, or don't use this version of VCDA."
            )
            raise _Unexpected(msg)
        return page.total, items

    async def _get(self, target: str) -> Answer | NoAnswer:
        return await self._wire.call("find", method="GET", target=target, token=self._token, limit=LARGE)


NOTHING: Final = "Not compared: VCDA has no task yet that would show it."


def unlike(what: str) -> Sequence[Verdict]:
    """Return that VCDA behaves differently from what the service expects."""
    return [
        failure(
            f"{what} The service depends on it: look for a proxy that changes requests between the service and "
            "VM_SYNC_VCDA__URL, or don't use this version of VCDA."
        )
    ]


def _site(mark: Literal["?", "&"], site: _Site) -> str:
    return "" if site.name is None else f"{mark}{site_parameter(site.name)}"


def _workflow(task: dict[str, Any], name: str) -> object:
    info = task.get("workflowInfo")
    return info.get(name) if isinstance(info, dict) else None


def _resource(task: dict[str, Any]) -> str:
    name = _workflow(task, "resourceId")
    return name if isinstance(name, str) else ""


def _starts(tasks: Sequence[dict[str, Any]]) -> list[int]:
    return [start for task in tasks if isinstance(start := task.get("startTime"), int)]


def _is_answer(answer: Answer | NoAnswer) -> bool:
    """Whether VCDA has said something that will be the same later."""
    return isinstance(answer, Answer) and answer.status not in {429, 502, 503, 504}


def _said(answer: Answer | NoAnswer) -> str:
    """Return VCDA's answer for a sentence, in its own words where it has some."""
    if isinstance(answer, NoAnswer):
        detail = answer.detail.rstrip(".")
        return detail.replace("No complete", "no complete", 1)
    error = translate.read_api_error(answer.body, clean=answer.clean)
    return f"VCDA answered with {answer.status}" + (f" ({error.msg or error.code})".replace(".)", ")") if error else "")


def _login_refused(answer: Answer, credentials: Credentials, url: str) -> str:
    settings = "VM_SYNC_VCDA__CREDENTIALS__"
    understood = translate.read_api_error(answer.body) is not None
    token = credentials.type is CredentialType.VCD_ACCESS_TOKEN
    secrets = f"{settings}TOKEN and {settings}ORG" if token else f"{settings}USER and {settings}PASSWORD"
    match answer.status:
        case 401 | 403:
            who = "the token" if token else credentials.user
            return f"The login of {who} is refused, {_said(answer)}: check {secrets}, and {settings}TYPE."
        case 400 if understood:
            return f"The login is not understood, {_said(answer)}: check {settings}TYPE, and {secrets}."
        case 429 | 502 | 503 | 504:
            return f"VCDA takes no logins at present, {_said(answer)}: look at the appliance, and VM_SYNC_VCDA__URL."
        case _:
            return f"This is not VCDA's API, {_said(answer)} to a login at {url}: check VM_SYNC_VCDA__URL."
