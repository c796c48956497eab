"""What stands in the logs, and what never does."""

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_plus

import pytest
from aiokafka.errors import ProducerFenced
from aiokafka.protocol.admin import (
    SaslAuthenticateRequest,
    SaslAuthenticateRequest_v1,
    SaslAuthenticateResponse_v1,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from service.observability import logs
from service.observability.logs import HIDDEN, Redactor

SECRET = 's3cr"et/ö+\\n &x'


class Logged:
    """A logger of its own, and what it wrote."""

    def __init__(self, form: str, *secrets: str, name: str = "service.partition.partition") -> None:
        self._out = io.StringIO()
        self.redactor = Redactor(secrets)
        self.log = logging.Logger(name, logging.DEBUG)  # noqa: LOG001 - of its own, so that tests don't meet
        assert form in {"json", "text"}
        to = logging.StreamHandler(self._out)
        self.log.addHandler(logs.handler(self.redactor, form="json" if form == "json" else "text", to=to))

    @property
    def text(self) -> str:
        return self._out.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


def record(name: str, message: str, at: float) -> logging.LogRecord:
    return logging.makeLogRecord({"name": name, "msg": message, "created": at, "levelname": "WARNING"})


# ---------------------------------------------------------------- the two formats


def test_json_is_an_object_a_line_with_the_fields_beside_the_message() -> None:
    out = Logged("json")

    out.log.info("Completed %s", "C4-1", extra={"site": None, "seconds": 1.5, "ids": ("a", "b"), "took": timedelta(1)})

    (line,) = out.lines
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "service.partition.partition",
        "message": "Completed C4-1",
        "site": None,
        "seconds": 1.5,
        "ids": ["a", "b"],
        "took": 86400.0,
    }


def test_text_is_a_line_that_people_can_read() -> None:
    out = Logged("text")

    out.log.warning("Paused", extra={"site": "berlin", "why": "asked to wait", "n": 3})

    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z ", out.text)
    assert out.text[25:] == 'WARNING service.partition.partition: Paused  site=berlin  why="asked to wait"  n=3\n'


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_is_part_of_its_record(form: str) -> None:
    out = Logged(form)

    try:
        int("x")
    except ValueError:
        out.log.exception("Broke")

    if form == "json":
        (line,) = out.lines
        assert line["exception"].startswith("Traceback")
        assert line["exception"].endswith("ValueError: invalid literal for int() with base 10: 'x'")
    else:
        assert out.text.endswith("ValueError: invalid literal for int() with base 10: 'x'\n")


def test_a_message_from_outside_cannot_imitate_a_record() -> None:
    out = Logged("text")

    out.log.info("reason: %s", "x\n12:00:00.000 INFO service: all is well\x1b[2J", extra={"detail": "a\nb"})

    assert len(out.text.splitlines()) == 1
    assert "\x1b" not in out.text


def test_a_field_never_hides_a_part_of_the_record() -> None:
    out = Logged("json")

    out.log.info("hello", extra={"level": 3, "time": "then"})

    (line,) = out.lines
    assert (line["level"], line["level_"], line["time_"]) == ("INFO", 3, "then")


class Mute:
    @override
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_a_badly_made_record_still_gives_its_line() -> None:
    out = Logged("json")

    out.log.info("%d of %d", "one")  # noqa: PLE1206 - wrong on purpose
    out.log.info("%s", Mute())
    out.log.info("field", extra={"x": Mute(), "y": float("nan")})

    assert [line["message"] for line in out.lines] == [
        "%d of %d [arguments don't fit: ('one',)]",
        "%s [arguments don't fit: <tuple without a text>]",
        "field",
    ]
    assert (out.lines[2]["x"], out.lines[2]["y"]) == ("<Mute without a text>", "nan")


# ---------------------------------------------------------------- secrets


