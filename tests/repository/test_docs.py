"""What the documents tell people to type works, where their links lead is something, and what they name exists.

Commands are run as they are written, by a shell, against what `vm-sync demo --keep` leaves running. What stands between
a document and this machine is in three tables: `ELSEWHERE` (not run, and why), `HERE_AS` (run in another way) and the
addresses and folder that `Demo.here` puts in place of the documents' examples.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.partitioner import murmur2

from service.cli import sites
from service.cli.sites import Instance
from service.messages.site_pause import SitePause, SitePauses, write_pause
from service.messages.wait_cause import WaitCause
from service.observability.metrics import METRICS
from service.ops import syncs_page
from service.ops.sites_view import Hindrance, Hold, SiteView, sites_json
from service.sandbox.kafka_jars import KafkaError, jars
from service.settings import describe
from service.sync import Reason
from tests.conftest import missing
from tests.support.shown_syncs import AWAY_FOR_LONG, NOW, Shown

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
SCRIPTS = Path(sys.executable).parent
BASH = shutil.which("bash") or "/bin/bash"

ELSEWHERE = {
    r"docker |kind ": "wants a container runtime; what it would build or load is tested in test_deploy_*",
    r"(kubectl|helm) ": "wants a cluster; what it would apply is rendered and checked in test_deploy_*",
    r"kafka-(transactions|consumer-groups)\.sh ": "comes with Kafka's own distribution, which the embedded Kafka lacks",
    r"vm-sync demo --keep$": "is what all others are run against",
}
"""Commands that aren't run here."""

HERE_AS = {
    "kubectl -n vm-sync exec vm-sync-operator -- ": "",
    "kubectl -n vm-sync exec deploy/vm-sync -- ": "",  # the command that is run in a pod is run here
    "make ": "make --dry-run ",  # the target exists; making it is what runs these tests, or takes minutes
    "vm-sync show ID": "vm-sync show demo-0001",
    "vm-sync dead-letters show PARTITION:OFFSET": (
        "vm-sync dead-letters show $(vm-sync dead-letters list --json |"
        """ python -c 'import json, sys; print("{partition}:{offset}".format(**json.load(sys.stdin)[0]))')"""
    ),
}
"""Beginnings of commands, and what is run instead."""

TOOLS = {
    "mvn": ("mvn javac", "apt-get install maven default-jdk-headless"),
    "go": ("go", "Go 1.24 or newer"),
    "kcat": ("kcat", "apt-get install kcat"),
}
"""What a command that names the first needs, and where that comes from."""

PATIENCE = 240.0
"""Seconds for one block of commands: a second or two on an idle machine, minutes where Maven fetches
its plugins or Go compiles a client and the machine is busy."""


# ---------------------------------------------------------------- what is written


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its commands, one for each line, continued lines joined."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def here(command: str) -> str | None:
    """Return the command as it is run here; None where it can't be."""
    for beginning, instead in HERE_AS.items():
        if command.startswith(beginning):
            command = instead + command.removeprefix(beginning)
    command = command.removesuffix(" --watch")  # ends only when somebody ends it
    return None if any(re.match(pattern, command) for pattern in ELSEWHERE) else command


SHELL = [block for document in DOCUMENTS for block in blocks(document) if block.language == "sh"]
RUN = [block for block in SHELL if any(here(command) for command in block.commands)]


# ---------------------------------------------------------------- what it is run against


