"""`vm-sync sites`: the sites and their pauses; pause a site, resume it. Works while the service is down.

Pauses are read from the control topic, requests from the journal. What each instance of the service holds back, its
operations server says, where it can be reached: Kafka alone does not tell whether an instance has read a pause yet, or
is of a release that knows of none.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final

import typer

from service.cli import instances, interrupts, kafka, operators, syncs
from service.cli.moments import read_date, read_duration
from service.cli.options import State
from service.cli.output import Exit, NoAnswer, moment, printable, refuse_undecodable, say, show_facts, show_json
from service.cli.tables import Column, show_table
from service.clock import Clock
from service.messages.site_pause import (
    LOCAL,
    LONGEST,
    InvalidPause,
    SitePause,
    SitePauses,
    pause_key,
    public_name,
    read_pause,
    write_pause,
)
from service.messages.wait_cause import without_credentials
from service.moments import age, rfc3339
from service.sync import Ended

ASK_AGAIN: Final = 0.2
"""Seconds between two questions to the instances whether they have read an order."""

AT_VCDA: Final = (State.SUBMITTING, State.IN_DOUBT, State.RUNNING, State.LINGERING)
"""The states of requests that VCDA may be working on."""

IN_FLIGHT: Final = (State.WAITING, *AT_VCDA)
"""The states that are counted."""

OPTIONS: Final = {"key": "NAME", "by": "--by", "reason": "--reason"}
"""The option that gives each field of a pause's record."""

COLUMNS: Final = (
    Column("site"),
    Column("state", rank=1, text=True),
    Column("until", rank=2),
    Column("by", rank=4, text=True),
    Column("reason", rank=5, text=True),
    *(Column(str(state), rank=3) for state in IN_FLIGHT),
    Column("held by", rank=6),
)
"""`held by`: how many instances hold the pause, of those that answer."""

DETAIL: Final = Column("instances")
"""What `--wide` adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What one instance of the service says of all sites, by their public names."""

    url: str
    sites: Mapping[str, Mapping[str, Any]] | None
    """None: it is of a release that knows of no pauses."""

    def _site(self, name: str) -> Mapping[str, Any]:
        return (self.sites or {}).get(name, {})

    def holds(self, pause: SitePause) -> bool:
        """Whether it holds back POSTs to the site at least until the end of this pause."""
        held = self._site(pause.site).get("pause")
        return held is not None and str(held["until"]) >= str(rfc3339(pause.until))

    def pauses(self, site: str) -> bool:
        """Whether it holds back POSTs to the site by an operator's order."""
        return self._site(site).get("pause") is not None

    def unrecorded(self) -> Iterable[SitePause]:
        """Return the pauses that it holds although the control topic no longer has them."""
        for site, one in (self.sites or {}).items():
            if (held := one.get("pause")) and not held.get("recorded", True):
                read = read_pause(pause_key(site), json.dumps(held).encode())
                if isinstance(read, SitePause):
                    yield replace(read, recorded=False)

    def obstacle(self, site: str) -> Mapping[str, Any] | None:
        """Return what holds back the site's next POST."""
        if self._site(site).get("withoutCredentials"):
            return {"cause": "no_credentials", "until": None, "detail": without_credentials(site)}
        return self._site(site).get("obstacle")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is known of all sites."""

    pauses: SitePauses
    entries: Sequence[syncs.JournalEntry]
    missing: bool = False
    """There is no control topic."""
    instances: Sequence[Instance] = ()
    unreachable: Sequence[str] = ()
    """Instances that do not answer."""

    @cached_property
    def counts(self) -> Counter[tuple[str, State]]:
        """How many requests in flight a site has in each state, by the journal."""
        in_flight = (one for one in self.entries if not isinstance(one.sync, Ended))
        return Counter((public_name(one.sync.request.site), one.state) for one in in_flight)

    def lasting(self, now: datetime) -> dict[str, SitePause]:
        """Return the pauses that are not over, by site: those of the topic, and what only instances still have."""
        unrecorded = {pause.site: pause for one in self.instances for pause in one.unrecorded()}
        return {site: pause for site, pause in {**unrecorded, **self.pauses.by_site()}.items() if pause.lasts(now)}

    def pause(self, site: str, now: datetime) -> SitePause | None:
        """Return the site's pause that is not over."""
        return self.lasting(now).get(site)

    def names(self, now: datetime) -> list[str]:
        """Return all known sites: paused ones first, then the local one."""
        paused = self.lasting(now).keys()
        of_requests = {public_name(entry.sync.request.site) for entry in self.entries}
        told = {name for instance in self.instances for name in instance.sites or ()}
        return sorted({LOCAL, *paused} | of_requests | told, key=lambda name: (name not in paused, name != LOCAL, name))

    def state(self, site: str, now: datetime) -> str:
        """Return the site's state in one word, or in several where instances differ."""
        if self.pause(site, now) is not None:
            return "paused"
        causes = {str(found["cause"]) for one in self.instances if (found := one.obstacle(site)) is not None}
        return ", ".join(sorted(causes)) or "open"


