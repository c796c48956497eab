"""The process itself: signals from its first moment on, a log that nobody reads, refusals to start, others' variables.

Kafka is nowhere in these tests; the service waits for it.
"""

import ast
import asyncio
import importlib.metadata
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.cli.process import IGNORED, prepare
from service.sandbox.child_processes import dying_with_us
from service.sandbox.kafka import free_ports

LEAST: Final = {
    "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "VM_SYNC_VCDA__URL": "http://127.0.0.1:1",
    "VM_SYNC_VCDA__CREDENTIALS__USER": "administrator@System",
    "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "secret-of-this-test",
    "VM_SYNC_OPS__HOST": "127.0.0.1",
    "VM_SYNC_OPS__PORT": "0",
}


@contextmanager
def running(
    variables: Mapping[str, str], *, stderr: int | IO[bytes], command: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [*command, sys.executable, "-m", "service.cli", "run"]
    environment = os.environ | LEAST | dict(variables)
    with subprocess.Popen(dying_with_us(arguments), env=environment, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def refused(tmp_path: Path, **variables: str) -> list[str]:
    """Start the service, which has to end with exit code 2, and return what it logged as errors."""
    with (tmp_path / "log").open("w+b") as log, running(variables, stderr=log) as process:
        assert process.wait(240) == 2
        log.seek(0)
        text = log.read().decode()
    assert "Traceback" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    return [line["message"] for line in lines if line["level"] == "ERROR"]


async def alive(port: int, *, within: float = 60.0) -> None:
    """Wait until the process answers."""
    async with asyncio.timeout(within), httpx.AsyncClient() as client:
        while True:
            try:
                if (await client.get(f"http://127.0.0.1:{port}/livez", timeout=5)).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.1)


# ---------------------------------------------------------------- a log that nobody reads


async def test_a_log_that_nobody_reads_holds_nothing_up() -> None:
    (port,) = free_ports(1)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n" * 4096)
    os.set_blocking(writing, True)
    with running({"VM_SYNC_OPS__PORT": str(port)}, stderr=writing) as process:
        os.close(writing)
        await alive(port)
        process.send_signal(signal.SIGTERM)

        assert await asyncio.to_thread(process.wait, 30) == 0
    os.close(reading)


async def test_lines_that_waited_for_a_reader_come_in_the_end() -> None:
    (port,) = free_ports(1)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as log, running({"VM_SYNC_OPS__PORT": str(port)}, stderr=writing) as process:
        os.close(writing)
        await alive(port)
        process.send_signal(signal.SIGTERM)
        text = await asyncio.to_thread(log.read)

    said = [json.loads(line)["message"] for line in text.splitlines()]
    assert said[0].startswith("Operations server listens")
    assert said[-1] == "Stopped"


# ---------------------------------------------------------------- wrong settings of VCDA


async def test_a_wrong_address_of_vcda_is_logged_and_shown_within_seconds_of_the_start(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with (tmp_path / "log").open("w+b") as log, running({"VM_SYNC_OPS__PORT": str(port)}, stderr=log) as process:
        await alive(port)
        async with asyncio.timeout(60), httpx.AsyncClient() as client:
            while not (degraded := (await client.get(f"http://127.0.0.1:{port}/readyz")).json()["degraded"]):
                await asyncio.sleep(0.1)
            page = (await client.get(f"http://127.0.0.1:{port}/")).text
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)
        log.seek(0)
        text = log.read().decode()

    assert "<h1>Not ready</h1>" in page, "there is no Kafka, either"
    why = "127.0.0.1:1 refuses connections: check VM_SYNC_VCDA__URL"
    assert len(degraded) == 1
    assert degraded[0].startswith(f"no session at VCDA: Login: {why}")
    assert f"<li>no session at VCDA: Login: {why}" in page
    assert f"The login to VCDA failed; next attempt in 1 s: Login: {why}" in text


# ---------------------------------------------------------------- signals

UNSHARE: Final = shutil.which("unshare")

FIRST_SIGNAL = """
import signal, sys
from service import cli

install = signal.signal

def signal_(number, handler):
    if handler is not signal.SIG_DFL:
        print(number, "asyncio" in sys.modules, "typer" in sys.modules, flush=True)
    return install(number, handler)

signal.signal, sys.argv = signal_, ["vm-sync", "run"]
cli.main()
"""


HANGS_AT_THE_END = """
import asyncio, sys, time
from service import app
from service.settings import load

async def served(*_):
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
    {ends}

app._serve = served
sys.exit(app.serve(load()))
"""


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [("return 7", 7, []), ("raise KeyError('a bug')", 1, ["Internal error; the process ends", "KeyError: 'a bug'"])],
)
def test_a_thread_that_hangs_does_not_keep_a_process_from_ending(ends: str, code: int, said: list[str]) -> None:
    """Name look-ups do while DNS doesn't answer: Kubernetes killed a process that had stopped long before."""
    command = [sys.executable, "-c", HANGS_AT_THE_END.format(ends=ends)]
    done = subprocess.run(command, env=os.environ | LEAST, capture_output=True, text=True, check=False, timeout=240)

    assert done.returncode == code
    assert [text for text in said if text not in done.stderr] == []