@dataclass(frozen=True)
class Demo:
    """`vm-sync demo --keep`, and the addresses that it printed."""

    bootstrap: str
    port: str
    vcda: str

    def here(self, text: str) -> str:
        """Put the addresses in place of those that the documents show, and the environment that runs these tests."""
        examples = {
            "127.0.0.1:23028": self.bootstrap,
            "41549": self.port,
            "localhost:8080": f"localhost:{self.port}",  # what `kubectl port-forward` would lead to
            "http://127.0.0.1:46287": self.vcda,
            ".venv/bin/": f"{SCRIPTS}/",  # where `make test VENV=...` has it
        }
        for example, real in examples.items():
            text = text.replace(example, real)
        return text

    def environment(self) -> dict[str, str]:
        """What a pod's settings, or an earlier block of the same document, would have set."""
        return {
            **_environment(),
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
            "VM_SYNC_OPS__PORT": self.port,
            "VM_SYNC_VCDA__URL": self.vcda,
            "VM_SYNC_VCDA__CREDENTIALS__USER": "administrator@System",
            "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "password",
        }

    def plan(self, **plan: object) -> None:
        """Tell the simulated VCDA how syncs shall go."""
        httpx.post(f"{self.vcda}/_simulator/plan", json=plan, timeout=PATIENCE).raise_for_status()


def _environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("VM_SYNC_")}
    return kept | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    try:
        jars()
    except KafkaError as error:
        missing(str(error))
    output = tmp_path_factory.mktemp("demo") / "output"
    # A few requests are enough here; the default takes a quarter of a minute longer.
    command = [str(SCRIPTS / "vm-sync"), "demo", "--keep", "--requests", "6"]
    with output.open("wb") as file:
        process = subprocess.Popen(command, env=_environment(), stdout=file, stderr=subprocess.STDOUT)
        try:
            found = _printed(output, process)
            found.plan(duration=0.5, queued=0.1, failing=0.0, warned=0.0)
            yield found
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0, output.read_text()
        finally:
            process.kill()
            process.wait()