# ---------------------------------------------------------------- the list


def list_(*, wide: bool, as_json: bool) -> None:
    """List all sites."""
    scene, now = interrupts.run(_look(kafka.settings(), needed=False)), _now()
    if as_json:
        show_json([_json(scene, name, now) for name in scene.names(now)])
    else:
        columns = (*COLUMNS, DETAIL) if wide else COLUMNS
        show_table(columns, [_row(scene, name, now)[: len(columns)] for name in scene.names(now)], wide=wide)
    for sentence in _doubts(scene, now):
        say(sentence)


def _row(scene: Scene, site: str, now: datetime) -> tuple[str, ...]:
    pause = scene.pause(site, now)
    held = sum(one.holds(pause) for one in scene.instances) if pause else 0
    return (
        site,
        scene.state(site, now),
        f"{moment(pause.until)} (in {age(pause.until - now)})" if pause else "",
        printable(pause.by) if pause else "",
        printable(pause.reason) if pause else "",
        *(str(scene.counts[site, state]) for state in IN_FLIGHT),
        f"{held} of {len(scene.instances)}" if pause else "",
        "; ".join(f"{one.url} {_described(one, site)}" for one in scene.instances),
    )


def _described(instance: Instance, site: str) -> str:
    if instance.sites is None:
        return "knows of no pauses"
    obstacle = instance.obstacle(site)
    if obstacle is None:
        return "paused" if instance.pauses(site) else "open"
    return printable(str(obstacle["detail"]))


def _json(scene: Scene, site: str, now: datetime) -> dict[str, Any]:
    pause = scene.pause(site, now)
    return {
        "site": None if site == LOCAL else site,
        "state": scene.state(site, now),
        "pause": {**pause.facts(), "recorded": pause.recorded} if pause else None,
        "inFlight": {state.value: scene.counts[site, state] for state in IN_FLIGHT},
        "instances": [
            {
                "url": one.url,
                "knowsPauses": one.sites is not None,
                "paused": one.pauses(site),
                "obstacle": one.obstacle(site),
            }
            for one in scene.instances
        ],
    }


def _doubts(scene: Scene, now: datetime) -> Iterable[str]:
    """Say what is not as the pauses want it, or not known."""
    if scene.missing:
        yield "There is no control topic, so no site can be paused: `vm-sync topics create` creates it."
    for fault in scene.pauses.faults():
        yield f"Control topic: {fault}; it is no pause. `vm-sync sites pause` or `resume` replaces it."
    lasting = scene.lasting(now).values()
    if not lasting:
        return
    for pause in lasting:
        yield from (f"{doubt[0].upper()}{printable(doubt[1:])}." for doubt in pause.doubts(now))
    for one in scene.instances:
        if one.sites is None:
            yield _too_old(one)
        elif lacking := printable(", ".join(pause.site for pause in lasting if not one.holds(pause))):
            yield f"{one.url} has not read the pause of {lacking}; its /readyz says why."
    for url in scene.unreachable:
        yield f"{url} does not answer: whether this instance holds the pauses is unknown."
    if not scene.instances and not scene.unreachable:
        yield "No instance of the service is known: each holds the pauses as soon as it starts."


