"""Logs: a line for each event, as JSON for machines or as text for people, to standard error.

Fields come from `extra=`; their names are the metrics' and the events' words (`site`, `replication_id`, `reason` ...).
The code that logs keeps secrets out; the `Redactor` is an additional safeguard: it hides known secret values, in their
usual encodings, and the values of headers and fields that usually contain secrets.

Libraries that log the same message hundreds of times a minute, while Kafka is unreachable say, are limited to one line
in `QUIET`; the next line has the number of suppressed ones.

This module reads no settings. A record with a wrong format string is still logged. A slow reader of the log never
blocks the service: a thread writes the lines, and lines that exceed its queue are dropped and counted, see `Writer`.
"""

import json
import logging
import math
import os
import re
import select
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from types import TracebackType
from typing import Final, Literal, NamedTuple
from urllib.parse import quote, quote_plus

from typing_extensions import override

from service.moments import rfc3339

QUIET: Final = timedelta(seconds=30)
"""How long a flooding message of one kind stays silent: two lines a minute show that it goes on."""

FLOODING: Final = ("aiokafka", "faststream", "opentelemetry", "uvicorn")
"""aiokafka repeats `Unable connect` and `NotEnoughReplicas` for each attempt of each connection and batch.
OpenTelemetry has a line for each batch of spans while its collector is away, and uvicorn a line for each request that
isn't HTTP, of which a scan of ports makes many."""

KINDS: Final = 500
"""How many kinds of messages are remembered at most; beyond that, all are forgotten."""

TAMED: Final = {
    "aiokafka": logging.WARNING,  # INFO logs each metadata update and each step of a rebalance
    "faststream": logging.WARNING,  # INFO logs each message
    "httpx": logging.WARNING,  # INFO logs each call, with its address
    "httpcore": logging.WARNING,
    "uvicorn.access": logging.CRITICAL,  # probes and scrapes, every few seconds
    "uvicorn.error": logging.WARNING,
    "asyncio": logging.WARNING,
}
"""Least level for others' loggers, unless ours is DEBUG: then all of them speak."""

CHATTY: Final = {"aiokafka": logging.CRITICAL, "faststream": logging.ERROR}
"""Libraries whose records below this level are left out, unless our level is DEBUG: see `consequential`."""

QUEUED: Final = 4 * 1024 * 1024
"""Bytes of lines that wait for a slow reader: some ten thousand lines, minutes of a busy service."""

BYTES_AT_ONCE: Final = 64 * 1024
"""Bytes handed to the system in one piece: what a pipe holds. A line each would cost a change of threads each."""

LAST_LINES: Final = timedelta(seconds=1)
"""How long the end of the process waits for the last lines to be written; a reader that is alive takes milliseconds."""

HIDDEN: Final = "[hidden]"

LONG: Final = 16_000
"""Characters. In 16 MiB of text, secrets were looked for during 8 s (measured), in which the event loop stood still."""

SHORT: Final = 4
"""Secrets of fewer characters are hidden only where they stand as words of their own: "e" would else be hidden in each
word of each line, which hides nothing from a reader who can count, and everything from one who can't."""

WORDS: Final = ("auth", "password", "passwd", "secret", "token", "cookie")
"""What every name that the two patterns below know contains; most texts contain none, and asking is cheap."""

HEADERS: Final = re.compile(
    r"""((?:x-vcav-auth|(?:proxy-)?authorization|(?:set-)?cookie|x-vmware-vcloud-access-token|sasl_auth_bytes)"""
    r"""["']?\s*[:=,]\s*)"""
    r"""(b?"(?:[^"\\]|\\.)*"|b?'(?:[^'\\]|\\.)*'|(?:(?:bearer|basic)\s+)?[^\s,;"']+)""",
    re.IGNORECASE,
)
"""A header known to hold a secret, as on the wire, in a dict's text, or in a list of pairs; and the bytes of a login at
Kafka, which its client logs at level DEBUG: a password, a token, or what a password can be guessed from."""

BEARER: Final = re.compile(r"(auth=bearer )[A-Za-z0-9\-._~+/=]+", re.IGNORECASE)
"""A token in a login at Kafka, which aiokafka logs at level DEBUG."""

