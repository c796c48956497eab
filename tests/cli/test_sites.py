"""`vm-sync sites`: what is listed, and what pausing and resuming writes; instances of the service are scripted."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from service.cli.output import Exit, NoAnswer
from service.cli.sites import Wanted
from service.kafka import journal_codec as records
from service.messages.site_pause import SitePause, SitePauses, public_name, write_pause
from service.sync import Request, Waiting
from tests.support.cli_scene import Scene, instance

NOW = datetime(2026, 8, 17, 12, tzinfo=UTC)


# ---------------------------------------------------------------- options


def wanted(**options: Any) -> Wanted:
    defaults = {"site": "b", "lasting": None, "until": None, "by": "alice", "reason": None, "yes": False, "wait": 1.0}
    return Wanted(**(defaults | options))


@pytest.mark.parametrize(
    ("options", "until"),
    [
        ({"lasting": "2h"}, NOW + timedelta(hours=2)),
        ({"lasting": "PT2H"}, NOW + timedelta(hours=2)),
        ({"lasting": "31d"}, NOW + timedelta(days=31)),
        ({"until": "2026-08-17T18:00"}, NOW + timedelta(hours=6)),
        ({"until": "2026-08-17T20:00+02:00"}, NOW + timedelta(hours=6)),
    ],
)
def test_a_pause_ends_after_a_duration_or_at_a_date(options: dict[str, str], until: datetime) -> None:
    assert wanted(**options).pause(NOW) == SitePause(site="b", until=until, since=NOW, by="alice")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "A pause needs its end: either --for or --until."),
        ({"lasting": "2h", "until": "2026-08-18"}, "A pause needs its end: either --for or --until."),
        ({"lasting": "2 hours"}, "--for needs a duration such as 2h or PT2H, not 2 hours."),
        ({"lasting": "0h"}, "--for needs a duration such as 2h or PT2H, not 0h."),
        ({"lasting": "99999999999d"}, "--for needs a duration such as 2h or PT2H, not 99999999999d."),
        ({"lasting": "9" * 5000 + "d"}, f"--for needs a duration such as 2h or PT2H, not {'9' * 5000}d."),
        ({"lasting": "32d"}, "A pause ends in the future, within 31 days; it can be renewed before its end."),
        ({"until": "2026-08-16"}, "A pause ends in the future, within 31 days; it can be renewed before its end."),
        ({"until": "2h"}, "--until needs a date such as 2026-08-17T12:00, not 2h."),
        (
            {"lasting": "2h", "reason": "a\nb"},
            "Invalid pause: --reason must be a string of 1 to 255 printable characters.",
        ),
        ({"lasting": "2h", "by": ""}, "Invalid pause: --by must be a string of 1 to 255 printable characters."),
        ({"lasting": "2h", "site": ""}, "Invalid pause: NAME must be a name of 1 to 255 printable characters."),
        ({"lasting": "2h", "site": "\udcff"}, "NAME has bytes that are not UTF-8: \\udcff."),
        ({"lasting": "2h", "reason": "\udcff"}, "--reason has bytes that are not UTF-8: \\udcff."),
        ({"lasting": "2h", "by": "\udcff"}, "--by has bytes that are not UTF-8: \\udcff."),
    ],
)
def test_an_invalid_option_is_one_sentence(options: dict[str, str], says: str) -> None:
    with pytest.raises(NoAnswer) as refused:
        wanted(**options).pause(NOW)

    assert (str(refused.value), refused.value.code) == (says, Exit.USAGE)


# ---------------------------------------------------------------- against a real Kafka


@pytest.fixture
def scene(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("VM_SYNC_KAFKA__GROUP_ID", scene.name("group"))
    return scene


def orders(scene: Scene) -> list[ConsumerRecord]:
    """Read the control topic."""

    async def read() -> list[ConsumerRecord]:
        consumer = AIOKafkaConsumer(bootstrap_servers=scene.bootstrap, auto_offset_reset="earliest")
        place = TopicPartition(scene.name("control"), 0)
        consumer.assign([place])
        await consumer.start()
        found: list[ConsumerRecord] = []
        try:
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end:
                found += (await consumer.getmany(timeout_ms=100)).get(place, ())
            return found
        finally:
            await consumer.stop()

    return asyncio.run(read())


def pauses(scene: Scene) -> SitePauses:
    """Read the control topic, as an instance does."""
    found = SitePauses()
    for record in orders(scene):
        found.take(record.key, record.value, offset=record.offset)
    return found


def obedient(scene: Scene) -> Callable[[], dict[str, Any]]:
    """Answer as an instance that has read the control topic."""

    def answer() -> dict[str, Any]:
        found = pauses(scene).by_site()
        sites: list[dict[str, Any]] = [{"site": None, "pause": None, "obstacle": None, "withoutCredentials": False}]
        for name, pause in found.items():
            site = None if name == "local" else name
            sites = [one for one in sites if one["site"] != site]
            sites.append({"site": site, "pause": pause.facts(), "obstacle": None, "withoutCredentials": False})
        return {"syncs": [], "next": None, "sites": sites}

    return answer


def accept(scene: Scene, name: str, *, site: str | None) -> None:
    """Write a waiting request to the journal, as the service does."""
    now = datetime.now(UTC)
    waiting = Waiting(
        request=Request(
            identity=f"op:C4-1:{name}",
            operation_id=name,
            replication_id="C4-1",
            site=site,
            requested_at=now,
            accepted_at=now,
            deadline=now + timedelta(hours=6),
            offset=1,
        )
    )
    scene.write("journal", {"value": records.encode(waiting), "key": f"op:C4-1:{name}".encode(), "partition": 0})


PAUSE = ("sites", "pause", "site2", "--for", "2h", "--by", "alice", "--reason", "storage upgrade")


def test_a_pause_is_held_by_an_instance_listed_and_lifted(scene: Scene) -> None:
    accept(scene, "op-1", site="site2")
    with instance(scene, obedient(scene)) as url:
        paused = scene.run(*PAUSE)
        listed = scene.run("sites").stdout.splitlines()
        told = scene.answer("sites")
        resumed = scene.run("sites", "resume", "site2")
        again = scene.run("sites", "resume", "site2")

    assert paused.exit_code == 0, paused.output
    assert paused.stderr == "POSTs are held back by 1 of 1 instances.\n"
    assert [line.split()[0] for line in paused.stdout.splitlines()] == ["site", "paused", "waiting", "at"]
    assert listed[0].split()[:5] == ["site", "state", "until", "by", "reason"]
    assert listed[1].split()[:2] == ["site2", "paused"]
    assert "alice  storage upgrade  1 " in listed[1]
    assert listed[1].endswith("1 of 1")
    assert listed[2].split() == ["local", "open", "0", "0", "0", "0", "0"]
    assert told[0]["site"] == "site2"
    assert told[0]["inFlight"]["waiting"] == 1
    assert told[0]["pause"]["by"] == "alice"
    assert told[0]["instances"] == [{"url": url, "knowsPauses": True, "paused": True, "obstacle": None}]
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stderr == "POSTs are sent again by 1 of 1 instances.\n"
    assert pauses(scene).by_site() == {}
    assert again.exit_code == 1
    assert again.stderr == "Nothing was sent: site site2 is not paused by an operator. Paused: none.\n"


def test_a_pause_works_without_any_instance_and_a_second_one_replaces_it(scene: Scene) -> None:
    first = scene.run("sites", "pause", "local", "--for", "PT2H", "--by", "alice")
    second = scene.run("sites", "pause", "local", "--for", "1h", "--by", "bob")

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stderr == "Sent. No instance of the service is known; each obeys as soon as it starts.\n"
    assert second.stderr.startswith("Replaced: site local is paused by alice since ")
    assert pauses(scene).by_site()["local"].by == "bob"
    assert scene.run("sites").stderr == (
        "No instance of the service is known: each holds the pauses as soon as it starts.\n"
    )


def test_a_site_that_nobody_knows_is_paused_only_if_that_is_confirmed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = scene.run("sites", "pause", "sitte2", "--for", "2h")
    assert refused.exit_code == 2
    assert "No site sitte2 is known" in refused.stderr
    assert "Known: local." in refused.stderr
    assert refused.stderr.endswith(
        "Nothing was sent: a pause of an unknown site needs --yes where nobody can confirm it at a terminal.\n"
    )
    monkeypatch.setattr("service.cli.operators._at_a_terminal", lambda: True)
    assert scene.run("sites", "pause", "sitte2", "--for", "2h").exit_code == 1
    assert pauses(scene).by_site() == {}

    assert scene.run("sites", "pause", "sitte2", "--for", "2h", "--yes").exit_code == 0
    assert list(pauses(scene).by_site()) == ["sitte2"]


def test_an_instance_of_an_earlier_release_is_named_and_the_answer_is_no(scene: Scene) -> None:
    with instance(scene, lambda: {"syncs": [], "next": None}) as url:
        paused = scene.run("sites", "pause", "local", "--for", "2h")
        listed = scene.run("sites")

    old = f"{url} is of a release that knows of no pauses, and goes on sending POSTs: upgrade it.\n"
    assert (paused.exit_code, paused.stderr) == (1, old)
    assert (listed.exit_code, listed.stderr) == (0, old)


def test_an_instance_that_does_not_read_the_pause_is_named_after_the_timeout(scene: Scene) -> None:
    with instance(scene, lambda: {"syncs": [], "next": None, "sites": []}) as url:
        paused = scene.run("sites", "pause", "local", "--for", "2h", "--timeout", "1")
        listed = scene.run("sites")

    assert paused.exit_code == 1
    assert paused.stderr == f"{url} has not read the order within 1 s; its /readyz says why.\n"
    assert listed.stderr == f"{url} has not read the pause of local; its /readyz says why.\n"


def test_an_instance_that_does_not_answer_is_named(scene: Scene) -> None:
    with instance(scene, lambda: {"something": "else"}) as url:
        paused = scene.run("sites", "pause", "local", "--for", "2h")
        listed = scene.run("sites")

    assert paused.exit_code == 0
    assert paused.stderr == f"{url} does not answer: whether this instance holds back POSTs is unknown.\n"
    assert listed.stderr == f"{url} does not answer: whether this instance holds the pauses is unknown.\n"


def test_what_holds_a_site_back_otherwise_is_its_state(scene: Scene) -> None:
    detail = "the circuit breaker of site site2 has been open since 2026-08-17 12:00:00Z"
    obstacle = {"cause": "circuit_open", "until": None, "detail": detail}
    sites = [
        {"site": "site2", "pause": None, "obstacle": obstacle, "withoutCredentials": False},
        {"site": "site3", "pause": None, "obstacle": None, "withoutCredentials": True},
    ]
    with instance(scene, lambda: {"syncs": [], "next": None, "sites": sites}) as url:
        listed = scene.run("sites", "--wide").stdout.splitlines()

    assert [line.split()[:2] for line in listed[1:]] == [
        ["local", "open"],
        ["site2", "circuit_open"],
        ["site3", "no_credentials"],
    ]
    assert listed[2].endswith(f"{url} {detail}")
    assert listed[3].endswith(f"{url} there are no credentials for site site3 (VM_SYNC_VCDA__SITES)")


def test_an_invalid_record_is_named_and_a_resume_removes_it(scene: Scene) -> None:
    scene.write("control", {"key": b"site:site2", "value": b"{}"})
    assert scene.run("sites").stderr.startswith("Control topic: the record at offset 0 is invalid (until: ")

    assert scene.run("sites", "resume", "site3").exit_code == 1  # it is of another site

    assert scene.run("sites", "resume", "site2").exit_code == 0
    assert scene.run("sites").stderr == ""


def test_a_pause_that_instances_alone_still_have_is_listed_explained_and_can_be_ended(scene: Scene) -> None:
    until = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)
    lost = SitePause(site="site2", until=until, by="alice")

    def answer() -> dict[str, Any]:
        pause = None if orders(scene) else {**lost.facts(), "recorded": False}
        return {"syncs": [], "next": None, "sites": [{"site": "site2", "pause": pause, "obstacle": None}]}

    with instance(scene, answer):
        listed, facts = scene.run("sites"), scene.answer("sites")
        resumed = scene.run("sites", "resume", "site2")

    row = listed.stdout.splitlines()[1].split()
    assert (row[:2], row[-3:]) == (["site2", "paused"], ["1", "of", "1"])
    assert listed.stderr.startswith("The control topic no longer has the pause of site site2, since the topic was")
    assert (facts[0]["pause"]["by"], facts[0]["pause"]["recorded"]) == ("alice", False)
    assert (resumed.exit_code, resumed.stderr) == (0, "POSTs are sent again by 1 of 1 instances.\n")


def test_a_pause_of_another_program_that_lasts_too_long_is_named(scene: Scene) -> None:
    key, value = write_pause(SitePause(site="site2", until=datetime(9999, 1, 1, tzinfo=UTC)))
    scene.write("control", {"key": key, "value": value})

    result = scene.run("sites")

    assert "The pause of site site2 lasts until 9999-01-01 00:00:00Z, more than 31 days from now" in result.stderr
    assert "9999-01-01 00:00:00Z" in result.stdout


def test_a_pause_that_is_over_is_not_listed(scene: Scene) -> None:
    over = SitePause(site="site2", until=datetime.now(UTC) - timedelta(seconds=1))
    key, value = write_pause(over)
    scene.write("control", {"key": key, "value": value})

    assert [one["site"] for one in scene.answer("sites")] == [None]
    assert scene.run("sites", "resume", "site2").exit_code == 1


def test_without_the_control_topic_the_sites_are_listed_and_a_pause_is_one_sentence(scene: Scene) -> None:
    missing = {"VM_SYNC_TOPICS__CONTROL": scene.name("no-control")}
    listed = scene.run("sites", **missing)
    paused = scene.run("sites", "pause", "local", "--for", "2h", **missing)

    assert listed.exit_code == 0
    assert listed.stderr == (
        "There is no control topic, so no site can be paused: `vm-sync topics create` creates it.\n"
    )
    assert paused.exit_code == 3
    assert paused.stderr.count("\n") == 1
    assert f"There is no topic {scene.name('no-control')}" in paused.stderr


def test_the_local_site_has_one_name_everywhere() -> None:
    assert (public_name(None), public_name("site2")) == ("local", "site2")
