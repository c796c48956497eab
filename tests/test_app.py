"""The process: what ends it, and what an internal error of its tasks shows."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trustme

from service import app as application
from service.app import App
from service.certificates import Certificates, Current
from service.observability import logs
from service.settings import load
from tests.support.some_settings import LEAST
from tests.support.virtual_time import VirtualClock, now, virtual


@pytest.fixture
def app() -> App:
    output = logs.Output(redactor=logs.Redactor(), dropped=lambda: 0)
    return App(load(LEAST), output=output)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def fail() -> None:
    raise ZeroDivisionError


async def wait_for_what_is_cancelled() -> None:
    theirs = asyncio.get_running_loop().create_future()
    theirs.cancel()
    await theirs


@pytest.mark.parametrize("end", [fail, wait_for_what_is_cancelled])
async def test_a_task_that_must_not_end_ends_the_process_with_its_error_in_the_log_and_on_livez(
    app: App, caplog: pytest.LogCaptureFixture, end: Callable[[], Coroutine[None, None, None]]
) -> None:
    intake = cast("Any", SimpleNamespace(died=asyncio.Event()))
    tasks = {"the poller": asyncio.create_task(forever()), "the check": asyncio.create_task(end())}
    async with asyncio.timeout(60):
        code = await app._until_over(asyncio.Event(), intake, tasks)
    tasks["the poller"].cancel()

    assert code == 1
    assert [record.getMessage() for record in caplog.records] == ["Internal error in the check; the process ends"]
    assert "the check" in str(app._health.not_alive(0.0))


def test_a_late_event_loop_is_named_where_posts_are_held_back(app: App) -> None:
    app._health.posts_held(0.0)
    app._lagged(3.0)

    assert "this process gets too little CPU time: its event loop is up to 3.0 s late" in str(
        app._health.not_ready(100.0)
    )


@virtual
async def test_a_process_is_ready_as_soon_as_its_partitions_are_and_is_looked_at_less_often_then() -> None:
    output = logs.Output(redactor=logs.Redactor(), dropped=lambda: 0)
    app = App(load(LEAST), output=output, clock=VirtualClock(asyncio.get_running_loop()))
    opening, looks = {7}, []

    def look() -> set[int]:
        looks.append(now())
        return opening

    nothing = dict.fromkeys(("stalled", "refused", "unopened", "unreadable", "partitions"), tuple)
    intake = SimpleNamespace(
        read_at=0.0, kafka_seen_at=0.0, joined=True, opening=look, missing=lambda: None, mismatched=dict, **nothing
    )
    watching = asyncio.create_task(app._watch(cast("Any", intake), None))
    await asyncio.sleep(2.01)
    assert app._health.not_ready(now()) == ["the partitions are being restored"]
    opening.clear()
    await asyncio.sleep(0.05)
    assert app._health.not_ready(now()) == []
    looks.clear()
    await asyncio.sleep(5.0)
    watching.cancel()

    assert len(looks) == 10


async def test_look_ups_that_fail_while_the_site_answers_other_calls_are_degraded(app: App) -> None:
    class Lanes(list[Any]):
        operator_pauses = SimpleNamespace(current=list)

    said = "POSTs to site local stay in doubt"
    lane = SimpleNamespace(
        lacks_credentials=False, open_breaker=lambda: None, look_ups=SimpleNamespace(complaint=lambda: said)
    )
    parts = SimpleNamespace(
        syncs=SimpleNamespace(lanes=Lanes([lane]), control=SimpleNamespace(trouble=list)),
        kafka=SimpleNamespace(tokens=None),
        certificates=(),
    )

    assert await app._degraded_by(cast("Any", parts)) == [said]


async def test_new_certificate_files_that_are_invalid_are_degraded_and_counted_before_a_connection_needs_them(
    app: App, tmp_path: Path
) -> None:
    class Lanes(list[Any]):
        operator_pauses = SimpleNamespace(current=list)

    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    parts = SimpleNamespace(
        syncs=SimpleNamespace(lanes=Lanes(), control=SimpleNamespace(trouble=list)),
        kafka=SimpleNamespace(tokens=None),
        certificates=[Current(Certificates(prefix="VM_SYNC_VCDA__", ca_file=file))],
    )

    app._metrics.set_certificates_invalid(lambda: len(application._troubles(cast("Any", parts))))

    def counted() -> float | None:
        return app._registry.get_sample_value("vm_sync_certificates_invalid")

    assert (await app._degraded_by(cast("Any", parts)), counted()) == ([], 0)
    good = file.read_text()
    file.write_text("no certificate")
    (said,) = await app._degraded_by(cast("Any", parts))
    assert counted() == 1
    assert said.startswith(
        "new certificate files are invalid, so the previous ones are used: VM_SYNC_VCDA__CA_FILE: no certificates"
    )
    file.write_text(good)
    assert (await app._degraded_by(cast("Any", parts)), counted()) == ([], 0)


@virtual
async def test_what_is_degraded_is_shown_while_a_login_hangs() -> None:
    output = logs.Output(redactor=logs.Redactor(), dropped=lambda: 0)
    app = App(load(LEAST), output=output, clock=VirtualClock(asyncio.get_running_loop()))
    paused: list[str] = []

    async def hang() -> list[str]:
        await asyncio.sleep(30)
        return ["no session at VCDA"]

    async def others() -> list[str]:
        return list(paused)

    looks = [asyncio.create_task(app._show_degraded(*look)) for look in (("the login", hang), ("the others", others))]
    await asyncio.sleep(10)
    paused.append("site local is paused")
    await asyncio.sleep(1.5)
    while_it_hangs = app._health.what_is_degraded()
    await asyncio.sleep(20)
    for look in looks:
        look.cancel()

    assert while_it_hangs == ["site local is paused"]
    assert sorted(app._health.what_is_degraded()) == ["no session at VCDA", "site local is paused"]


async def test_a_certificate_that_expires_is_degraded_and_its_end_is_a_metric(app: App, tmp_path: Path) -> None:
    class Lanes(list[Any]):
        operator_pauses = SimpleNamespace(current=list)

    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    file = tmp_path / "own.pem"
    trustme.CA().issue_cert("us", not_after=ends).private_key_and_cert_chain_pem.write_to_path(str(file))
    parts = SimpleNamespace(
        syncs=SimpleNamespace(lanes=Lanes(), control=SimpleNamespace(trouble=list)),
        kafka=SimpleNamespace(tokens=None),
        certificates=[Current(Certificates(prefix="VM_SYNC_KAFKA__SSL_", cert_file=file))],
    )

    app._metrics.set_certificates_expire(lambda: application._expiries(cast("Any", parts)))
    (said,) = await app._degraded_by(cast("Any", parts))

    assert said.startswith("VM_SYNC_KAFKA__SSL_CERT_FILE: the certificate expires at ")
    setting = {"setting": "VM_SYNC_KAFKA__SSL_CERT_FILE"}
    assert app._registry.get_sample_value("vm_sync_certificate_expires_timestamp_seconds", setting) == ends.timestamp()


async def test_an_internal_error_in_the_look_at_what_is_degraded_is_shown_there_and_ends_nothing(
    app: App, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()

    def current() -> list[object]:
        if caplog.records:
            looked.set()
        raise ZeroDivisionError

    class Lanes(list[Any]):
        operator_pauses = SimpleNamespace(current=current)

    parts = SimpleNamespace(
        syncs=SimpleNamespace(lanes=Lanes()),
        kafka=SimpleNamespace(tokens=None),
        certificates=(),
    )
    monkeypatch.setattr(application, "LOOK", application.LOOK / 1000)
    keeping = asyncio.create_task(app._show_degraded("the look", partial(app._degraded_by, cast("Any", parts))))
    async with asyncio.timeout(60):
        await looked.wait()
    keeping.cancel()

    (reason,) = app._health.what_is_degraded()
    assert reason == "an internal error hides what is degraded (ZeroDivisionError); see the log"
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