def _printed(output: Path, process: subprocess.Popen[bytes]) -> Demo:
    until = time.monotonic() + PATIENCE
    while "the log  " not in (text := output.read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < until, text
        time.sleep(0.2)
    exported = re.search(r"BOOTSTRAP_SERVERS=(\S+) VM_SYNC_OPS__PORT=(\d+)", text)
    vcda = re.search(r"a simulated VCDA at (\S+);", text)
    assert exported
    assert vcda, text
    return Demo(bootstrap=exported[1], port=exported[2], vcda=vcda[1])


# ---------------------------------------------------------------- commands


@pytest.mark.e2e
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_commands_do_what_their_document_says(block: Block, demo: Demo) -> None:
    commands = [demo.here(command) for written in block.commands if (command := here(written))]
    _need_tools(" ".join(commands))
    if commands[-1].endswith("vm-sync run"):
        _run_until_it_works(commands, demo)
        return

    done = _shell(commands, demo)

    assert done.returncode == 0, done.stdout + done.stderr


def _shell(commands: list[str], demo: Demo) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        [BASH, "-euo", "pipefail", "-c", "\n".join(commands)],
        cwd=ROOT,
        env=demo.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        except BaseException:
            _end_session(process.pid)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _end_session(leader: int) -> None:
    """End a process and all that it has started, such as Maven."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _run_until_it_works(commands: list[str], demo: Demo) -> None:
    """Run what runs until it is stopped: until partitions have been assigned to it; then it has to stop cleanly."""
    *before, last = commands
    script = "\n".join([*before, f"exec env {last}"])
    seen: list[str] = []
    works = threading.Event()

    with subprocess.Popen(
        [BASH, "-euc", script],
        cwd=ROOT,
        env=demo.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:

        def read() -> None:
            assert process.stdout
            for line in process.stdout:
                seen.append(line)
                if re.search(r"Partition \d+ is open", line):
                    works.set()

        reader = threading.Thread(target=read)
        reader.start()
        worked = works.wait(PATIENCE)
        process.terminate()
        reader.join(PATIENCE)
        assert worked, "".join(seen)
        assert process.wait(PATIENCE) == 0, "".join(seen)


def _need_tools(text: str) -> None:
    for tool, (programs, source) in TOOLS.items():
        if re.search(rf"\b{tool}\b", text) and not all(map(shutil.which, programs.split())):
            missing(f"{programs} can't be found: {source}")


def test_each_command_that_is_not_run_has_a_reason_that_is_still_needed() -> None:
    commands = [command for block in SHELL for command in block.commands if here(command) is None]

    for pattern in ELSEWHERE:
        assert any(re.match(pattern, command) for command in commands), f"nothing begins with {pattern}"


def test_every_block_says_in_which_language_it_is() -> None:
    unnamed = [block.name for document in DOCUMENTS for block in blocks(document) if not block.language]

    assert not unnamed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_json_in_a_document_is_json(document: Path) -> None:
    for block in blocks(document):
        if block.language == "json":
            json.loads(block.text)


# ---------------------------------------------------------------- examples for other teams

EXAMPLES = {
    "python": (["python", "sync.py"], "python"),
    "java": (["mvn", "-q", "compile", "exec:java", "-Dexec.args={}"], "mvn"),
    "go": (["go", "run", "."], "go"),
    "kcat": (["./sync.sh"], "kcat"),
}


async def _example(language: str, *arguments: str, env: Mapping[str, str]) -> tuple[int | None, str]:
    """Run an example; return its exit code, and all that it says. Go says the code, and ends with 1 itself."""
    command, tool = EXAMPLES[language]
    _need_tools(tool)
    words = [part.format(" ".join(arguments)) for part in command]
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *(words if words != command else [*command, *arguments]),
            cwd=ROOT / "docs" / "examples" / language,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)  # it may have children before this returns
        output = (await asyncio.wait_for(process.communicate(), PATIENCE))[0].decode()
    except BaseException:
        process = await starting
        _end_session(process.pid)
        await process.communicate()
        raise
    go = re.search(r"^exit status (\d+)$", output, re.MULTILINE)
    return int(go[1]) if go else process.returncode, output


async def test_an_example_that_does_not_end_in_time_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "lives")
    script = f"(echo yes; exec sleep 100) >{tmp_path / 'lives'} & wait"  # as Maven and `go run` have children
    monkeypatch.setitem(EXAMPLES, "kcat", (["sh", "-c", script, "{}"], "python"))
    example = asyncio.create_task(_example("kcat", env=os.environ))

    with await asyncio.to_thread((tmp_path / "lives").open) as lives:
        assert await asyncio.to_thread(lives.readline) == "yes\n"
        example.cancel()  # as the time limit does
        await asyncio.wait([example])
        began = time.monotonic()
        assert await asyncio.to_thread(lives.readline) == "", "the child has ended"

    assert time.monotonic() - began < 60


@pytest.mark.e2e
@pytest.mark.parametrize("language", EXAMPLES)
async def test_an_example_reads_a_failure_too_and_puts_its_request_where_java_would(language: str, demo: Demo) -> None:
    replication = _told_apart()
    demo.plan(replication=replication, failing=1.0, duration=0.5)

    code, output = await _example(language, replication, env=demo.environment())
    (told,) = [json.loads(line) for line in output.splitlines() if line.startswith("{")] or [output]

    assert code == 1, told
    assert told["replicationId"] == replication
    assert told["reason"] == "task-failed"
    assert await _place(told["operationID"], demo) == (murmur2(replication.encode()) & 0x7FFFFFFF) % 4


@pytest.mark.e2e
@pytest.mark.parametrize("ids", [("C4-1",), ("C4-1", "operation-1")], ids=["request", "cancel"])
@pytest.mark.parametrize("language", EXAMPLES)
async def test_an_example_without_kafka_says_so_and_ends(language: str, ids: tuple[str, ...]) -> None:
    env = _environment() | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}

    code, output = await _example(language, *ids, env=env)

    assert code == 3, output
    assert re.search(r"^(can't use Kafka at 127.0.0.1:9|Kafka at 127.0.0.1:9 can't be used)", output, re.MULTILINE)
    assert "Traceback" not in output
    assert "\tat org.apache" not in output


@pytest.mark.e2e
@pytest.mark.parametrize("language", EXAMPLES)
async def test_an_example_whose_outcome_does_not_come_in_time_says_so_and_ends(language: str, demo: Demo) -> None:
    replication = _told_apart()
    demo.plan(replication=replication, failing=0.0, duration=600.0)

    code, output = await _example(language, replication, env=demo.environment() | {"WAIT_SECONDS": "5"})

    assert code == 3, output
    assert re.search(r"^no outcome within 5", output, re.MULTILINE | re.IGNORECASE)
    assert "Traceback" not in output


def test_the_python_example_without_arguments_says_how_to_use_it() -> None:
    example = ROOT / "docs" / "examples" / "python" / "sync.py"

    run = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=240, check=False)

    assert run.returncode == 2  # neither completed nor failed
    assert "sync.py REPLICATION_ID OPERATION_ID" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("language", EXAMPLES)
async def test_an_example_cancels_a_request_that_waits(language: str, demo: Demo) -> None:
    replication, running, waiting = _told_apart(), f"runs-{uuid.uuid4()}", f"waits-{uuid.uuid4()}"
    demo.plan(replication=replication, failing=0.0, duration=600.0)  # longer than Maven takes
    for operation in (running, waiting):
        asked = _shell([f"vm-sync request {replication} --operation-id {operation}"], demo)
        assert asked.returncode == 0, asked.stderr
    await _until(waiting, "waiting", demo)

    code, output = await _example(language, replication, waiting, env=demo.environment())

    assert code == 0, output
    ended = await _until(waiting, "failed", demo)
    assert ended["reason"] == "cancelled"
    assert ended["error"]["msg"].startswith("The request was cancelled by ")


async def _until(operation_id: str, state: str, demo: Demo) -> dict[str, Any]:
    """Wait until the journal says that a request is in this state."""
    until = time.monotonic() + PATIENCE
    while True:
        shown = await asyncio.to_thread(_shell, [f"vm-sync show {operation_id} --json"], demo)
        if shown.returncode == 0 and (found := json.loads(shown.stdout)[0])["state"] == state:
            return dict(found)
        assert time.monotonic() < until, shown.stdout + shown.stderr
        await asyncio.sleep(0.2)


def _told_apart() -> str:
    """Draw a replication that librdkafka's own way of choosing a partition would put elsewhere than Java's."""
    while True:
        replication = f"C4-{uuid.uuid4()}"
        if (murmur2(replication.encode()) & 0x7FFFFFFF) % 4 != zlib.crc32(replication.encode()) % 4:
            return replication


async def _place(operation_id: str, demo: Demo) -> int:
    """Find the partition of a request."""
    consumer = AIOKafkaConsumer(
        "vm-sync.requests",
        bootstrap_servers=demo.bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    async with asyncio.timeout(PATIENCE), consumer:
        async for record in consumer:
            if operation_id.encode() in record.value:
                return int(record.partition)
    raise AssertionError


# ---------------------------------------------------------------- what documents name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), target
        if anchor:
            assert anchor in _anchors(found), target


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


NO_SETTINGS = {
    "VM_SYNC_VCDA__SITES__0__NAME",  # one of a list's
    "VM_SYNC_KAFKA__PARTITION",  # shows what is said of a misspelt one
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_settings_metrics_and_targets_that_are_named_exist(document: Path) -> None:
    text = document.read_text()
    settings = {row.name for row in describe()}
    metrics = {metric.name for metric in METRICS}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    named = set(re.findall(r"\bVM_SYNC_[A-Z_]+[A-Z]\b(?!__\d)", text))
    assert named <= settings | NO_SETTINGS, named - settings
    counted = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bvm_sync_\w+\b(?!:)", text)}
    assert counted <= metrics, counted - metrics
    made = set(re.findall(r"\bmake ([a-z-]+)(?=[`\n ] *(?:[`#\n,]|$))", text)) | set(
        re.findall(r"`make ([a-z-]+)`", text)
    )
    assert made <= targets, made - targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    named = set(
        re.findall(r"`((?:tests|benchmarks|tools|service|deploy|schemas|docs)/[\w./-]+\.\w+)`", document.read_text())
    )

    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def _rows(document: Path, head: str) -> list[list[str]]:
    """Return the cells of the table under a heading row."""
    table = document.read_text().split(f"\n{head}\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def test_the_readme_names_the_topics_by_their_defaults() -> None:
    named = [row[0].strip("`") for row in _rows(ROOT / "README.md", "| topic | direction | key | value |")]
    defaults = [row.default for row in describe() if row.name.startswith("VM_SYNC_TOPICS__") and row.default]

    assert named == defaults


def test_other_teams_are_told_every_field_and_every_reason() -> None:
    page = ROOT / "docs" / "for-other-teams.md"
    fields = [row[0].strip("`") for row in _rows(page, "| field of a request | | |")]
    schema = json.loads((ROOT / "schemas" / "sync-requested.v1.json").read_text())

    assert set(fields) == set(schema["properties"])
    assert {field for field in fields if f"| `{field}` | required" in page.read_text()} == set(schema["required"])
    reasons = [row[0].strip("`") for row in _rows(page, "| `reason` | what happened | what to do |")]
    assert sorted(reasons) == sorted(Reason)
    fields = [row[0].strip("`") for row in _rows(page, "| field of a cancel | | |")]
    schema = json.loads((ROOT / "schemas" / "sync-cancel-requested.v1.json").read_text())
    assert set(fields) == set(schema["properties"])


@pytest.mark.e2e
def test_every_field_of_the_json_of_syncs_and_of_sites_is_explained() -> None:
    pause = SitePause(site="site2", until=NOW)
    hindrance = Hindrance(Hold.BREAKER, WaitCause.CIRCUIT_OPEN, "It is open.")
    views = sites_json([SiteView(name="site2", pause=pause, hindrances=(hindrance,))])
    instance = Instance(url="http://localhost:8080", sites={"site2": views[0]})
    pauses = SitePauses()
    pauses.take(*write_pause(pause), offset=0)
    summed_up = sites._json(sites.Scene(pauses=pauses, entries=(), instances=[instance]), "site2", NOW - AWAY_FOR_LONG)
    parts = {
        "a sync": syncs_page._shown(Shown("op:C4-1:a"), str),
        "a site": views[0],
        "vm-sync sites --json": {name: fact for name, fact in summed_up.items() if name != "inFlight"},
    }
    text = (ROOT / "docs" / "page.md").read_text().split("### As JSON")[1].split("\n## ")[0]
    unexplained = {
        what: sorted({name for name in _names(part) if not re.search(rf"[`{{ ]{name}[`,}}]", text)})
        for what, part in parts.items()
    }
    assert not any(unexplained.values()), unexplained
    assert "`inFlight`" in text


def _names(value: object) -> Iterator[str]:
    """Yield the names of all fields, at any depth."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield name
            yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)