def _too_old(instance: Instance) -> str:
    return f"{instance.url} is of a release that knows of no pauses, and goes on sending POSTs: upgrade it."


# ---------------------------------------------------------------- pause and resume


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of a pause; `wait` in seconds."""

    site: str
    lasting: str | None
    until: str | None
    by: str | None
    reason: str | None
    yes: bool
    wait: float

    def pause(self, now: datetime) -> SitePause:
        """Return the pause.

        Raises:
            NoAnswer: the options are invalid.
        """
        until = self._end(now)
        by = operators.user() if self.by is None else self.by
        refuse_undecodable({"NAME": self.site, "--by": by, "--reason": self.reason})
        pause = SitePause(site=self.site, until=until, since=now, by=by, reason=self.reason)
        if isinstance(read := read_pause(*write_pause(pause)), InvalidPause):
            msg = f"Invalid pause: {OPTIONS.get(read.field, read.field)} must be {read.rule}."
            raise NoAnswer(msg, code=Exit.USAGE)
        return pause

    def _end(self, now: datetime) -> datetime:
        if (self.lasting is None) == (self.until is None):
            msg = "A pause needs its end: either --for or --until."
            raise NoAnswer(msg, code=Exit.USAGE)
        if self.lasting is not None:
            until = now + min(read_duration("--for", self.lasting), 2 * LONGEST)
        else:
            until = read_date("--until", self.until or "")
        if not now < until <= now + LONGEST:
            msg = f"A pause ends in the future, within {LONGEST.days} days; it can be renewed before its end."
            raise NoAnswer(msg, code=Exit.USAGE)
        return until - timedelta(microseconds=until.microsecond)


@dataclass(frozen=True, slots=True)
class Order:
    """A record of the control topic."""

    key: bytes
    value: bytes | None
    done: Callable[[Instance], bool]
    """Whether an instance has read it."""
    effect: str
    """What an instance does that has."""
    done_by: str
    """The beginning of the sentence that says how many have."""


def pause(wanted: Wanted, *, as_json: bool) -> None:
    """Pause a site on all instances; exit code 1 where one is known to go on sending POSTs."""
    place, now = kafka.settings(), _now()
    ordered = wanted.pause(now)
    before = interrupts.run(_look(place))
    if ordered.site not in before.names(now):
        _confirm(ordered.site, before.names(now), yes=wanted.yes)
    if (replaced := before.pause(ordered.site, now)) is not None:
        say(f"Replaced: {printable(str(replaced))}.")
    key, value = write_pause(ordered)
    order = Order(key, value, lambda one: one.holds(ordered), "holds back POSTs", "POSTs are held back by")
    after = interrupts.run(_carry_out(place, order, wait=wanted.wait))
    if as_json:
        show_json(_json(after, ordered.site, now))
    else:
        at_vcda = sum(after.counts[ordered.site, state] for state in AT_VCDA)
        show_facts(
            [
                ("site", ordered.site),
                ("paused", f"until {moment(ordered.until)}"),
                ("waiting", str(after.counts[ordered.site, State.WAITING])),
                ("at VCDA", f"{at_vcda}; what was submitted before goes on" if at_vcda else "0"),
            ]
        )
    _conclude(after, order, wait=wanted.wait)


def resume(site: str, *, wait: float, as_json: bool) -> None:
    """End a site's pause on all instances; exit code 1 if there is none."""
    place, now = kafka.settings(), _now()
    before = interrupts.run(_look(place))
    was = before.pause(site, now)
    if was is None and not before.pauses.is_invalid(pause_key(site)):
        paused = printable(", ".join(name for name in before.names(now) if before.pause(name, now)))
        msg = f"Nothing was sent: site {printable(site)} is not paused by an operator. Paused: {paused or 'none'}."
        raise NoAnswer(msg, code=Exit.NO)
    order = Order(
        pause_key(site), None, lambda one: not one.pauses(site), "sends POSTs again", "POSTs are sent again by"
    )
    after = interrupts.run(_carry_out(place, order, wait=wait))
    if as_json:
        show_json(_json(after, site, now))
    else:
        facts = [("was", printable(str(was)))] if was else []
        show_facts([("site", site), *facts, ("waited", str(before.counts[site, State.WAITING]))])
    _conclude(after, order, wait=wait)