ENDS: Final = """
import atexit, logging, os, signal, sys, threading
from service import app
from service.settings import load

def refuse(_):
    raise RuntimeError("can't start new thread")

async def served(*_):
    logging.warning("last words")
    {ends}

app._serve = served
sys.exit(app.serve(load()))
"""


@pytest.mark.parametrize(
    "ends",
    [
        "threading.Thread.start = refuse; return 7",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); return 7",
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM); return 7",
    ],
    ids=["without a thread to watch its end", "without a file descriptor left", "with one more signal at its end"],
)
def test_a_process_ends_with_its_own_exit_code(ends: str) -> None:
    command = [sys.executable, "-c", ENDS.format(ends=ends)]
    done = subprocess.run(command, env=os.environ | LEAST, capture_output=True, text=True, check=False, timeout=240)

    assert done.returncode == 7
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["last words"]


BLOCKS_SIGNALS: Final = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_crash_in_native_code_leaves_where_it_happened_in_the_log() -> None:
    command = [sys.executable, "-c", ENDS.format(ends="os.abort()")]
    done = subprocess.run(command, env=os.environ | LEAST, capture_output=True, text=True, check=False, timeout=240)

    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr
    assert re.search(r"line \d+ in served", done.stderr)


async def test_a_stop_signal_that_the_parent_blocks_stops_the_process_all_the_same() -> None:
    (port,) = free_ports(1)
    command = (sys.executable, "-c", BLOCKS_SIGNALS)
    with running({"VM_SYNC_OPS__PORT": str(port)}, stderr=subprocess.DEVNULL, command=command) as process:
        await alive(port)
        process.send_signal(signal.SIGTERM)

        assert await asyncio.to_thread(process.wait, 30) == 0


