"""One login, shared by all calls of the process, and extended to remote sites.

If many calls find that the session has ended, one login follows (single flight); the same holds for the extension to
each site. A failed login is not repeated at once: wrong credentials must neither keep the account locked nor flood
VCDA. Between attempts, calls fail with the last trouble, without being sent. New credentials end the pause. Each
success is announced (`established`), so that what has paused for want of a session goes on.

Three kinds of 401 are distinguished:

    "Authentication Token Required"         the session is gone: log in
    "NotAuthenticated", or no remote site   the token is known but not good enough (the session's own login at Cloud
                                            Director has died, say): log in
    any other from a remote site            its extension is gone: extend again; should that not help, log in

A 401 that survives that is a failed login too: the next attempt waits, but the calls themselves go on, since with a
half-dead session some of them still work.

Secrets leave this module only to VCDA.
"""

import asyncio
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from typing import Final, Literal, Protocol, TypeAlias

from service.backoff import Backoff
from service.clock import Clock
from service.sync import MAX_LIST, Account, Trouble
from service.vcda import translate
from service.vcda.credentials import Credentials
from service.vcda.http import Answer, NoAnswer, Wire, redirection, session_token, status_label
from service.vcda.http_dates import retry_after

logger = logging.getLogger("service.vcda")

RENEW_AFTER: Final = timedelta(hours=23).total_seconds()
"""The age at which a session is replaced in the background: VCDA ends every session after 24 h."""

BACKOFF: Final = Backoff(first=timedelta(seconds=1), longest=timedelta(minutes=1))
"""Pauses between attempts to log in."""
REFUSED: Final = Backoff(first=timedelta(seconds=90), longest=timedelta(minutes=4))
"""Pauses between attempts that VCDA refuses, since they lock accounts: by default, vCenter Single Sign-On locks one for
5 minutes after 5 wrong passwords within 3; Cloud Director after as many as its administrator sets."""
REFUSED_QUICKLY: Final = 2
"""Pauses after refusals that are as short as others: a refusal may pass as well."""
SETTLED: Final = 2 * BACKOFF.longest.total_seconds()
"""Seconds without another failure after a pause, after which the next failure begins with a short pause again."""
REFUSALS: Final = frozenset({400, 401, 403})
"""Statuses of answers to a login, or an extension, that refuse its credentials."""
_SOONER: Final = ", or once the credentials change"
LOOK_EVERY: Final = 1.0
"""Seconds between two looks for new credentials during a pause: they may be files."""

LOGOUT_LIMIT: Final = timedelta(seconds=5)
"""A session that isn't logged out idles out after half an hour."""


URL_HINT: Final = "that VM_SYNC_VCDA__URL is the address of VMware Cloud Director Availability"

VERSION: Final = re.compile(r"vnd\.vmware\.h4-v([0-9.]+)\+json")


class Meter(Protocol):
    """The metrics of logins."""

    def login(self, result: str) -> None: ...  # noqa: D102
    def session_open(self, value: bool) -> None: ...  # noqa: D102, FBT001 - as the gauge it sets
    def site_authenticated(self, site: str) -> None: ...  # noqa: D102


@dataclass(slots=True, eq=False)
class Extension:
    """The extension of a session to a site. Object identity distinguishes a 401 of an earlier extension."""

    account: str
    disappointed: bool = False
    """Calls were answered with 401 although it was fresh."""


