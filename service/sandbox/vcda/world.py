"""The state of a simulated VCDA: users, sessions, replications, tasks, and statistics of its requests.

Written from the vendor's documentation, independently of our client, so that the two can disagree. It knows no HTTP
and starts nothing in the background: a task's state is computed from the time at which somebody looks, so a hundred
thousand running tasks cost nothing. It never forgives: what the documentation doesn't allow is an `ApiError`.
"""

import base64
import bisect
import heapq
import math
import random
import re
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

Millis: TypeAlias = int
"""Milliseconds since 1970, as VCDA writes every moment; -1 where there is none."""

TEXTS_KEPT = 1000
"""How many refused requests are remembered in words; all of them are counted."""


class ApiError(Exception):
    """A refusal in VCDA's own shape: `{code, msg, args, stacktrace}` under an HTTP status."""

    def __init__(
        self, status: int, code: str, msg: str, *, words: tuple[str, ...] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {msg}")
        self.status = status
        self.code = code
        self.msg = msg
        self.words = words
        self.headers = headers or {}


def bad_input(msg: str, *words: str) -> ApiError:
    """Make the refusal of a request that a correct client never sends."""
    return ApiError(400, "BadUserInput", msg, words=words)


def not_authenticated(*, session_gone: bool) -> ApiError:
    """Make a 401; its header alone tells a missing session from a failed login."""
    headers = {"WWW-Authenticate": "Authentication Token Required"} if session_gone else {}
    return ApiError(401, "NotAuthenticated", "Authentication required.", headers=headers)


def remote_authentication_failure(site: str) -> ApiError:
    """Make the 401 of a site to which the session isn't extended, or not with these credentials."""
    return ApiError(401, "RemoteAuthenticationFailure", f"Authentication at site {site} required.", words=(site,))


# ---------------------------------------------------------------- what it is made of

Distribution: TypeAlias = Literal["fixed", "uniform", "lognormal", "lognormal-mean"]
Resource: TypeAlias = Literal["as asked", "null", "lower", "upper"]


@dataclass(frozen=True, slots=True)
class Durations:
    """Where durations come from, in seconds. `first`, `second`: the value; lowest, highest; median or mean, sigma."""

    kind: Distribution
    first: float
    second: float = 0.0

    @classmethod
    def of(cls, text: "str | float | Durations") -> "Durations":
        """Read `5`, `fixed:5`, `uniform:1:5`, `lognormal:90:0.8` (median, sigma) or `lognormal-mean:90:0.8`."""
        if isinstance(text, Durations):
            return text
        kind, *numbers = str(text).split(":") if ":" in str(text) else ("fixed", str(text))
        if kind not in get_args(Distribution) or len(numbers) != (1 if kind == "fixed" else 2):
            msg = f"not a distribution of durations: {text}"
            raise ValueError(msg)
        return cls(kind, *map(float, numbers))  # type: ignore[arg-type]  # checked just above

    def draw(self, rng: random.Random) -> float:
        """Draw one."""
        match self.kind:
            case "fixed":
                return self.first
            case "uniform":
                return rng.uniform(self.first, self.second)
            case "lognormal":
                return rng.lognormvariate(math.log(self.first), self.second)
            case "lognormal-mean":
                return rng.lognormvariate(math.log(self.first) - self.second**2 / 2, self.second)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who may log in. Users of one `account` see each other's tasks; `spelled` is how tasks name them."""

    name: str
    password: str
    org: str = "System"
    administrator: bool = False
    token: str | None = None
    """What is accepted as vcdCookie, vcdAccessToken or samlToken."""
    account: str | None = None
    spelled: str | None = None
    on_tasks: str | None = None
    """How tasks name the user where sessions don't: `{org}@{site}`, as the documentation's examples do, or any text."""

    @property
    def kind(self) -> Literal["local", "sso", "vcd"]:
        """Which of the login types takes this user."""
        if "@" not in self.name:
            return "local"
        return "sso" if self.name.endswith("@vsphere.local") else "vcd"

    @property
    def owner(self) -> str:
        """Whose tasks this user's tasks are."""
        return self.account or self.name

    @property
    def roles(self) -> list[str]:
        """Roles as real appliances list them."""
        return ["EVERYONE", "ADMINISTRATORS", "VRADMINISTRATORS"] if self.administrator else ["EVERYONE"]


PASSWORD = "password"  # noqa: S105  # the simulator's own, public

DEFAULT_USERS = (
    User(name="administrator@System", password=PASSWORD, administrator=True),
    User(name="admin1@org1", password=PASSWORD, org="org1", token="token-of-admin1-at-org1"),  # noqa: S106
    User(name="admin2@org2", password=PASSWORD, org="org2", token="token-of-admin2-at-org2"),  # noqa: S106
    User(name="root", password=PASSWORD, administrator=True),
    User(name="administrator@vsphere.local", password=PASSWORD, administrator=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a sync will go. Rates are probabilities."""

    queued: Durations = Durations("fixed", 0.1)
    duration: Durations = Durations("fixed", 2.0)
    """From RUNNING to the end."""
    failing: float = 0.0
    warned: float = 0.0
    word: str = "RUNNING"
    """The state shown while it runs; another word is one that no client knows."""
    failed: str = "FAILED"
    """The state of those that fail; another word is one that no client knows."""
    noise: int = 0
    """Progress wavers by so many percent, and then isn't monotonous."""
    code: str = "ReplicationSyncFailed"
    """The code of the error, should it fail."""
    no_user: bool = False
    """Its task doesn't say whose it is."""
    resource: Resource = "as asked"
    """How its task names the replication: not at all (null), or in another letter case."""
    listed_after: float = 0.0
    """Seconds from its creation until lists show its task, unless a POST is refused for it before. Asked for
    by its id, it is shown at once."""
    refuses: int | None = None
    """The status with which POSTs for the replication are refused while the sync runs; None: they are accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A simulated VCDA as it starts, and as `reset` leaves it. Durations in seconds."""

    local_site: str = "site1"
    remote_sites: tuple[str, ...] = ("site2", "site3")
    users: tuple[User, ...] = DEFAULT_USERS
    site_users: Mapping[str, tuple[User, ...]] = field(default_factory=dict)
    """Users of the sites whose users differ from `users`."""
    plan: Plan = Plan()
    idle_timeout: float = 1800.0
    max_age: float = 86400.0
    extension_max_age: float = math.inf
    """How long a session's authentication at a remote site lasts."""
    cloud_director_max_age: float = math.inf
    """How long a session can start operations; past it, it can still read tasks."""
    retention: float = math.inf
    """How long after its end a task can be seen."""
    replication_pattern: str = r"C4-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    """Replications exist as soon as they are asked for, if their id looks like this."""
    submit_latency: Durations | None = None
    extra_fields: bool = True
    """Show fields that no documentation mentions."""
    pause_grace: float = 0.25
    """A POST so soon after a Retry-After was told may have been on its way: no violation."""
    seed: int = 1


@dataclass(slots=True)
class Session:
    """A login. `sites` are the remote ones it was extended to, each with its user there and since when."""

    token: str
    user: User
    created: float
    used: float
    cloud_director_since: float
    sites: dict[str, tuple[User, float]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Task:
    """A sync, decided when it is created: state and progress follow from the time. Moments in true seconds."""

    id: str
    site: str
    replication_id: str
    operation_id: str | None
    type: str
    user: User
    created: float
    runs: float
    ends: float
    fails: bool
    plan: Plan
    sequence: int
    number: int
    clock_offset: float
    start_time: Millis
    overlapped: bool
    warnings: int = 0
    refused: bool = False
    """Whether a POST was refused because it runs."""
    forgotten_at: float | None = None
    """When VCDA lost it; None: it has not."""

    @property
    def forgotten(self) -> bool:
        """Whether VCDA has lost it."""
        return self.forgotten_at is not None

    def state(self, now: float) -> str:
        """Return the state as VCDA would show it."""
        if now >= self.ends:
            return self.plan.failed if self.fails else "SUCCEEDED"
        return self.plan.word if now >= self.runs else "QUEUED"

    def progress(self, now: float) -> int:
        """Return whole percents; those of a failed task are anywhere."""
        if now >= self.ends:
            return self.number * 37 % 100 if self.fails else 100
        if now < self.runs:
            return 0
        wavering = hash((self.number, int(now * 10))) % (2 * self.plan.noise + 1) - self.plan.noise
        return max(0, min(99, int(100 * (now - self.runs) / (self.ends - self.runs)) + wavering))

    def truth(self, now: float) -> dict[str, Any]:
        """Return all that a test may want to compare with, with nothing hidden."""
        return {
            "id": self.id,
            "replicationId": self.replication_id,
            "operationID": self.operation_id,
            "site": self.site,
            "user": self.user.name,
            "type": self.type,
            "start": self.created,
            "end": self.ends,
            "state": self.state(now),
            "overlapped": self.overlapped,
            "forgotten": self.forgotten,
            "forgottenAt": self.forgotten_at,
        }

    def moment(self, at: float) -> Millis:
        """Return a moment as the clock of the task's site would have written it."""
        return int((at + self.clock_offset) * 1000)

    @property
    def shown_user(self) -> str | None:
        """Return whose it is, as the task's site spells it."""
        if self.plan.no_user:
            return None
        user = self.user
        if user.on_tasks is not None:
            return user.on_tasks.replace("{org}", user.org).replace("{site}", self.site)
        return user.spelled or user.name

    @property
    def shown_resource(self) -> str | None:
        """Return the replication as the task names it."""
        match self.plan.resource:
            case "null":
                return None
            case "lower":
                return self.replication_id.lower()
            case "upper":
                return self.replication_id.upper()
            case _:
                return self.replication_id


@dataclass(slots=True)
class Replication:
    """A VM replication, at the one site where it lives."""

    id: str
    site: str
    number: int
    tasks: list[Task] = field(default_factory=list)
    busy_until: float = -math.inf
    sequence: int = 10


@dataclass(slots=True)
class Site:
    """One VCDA: its people, its tasks in the order of their start, and its traffic."""

    name: str
    users: dict[str, User]
    tasks: list[Task] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    """When each unfinished sync ends: a heap."""
    clock_offset: float = 0.0
    pauses: dict[str | None, tuple[float, float]] = field(default_factory=dict)
    """By session, since who was never told breaks nothing: when a Retry-After was told, and until when it holds."""


@dataclass(slots=True)
class Counts:
    """What was asked of it since the start, or since `reset`."""

    calls: Counter[str] = field(default_factory=Counter)
    """By operation, refused ones included; a request that is no documented operation is only in `refused`."""
    calls_by_site: Counter[str] = field(default_factory=Counter)
    """Likewise, as `submit site2`."""
    ids_polled: int = 0
    polled: dict[str, float] = field(default_factory=dict)
    """Every id that was ever polled for, and when it was for the first time."""
    last_first_poll: float = -math.inf
    tasks: int = 0
    refused_while_running: int = 0
    """POSTs refused because of a plan's `refuses`."""
    overlapping: int = 0
    """Syncs begun while another of the same replication was unfinished."""
    posts_while_paused: int = 0
    unauthorised: int = 0
    refused: int = 0
    refusals: deque[str] = field(default_factory=lambda: deque(maxlen=TEXTS_KEPT))
    faults: Counter[str] = field(default_factory=Counter)
    cached: int = 0
    """Answers that came from the cache in front."""
    most_posting: Counter[str] = field(default_factory=Counter)
    """The most POSTs being answered at once, by site."""
    most_running: Counter[str] = field(default_factory=Counter)
    most_sessions: int = 0
    requests: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    """Tasks by (replicationId, operationID): more than one is what must never happen."""


# ---------------------------------------------------------------- the world itself


class World:
    """One VCDA with its paired sites. Not thread-safe; `clock` gives seconds since 1970."""

    def __init__(self, config: Config, *, clock: Callable[[], float]) -> None:
        self.config = config
        self.now = clock
        self._replication_id = re.compile(config.replication_pattern)
        self.reset()

    def reset(self) -> None:
        """Forget everything but the configuration."""
        config = self.config
        self.rng = random.Random(config.seed)  # repeatable on purpose
        self.sites = {
            name: Site(name, {user.name: user for user in config.site_users.get(name, config.users)})
            for name in (config.local_site, *config.remote_sites)
        }
        self.sessions: dict[str, Session] = {}
        self.tasks: dict[str, Task] = {}
        self.replications: dict[str, Replication] = {}
        self.counts = Counts()
        self.default_plan = config.plan
        self.plans: dict[str, tuple[Plan, float]] = {}

    # ------------------------------------------------ sessions

    def login(self, user: User) -> Session:
        """Open a session for a user whose credentials were right."""
        now = self.now()
        token = base64.b64encode(self.rng.randbytes(20)).decode()
        session = self.sessions[token] = Session(token, user, now, now, now)
        self.counts.most_sessions = max(self.counts.most_sessions, len(self.sessions))
        return session

    def session(self, token: str | None) -> Session:
        """Find a live session; using it keeps it from idling out."""
        session = self.sessions.get(token or "")
        now = self.now()
        if (
            session is None
            or now - session.used > self.config.idle_timeout
            or now - session.created > self.config.max_age
        ):
            self.sessions.pop(token or "", None)
            raise not_authenticated(session_gone=True)
        session.used = now
        return session

    def extended(self, session: Session) -> dict[str, User]:
        """List where the session is authenticated, the local site first."""
        since = self.now() - self.config.extension_max_age
        there = {site: user for site, (user, at) in session.sites.items() if at > since}
        return {self.config.local_site: session.user, **there}

    def at(self, session: Session, site: str | None) -> tuple[Site, User]:
        """Go to a site, local if None, as who the session is there."""
        name = site or self.config.local_site
        if name not in self.sites:
            raise ApiError(404, "SiteNotFound", f"Site {name} not found.", words=(name,))
        user = self.extended(session).get(name)
        if user is None:
            raise remote_authentication_failure(name)
        return self.sites[name], user

    # ------------------------------------------------ syncs

    def submit(self, session: Session, *, replication_id: str, site: str | None, operation_id: str | None) -> Task:
        """Start a sync, if it may be."""
        where, user = self.at(session, site)
        if self.now() - session.cloud_director_since >= self.config.cloud_director_max_age:
            raise not_authenticated(session_gone=False)
        known = self.replication(replication_id, where.name)
        for task in known.tasks:
            if task.plan.refuses is not None and not task.forgotten and self.now() < task.ends:
                self.counts.refused_while_running += 1
                task.refused = True
                raise ApiError(task.plan.refuses, "OperationInProgress", f"Replication {replication_id} is in use.")
        return self.start(where, user, replication_id=replication_id, operation_id=operation_id)

    def replication(self, replication_id: str, site: str) -> Replication:
        """Find a replication at its site; an unknown one exists at every site until its first sync."""
        known = self.replications.get(replication_id)
        if not self._replication_id.fullmatch(replication_id) or (known is not None and known.site != site):
            msg = f"VM replication {replication_id} not found."
            raise ApiError(404, "ReplicationNotFound", msg, words=(replication_id,))
        return known or Replication(replication_id, site, len(self.replications) + 1)

    def start(
        self, where: Site, user: User, *, replication_id: str, operation_id: str | None, type_: str = "sync"
    ) -> Task:
        """Create a task, now."""
        now = self.now()
        replication = self.replications.setdefault(replication_id, self.replication(replication_id, where.name))
        plan = self._plan(replication_id)
        rng, counts = self.rng, self.counts
        counts.tasks += 1
        counts.requests[replication_id, operation_id] += 1
        overlapped = now < replication.busy_until
        counts.overlapping += overlapped
        replication.sequence += 1
        runs = now + plan.queued.draw(rng)
        task = Task(
            id=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            site=where.name,
            replication_id=replication_id,
            operation_id=operation_id,
            type=type_,
            user=user,
            created=now,
            runs=runs,
            ends=runs + plan.duration.draw(rng),
            fails=rng.random() < plan.failing,
            warnings=int(rng.random() < plan.warned),
            plan=plan,
            sequence=replication.sequence,
            number=counts.tasks,
            clock_offset=where.clock_offset,
            start_time=int((now + where.clock_offset) * 1000),
            overlapped=overlapped,
        )
        self.tasks[task.id] = task
        replication.tasks.append(task)
        replication.busy_until = max(replication.busy_until, task.ends)
        if where.tasks and where.tasks[-1].start_time > task.start_time:
            bisect.insort(where.tasks, task, key=lambda other: other.start_time)
        else:
            where.tasks.append(task)
        heapq.heappush(where.running, task.ends)
        while where.running[0] <= now:
            heapq.heappop(where.running)
        counts.most_running[where.name] = max(counts.most_running[where.name], len(where.running))
        return task

    def _plan(self, replication_id: str) -> Plan:
        plan, left = self.plans.get(replication_id, (self.default_plan, math.inf))
        if left <= 1:
            del self.plans[replication_id]
        elif left < math.inf:
            self.plans[replication_id] = (plan, left - 1)
        return plan

    def visible(self, task: Task | None, where: Site, user: User) -> bool:
        """Tell whether a user at a site sees a task: it runs there, is theirs or they are an administrator."""
        return (
            task is not None
            and task.site == where.name
            and not task.forgotten
            and (user.administrator or task.user.owner == user.owner)
            and self.now() < task.ends + self.config.retention
        )

    # ------------------------------------------------ what a test, or the control API, may do to it

    def plan(self, *, replication: str | None = None, times: float = math.inf, **fields: Any) -> None:  # noqa: ANN401
        """Say how syncs to come will go: all of them, or the next `times` of one replication."""
        for name in {"queued", "duration"} & fields.keys():
            fields[name] = Durations.of(fields[name])
        if fields.get("resource", "as asked") not in get_args(Resource):
            msg = f"resource is one of {', '.join(get_args(Resource))}"
            raise ValueError(msg)
        if replication is None:
            self.default_plan = replace(self.default_plan, **fields)
        else:
            self.plans[replication] = (replace(self.default_plan, **fields), times)

    def finish(
        self, *, replication: str | None = None, ids: Iterable[str] | None = None, fails: bool | None = None
    ) -> int:
        """End unfinished tasks now: these, or all; as planned, or as told. Return how many."""
        now = self.now()
        chosen = [task for task in self._chosen(replication, ids) if now < task.ends]
        for task in chosen:
            task.runs, task.ends = min(task.runs, now), now
            task.fails = task.fails if fails is None else fails
        self._settle(chosen)
        for where in self.sites.values():
            where.running = sorted(task.ends for task in where.tasks if now < task.ends)
        return len(chosen)

    def forget(self, *, replication: str | None = None, ids: Iterable[str] | None = None) -> int:
        """Lose tasks, and the syncs with them, as an appliance restored from a backup would. Return how many."""
        chosen = self._chosen(replication, ids)
        for task in chosen:
            task.forgotten_at = self.now() if task.forgotten_at is None else task.forgotten_at
        self._settle(chosen)
        return len(chosen)

    def purge(self, *, polled_for: float = 0.0) -> int:
        """Lose all tasks together that were polled for `polled_for` seconds ago or before that. Return how many.

        Their client knows them: what is asked again about the others is a matter of its own.
        """
        by = self.now() - polled_for
        return self.forget(ids=[id_ for id_, at in self.counts.polled.items() if at <= by and id_ in self.tasks])

    def _settle(self, changed: Iterable[Task]) -> None:
        """A replication is busy until the last of its tasks ends that hasn't been forgotten."""
        for known in {task.replication_id: self.replications[task.replication_id] for task in changed}.values():
            known.busy_until = max((task.ends for task in known.tasks if not task.forgotten), default=-math.inf)

    def _chosen(self, replication: str | None, ids: Iterable[str] | None) -> list[Task]:
        tasks = self.tasks.values() if ids is None else [self.tasks[id_] for id_ in ids]
        return [task for task in tasks if replication in {None, task.replication_id}]

    def by_hand(
        self,
        *,
        replication: str,
        user: str = "administrator@System",
        site: str | None = None,
        type: str = "sync",  # noqa: A002
    ) -> str:
        """Have somebody start a task in the user interface. Return its id."""
        where = self.sites[site or self.config.local_site]
        return self.start(where, where.users[user], replication_id=replication, operation_id=None, type_=type).id

    def expire(self, *, what: str = "sessions") -> None:
        """End all sessions; or their authentication at remote sites; or their right to start operations."""
        match what:
            case "sessions":
                self.sessions.clear()
            case "extensions":
                for session in self.sessions.values():
                    session.sites.clear()
            case "cloud-director":
                for session in self.sessions.values():
                    session.cloud_director_since = -math.inf
            case _:
                msg = f"nothing called {what} expires"
                raise ValueError(msg)

    def user(self, *, name: str, site: str | None = None, **fields: Any) -> None:  # noqa: ANN401
        """Add a user or change one, at one site.

        `spelled` renames, `on_tasks` does so on tasks alone, another `account` makes old tasks somebody else's.
        """
        users = self.sites[site or self.config.local_site].users
        known = users.get(name) or User(name=name, password=PASSWORD)
        changed = users[name] = replace(known, **fields)
        for session in self.sessions.values():
            if session.user is known:
                session.user = changed
            for there, (who, at) in session.sites.items():
                if who is known and there == site:
                    session.sites[there] = (changed, at)

    def replace_account(self, *, name: str, by: str, site: str | None = None, password: str = PASSWORD) -> None:
        """Remove a user of a site and add another in the same organisation, who sees none of the first one's tasks.

        What the first one is logged in with, or has extended a session with, ends.
        """
        there = site or self.config.local_site
        users = self.sites[there].users
        gone = users.pop(name)
        users[by] = replace(gone, name=by, password=password, administrator=False, account=None, spelled=None)
        for token, session in list(self.sessions.items()):
            if there == self.config.local_site and session.user is gone:
                del self.sessions[token]
            elif there in session.sites and session.sites[there][0] is gone:
                del session.sites[there]

    def clock_offset(self, *, seconds: float, site: str | None = None) -> None:
        """Put a site's clock fast (or, below 0, slow): its tasks' times, and at the local site the Date header."""
        self.sites[site or self.config.local_site].clock_offset = seconds

    def told_to_wait(self, where: Site, seconds: float, *, token: str | None = None) -> None:
        """Remember that a site said Retry-After to a session."""
        now = self.now()
        told_at, until = where.pauses.get(token, (-math.inf, -math.inf))
        where.pauses[token] = (now if now >= until else told_at, max(until, now + seconds))

    def posted_while_paused(self, where: Site, *, token: str | None = None) -> bool:
        """Tell whether a POST arriving now breaks a Retry-After that its sender must have heard of."""
        told_at, until = where.pauses.get(token, (-math.inf, -math.inf))
        return told_at + self.config.pause_grace < self.now() < until

    # ------------------------------------------------ the truth, for a test to compare with

    def ledger(self) -> list[dict[str, Any]]:
        """List every task ever created, by its true times, with nothing hidden; without those that were archived."""
        now = self.now()
        return [task.truth(now) for task in self.tasks.values()]

    def archive(self, *, ended_for: float) -> list[dict[str, Any]]:
        """Take the tasks out of memory that ended so many seconds ago or before; return what `ledger` had of them.

        For long runs: VCDA doesn't know these tasks any more, and later tasks of their requests aren't `repeated`.
        """
        now = self.now()
        gone = [task for task in self.tasks.values() if task.ends <= now - ended_for]
        counts = self.counts
        for task in gone:
            del self.tasks[task.id]
            counts.polled.pop(task.id, None)
            request = task.replication_id, task.operation_id
            counts.requests[request] -= 1
            if counts.requests[request] <= 0:
                del counts.requests[request]
            self.replications[task.replication_id].tasks.remove(task)
        for where in self.sites.values():
            where.tasks = [task for task in where.tasks if task.id in self.tasks]
        return [task.truth(now) for task in gone]

    def tasks_of(self, replication_id: str, operation_id: str | None) -> list[Task]:
        """List the tasks that one request has; more than one is what must never happen."""
        known = self.replications.get(replication_id)
        return [task for task in known.tasks if task.operation_id == operation_id] if known else []

    def counters(self) -> dict[str, Any]:
        """Sum up what was asked, for a person or a test."""
        counts, now = self.counts, self.now()
        return {
            "tasks": counts.tasks,
            "tasksByState": dict(Counter(task.state(now) for task in self.tasks.values())),
            "requests": len(counts.requests),
            "repeated": [
                {"replicationId": replication, "operationID": operation, "tasks": n}
                for (replication, operation), n in counts.requests.items()
                if n > 1 and operation is not None
            ],
            "calls": dict(counts.calls),
            "callsBySite": dict(counts.calls_by_site),
            "idsPolled": counts.ids_polled,
            "tasksPolled": len(counts.polled),
            "lastFirstPoll": counts.last_first_poll if counts.polled else None,
            "refusedWhileRunning": counts.refused_while_running,
            "overlapping": counts.overlapping,
            "postsWhilePaused": counts.posts_while_paused,
            "mostConcurrentPosts": dict(counts.most_posting),
            "mostRunning": dict(counts.most_running),
            "sessions": len(self.sessions),
            "mostSessions": counts.most_sessions,
            "unauthorised": counts.unauthorised,
            "refused": counts.refused,
            "refusals": list(counts.refusals),
            "faults": dict(counts.faults),
            "cached": counts.cached,
        }
