"""One token for all clients: when it is renewed, what happens while it can't be, and where the file comes in."""

import asyncio
import base64
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from typing_extensions import override

from service.kafka.tokens import Token, TokenFile, Tokens, TokenUnavailable, jwt_end
from tests.support.token_server import TokenServer
from tests.support.virtual_time import HandClock

HOUR = timedelta(hours=1)


class Source:
    """Numbers its tokens, and fails or waits as a test says."""

    kept = True
    tls = None
    where = "a test (VM_SYNC_TEST_SOURCE)"
    if_refused = "check the test"

    def __init__(self, *, lifetime: timedelta | None = HOUR) -> None:
        self.lifetime = lifetime
        self.fetched = 0
        self.failure: str | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def fetch(self) -> Token:
        self.fetched += 1
        number = self.fetched
        await self.may_answer.wait()
        if self.failure is not None:
            raise TokenUnavailable(self.failure, answered=False)
        return Token(f"token-{number}", self.lifetime)


def troubles(tokens: Tokens) -> tuple[str | None, str | None]:
    return tokens.warning, tokens.unusable


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "service.kafka.tokens")
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


async def test_a_token_is_kept_until_most_of_its_lifetime_has_passed(clock: HandClock) -> None:
    source = Source()
    tokens = Tokens(source, clock=clock)
    given = []
    for seconds in (0, 0.8 * 3600 - 1, 1, 0.8 * 3600 - 1, 1):
        clock.seconds += seconds
        given.append(await tokens.token())

    assert given == ["token-1", "token-1", "token-2", "token-2", "token-3"]


async def test_a_token_of_unknown_lifetime_is_kept_for_some_minutes(clock: HandClock) -> None:
    tokens = Tokens(Source(lifetime=None), clock=clock)
    given = []
    for seconds in (0, 239, 1):
        clock.seconds += seconds
        given.append(await tokens.token())

    assert given == ["token-1", "token-1", "token-2"]
    assert tokens.expires is None


async def test_all_that_ask_at_once_cause_one_fetch(clock: HandClock) -> None:
    source = Source()
    source.may_answer.clear()
    tokens = Tokens(source, clock=clock)
    asking = [asyncio.create_task(tokens.token()) for _ in range(20)]
    await asyncio.sleep(0)
    source.may_answer.set()

    assert set(await asyncio.gather(*asking)) == {"token-1"}
    assert source.fetched == 1


async def test_who_is_cancelled_while_asking_leaves_the_others_their_token(clock: HandClock) -> None:
    source = Source()
    source.may_answer.clear()
    tokens = Tokens(source, clock=clock)
    first, second = asyncio.create_task(tokens.token()), asyncio.create_task(tokens.token())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    source.may_answer.set()

    assert await second == "token-1"
    assert first.cancelled()


async def test_the_present_token_is_used_while_it_cannot_be_renewed_until_it_expires(
    clock: HandClock, log: Callable[[], list[str]]
) -> None:
    source = Source()
    tokens = Tokens(source, clock=clock)
    await tokens.token()
    source.failure = "The server is away"
    clock.seconds += 0.9 * 3600

    assert [await tokens.token() for _ in range(3)] == ["token-1"] * 3
    assert source.fetched == 2
    until = "the present one expires at 2030-01-01 01:16:40Z"
    assert troubles(tokens) == (f"the OAuth token for Kafka can't be renewed, and {until}: The server is away", None)

    clock.seconds += 0.1 * 3600
    for _ in range(3):
        with pytest.raises(TokenUnavailable, match=r"^The server is away$") as raised:
            await tokens.token()
        assert not raised.value.answered
    assert troubles(tokens) == (None, "The server is away")

    source.failure = None
    clock.seconds += 10
    assert await tokens.token() == "token-4"
    assert troubles(tokens) == (None, None)
    assert [line.partition(":")[0] for line in log()] == [
        "WARNING The OAuth token for Kafka can't be renewed; the present one expires at 2030-01-01 01",
        "WARNING The OAuth token for Kafka has expired, and can't be renewed",
        "INFO The OAuth token for Kafka is renewed again, after 370 s",
    ]


async def test_a_server_that_fails_is_asked_again_after_a_pause_that_doubles(clock: HandClock) -> None:
    source = Source()
    source.failure = "The server is away"
    tokens = Tokens(source, clock=clock)
    asked_at: list[int] = []
    for second in range(40):
        with pytest.raises(TokenUnavailable):
            await tokens.token()
        if source.fetched > len(asked_at):
            asked_at.append(second)
        clock.seconds += 1

    assert asked_at == [0, 1, 3, 7, 15, 25, 35]