@dataclass(slots=True, eq=False)
class Login:
    """One session. `local` are the sites that the login itself authenticated; `born` is monotonic."""

    token: str = field(repr=False)
    user: str | None
    local: frozenset[str]
    born: float
    extensions: dict[str, Extension] = field(default_factory=dict)
    disappointed: bool = False
    """Calls were answered with 401 although it was fresh."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """The session and extension that a call is sent with."""

    login: Login
    extension: Extension | None

    @property
    def account(self) -> Account | None:
        """The account of the call; None: unknown."""
        return _account(self.login.user, None if self.extension is None else self.extension.account)


@dataclass(frozen=True, slots=True)
class NoCredentials:
    """The site is neither authenticated by the login nor configured."""


Admission: TypeAlias = Ticket | Trouble | NoCredentials


class Session:
    """The current session at VCDA. `credentials` is called at each login, since passwords may change.

    It may raise OSError or ValueError, which counts as a failed login. `established` is called with None after each
    login, and with a site after each extension to it.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        credentials: Callable[[], Credentials],
        clock: Clock,
        meter: Meter,
        established: Callable[[str | None], None],
        logout_limit: timedelta = LOGOUT_LIMIT,
    ) -> None:
        self._wire = wire
        self._established = established
        self._logout_limit = logout_limit.total_seconds()
        self._read_credentials = credentials
        self._clock = clock
        self._meter = meter

        self._login: Login | None = None
        self._latest: Login | None = None
        """The last session, even if it has ended."""
        self._known: Credentials | None = None
        """As they were read last."""
        self._looked_at = clock.monotonic() - LOOK_EVERY

        self.api_version: str | None = None
        """As VCDA told with its last answer to a login."""

        self._flight: asyncio.Task[Login | Trouble] | None = None
        self._flights: dict[tuple[Login, str], asyncio.Task[Extension | Trouble]] = {}
        self._pause = _Pause()
        self._site_pauses: defaultdict[str, _Pause] = defaultdict(_Pause)

    def account(self, site: str | None) -> Account | None:
        """Return the current or last account at this site; None before the first login, or without credentials.

        If the session isn't extended to the site yet, it is the account of the future extension.
        """
        login = self._latest
        if login is None or site is None or site in login.local:
            return None if login is None else _account(login.user, None)
        extension = login.extensions.get(site)
        if extension is not None:
            return _account(login.user, extension.account)
        of_site = None if self._known is None else self._known.of_site(site)
        return None if of_site is None else _account(login.user, of_site.account)

    @property
    def login(self) -> Login | None:
        """Return the session that calls are made with now, if there is one."""
        return self._login

    def may_call(self, site: str) -> bool:
        """Whether calls to a site can be made: the login authenticated it, or there are credentials for it."""
        login = self._login
        return (login is not None and site in login.local) or self._has_credentials(site)

    async def admit(self, site: str | None, *, again: bool = False) -> Admission:
        """Return the ticket for a call to the site; logs in and extends the session if necessary."""
        login = await self._current()
        if isinstance(login, Trouble):
            return login
        if site is None or site in login.local:
            return Ticket(login, None)
        extension = login.extensions.get(site)
        if extension is not None:
            return Ticket(login, extension)
        if not self._has_credentials(site):
            return NoCredentials()
        extended = await self._extended(login, site)
        if isinstance(extended, Extension):
            return Ticket(login, extended)
        if self._login is login:
            return extended
        # The session turned out to be gone, or was replaced meanwhile. Once more, with the new one.
        if again:
            return self.refused_again(Ticket(login, None), site=None, trouble=extended)
        return await self.admit(site, again=True)

    async def readmit(self, refused: Ticket, *, site: str | None, answer: Answer) -> Ticket | Trouble:
        """Handle a 401: return the ticket to repeat the call with, once, or the trouble if there is none."""
        login, extension = refused.login, refused.extension
        if site is not None and extension is not None and self._paused(self._site_pauses[site]):
            return unauthorized(answer)
        if site is not None and extension is not None and not (_is_about_the_login(answer) or extension.disappointed):
            if login.extensions.get(site) is extension:
                del login.extensions[site]
        elif self._login is login:
            if _is_gone(answer):
                self._have(None)  # no other call needs to try this token
            if self._paused(self._pause):
                return unauthorized(answer)
            renewed = await self._log_in_once()
            if isinstance(renewed, Trouble):
                return renewed
        admission = await self.admit(site)
        return unauthorized(answer) if isinstance(admission, NoCredentials) else admission

    def refused_again(self, ticket: Ticket, *, site: str | None, trouble: Trouble) -> Trouble:
        """Handle a 401 right after a new login or extension. Returns the trouble.

        One that was replaced while VCDA's answer was on its way is no reason to pause: the 401 says nothing of the new.
        """
        fresh = ticket.extension or ticket.login
        if not (fresh.disappointed or self._is_replaced(ticket, site)):
            fresh.disappointed = True  # of many calls at once, only the first one is logged
            pause = self._pause if ticket.extension is None or site is None else self._site_pauses[site]
            seconds = pause.begin(self._clock.monotonic(), trouble, credentials=self._known)
            self._meter.login("refused")
            logger.warning(
                "VCDA answered with 401 right after a successful login or extension; next attempt in %g s: check the "
                "account's rights, and that a load balancer sends all calls to the appliance that has the session",
                seconds,
                extra={"site": site, "account": ticket.login.user},
            )
        return trouble

    def _is_replaced(self, ticket: Ticket, site: str | None) -> bool:
        """Whether there is another session by now, or another extension; not where there is none at the moment."""
        login = ticket.login
        if self._login is not login:
            return self._login is not None
        extension = None if site is None else login.extensions.get(site)
        return None not in {extension, ticket.extension} and extension is not ticket.extension

    async def unusable(self) -> list[str]:
        """Log in, and extend the session to each configured site, where that is due; return what doesn't work, and why.

        Between attempts that fail, nothing is called: see the module.
        """
        login = await self._current()
        if isinstance(login, Trouble):
            return [f"no session at VCDA: {login.detail}"]
        names = [] if self._known is None else [site.name for site in self._known.sites]
        remote = [name for name in names if name not in login.local]
        admissions = await asyncio.gather(*[self.admit(name) for name in remote])
        return [
            f"the session at VCDA is not extended to site {name}: {admission.detail}"
            for name, admission in zip(remote, admissions, strict=True)
            if isinstance(admission, Trouble)
        ]

    async def close(self) -> None:
        """Log out, within a short time limit."""
        flights = [flight for flight in (self._flight, *self._flights.values()) if flight is not None]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        login = self._login
        self._have(None)
        if login is not None:
            await self._log_out(login.token)

    # ------------------------------------------------------------ logging in

    async def _current(self) -> Login | Trouble:
        login = self._login
        if login is None:
            if self._paused(self._pause):
                return self._pause.trouble
            return await self._log_in_once()
        age = self._clock.monotonic() - login.born
        if age >= RENEW_AFTER and self._flight is None and not self._paused(self._pause):
            # The old token serves until the new one is there, and then idles out: calls may still be using it.
            _ = self._take_off()
        return login

    async def _log_in_once(self) -> Login | Trouble:
        # All calls share the flight: a cancelled caller must not cancel it.
        return await asyncio.shield(self._flight or self._take_off())

    def _take_off(self) -> "asyncio.Task[Login | Trouble]":
        self._flight = flight = asyncio.create_task(self._log_in())
        flight.add_done_callback(self._landed)
        return flight

    def _landed(self, _: "asyncio.Task[Login | Trouble]") -> None:
        self._flight = None

    async def _log_in(self) -> Login | Trouble:
        """Log in. A bug is a failed login: raised, it would end the partition of each POST that waits for the login."""
        try:
            return await self._try_to_log_in()
        except Exception as error:  # noqa: BLE001 - see above
            return self._login_failed("error", _internal_error("The login", error), credentials=self._known)

    async def _try_to_log_in(self) -> Login | Trouble:
        credentials = self._read()
        if isinstance(credentials, Trouble):
            return self._login_failed("error", credentials, credentials=self._known)
        answer = await self._wire.call(
            "login",
            method="POST",
            target="/sessions",
            content=json.dumps(credentials.login_body()).encode(),
            secrets=credentials.secrets,
        )
        token = session_token(answer.headers)
        login = self._logged_in(credentials, answer, token)
        if isinstance(login, Trouble) and token is not None:
            # Nothing will be called with it. Of an answer that was lost whole, nobody knows the token.
            await self._log_out(token)
        return login

    def _logged_in(self, credentials: Credentials, answer: Answer | NoAnswer, token: str | None) -> Login | Trouble:
        """Read the answer to a login, and take the session, if it can be used."""
        now = self._clock.monotonic()
        if isinstance(answer, NoAnswer):
            trouble = Trouble(label=answer.label, detail=f"Login: {answer.detail}")
            return self._login_failed("error", trouble, credentials=credentials)
        self._note_version(answer)
        if not answer.is_good or token is None:
            refused = answer.status in REFUSALS
            hint = credentials.settings if refused else URL_HINT
            trouble = self._failure("Login", answer, hint=hint)
            return self._login_failed("refused" if refused else "error", trouble, credentials=credentials)
        session = translate.read_session(answer.body)
        if session is None:
            # Without the names of its sites, the local site would pass for a remote one for as long as the session
            # lasts: its requests would be rejected for want of credentials.
            detail = f"Login answered with {answer.status}: the body is no JSON object; check {URL_HINT}"
            trouble = Trouble(label="unreadable", detail=detail)
            return self._login_failed("error", trouble, credentials=credentials)
        user, local = session
        login = Login(token, user or credentials.user, local, now)
        self._have(login)
        self._latest = login
        self._meter.login("ok")
        for site in sorted(local):
            self._meter.site_authenticated(site)
        account = login.user
        logger.info("Logged in to VCDA as %s", account, extra={"account": account, "sites": sorted(local)[:MAX_LIST]})
        if not local:
            logger.warning(
                "VCDA's answer to the login names no site: requests that name the local site are rejected, unless "
                "VM_SYNC_VCDA__SITES has it"
            )
        self._established(None)
        return login

    async def _log_out(self, token: str) -> None:
        """End a session at VCDA, within a short time limit; whether that succeeds changes nothing here."""
        try:
            async with asyncio.timeout(self._logout_limit):
                answer = await self._wire.call("logout", method="DELETE", target="/sessions", token=token)
        except TimeoutError:
            logger.info("The logout timed out; the session at VCDA ends by its idle timeout")
            return
        if isinstance(answer, NoAnswer):
            logger.info("The logout failed; the session at VCDA ends by its idle timeout: %s", answer.detail)

    def _have(self, login: Login | None) -> None:
        self._login = login
        self._meter.session_open(login is not None)

    def _note_version(self, answer: Answer) -> None:
        """Note the version of the API, which some versions of VCDA name as part of the content type."""
        found = VERSION.search(answer.headers.get("content-type", ""))
        self.api_version = found[1] if found else None

    def _login_failed(
        self, result: Literal["refused", "error"], trouble: Trouble, *, credentials: Credentials | None
    ) -> Trouble:
        trouble, refused = replace(trouble, no_session=True), result == "refused"
        seconds = self._pause.begin(self._clock.monotonic(), trouble, credentials=credentials, refused=refused)
        self._meter.login(result)
        sooner = _SOONER if refused else ""
        logger.warning("The login to VCDA failed; next attempt in %g s%s: %s", seconds, sooner, trouble.detail)
        return trouble

    # ------------------------------------------------------------ extending

    async def _extended(self, login: Login, site: str) -> Extension | Trouble:
        pause = self._site_pauses[site]
        if self._paused(pause):
            return pause.trouble
        flight = self._flights.get((login, site))
        if flight is None:
            flight = self._flights[login, site] = asyncio.create_task(self._extend(login, site))
            flight.add_done_callback(lambda _: self._flights.pop((login, site)))
        return await asyncio.shield(flight)

    async def _extend(self, login: Login, site: str) -> Extension | Trouble:
        """Extend the session; a bug is a failed extension, likewise."""
        try:
            return await self._try_to_extend(login, site)
        except Exception as error:  # noqa: BLE001 - see above
            trouble = _internal_error(f"The extension to site {site}", error)
            return self._extension_failed(site, trouble, credentials=self._known)

    async def _try_to_extend(self, login: Login, site: str) -> Extension | Trouble:
        credentials = self._read()
        if isinstance(credentials, Trouble):
            return self._extension_failed(site, credentials, credentials=self._known)
        of_site = credentials.of_site(site)
        if of_site is None:
            trouble = Trouble(label="error", detail="The credentials of this site are no longer configured.")
            return self._extension_failed(site, trouble, credentials=credentials)
        answer = await self._wire.call(
            "extend",
            method="POST",
            target="/sessions/extend",
            site=site,
            token=login.token,
            content=json.dumps(of_site.extend_body()).encode(),
            secrets=of_site.secrets,
        )
        if isinstance(answer, NoAnswer):
            detail = f"Extension to site {site}: {answer.detail}"
            return self._extension_failed(site, Trouble(label=answer.label, detail=detail), credentials=credentials)
        if answer.is_good:
            login.extensions[site] = Extension(of_site.account)
            logger.info("Extended the session to site %s", site, extra={"site": site})
            self._established(site)
            return login.extensions[site]
        trouble = self._failure(
            f"Extension to site {site}", answer, hint=f"the credentials of site {site} in VM_SYNC_VCDA__SITES"
        )
        if _is_about_the_login(answer):  # it says nothing of the site, also where another login has replaced this one
            if self._login is login:
                self._have(None)
            return replace(trouble, no_session=True)
        return self._extension_failed(site, trouble, credentials=credentials, refused=answer.status in REFUSALS)

    def _extension_failed(
        self, site: str, trouble: Trouble, *, credentials: Credentials | None, refused: bool = False
    ) -> Trouble:
        trouble, pause = replace(trouble, no_session=True), self._site_pauses[site]
        seconds = pause.begin(self._clock.monotonic(), trouble, credentials=credentials, refused=refused)
        logger.warning(
            "Extending the session to site %s failed; next attempt in %g s%s: %s",
            site,
            seconds,
            _SOONER if refused else "",
            trouble.detail,
            extra={"site": site},
        )
        return trouble

    # ------------------------------------------------------------ pausing

    def _paused(self, pause: "_Pause") -> bool:
        """Whether a pause lasts. It ends early where the credentials are others than those that failed."""
        if not pause.left(self._clock.monotonic()):
            return False
        self._look()
        if self._known == pause.credentials:
            return True
        logger.info("The credentials for VCDA have changed; trying the new ones")
        pause.end()
        return False

    def _has_credentials(self, site: str) -> bool:
        """Whether there are credentials for a remote site; looks for new ones now and then."""
        if self._known is None or self._known.of_site(site) is not None:
            return True
        self._look()
        if self._known.of_site(site) is None:
            return False
        logger.info("Credentials for site %s are configured now", site, extra={"site": site})
        return True

    def _look(self) -> None:
        """Read the credentials again, if it is time: they may be files."""
        now = self._clock.monotonic()
        if now - self._looked_at >= LOOK_EVERY:
            self._looked_at = now
            self._read()

    def _read(self) -> Credentials | Trouble:
        try:
            self._known = self._read_credentials()
        except (OSError, ValueError) as error:
            # The text may quote what it couldn't read.
            return Trouble(label="error", detail=f"The credentials can't be read ({type(error).__name__}).")
        return self._known

    def _failure(self, what: str, answer: Answer, *, hint: str) -> Trouble:
        """Return the trouble of an answer; `hint` names what to check where the answer is no overload or outage."""
        error = translate.read_api_error(answer.body, clean=answer.clean)
        said = error.msg or error.code if error else f"no reason given{redirection(answer.headers)}"
        said = "no token" if answer.is_good else said
        check = f"; check {hint}" if answer.status < 429 else ""  # noqa: PLR2004 - 429 and 5xx pass by themselves
        return Trouble(
            label=status_label(answer.status),
            detail=f"{what} answered with {answer.status}: {said.rstrip('.')}{check}",
            http_status=answer.status,
            error=error,
            retry_after=retry_after(
                answer.headers.get("retry-after"), date=answer.headers.get("date"), now=self._clock.now()
            ),
        )