FIELDS: Final = re.compile(
    r"""((?:password|passwd|secret|token|cookie)(?:"|'|\\")?\s*)"""
    r"""(?:(=\s*)(?!["'])[^\s,;&)\]}]+|([:=]\s*)(?:b?"(?:[^"\\]|\\.)*"|b?'(?:[^'\\]|\\.)*'|\\"(?:[^"\\]|\\[^"])*\\"))""",
    re.IGNORECASE,
)
"""`password=...`, `"vcdPassword": "..."`, and the like. A sentence such as `PASSWORD: required` stays readable."""


class Redactor:
    """Hides secrets in texts. The code that reads credentials registers them with `hide`."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._spellings: set[str] = set()
        self._values: re.Pattern[str] | None = None
        self._longest = 0
        self.hide(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Hide these from now on, as they are and as addresses, JSON and Python's `repr` spell them."""
        before = len(self._spellings)
        for secret in filter(None, secrets):
            self._spellings.update(_spellings(secret))
        if len(self._spellings) > before:
            # The longest first: a secret that another one begins with must not leave the other's end visible.
            longest = sorted(self._spellings, key=len, reverse=True)
            self._longest = len(longest[0])
            self._values = re.compile("|".join(map(_pattern, longest)))

    def clean_beginning(self, text: str) -> str:
        """Return a text from outside without secrets: of one that is longer than `LONG`, no more than that.

        It ends before a secret that goes on beyond, lest the first part of it stay.
        """
        if len(text) <= LONG:
            return self.clean(text)
        head, end = text[: LONG + self._longest], LONG
        for found in self._values.finditer(head) if self._values is not None else ():
            if found.start() < LONG < found.end():
                end = found.start()
        return self.clean(head[:end])

    def clean(self, text: str) -> str:
        """Return the text without secrets."""
        if self._values is not None:
            text = self._values.sub(HIDDEN, text)
        if not _mentions(text):
            return text
        text = HEADERS.sub(rf"\1{HIDDEN}", text)
        text = BEARER.sub(rf"\1{HIDDEN}", text)
        return FIELDS.sub(lambda found: f"{found[1]}{found[2] or found[3]}{HIDDEN}", text)


class Flood(logging.Filter):
    """Lets one record of a kind through in `QUIET`, with the number of those held back as its field `suppressed`."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".")[0] not in FLOODING:
            return True
        kind = record.name, re.sub(r"\d+", "#", str(record.msg))
        last, suppressed = self._kinds.get(kind, (-math.inf, 0))
        # `created` is wall time: a clock that was put back must not silence anything for hours.
        if 0 <= record.created - last < QUIET.total_seconds():
            self._kinds[kind] = last, suppressed + 1
            return False
        if len(self._kinds) >= KINDS:
            self._kinds.clear()
        self._kinds[kind] = record.created, 0
        if suppressed:
            record.suppressed = suppressed
        return True


FUTURE: Final = "Future exception was never retrieved"
"""How asyncio's line about a failed future begins that nothing has awaited."""


def heard(record: logging.LogRecord) -> bool:
    """Whether a record has to be logged: asyncio's lines about some futures that nothing awaits are not.

    A fenced producer leaves some of aiokafka's behind, a commit of offsets that was not waited for leaves its task, and
    where DNS doesn't answer in time, uvloop leaves the look-up of a connection that was given up (all seen); asyncio
    logs each as an error when it is collected. A task of our own that fails unheard is news.
    """
    error = record.exc_info[1] if record.exc_info else None
    if record.name != "asyncio" or error is None:
        return True
    text = record.getMessage()
    if isinstance(error, socket.gaierror):
        return not text.startswith(FUTURE)
    if not type(error).__module__.startswith("aiokafka."):
        return True
    return not (text.startswith(FUTURE) or (text.startswith("Task exception was never") and "/aiokafka/" in text))


def consequential(record: logging.LogRecord) -> bool:
    """Whether a record isn't one of those in which Kafka's client comments on each attempt, broker and partition.

    What follows from these is said by the service: that Kafka is away and why, what it denies, what is reopened. An
    error with a traceback may be a bug, and passes.
    """
    library = record.name.partition(".")[0]
    return library not in CHATTY or record.levelno >= CHATTY[library] or bool(record.exc_info)


STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""The attributes of every record; others come from `extra`."""


class Line(logging.Formatter):
    """Common to both formats: the parts of a record, without secrets."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def moment(self, record: logging.LogRecord) -> datetime:
        """Return when it was logged."""
        return datetime.fromtimestamp(record.created, UTC)

    def message(self, record: logging.LogRecord) -> str:
        """Return the message with its arguments filled in; a wrong format string gives both side by side."""
        try:
            return self._redactor.clean(record.getMessage())
        except Exception:  # noqa: BLE001 - whatever an argument's __str__ may raise, the line is worth more
            return self._redactor.clean(f"{record.msg} [arguments don't fit: {_safe_repr(record.args)}]")

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        """Return what came as `extra`."""
        given = {name: value for name, value in vars(record).items() if name not in STANDARD}
        return {name: HIDDEN if _telling(name) else self._plain(value) for name, value in given.items()}

    def trace(self, record: logging.LogRecord) -> str:
        """Return the exception's traceback and the stack, where asked for; empty otherwise."""
        parts = []
        if record.exc_info and record.exc_info[1] is not None:
            parts.append("".join(traceback.format_exception(record.exc_info[1])).rstrip("\n"))
        elif record.exc_text:
            parts.append(record.exc_text)
        if record.stack_info:
            parts.append(record.stack_info)
        return self._redactor.clean("\n".join(parts))

    def _plain(self, value: object) -> object:
        """Return something that JSON knows, in which every text is clean."""
        match value:
            case None | bool():
                return value
            case int() | float():
                text = str(value)
                same = math.isfinite(value) and self._redactor.clean(text) == text
                return value if same else self._redactor.clean(text)
            case str():
                return self._redactor.clean(value)
            case Mapping():
                return {
                    self._redactor.clean(_safe_str(name)): HIDDEN if _telling(name) else self._plain(inner)
                    for name, inner in value.items()
                }
            case list() | tuple() | set() | frozenset():
                return [self._plain(inner) for inner in value]
            case timedelta():
                return value.total_seconds()
            case datetime():
                return value.isoformat()
            case _:
                return self._redactor.clean(_safe_str(value))


class JsonLine(Line):
    """One JSON object a line."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": rfc3339(self.moment(record)),
            "level": record.levelname,
            "logger": record.name,
            "message": self.message(record),
        }
        for name, value in self.fields(record).items():
            line[f"{name}_" if name in line else name] = value
        if trace := self.trace(record):
            line["exception"] = trace
        # In ASCII: half a surrogate can't be written, and some readers take U+0085 or U+2028 for the end of a line.
        return json.dumps(line)


class TextLine(Line):
    """One line to read, and the traceback below it."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f"  {name}={_shown(value)}" for name, value in self.fields(record).items())
        # Only a traceback may have lines of its own: whatever came from outside can't imitate a record.
        head = f"{self.moment(record):%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z"
        line = f"{head} {record.levelname:<7} {record.name}: {_one_line(self.message(record))}{fields}"
        # Half a surrogate can't be written.
        trace = self.trace(record).encode(errors="backslashreplace").decode()
        return f"{line}\n{trace}" if trace else line


class _Queued(NamedTuple):
    text: bytes
    lines: int
    """How many of the service's own lines it is: 1, or 0 for the notice that some were dropped."""
    notice_of: int = 0
    """How many dropped lines it is the notice of."""


