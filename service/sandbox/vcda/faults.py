"""Faults of a simulated VCDA's answers: for which requests, how often, and which kind.

This module draws whether a fault happens; the HTTP server carries it out.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, TypeAlias, get_args

Operation: TypeAlias = Literal[
    "login", "extend", "shrink", "session", "logout", "submit", "poll", "find", "ask", "replication", "about", "guide"
]

Answer: TypeAlias = Literal[
    "as usual",  # for faults that are only slow, or late
    "status",  # `status`, with an ApiError, or a proxy's page if `html`
    "half",  # a well-formed answer whose JSON stops half-way
    "torn",  # half of the bytes that Content-Length promised, then the end of the connection
    "empty",  # no body
    "empty page",  # GET /tasks: nothing found
    "drip",  # a byte every `seconds`
    "cut",  # the connection is reset
    "close",  # the connection is closed, without a word
    "silent",  # nothing, ever; the connection stays open
]

Effect: TypeAlias = Literal[
    "none",  # the request has no effect
    "first",  # it takes effect at once, the answer comes after `seconds`
    "last",  # it takes effect after `seconds`, even if the client has gone; then the answer comes
    "behind",  # the answer comes at once, the effect after `seconds`
]

NO_EFFECT: frozenset[Answer] = frozenset({"status", "cut", "close", "silent"})
"""Answers that don't need the real one; unless told otherwise the request then has no effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong with matching requests. `None` matches everything."""

    operation: Operation | None = None
    site: str | None = None
    """The site asked for; requests without one are for the local site, by its name."""
    replication: str | None = None
    """Requests that speak of this one: its POST, a look-up of its tasks, a poll that has one of them among its ids."""
    answer: Answer = "as usual"
    effect: Effect | None = None
    seconds: float = 0.0
    status: int = 503
    code: str | None = None
    msg: str | None = None
    html: bool = False
    location: str | None = None
    """Where a redirect leads; told with any status."""
    retry_after: float | Literal["rest"] | None = None
    """Seconds; `rest` is what is left of `lasting`. Told with any status; POSTs in that time are violations."""
    http_date: bool = False
    """Tell `retry_after` as a date."""
    challenge: bool = False
    """With status 401: claim that the session is gone."""
    probability: float = 1.0
    times: int | None = None
    """How often it happens; None: again and again."""
    lasting: float | None = None
    """Seconds from being switched on; None: for good."""

    def __post_init__(self) -> None:
        for name, words in (("operation", Operation), ("answer", Answer), ("effect", Effect)):
            value = getattr(self, name)
            if value not in get_args(words) and not (value is None and name != "answer"):
                msg = f"{name} is one of {', '.join(get_args(words))}"
                raise ValueError(msg)
        if self.takes_effect == "none" and self.answer not in NO_EFFECT | {"empty", "empty page"}:
            msg = f"there is no {self.answer} answer without the effect"
            raise ValueError(msg)
        if self.answer == "drip" and self.seconds <= 0:
            msg = "how many seconds between two bytes?"
            raise ValueError(msg)
        if self.retry_after == "rest" and self.lasting is None:
            msg = "retry_after is the rest of what, without lasting?"
            raise ValueError(msg)

    @property
    def takes_effect(self) -> Effect:
        """Whether and when the request takes effect."""
        return self.effect or ("none" if self.answer in NO_EFFECT else "first")


@dataclass(slots=True)
class _Switched:
    fault: Fault
    left: float
    until: float


@dataclass(slots=True)
class Faults:
    """The faults that are switched on, drawn in the order of their switching on: the first that matches happens."""

    rng: random.Random
    _on: dict[int, _Switched] = field(default_factory=dict)
    _ids: "count[int]" = field(default_factory=lambda: count(1))

    def __bool__(self) -> bool:
        return bool(self._on)

    def add(self, fault: Fault, *, now: float) -> int:
        """Switch a fault on. Return its number."""
        number = next(self._ids)
        self._on[number] = _Switched(
            fault,
            float("inf") if fault.times is None else fault.times,
            float("inf") if fault.lasting is None else now + fault.lasting,
        )
        return number

    def remove(self, number: int | None = None) -> None:
        """Switch a fault off, or all."""
        if number is None:
            self._on.clear()
        else:
            self._on.pop(number, None)

    def list(self, *, now: float) -> list[dict[str, object]]:
        """List what is switched on."""
        return [
            {"id": number, "fault": repr(on.fault), "left": None if on.left == float("inf") else on.left}
            for number, on in self._on.items()
            if now < on.until
        ]

    def draw(
        self, operation: str, *, site: str, replications: Collection[str], now: float
    ) -> tuple[Fault, float | None] | None:
        """Draw what goes wrong with a request that speaks of these replications; None: nothing.

        Returned with the fault is what is left of it, in seconds.
        """
        for number, on in list(self._on.items()):
            fault = on.fault
            if now >= on.until:
                del self._on[number]
            elif (
                fault.operation in {None, operation}
                and fault.site in {None, site}
                and (fault.replication is None or fault.replication in replications)
                and (fault.probability >= 1 or self.rng.random() < fault.probability)
            ):
                on.left -= 1
                if on.left <= 0:
                    del self._on[number]
                return fault, None if fault.lasting is None else on.until - now
        return None