class _Pause:
    """A pause between failing attempts that doubles."""

    def __init__(self) -> None:
        self.trouble = Trouble(label="error", detail="Nothing has failed yet.")
        self.credentials: Credentials | None = None
        """Those that failed, or that were known when none could be read; None: none ever was."""
        self._failures = self._refusals = 0
        self._until = float("-inf")

    def begin(self, now: float, trouble: Trouble, *, credentials: Credentials | None, refused: bool = False) -> float:
        """Count a failure; return the seconds of the pause. `refused`: VCDA refuses the credentials."""
        if now - self._until >= SETTLED:
            self._failures = self._refusals = 0
        self.trouble, self.credentials = trouble, credentials
        if refused and self._refusals >= REFUSED_QUICKLY:
            seconds = REFUSED.pause(self._refusals - REFUSED_QUICKLY)
        else:
            seconds = BACKOFF.pause(self._refusals if refused else self._failures)
        if trouble.retry_after is not None:
            seconds = max(seconds, trouble.retry_after.total_seconds())
        self._refusals += refused
        self._failures += not refused
        self._until = now + seconds
        return seconds

    def end(self) -> None:
        """End it; the next failure begins with a short pause again."""
        self._failures = self._refusals = 0
        self._until = float("-inf")

    def left(self, now: float) -> bool:
        """Whether it still lasts."""
        return now < self._until