def _confirm(site: str, known: Sequence[str], *, yes: bool) -> None:
    """Warn of a site that nobody knows: it may be misspelt."""
    say(
        f"No site {printable(site)} is known: the journal has no request for it, and no instance that answers has it "
        f"in VM_SYNC_VCDA__SITES. Known: {printable(', '.join(known))}. If the name is misspelt, nothing is paused."
    )
    if not yes:
        operators.confirm(f"Pause {printable(site)}?", what="a pause of an unknown site")


def _conclude(after: Scene, order: Order, *, wait: float) -> None:
    """Say what the instances have made of an order, and turn it into an exit code."""
    for url in after.unreachable:
        say(f"{url} does not answer: whether this instance {order.effect} is unknown.")
    old = [one for one in after.instances if one.sites is None]
    late = [one for one in after.instances if one.sites is not None and not order.done(one)]
    for one in old:
        say(_too_old(one))
    for one in late:
        say(f"{one.url} has not read the order within {wait:g} s; its /readyz says why.")
    count = len(after.instances) + len(after.unreachable)
    if not count:
        say("Sent. No instance of the service is known; each obeys as soon as it starts.")
    elif reached := len(after.instances) - len(old) - len(late):
        say(f"{order.done_by} {reached} of {count} instances.")
    if old or late:
        raise typer.Exit(Exit.NO)


# ---------------------------------------------------------------- looking and sending


async def _look(place: kafka.KafkaContext, *, needed: bool = True) -> Scene:
    """Read the control topic and the journal, and ask the instances. `needed`: the control topic has to exist."""
    async with kafka.explained(place):
        topic = place.settings.topics.control
        seen = await kafka.described(place, topic)
        missing = not needed and not seen.topics and not seen.hidden
        return await _scene(place, SitePauses() if missing else await _pauses(place, topic), missing=missing)


async def _scene(place: kafka.KafkaContext, pauses: SitePauses, *, missing: bool = False) -> Scene:
    async with syncs.journal(place) as read:
        entries = await read()
    return await _asked(place, Scene(pauses=pauses, entries=entries, missing=missing))


async def _pauses(place: kafka.KafkaContext, topic: str) -> SitePauses:
    pauses, where = SitePauses(), await kafka.places(place, topic)
    async with aclosing(kafka.read(place, where, what=f"the topic {topic}")) as records:
        async for record in records:
            pauses.take(record.key, record.value, offset=record.offset)
    return pauses


async def _asked(place: kafka.KafkaContext, scene: Scene) -> Scene:
    """Ask each instance what it holds back."""
    urls = sorted(set((await instances.owners(place)).values()))
    answers = await instances.sites(urls)
    found = [
        Instance(url=url, sites=None if answer is None else {public_name(one["site"]): one for one in answer})
        for url, answer in answers.items()
    ]
    return replace(scene, instances=found, unreachable=[url for url in urls if url not in answers])


async def _carry_out(place: kafka.KafkaContext, order: Order, *, wait: float) -> Scene:
    """Write the order to the control topic; wait until all instances that answer have read it, or for so long."""
    clock = asyncio.get_running_loop().time
    async with kafka.explained(place):
        topic = place.settings.topics.control
        await kafka.put(place, topic, key=order.key, value=order.value)
        scene, give_up = await _scene(place, await _pauses(place, topic)), clock() + wait
        while clock() < give_up and not all(one.sites is None or order.done(one) for one in scene.instances):
            await asyncio.sleep(ASK_AGAIN)
            scene = await _asked(place, scene)
        return scene


def _now() -> datetime:
    return Clock().now()