LIMITS_FILES: Final = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2345))
os.execv(sys.argv[1], sys.argv[1:])
"""


async def test_the_process_may_open_as_many_connections_as_the_hard_limit_allows() -> None:
    (port,) = free_ports(1)
    command = (sys.executable, "-c", LIMITS_FILES)
    with running({"VM_SYNC_OPS__PORT": str(port)}, stderr=subprocess.DEVNULL, command=command) as process:
        await alive(port)

        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (2345, 2345)


def test_the_service_imports_nothing_that_only_commands_need() -> None:
    code = (
        "import sys; from service.cli.process import prepare; prepare(['vm-sync', 'run']);"
        "import service.cli.commands, service.app; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"httpx", "aiokafka", "faststream"} <= imported
    assert not {"rich", "pygments"} & imported


def test_the_handler_is_in_place_before_anything_is_imported_that_takes_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_SIGNAL], capture_output=True, text=True, check=False, timeout=240
    )

    assert done.stdout.splitlines()[0] == f"{signal.SIGTERM:d} False False"


@pytest.mark.skipif(UNSHARE is None or os.geteuid() != 0, reason="only root can make a PID namespace")
@pytest.mark.parametrize("moment", [0.05, 0.3, 0.8, 1.2, 2.0])
def test_the_first_process_of_a_container_ends_cleanly_whenever_it_is_told_to(moment: float, tmp_path: Path) -> None:
    assert UNSHARE is not None
    alone = (UNSHARE, "--pid", "--fork", "--mount-proc", "--kill-child")
    with (tmp_path / "log").open("wb") as log, running({}, stderr=log, command=alone) as process:
        pid = _first(process.pid)
        began = time.monotonic()
        # What comes before belongs to Python's own start, which is 20 ms where nothing else keeps the machine busy.
        while time.monotonic() < began + moment or not _handles_sigterm(pid):
            time.sleep(0.002)
        os.kill(pid, signal.SIGTERM)

        assert process.wait(240) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def _first(unshare: int) -> int:
    """Return, as the machine numbers it, the process that is number 1 of the namespace, once it is there."""
    children = Path(f"/proc/{unshare}/task/{unshare}/children")
    until = time.monotonic() + 30
    while not (found := children.read_text().split()):
        assert time.monotonic() < until
        time.sleep(0.002)
    return int(found[0])


def _handles_sigterm(pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


# ---------------------------------------------------------------- DNS that doesn't answer


@contextmanager
def silent_dns(folder: Path, *, seconds: int) -> Iterator[tuple[tuple[str, ...], socket.socket]]:
    """Give what runs a command where a look-up fails after twice so many seconds, and where its questions come."""
    assert UNSHARE is not None
    number = os.getpid()  # other tests may run on this machine
    address = f"127.77.{number // 254 % 254}.{number % 254 + 1}"
    (folder / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:{seconds} attempts:2\n")
    script = f'mount --bind {folder}/resolv.conf /etc/resolv.conf && exec "$@"'
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((address, 53))
        silent.settimeout(240)
        yield (UNSHARE, "--mount", "/bin/sh", "-c", script, "sh"), silent


GIVEN_UP = """
import asyncio, gc
from service import event_loop
from service.observability import logs

async def main():
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(1):
            await loop.create_connection(asyncio.Protocol, "kafka.example", 9092)
    except TimeoutError:
        print("given up")
    try:
        await loop.getaddrinfo("kafka.example", 9092)  # ends after the first one, since it takes as long
    except OSError:
        print("failed")
    gc.collect()

logs.configure(form="text", level="INFO")
with asyncio.Runner(loop_factory=event_loop.factory()) as runner:
    runner.run(main())