async def test_a_server_that_hangs_holds_up_no_login_while_the_present_token_is_valid(
    clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.kafka.tokens.PATIENCE", timedelta(seconds=0.05))
    source = Source()
    tokens = Tokens(source, clock=clock)
    await tokens.token()
    source.may_answer.clear()
    clock.seconds += 0.9 * 3600

    assert await tokens.token() == "token-1"
    source.may_answer.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await tokens.token() == "token-2"
    assert source.fetched == 2


class Broken(Source):
    """Has a defect."""

    @override
    async def fetch(self) -> Token:
        self.fetched += 1
        raise ZeroDivisionError


async def test_a_defect_in_a_renewal_is_said_to_those_that_log_in(clock: HandClock) -> None:
    with pytest.raises(TokenUnavailable, match="ZeroDivisionError"):
        await Tokens(Broken(), clock=clock).token()


# ---------------------------------------------------------------- while nobody logs in


async def renewed(tokens: Tokens) -> None:
    """Do what the process does regularly, and let a renewal that begins come to its end."""
    tokens.renew_if_due()
    if tokens._renewal is not None:
        await asyncio.wait({tokens._renewal}, timeout=60)


async def test_a_token_is_renewed_when_it_is_due_though_nobody_logs_in(clock: HandClock) -> None:
    source = Source()
    tokens = Tokens(source, clock=clock)
    await tokens.token()
    fetched_at: list[int] = []
    for second in range(0, 7200, 10):
        await renewed(tokens)
        if source.fetched > 1 + len(fetched_at):
            fetched_at.append(second)
        clock.seconds += 10

    assert fetched_at == [2880, 5760]
    assert tokens.failing_for == timedelta()


async def test_a_token_that_cannot_be_renewed_is_tried_again_until_it_can_and_the_time_is_counted(
    clock: HandClock,
) -> None:
    source = Source()
    tokens = Tokens(source, clock=clock)
    await tokens.token()
    clock.seconds += 0.8 * 3600
    source.failure = "The server is away"
    counted = []
    for second in range(60):
        if second == 40:
            source.failure = None
        await renewed(tokens)
        counted.append(tokens.failing_for.total_seconds())
        clock.seconds += 1

    assert counted[:46] == [*range(45), 0]
    assert set(counted[46:]) == {0.0}
    assert source.fetched == 1 + len([0, 1, 3, 7, 15, 25, 35, 45])


async def test_the_time_since_kafka_refuses_the_token_is_counted_too(clock: HandClock) -> None:
    tokens = Tokens(Source(), clock=clock)
    await tokens.token()
    tokens.accepted()
    tokens.refused()
    clock.seconds += 90
    assert tokens.failing_for == timedelta(seconds=90)
    tokens.accepted()
    assert tokens.failing_for == timedelta()


async def test_a_defect_in_a_background_renewal_is_logged_counted_and_not_repeated_all_the_time(
    clock: HandClock, log: Callable[[], list[str]]
) -> None:
    source, counted = Source(), []
    tokens = Tokens(source, clock=clock)
    await tokens.token()
    source.__class__ = Broken
    clock.seconds += 0.8 * 3600
    for _ in range(25):
        await renewed(tokens)
        counted.append(tokens.failing_for.total_seconds())
        clock.seconds += 1

    assert counted == [*range(25)]
    assert source.fetched == 1 + 3
    assert log().count("ERROR Internal error in the renewal of the OAuth token for Kafka") == 3
    assert "internal error (ZeroDivisionError); see the log" in (tokens.warning or "")
    assert await tokens.token() == "token-1", "it is valid still"


# ---------------------------------------------------------------- refused by Kafka


async def test_a_refused_token_is_replaced_but_not_more_often_than_every_ten_seconds(clock: HandClock) -> None:
    source = Source()
    tokens = Tokens(source, clock=clock)
    given = []
    for _ in range(25):
        given.append(await tokens.token())
        tokens.refused()
        clock.seconds += 1

    assert [given.index(token) for token in dict.fromkeys(given)] == [0, 10, 20]


async def test_a_refusal_is_said_once_and_so_is_its_end(clock: HandClock, log: Callable[[], list[str]]) -> None:
    tokens = Tokens(Source(), clock=clock)
    tokens.refused()
    assert log() == []  # at the start the diagnosis says it
    tokens.accepted()
    for _ in range(3):
        tokens.refused()
    said = "Kafka refuses the OAuth token from a test (VM_SYNC_TEST_SOURCE): check the test"
    assert troubles(tokens) == (None, said)
    tokens.accepted()
    tokens.accepted()

    assert troubles(tokens) == (None, None)
    assert log() == [f"WARNING {said}", "INFO Kafka accepts the OAuth token again"]


# ---------------------------------------------------------------- the file


def file_of(clock: HandClock, folder: Path) -> tuple[Path, Tokens]:
    path = folder / "token"
    return path, Tokens(TokenFile(path, clock), clock=clock)


async def test_the_file_is_read_at_each_use(clock: HandClock, tmp_path: Path) -> None:
    path, tokens = file_of(clock, tmp_path)
    given = []
    for text in ("first", "second\n", "third"):
        path.write_text(text)
        given.append(await tokens.token())

    assert given == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "can't be read (No such file or directory)"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"Bearer abc", "contains something that is not a token"),
        (b"a\x01auth=Bearer b", "contains something that is not a token"),
        (b"\xff\xfe", "can't be read (it is not text)"),
    ],
)
async def test_a_file_without_a_token_is_said_by_the_setting_that_names_it(
    content: bytes | None, expected: str, clock: HandClock, tmp_path: Path
) -> None:
    path, tokens = file_of(clock, tmp_path)
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(TokenUnavailable) as raised:
        await tokens.token()
    assert str(raised.value) == f"The OAuth token file {path} {expected}: check VM_SYNC_KAFKA__OAUTH_TOKEN_FILE"

    path.write_text("token")
    assert await tokens.token() == "token"