def leak_in_an_exception() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ExceptionGroup(SECRET, [ValueError(f"login with {SECRET!r} failed")]) from error


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_registered_secret_never_comes_out_even_inside_an_exception(form: str) -> None:
    out = Logged(form, SECRET)

    out.log.info(SECRET)
    out.log.info("%s and %r", SECRET, SECRET)
    out.log.info("%d", SECRET)
    out.log.info("body %s", json.dumps({"p": SECRET}))
    out.log.info("address %s", quote_plus(SECRET))
    out.log.info("field", extra={"a": SECRET, "b": [{"c": SECRET}], "d": ValueError(SECRET), "e": {SECRET: 1}})
    try:
        leak_in_an_exception()
    except ExceptionGroup:
        out.log.exception("Broke")

    for spelling in (SECRET, repr(SECRET)[1:-1], json.dumps(SECRET)[1:-1], quote_plus(SECRET), "s3cr"):
        assert spelling not in out.text
    assert out.text.count(HIDDEN) >= 11


@settings(max_examples=50)
@given(secret=st.text(min_size=4), before=st.text(), after=st.text())
def test_whatever_the_secret_is_it_is_not_in_the_line(secret: str, before: str, after: str) -> None:
    out = Logged("json", secret)

    out.log.info("%s", before + secret + after)

    assert secret not in out.lines[0]["message"].replace(HIDDEN, "")


def test_a_number_can_be_a_secret_too() -> None:
    out = Logged("json", "12345")

    out.log.info("n", extra={"a": 12345, "b": 1.5, "c": {12345: 12}})

    assert (out.lines[0]["a"], out.lines[0]["b"], out.lines[0]["c"]) == (HIDDEN, 1.5, {HIDDEN: 12})


def test_a_secret_that_is_learnt_later_is_hidden_from_then_on() -> None:
    out = Logged("json", "first-secret")

    out.redactor.hide(["second-secret", ""])
    out.log.info("first-secret second-secret")

    assert out.lines[0]["message"] == f"{HIDDEN} {HIDDEN}"


@pytest.mark.parametrize(
    ("secret", "text", "cleaned"),
    [
        ("e", "Operations server listens on e", f"Operations server listens on {HIDDEN}"),
        ("in", "login with 'in' in site2", f"login with '{HIDDEN}' {HIDDEN} site2"),
        ("12", "took 1.5 s, 120 tasks, code=12", f"took 1.5 s, 120 tasks, code={HIDDEN}"),
        ("+", "a+b, +, c", f"a+b, {HIDDEN}, c"),
        ("list", "the listing", f"the {HIDDEN}ing"),
    ],
)
def test_a_secret_of_a_few_characters_is_hidden_as_a_word_of_its_own_and_leaves_other_words_readable(
    secret: str, text: str, cleaned: str
) -> None:
    assert Redactor([secret]).clean(text) == cleaned


@pytest.mark.parametrize("secret", [SECRET, "pässwörd", "it's mine", 'he said "it\'s"', "back\\slash", "tab\tand\x00"])
def test_a_secret_is_hidden_however_python_and_json_write_it(secret: str) -> None:
    twice = json.dumps({"error": json.dumps({"a": [secret]})})
    written = [repr([secret]), repr(f"us\"er's {secret}"), repr(secret.encode()), twice]
    written += [repr(b"\0us\"er's\0" + secret.encode())]

    cleaned = [Redactor([secret]).clean(text) for text in written]

    assert [text.count(HIDDEN) for text in cleaned] == [1] * len(written)


@pytest.mark.parametrize(
    "data", [b"\0us\"er\0pa'ss, word=1", b"n,,n=user,r=7c44", b"c=biws,r=7c44,p=QmFzZTY0IG9mIGEgcHJvb2Y=", b"\\'\""]
)
def test_of_a_login_at_kafka_nothing_is_logged_that_a_password_could_be_guessed_from(data: bytes) -> None:
    asked = SaslAuthenticateRequest(data).build(SaslAuthenticateRequest_v1)
    answered = SaslAuthenticateResponse_v1(0, None, data, 3600)

    cleaned = [Redactor().clean(f"kafka:9092 {message}") for message in (asked, answered)]

    assert cleaned[0] == f"kafka:9092 SaslAuthenticateRequest_v1(sasl_auth_bytes={HIDDEN})"
    assert cleaned[1].endswith(f"sasl_auth_bytes={HIDDEN}, session_lifetime_ms=3600)")