"""


@pytest.mark.skipif(UNSHARE is None or os.geteuid() != 0, reason="only root can make a mount namespace")
def test_a_look_up_that_fails_after_its_connection_was_given_up_is_no_line_in_the_log(tmp_path: Path) -> None:
    with silent_dns(tmp_path, seconds=1) as (elsewhere, _):
        command = [*elsewhere, sys.executable, "-c", GIVEN_UP]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)

    assert done.stdout.split("\n") == ["given up", "failed", ""]
    assert done.stderr == ""


@pytest.mark.skipif(UNSHARE is None or os.geteuid() != 0, reason="only root can make a mount namespace")
async def test_where_dns_does_not_answer_the_log_says_so(tmp_path: Path) -> None:
    kafka = {"VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "kafka.example:9092"}
    with (
        silent_dns(tmp_path, seconds=8) as (elsewhere, silent),  # longer than a connection may take
        (tmp_path / "log").open("w+b") as log,
        running(kafka, stderr=log, command=elsewhere) as process,
    ):
        await asyncio.to_thread(_wait_for_question, silent, after=20)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 240) == 0
    text = (tmp_path / "log").read_text()
    assert "Kafka can't be reached at kafka.example:9092, the name of a broker can't be resolved" in text


def _wait_for_question(name_server: socket.socket, *, after: float) -> None:
    """Take questions and answer none, until one comes so many seconds after the first one."""
    name_server.recv(512)
    began = time.monotonic()
    while time.monotonic() < began + after:
        name_server.recv(512)


# ---------------------------------------------------------------- what doesn't fit


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (line,) = refused(tmp_path, VM_SYNC_OPS__PORT=str(port))

    assert line.startswith(f"VM_SYNC_OPS__PORT: the operations server can't listen on port {port} of 127.0.0.1")
    assert "in use" in line


def test_an_address_that_is_none_of_ours_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, VM_SYNC_OPS__HOST="192.0.2.1")

    assert "VM_SYNC_OPS__HOST" in line


@pytest.mark.parametrize("name", ["VM_SYNC_VCDA__CA_FILE", "VM_SYNC_KAFKA__SSL_CA_FILE"])
def test_a_ca_file_without_a_certificate_is_one_line_and_exit_code_2(name: str, tmp_path: Path) -> None:
    more = {"VM_SYNC_VCDA__URL": "https://127.0.0.1:1"}
    if "KAFKA" in name:
        more["VM_SYNC_KAFKA__SECURITY_PROTOCOL"] = "SSL"

    (line,) = refused(tmp_path, **{name: __file__}, **more)

    assert line.startswith(f"{name}: no certificates could be read from it")


# ---------------------------------------------------------------- variables of others

READ: Final = {
    "aiohttp": {"AIOHTTP_NOSENDFILE", "AIOHTTP_NO_EXTENSIONS", "NETRC", "PYTHONASYNCIODEBUG"},
    "aiokafka": {"AIOKAFKA_NO_EXTENSIONS"},
    "click": {"LESS", "PAGER", "TERM", "XDG_CONFIG_HOME"},
    "cramjam": {"CRAMJAM_BACKEND"},
    "faststream": {"FASTSTREAM_CLI_RICH_MODE", "FASTSTREAM_SUPERVISOR_CACHE_TTL", "FASTSTREAM_SUPERVISOR_DISABLED"},
    "frozenlist": {"FROZENLIST_NO_EXTENSIONS"},
    "httpx": {"SSL_CERT_DIR", "SSL_CERT_FILE"},
    "multidict": {"MULTIDICT_NO_EXTENSIONS"},
    "prometheus-client": {
        "PROMETHEUS_DISABLE_CREATED_SERIES",
        "PROMETHEUS_LEGACY_NAME_VALIDATION",
        "PROMETHEUS_MULTIPROC_DIR",
        "prometheus_multiproc_dir",
    },
    "propcache": {"PROPCACHE_NO_EXTENSIONS"},
    "pydantic": {"PYDANTIC_DISABLE_PLUGINS", "PYDANTIC_PRIVATE_ALLOW_UNHANDLED_SCHEMA_TYPES"},
    "pygments": {"COLORTERM", "HOME", "TERM"},
    "python-dotenv": {"PYTHON_DOTENV_DISABLED"},
    "rich": {
        "COLORTERM",
        "COLUMNS",
        "DATABRICKS_RUNTIME_VERSION",
        "FORCE_COLOR",
        "JUPYTER_COLUMNS",
        "JUPYTER_LINES",
        "LINES",
        "NO_COLOR",
        "TERM",
        "TTY_COMPATIBLE",
        "TTY_INTERACTIVE",
        "UNICODE_VERSION",
    },
    "typer": {
        "FORCE_COLOR",
        "GITHUB_ACTIONS",
        "PYDANTIC_DISABLE_PLUGINS",
        "PY_COLORS",
        "TERMINAL_WIDTH",
        "TYPER_STANDARD_TRACEBACK",
        "TYPER_USE_RICH",
        "XDG_CONFIG_HOME",
    },
    "uvicorn": {"FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY"},
    "yarl": {"YARL_NO_EXTENSIONS"},
}
"""The variables that the service's libraries read by themselves, as their sources have them, without those of CGI and
of shells' completion. Those of OpenTelemetry, which an operator sets on purpose, are for `tracing`."""