async def test_a_file_that_could_not_be_read_for_want_of_a_thread_is_read_once_there_are_threads_again(
    clock: HandClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    path, tokens = file_of(clock, tmp_path)
    path.write_text("token")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TokenUnavailable) as raised:
            await tokens.token()

    assert "can't be read (no thread can be started)" in str(raised.value)
    assert await tokens.token() == "token"


async def test_while_the_file_cannot_be_read_its_last_token_is_used_until_it_expires(
    clock: HandClock, tmp_path: Path
) -> None:
    path, tokens = file_of(clock, tmp_path)
    token = TokenServer().issue(exp=(clock.now() + HOUR).timestamp())
    path.write_text(token)
    await tokens.token()
    path.unlink()

    assert await tokens.token() == token
    assert tokens.expires == clock.now() + HOUR
    clock.seconds += 3600
    with pytest.raises(TokenUnavailable, match="can't be read"):
        await tokens.token()


async def test_a_file_that_is_gone_is_noticed_though_nobody_logs_in(clock: HandClock, tmp_path: Path) -> None:
    path, tokens = file_of(clock, tmp_path)
    path.write_text("token")
    await tokens.token()
    path.unlink()
    seen = []
    for _ in range(40):
        await renewed(tokens)
        seen.append(tokens.warning is not None)
        clock.seconds += 1

    assert seen.index(True) == 30


async def test_a_file_whose_volume_hangs_stops_nothing_else_and_is_read_once_it_answers(
    clock: HandClock, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    os.mkfifo(path)  # opening it waits until somebody writes
    file = TokenFile(path, clock, limit=timedelta(seconds=0.1))
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(TokenUnavailable, match=r"can't be read \(no answer within 0.1 s\)") as raised:
            await file.fetch()
        assert not raised.value.answered
    assert threading.active_count() == threads + 1

    path.write_text("token")
    async with asyncio.timeout(60):
        while True:
            with suppress(TokenUnavailable):
                assert (await file.fetch()).text == "token"
                break


async def test_whether_a_token_of_the_file_has_expired_is_for_kafka_to_say(clock: HandClock, tmp_path: Path) -> None:
    path, tokens = file_of(clock, tmp_path)
    token = TokenServer().issue(exp=(clock.now() - HOUR).timestamp())
    path.write_text(token)

    assert await tokens.token() == token


DEEP = base64.urlsafe_b64encode(b"[" * 60_000 + b"]" * 60_000).decode()


@pytest.mark.parametrize(
    "token", [f"a.{DEEP}.c", "opaque", "a.b.c", "a.e30.c", "a.bnVsbA.c", "a.eyJleHAiOiJ4In0.c", "", "a.!.c"]
)
def test_a_token_that_does_not_say_when_it_expires_is_no_error(token: str) -> None:
    assert jwt_end(token) is None