def unauthorized(answer: Answer) -> Trouble:
    """Return what a 401 is to the calls: trouble of the lane."""
    error = translate.read_api_error(answer.body, clean=answer.clean)
    said = f": {error.msg or error.code}" if error else ""
    return Trouble(label="401", detail=f"VCDA answered with 401{said}", http_status=401, error=error, no_session=True)


def _is_gone(answer: Answer) -> bool:
    """Whether VCDA doesn't know the session's token, as VCDA's own client decides it."""
    return answer.status == 401 and "token required" in answer.headers.get("www-authenticate", "").lower()  # noqa: PLR2004


def _is_about_the_login(answer: Answer) -> bool:
    """Whether a 401 is about the session itself; a site's own word is "RemoteAuthenticationFailure"."""
    error = translate.read_api_error(answer.body)
    return _is_gone(answer) or (answer.status == 401 and error is not None and error.code == "NotAuthenticated")  # noqa: PLR2004


def _internal_error(what: str, error: Exception) -> Trouble:
    """Log a bug, and return it as trouble."""
    logger.error("Internal error in a login to VCDA or its extension to a site", exc_info=error)
    return Trouble(label="error", detail=f"{what} ended with an internal error ({type(error).__name__}); see the log")


@lru_cache(maxsize=64)
def _account(user: str | None, at_site: str | None) -> Account | None:
    return None if user is None else Account(user, at_site)