def test_the_operations_server_has_every_path_that_the_readme_names(demo: Demo) -> None:
    named = [
        path for row in _rows(ROOT / "README.md", "| path, on port 8080 | answer |") for path in row[0].split(", ")
    ]

    asked = {path: f"http://127.0.0.1:{demo.port}{path.strip('`')}" for path in named}
    answers = {path: httpx.get(url, timeout=PATIENCE).status_code for path, url in asked.items()}

    assert answers == dict.fromkeys(named, 200)


def test_each_guarantee_has_its_tests_in_the_page_of_tests() -> None:
    promised = re.findall(r"^\| \*\*([^*]+)\.\*\*", (ROOT / "docs" / "guarantees.md").read_text(), flags=re.MULTILINE)
    tests = (ROOT / "docs" / "testing.md").read_text()
    _, _, table = tests.partition("## Which test shows which guarantee")
    shown = re.findall(r"^\| ([^|]+?) \|", table.partition("\n## ")[0], flags=re.MULTILINE)[1:]

    assert promised
    assert [name.lower() for name in promised] == shown


def test_every_decision_is_in_the_list_of_decisions_with_its_own_title() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE)

    assert [name for _, name, _ in listed] == sorted(path.name for path in folder.glob("0*.md"))
    for number, name, title in listed:
        text = (folder / name).read_text()
        assert text.startswith(f"# {number}: {title}\n"), name
        assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], name