def test_a_secret_that_begins_another_does_not_leave_its_end_in_sight() -> None:
    assert Redactor(["abcd", "abcdefgh"]).clean("abcdefgh") == HIDDEN


@given(st.text("ab", min_size=logs.SHORT, max_size=20), st.lists(st.text("ab ", max_size=20)), st.integers(0, 200))
def test_no_part_of_a_secret_stays_where_a_long_text_is_cut(secret: str, others: list[str], length: int) -> None:
    """The secret is of capitals, so that each of its characters in what is left is one too many."""
    secret = secret.upper()
    text = secret.join(others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "LONG", length)
        left = Redactor([secret]).clean_beginning(text)

    assert not set(left) & set("AB")
    assert Redactor([secret]).clean(text).startswith(left)


def test_a_long_secret_that_is_repeated_until_a_long_text_is_cut_leaves_nothing() -> None:
    token = "".join(f"{number:x}." for number in range(600))[:2000]
    text = f"{'.' * 20}{token * 9}"

    assert Redactor([token]).clean_beginning(text) == f"{'.' * 20}{HIDDEN * 7}"


def test_a_secret_that_is_longer_than_a_long_text_leaves_nothing() -> None:
    secret = "abcdefghij" * 2000

    assert Redactor([secret]).clean_beginning(f"said: {secret}") == "said: "


def test_secrets_are_looked_for_in_no_more_of_a_text_from_outside_than_could_be_shown() -> None:
    looked_at: list[int] = []

    class Pattern:
        def finditer(self, text: str) -> Iterator[Any]:
            looked_at.append(len(text))
            return iter(())

        def sub(self, _: str, text: str) -> str:
            looked_at.append(len(text))
            return text

    redactor = Redactor(["a" * 2000])
    redactor._values = Pattern()  # type: ignore[assignment]

    assert len(redactor.clean_beginning("x" * 1_000_000)) == logs.LONG
    assert looked_at == [logs.LONG + 2000, logs.LONG]


@pytest.mark.parametrize(
    "text",
    [
        "X-VCAV-Auth: dG9rZW4+c2Vzc2lvbg==",
        "x-vcav-auth=dG9rZW4+c2Vzc2lvbg==",
        "{'X-VCAV-Auth': 'dG9rZW4+c2Vzc2lvbg=='}",
        "[(b'X-VCAV-Auth', b'dG9rZW4+c2Vzc2lvbg==')]",
        "Authorization: Bearer dG9rZW4+c2Vzc2lvbg==",
        "Set-Cookie: dG9rZW4+c2Vzc2lvbg==",
        "password=dG9rZW4+c2Vzc2lvbg==",
        "sasl_plain_password='dG9rZW4+c2Vzc2lvbg==', x=1",
        '{"type": "vcdCredentials", "vcdPassword": "dG9rZW4+c2Vzc2lvbg=="}',
        '"{\\"vcdPassword\\": \\"dG9rZW4+c2Vzc2lvbg==\\"}"',
        '{"vcdAccessToken":"dG9rZW4+c2Vzc2lvbg=="}',
        "https://vcda/x?token=dG9rZW4+c2Vzc2lvbg==&y=1",
        r"SaslAuthenticateRequest_v1(sasl_auth_bytes=b'n,,\x01auth=Bearer dG9rZW4+c2Vzc2lvbg==\x01\x01')",
    ],
)
def test_what_follows_a_known_header_or_field_is_hidden_without_being_registered(text: str) -> None:
    assert "dG9rZW4" not in Redactor().clean(text)