BY_OTHER_WAYS: Final = {"SSLKEYLOGFILE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"}
"""Read by Python's own modules."""

NOT_OURS: Final = re.compile(
    r"_TYPER_\w+|COMP_\w+|[A-Z]+_(?:TAG|CI)|HTTP_ACCEPT\w*|PATH_INFO|QUERY_STRING|RE\w+_METHOD|"
    r"REMOTE_ADDR|SERVER_\w+|SHELL"
)


def _libraries() -> set[str]:
    """Return the distributions that the service is installed with, those of its extras left out."""
    found, new = set[str](), {"vm-sync", "cramjam"}  # that is one of aiokafka's extras, and we ask for it
    while new:
        name = new.pop()
        found.add(name)
        for needed in map(Requirement, importlib.metadata.requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                new |= {canonicalize_name(needed.name)} - found
    return found - {"vm-sync"}


def _variables(source: str) -> Iterator[str]:
    """Return the names of the environment variables that a source asks for, where it writes them out."""
    for node in ast.walk(ast.parse(source)):
        name: ast.expr | None = None
        match node:
            case ast.Call(func=ast.Attribute() | ast.Name() as function, args=[first, *_]):
                if ast.unparse(function).endswith(("environ.get", "getenv", "environ.pop")):
                    name = first
            case ast.Subscript(value=value, slice=key) if ast.unparse(value).endswith("environ"):
                name = key
            case ast.Compare(left=left, comparators=[right]) if ast.unparse(right).endswith("environ"):
                name = left
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value


def test_it_is_known_which_variables_the_libraries_read_by_themselves() -> None:
    read: dict[str, set[str]] = {}
    for name in _libraries():
        for file in importlib.metadata.files(name) or []:
            if file.suffix == ".py" and "tests" not in file.parts:
                source = Path(str(file.locate())).read_text(encoding="utf-8")
                if "environ" in source or "getenv" in source:
                    found = {variable for variable in _variables(source) if not NOT_OURS.fullmatch(variable)}
                    if found:
                        read.setdefault(name, set()).update(found)

    assert read == READ, "read how it is used; where it can stop the service, add it to service.cli.process.IGNORED"


NONSENSE: Final = "/no/such/folder, and no number"
HARMLESS: Final = {"FORCE_COLOR", "TTY_COMPATIBLE"}
"""They only colour what a person reads, wherever it goes."""


def test_whatever_the_variables_of_others_say_the_service_starts_and_answers(tmp_path: Path) -> None:
    names = {name for names in READ.values() for name in names} | BY_OTHER_WAYS
    variables = dict.fromkeys(names - HARMLESS, NONSENSE) | {"OTEL_BSP_MAX_QUEUE_SIZE": "many"}
    variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    (port,) = free_ports(1)
    variables["VM_SYNC_OPS__PORT"] = str(port)
    with (tmp_path / "log").open("w+b") as log, running(variables, stderr=log) as process:
        asyncio.run(alive(port))
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 0
        log.seek(0)
        lines = [json.loads(line) for line in log.read().decode().splitlines()]

    assert not [line for line in lines if "exception" in line]
    traces = [line["message"] for line in lines if line["logger"] == "service.observability.tracing"]
    assert traces == ["Tracing is off: OTEL_BSP_MAX_QUEUE_SIZE must be an integer"]


def test_those_that_stop_it_are_forgotten_and_empty_ones_of_opentelemetry_count_as_not_set() -> None:
    environ = dict.fromkeys(IGNORED, NONSENSE) | {"OTEL_BSP_SCHEDULE_DELAY": "", "OTEL_SERVICE_NAME": "x", "HOME": "/"}

    prepare(["vm-sync", "settings"], environ)

    assert environ == {"OTEL_SERVICE_NAME": "x", "HOME": "/"}