class Writer(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own.

    A full pipe blocks its writer; here that is the thread alone, never the event loop. `QUEUED` bytes of lines may
    wait. What doesn't fit is dropped and counted; once half of the room is free again, one line says how many were
    dropped, and lines are accepted again. The same for lines that can't be written, on a full disk say. `file` None:
    there is nowhere to write to, so all lines are dropped.

    To log never fails the code that does it: where no thread can be started, lines wait until one can.
    """

    def __init__(self, file: int | None) -> None:
        super().__init__()
        self.dropped = 0
        """Lines that were never written, since the start."""
        self._file = file
        self._unreported = 0
        self._failure = ""  # of the last writing that failed, until it is reported
        self._torn = False  # the last writing ended within a line
        self._queue: deque[_Queued] = deque()
        self._size = 0  # in bytes, with what is being written
        # The handler's own lock, which `emit` is called with, and which survives a fork.
        self._changed = threading.Condition(self.lock)
        self._thread: threading.Thread | None = None

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = _Queued(f"{self.format(record)}\n".encode(errors="backslashreplace"), lines=1)
            room = QUEUED // 2 if self._unreported else QUEUED
            # However long a line is, there is room for it where nothing waits.
            if self._file is None or (self._size and self._size + len(line.text) > room):
                self._drop(line)
                return
            self._report_dropped()
            self._put(line)
        except Exception:  # noqa: BLE001 - a line that can't be made or kept must not fail what it is about
            self.handleError(record)

    @override
    def handle(self, record: logging.LogRecord) -> bool:
        """Take a record, or drop it once the interpreter ends.

        What garbage logs then, such as a task whose error nobody took, would wait for ever: no thread can be started,
        and Python has stopped ours wherever it was, also with the lock that `emit` is called with.
        """
        return False if sys.is_finalizing() else bool(super().handle(record))

    @override
    def flush(self) -> None:
        """Wait until all lines are written, or for `LAST_LINES`. Python calls it at the end of the process."""
        with self._changed:
            self._start_thread()
            self._changed.wait_for(lambda: not self._size, timeout=LAST_LINES.total_seconds())

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        """Count it: what the standard library would do is print to the very pipe that may be full."""
        self._drop(_Queued(b"", lines=1))

    def _put(self, line: _Queued) -> None:
        size = len(line.text)
        self._queue.append(line)
        # Computed before: Python may collect garbage during a call, and what that logs changes the size, too.
        self._size += size
        self._changed.notify_all()
        self._start_thread()

    def _start_thread(self) -> None:
        # None at first, and after a fork the child has the queue but not the thread.
        if self._queue and (self._thread is None or not self._thread.is_alive()):
            thread = threading.Thread(target=self._work, name="log writer", daemon=True)
            with suppress(RuntimeError):  # the system has none to give: the next line tries again
                thread.start()
                self._thread = thread

    def _drop(self, *lines: _Queued) -> None:
        dropped = sum([line.lines for line in lines])
        self.dropped += dropped
        self._unreported += dropped + sum([line.notice_of for line in lines])

    def _report_dropped(self) -> None:
        if not self._unreported:
            return
        why = f"writing to standard error failed ({self._failure})" if self._failure else "their reader was too slow"
        dropped, self._unreported, self._failure = self._unreported, 0, ""
        notice = logging.LogRecord(
            __name__, logging.WARNING, __file__, 0, "Dropped %d log lines: %s", (dropped, why), None
        )
        notice.log_lines_dropped = dropped
        self._put(_Queued(f"{self.format(notice)}\n".encode(), lines=0, notice_of=dropped))

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            lost = batch
            try:
                written = self._write(b"".join([line.text for line in batch]))
                ends = accumulate([len(line.text) for line in batch])
                lost = [line for line, end in zip(batch, ends, strict=True) if end > written]
            finally:
                with self._changed:
                    self._size -= sum([len(line.text) for line in batch])
                    if lost:
                        self._drop(*lost)
                    elif not self._queue:
                        self._report_dropped()
                    self._changed.notify_all()

    def _next_batch(self) -> list[_Queued]:
        """Wait for lines, and take `BYTES_AT_ONCE` bytes of them, at least one."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue)
            batch = [self._queue.popleft()]
            size = len(batch[0].text)
            while self._queue and size + len(self._queue[0].text) <= BYTES_AT_ONCE:
                batch.append(self._queue.popleft())
                size += len(batch[-1].text)
            return batch

    def _write(self, data: bytes) -> int:
        """Write all of it, without a time limit. Returns how many bytes were written: all, unless writing fails."""
        assert self._file is not None  # noqa: S101 - without one, nothing is ever queued
        # What follows a line that was cut off must not be read as its end.
        begin = b"\n" if self._torn else b""
        rest = memoryview(begin + data)
        written = -len(begin)
        while rest:
            try:
                count = os.write(self._file, rest)
            except BlockingIOError:  # somebody who has the same pipe made it so
                select.select([], [self._file], [])
            except OSError as error:
                self._failure = error.strerror or type(error).__name__
                break
            else:
                self._torn = rest[count - 1] != ord("\n")
                rest = rest[count:]
                written += count
        return max(written, 0)


def handler(redactor: Redactor, *, form: Literal["json", "text"], to: logging.Handler) -> logging.Handler:
    """Return the handler that writes the service's lines."""
    to.setFormatter(JsonLine(redactor) if form == "json" else TextLine(redactor))
    to.addFilter(heard)
    to.addFilter(Flood())
    return to


@dataclass(frozen=True, slots=True)
class Output:
    """The output of the process's logs."""

    redactor: Redactor
    """The redactor: new secrets must be registered before they are used."""
    dropped: Callable[[], int]
    """How many lines were dropped since the start."""


def configure(
    *, form: Literal["json", "text"], level: str, secrets: Iterable[str] = (), file: int | None = None
) -> Output:
    """Send logs, warnings and uncaught exceptions to one file descriptor; None: standard error.

    Whoever makes a FastStream broker or a uvicorn server hands it a logger, or no logging configuration: both would
    otherwise put up handlers of their own, past the redactor.
    """
    # No line names a thread, a process or a place in the code. Looking them up takes an eighth of a line's time; these
    # are the switches that Python's documentation names for that (Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001
    redactor = Redactor(secrets)
    writer = Writer(_standard_error() if file is None else file)
    logging.basicConfig(level=level, handlers=[handler(redactor, form=form, to=writer)], force=True)
    if level != "DEBUG":
        writer.addFilter(consequential)
    for name, least in TAMED.items():
        other = logging.getLogger(name)
        other.handlers.clear()
        other.propagate = True
        other.setLevel(logging.NOTSET if level == "DEBUG" else max(least, logging.getLevelName(level)))
    logging.captureWarnings(capture=True)
    # Python's own hooks print the exception as it is, and wait for whoever reads standard error.
    sys.excepthook = _last_words
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_died
    return Output(redactor, lambda: writer.dropped)


def _standard_error() -> int | None:
    """Return its descriptor; None where it was closed from the start, and its number may be anybody's by now."""
    with suppress(OSError, ValueError):
        return sys.stderr.fileno() if sys.stderr is not None else None
    return None


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("vm-sync").critical("Uncaught exception; the process ends", exc_info=(kind, error, trace))


def _unraisable(what: "sys.UnraisableHookArgs") -> None:
    where = what.err_msg or "Exception ignored in"
    error = what.exc_value if what.exc_value is not None else what.exc_type()
    logging.getLogger("vm-sync").error(
        "%s: %s", where, _safe_repr(what.object), exc_info=(what.exc_type, error, what.exc_traceback)
    )


def _thread_died(what: threading.ExceptHookArgs) -> None:
    if what.exc_value is None or issubclass(what.exc_type, SystemExit):
        return
    name = what.thread.name if what.thread is not None else "unknown"
    logging.getLogger("vm-sync").error(
        "Uncaught exception in thread %s", name, exc_info=(what.exc_type, what.exc_value, what.exc_traceback)
    )


def _spellings(secret: str) -> Iterator[str]:
    """Yield a secret as it is, and as others write it."""
    yield secret
    yield from (quote(secret), quote(secret, safe=""), quote_plus(secret))
    for text in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        yield from (text, json.dumps(text)[1:-1])  # twice: JSON in a text of JSON
    # `repr` escapes single quotes where the text beside the secret has both kinds.
    yield from (repr(secret)[1:-1], repr(f"'\"{secret}")[4:-1])
    # As bytes, in the text of a request or an error.
    data = secret.encode(errors="surrogatepass")
    yield from (repr(data)[2:-1], repr(b"'\"" + data)[5:-1])


def _pattern(secret: str) -> str:
    """Return where a secret is looked for: anywhere, or, if it is short, where it is a word of its own."""
    return re.escape(secret) if len(secret) >= SHORT else rf"(?<!\w){re.escape(secret)}(?!\w)"


def _mentions(text: str) -> bool:
    lower = text.lower()
    for word in WORDS:  # noqa: SIM110 - `any` takes twice as long, and each text of each line comes here
        if word in lower:
            return True
    return False


def _telling(name: object) -> bool:
    """Whether a field's name indicates a secret."""
    return _is_telling(_safe_str(name))


@lru_cache(maxsize=KINDS)  # the names are the code's own, and few
def _is_telling(text: str) -> bool:
    return _mentions(text) and any(pattern.search(f"{text}=x") for pattern in (HEADERS, FIELDS))


def _safe_str(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - see Line.message
        return f"<{type(value).__name__} without a text>"


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - see Line.message
        return f"<{type(value).__name__} without a text>"


def _shown(value: object) -> str:
    if not isinstance(value, str):
        return _one_line(json.dumps(value, ensure_ascii=False))
    quoted = re.search(r"[\s\"=]", value) is not None or not value
    return _one_line(json.dumps(value, ensure_ascii=False) if quoted else value)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