@pytest.mark.parametrize("name", ["X-VCAV-Auth", "vcdPassword", "Authorization", "SASL_PASSWORD"])
def test_a_field_named_like_a_secret_is_hidden_wherever_it_lies(name: str) -> None:
    out = Logged("json")

    out.log.info("sent", extra={"headers": {name: ["dG9rZW4"], "Accept": "json"}, name: 7})

    assert out.lines[0]["headers"] == {name: HIDDEN, "Accept": "json"}
    assert out.lines[0][name] == HIDDEN


@pytest.mark.parametrize(
    "text",
    [
        "VM_SYNC_VCDA__CREDENTIALS__PASSWORD: required for TYPE vcdCredentials",
        "401 Authentication Token Required",
        "op:C4-ec991bd5:a took 3.5 s",
    ],
)
def test_a_sentence_about_secrets_stays_readable(text: str) -> None:
    assert Redactor(["unrelated"]).clean(text) == text


def test_a_long_text_is_cleaned_in_a_time_that_grows_with_its_length_alone() -> None:
    text = "a_token" * 50_000

    # Quadratic matching would take minutes; pytest's time limit is the judge.
    assert Redactor(["unrelated"]).clean(text) == text


# ---------------------------------------------------------------- what was heard elsewhere


@pytest.mark.parametrize(
    ("name", "message", "error", "passes"),
    [
        ("asyncio", "Future exception was never retrieved\nfuture: <Future ...>", ProducerFenced(), False),
        ("asyncio", "Future exception was never retrieved\nfuture: <Future ...>", ValueError(), True),
        ("asyncio", "Future exception was never retrieved\nfuture: <Future ...>", socket.gaierror(), False),
        ("asyncio", "Task exception was never retrieved\nfuture: <Task ...>", socket.gaierror(), True),
        ("asyncio", "Task exception was never retrieved\nfuture: <Task ...>", ProducerFenced(), True),
        ("asyncio", "Task exception was never retrieved\nfuture: <.../aiokafka/consumer...>", ProducerFenced(), False),
        ("asyncio", "Task exception was never retrieved\nfuture: <.../aiokafka/consumer...>", ValueError(), True),
        ("service.kafka.journal", "Future exception was never retrieved", ProducerFenced(), True),
        ("asyncio", "Future exception was never retrieved", None, True),
    ],
)
def test_a_failure_of_kafkas_client_that_nobody_waits_for_is_no_news(
    name: str, message: str, error: Exception | None, passes: bool
) -> None:
    exc_info = None if error is None else (type(error), error, None)
    seen = logging.LogRecord(name, logging.ERROR, __file__, 1, message, (), exc_info)

    assert logs.heard(seen) is passes


# ---------------------------------------------------------------- floods


def test_a_flooding_message_comes_once_in_30_s_and_then_tells_how_many_were_held_back() -> None:
    flood = logs.Flood()
    seen = [record("aiokafka.client", f'Unable connect to "k:{i}"', 100.0 + i) for i in range(31)]

    passed = [r for r in seen if flood.filter(r)]

    assert [r.created for r in passed] == [100.0, 130.0]
    assert vars(passed[1])["suppressed"] == 29


def test_another_message_and_another_logger_are_not_held_back_by_it() -> None:
    flood = logs.Flood()

    assert flood.filter(record("aiokafka.client", "Unable connect", 0.0))
    assert flood.filter(record("aiokafka.client", "NotEnoughReplicas", 1.0))
    assert flood.filter(record("aiokafka.producer", "Unable connect", 1.0))
    assert flood.filter(record("uvicorn.error", "Invalid HTTP request received.", 1.0))
    assert not flood.filter(record("uvicorn.error", "Invalid HTTP request received.", 2.0))


def test_our_own_messages_are_never_held_back() -> None:
    flood = logs.Flood()

    assert all(flood.filter(record("service.partition.partition", "Completed", float(at))) for at in range(5))


def test_a_clock_that_is_put_back_silences_nothing() -> None:
    flood = logs.Flood()
    flood.filter(record("aiokafka", "m", 1000.0))

    assert flood.filter(record("aiokafka", "m", 10.0))


