"""Prepares the process before other imports: signal handlers, and the variables that libraries read.

Nothing is imported up here that takes time.
"""

import os
import signal
import sys
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Final

IGNORED: Final = (
    "PROMETHEUS_MULTIPROC_DIR",  # metrics in files; without that folder, importing prometheus_client fails
    "prometheus_multiproc_dir",
    "SSLKEYLOGFILE",  # the keys of all TLS connections into a file; where it can't be written, importing aiohttp fails
    "TERMINAL_WIDTH",  # typer takes it for a number, and fails while it is imported
    "CRAMJAM_BACKEND",  # names a package that may not be installed; importing aiokafka's codecs fails
    "FASTSTREAM_SUPERVISOR_CACHE_TTL",  # numbers, read when one of FastStream's tasks has failed
    "FASTSTREAM_SUPERVISOR_DISABLED",
)
"""Variables that libraries read by themselves, and that are meant for other programs: with them, the service would not
start, or would write what it must not. A test lists what else libraries read."""

LEFT_OUT: Final = "httpx._main"
"""httpx' own command, which httpx imports if it can. With it come rich and pygments: an eighth of the time that the
imports of the service take."""


MOST_FILES: Final = 65_536
"""Files and connections that the process may have open, if the hard limit allows so many."""


def prepare(arguments: Sequence[str], environ: MutableMapping[str, str] | None = None) -> None:
    """Set signal handlers, remove variables from the environment, and open a standard input that was closed.

    An import of `LEFT_OUT` fails from then on.
    """
    if sys.stdin is None:  # it reads as an empty one
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - open until the process ends
    if arguments[1:2] == ["run"]:
        # The first process of a container ignores a signal that it has no handler for, and Kubernetes sends only one.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
        # A parent that blocks signals passes that on, and a blocked one would wait until Kubernetes kills the process.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        _allow_connections()
    sys.modules.setdefault(LEFT_OUT, None)  # type: ignore[arg-type] # this is how an import is made to fail
    given = os.environ if environ is None else environ
    for name in IGNORED:
        given.pop(name, None)
    # An empty variable is how manifests spell "not set"; OpenTelemetry takes some for an invalid number.
    for name in [name for name, text in given.items() if name.startswith("OTEL_") and not text]:
        del given[name]


def _allow_connections() -> None:
    """Raise the limit of open files to the hard limit, as programs in Go and Java do.

    The soft limit, often 1024, is for programs that call `select` with any descriptor. Each partition's producer may
    have a connection to each broker, and one more to its coordinator: 840 with 120 partitions and 6 brokers.
    """
    import resource  # here: not on every platform

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End a process that has begun nothing yet; once it has, the application's own handler is in place.

    At once, past whatever is being imported: some of that swallows every exception.
    """
    os._exit(0)