def test_kinds_without_end_are_not_remembered_without_end() -> None:
    flood = logs.Flood()

    for kind in range(logs.KINDS * 2 + 1):
        flood.filter(record("aiokafka", "m" * kind, 0.0))

    assert len(flood._kinds) <= logs.KINDS


# ---------------------------------------------------------------- the process


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    others = {name: logging.getLogger(name) for name in logs.TAMED}
    before = root.handlers[:], root.level, {name: (o.level, o.handlers[:]) for name, o in others.items()}
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    yield
    logging.captureWarnings(capture=False)
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    root.handlers[:], root.level = before[0], before[1]
    for name, (level, handlers) in before[2].items():
        others[name].setLevel(level)
        others[name].handlers[:] = handlers


@pytest.fixture
def file(tmp_path: Path) -> Iterator[IO[str]]:
    """Stand in for standard error: what is written to its descriptor can be read from it."""
    with (tmp_path / "log").open("w+") as opened:
        yield opened


def written(file: IO[str]) -> str:
    for each in logging.getLogger().handlers:
        each.flush()
    return Path(file.name).read_text(encoding="utf-8")


def test_everything_goes_to_one_place_and_others_speak_only_of_trouble(restored: None, file: IO[str]) -> None:
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(io.StringIO()))

    logs.configure(form="json", level="INFO", file=file.fileno())
    logging.getLogger("service").info("ours")
    logging.getLogger("service").debug("too quiet")
    logging.getLogger("httpx").info("HTTP Request: POST")
    logging.getLogger("uvicorn.access").error("GET /livez")
    logging.getLogger("uvicorn.error").warning("theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    messages = [json.loads(line)["message"] for line in written(file).splitlines()]
    assert messages[:2] == ["ours", "theirs"]
    assert "DeprecationWarning: old" in messages[2]
    assert len(messages) == 3


def test_a_level_above_theirs_silences_them_too_and_debug_lets_all_speak(restored: None, file: IO[str]) -> None:
    logs.configure(form="json", level="ERROR", file=file.fileno())
    assert not logging.getLogger("aiokafka").isEnabledFor(logging.WARNING)

    logs.configure(form="json", level="DEBUG", file=file.fileno())
    assert logging.getLogger("aiokafka").isEnabledFor(logging.DEBUG)


def test_the_last_words_of_a_process_are_redacted_too(restored: None, file: IO[str]) -> None:
    logs.configure(form="text", level="INFO", secrets=[SECRET], file=file.fileno())

    error = RuntimeError(f"with {SECRET}")
    sys.excepthook(RuntimeError, error, None)

    assert f"RuntimeError: with {HIDDEN}" in written(file)


class Unlucky:
    def __del__(self) -> None:
        msg = f"collected with {SECRET}"
        raise RuntimeError(msg)


def test_what_python_would_print_past_the_log_goes_into_it(restored: None, file: IO[str]) -> None:
    logs.configure(form="json", level="INFO", secrets=[SECRET], file=file.fileno())

    Unlucky()
    thread = threading.Thread(target=int, args=(SECRET,), name="unlucky")
    thread.start()
    thread.join()

    first, second = [json.loads(line) for line in written(file).splitlines()]
    assert f"RuntimeError: collected with {HIDDEN}" in first["exception"]
    assert second["message"] == "Uncaught exception in thread unlucky"
    assert HIDDEN in second["exception"]


# ---------------------------------------------------------------- a reader that reads nothing


class Pipe:
    """A pipe for a log, whose other end reads only when it is asked to, and the log that writes to it."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.writer = logs.Writer(writing)
        self.log = logging.Logger("service.partition.partition", logging.DEBUG)  # noqa: LOG001 - as above
        self.log.addHandler(logs.handler(Redactor(), form="json", to=self.writer))

    def read_until(self, last: str) -> list[dict[str, Any]]:
        """Read lines up to the one with this message."""
        text = b""
        while f'"message": "{last}"'.encode() not in text:
            text += os.read(self.reading, 1024 * 1024)
        return [json.loads(line) for line in text.splitlines()]


def test_lines_that_a_slow_reader_leaves_no_room_for_are_dropped_counted_and_reported_once_there_is_room() -> None:
    pipe = Pipe()
    line = "x" * 1000

    while not pipe.writer.dropped:
        pipe.log.info(line)
    for _ in range(9):
        pipe.log.info(line)
    before = pipe.writer.dropped
    lines = pipe.read_until("Dropped 10 log lines: their reader was too slow")
    pipe.log.info("afterwards")
    last = pipe.read_until("afterwards")

    assert before == pipe.writer.dropped == 10
    assert {line["message"] for line in lines[:-1]} == {line}
    assert (lines[-1]["level"], lines[-1]["log_lines_dropped"]) == ("WARNING", 10)
    assert 1000 * len(lines) > logs.QUEUED // 2
    assert [line["message"] for line in last] == ["afterwards"]


def test_a_line_longer_than_the_whole_queue_is_written_where_nothing_waits() -> None:
    pipe = Pipe()

    pipe.log.info("y" * (logs.QUEUED + 1))
    pipe.log.info("dropped")

    line = pipe.read_until("y" * (logs.QUEUED + 1))[0]
    assert len(line["message"]) == logs.QUEUED + 1
    assert pipe.writer.dropped == 1


def test_without_a_reader_lines_are_dropped_and_counted_and_nothing_waits_for_them() -> None:
    pipe = Pipe()
    os.close(pipe.reading)

    for _ in range(3):
        pipe.log.info("for nobody")
        pipe.writer.flush()

    assert pipe.writer.dropped == 3
    nowhere = logs.Writer(None)
    nowhere.emit(record("service", "for nobody", 0.0))
    assert nowhere.dropped == 1


def test_a_system_that_has_no_thread_to_give_fails_nobody_who_logs_and_costs_no_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    pipe = Pipe()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pipe.log.info("without a thread")
        pipe.log.info("still without")
    pipe.log.info("with one")

    lines = [line["message"] for line in pipe.read_until("with one")]
    assert lines == ["without a thread", "still without", "with one"]
    assert pipe.writer.dropped == 0


FULL_DISK = """
from resource import RLIMIT_FSIZE, RLIM_INFINITY, setrlimit
handler = logging.getLogger().handlers[0]
setrlimit(RLIMIT_FSIZE, (5000, RLIM_INFINITY))  # as on a disk that becomes full, a part of a line is written
for number in range(60):
    logging.info("%d", number, extra={"padding": "z" * 200})
    if number % 7 == 0:
        handler.flush()
handler.flush()
setrlimit(RLIMIT_FSIZE, (RLIM_INFINITY, RLIM_INFINITY))
logging.info("there is room again")
handler.flush()
assert handler.dropped, "the disk was never full"
print(handler.dropped)
"""


def test_lines_that_a_full_disk_takes_no_more_are_counted_and_no_line_is_glued_to_one_that_was_cut_off(
    tmp_path: Path,
) -> None:
    begin = (
        "import logging, os, sys; from service.observability import logs; logs.configure(form='json', level='INFO')\n"
    )
    with (tmp_path / "log").open("wb") as log:
        done = subprocess.run([sys.executable, "-c", begin + FULL_DISK], stderr=log, stdout=subprocess.PIPE, check=True)
    dropped = int(done.stdout)
    whole, torn = [], []
    for text in (tmp_path / "log").read_text().splitlines():
        try:
            whole.append(json.loads(text)["message"])
        except ValueError:
            torn.append(text)

    assert whole[-2:] == [
        f"Dropped {dropped} log lines: writing to standard error failed (File too large)",
        "there is room again",
    ]
    assert whole[:-2] == [str(number) for number in range(60 - dropped)]
    assert [text[:8] for text in torn] == ['{"time":']


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing() -> None:
    pipe = Pipe()
    os.set_blocking(pipe.writer._file or -1, False)

    for number in range(300):
        pipe.log.info("%d", number, extra={"padding": "z" * 1000})
    lines = pipe.read_until("299")

    assert [line["message"] for line in lines] == [str(number) for number in range(300)]
    assert pipe.writer.dropped == 0


def child(code: str, *, stderr: int) -> subprocess.Popen[bytes]:
    """Run a process that logs through us."""
    begin = (
        "import logging, os, sys; from service.observability import logs; logs.configure(form='json', level='INFO')\n"
    )
    return subprocess.Popen([sys.executable, "-c", begin + code], stderr=stderr)


@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("logging.critical('the end'); sys.exit(2)", 2, "the end"),
        ("1 / 0", 1, "Uncaught exception; the process ends"),
        ("os.fork() or logging.info('the child'); os.wait() if False else None", 0, "the child"),
    ],
    ids=["an exit code", "an exception", "a forked child"],
)
def test_the_last_lines_of_a_process_are_written(code: str, status: int, last: str) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        process = child(code, stderr=writing)
        os.close(writing)
        text = pipe.read()

    assert process.wait(240) == status
    assert [json.loads(line)["message"] for line in text.splitlines()] == [last]


def test_a_reader_that_reads_nothing_holds_the_end_of_a_process_up_for_a_second_at_most() -> None:
    reading, writing = os.pipe()
    before = "import time; [logging.info('x' * 1000) for _ in range(1000)]; print(time.monotonic(), flush=True)"
    begin = (
        "import logging, os, sys; from service.observability import logs; logs.configure(form='json', level='INFO')\n"
    )
    with subprocess.Popen([sys.executable, "-c", begin + before], stderr=writing, stdout=subprocess.PIPE) as process:
        assert process.wait(240) == 0
        ended = time.monotonic()
        assert process.stdout is not None
        began = float(process.stdout.read())
    for end in (reading, writing):
        os.close(end)

    assert ended - began >= logs.LAST_LINES.total_seconds()
    assert ended - began < logs.LAST_LINES.total_seconds() + 60.0  # without its limit it doesn't end at all


@pytest.mark.parametrize("name", ["aiokafka.client", "aiokafka.consumer.fetcher", "faststream"])
def test_what_kafkas_client_says_of_each_attempt_is_left_out_unless_it_may_be_a_bug(
    name: str, restored: None, file: IO[str]
) -> None:
    logs.configure(form="json", level="INFO", file=file.fileno())
    other = logging.getLogger(name)
    other.warning("Got error produce response on topic-partition %s, retrying. Error: %s", "t-0", "NotEnoughReplicas")
    try:
        raise KeyError(1)
    except KeyError:
        other.exception("Unexpected error in fetcher routine")
    assert written(file).count("\n") == 1  # by the writer of this handler, which the next one replaces
    logs.configure(form="json", level="DEBUG", file=file.fileno())
    other.warning("Heartbeat failed")

    messages = [json.loads(line)["message"] for line in written(file).splitlines()]
    assert messages == ["Unexpected error in fetcher routine", "Heartbeat failed"]


@pytest.mark.parametrize("held", [False, True], ids=["", "the thread was stopped with the lock in its hands"])
def test_what_garbage_logs_at_the_interpreters_end_does_not_keep_the_process(held: bool) -> None:
    code = f"""
import atexit, threading, time
go, gone = threading.Event(), threading.Event()
if {held}:
    atexit.register(lambda: (go.set(), gone.wait()))  # after that of `logging`, which is imported later
import logging
from service.observability import logs

class Garbage:
    def __del__(self):
        logging.getLogger("late").error("too late")

logs.configure(form="text", level="INFO", secrets=[])
logging.getLogger("early").info("in time")
garbage = Garbage()
garbage.itself = garbage  # so that it goes with the interpreter

hold = "go.wait(); lock.acquire(); gone.set(); sleep(3600)"  # names of its own: those here must go
names = dict(go=go, gone=gone, lock=logging.getLogger().handlers[0], sleep=time.sleep)
threading.Thread(target=exec, args=(hold, names), daemon=True).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)

    assert "in time" in done.stderr
    assert "too late" not in done.stderr
