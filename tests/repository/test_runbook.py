"""The runbook sends nobody to a place that lacks it: entries have their parts, commands parse, log lines exist."""

import contextlib
import re
from typing import Any

import pytest
from typer._click.exceptions import ClickException, MissingParameter
from typer.core import TyperGroup
from typer.main import get_command

from service.cli.commands import app
from service.kafka.journal_api import StopReason
from service.messages.wait_cause import WaitCause
from service.observability.metrics import STATES
from service.sync import Reason
from tests.support.expressions import alerts, sections
from tests.support.runbook import PARTS, checked, commands, is_said, looked_for, pages, programs, queries

ENTRIES = pages()
TEXTS = sections()


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table in a section, without its head."""
    rows = [line for line in TEXTS[heading].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_each_alert_has_one_page_in_the_order_of_the_rules() -> None:
    assert list(ENTRIES) == list(alerts())


@pytest.mark.parametrize("alert", alerts())
def test_an_entry_has_its_parts_and_ends_with_how_to_know_that_it_is_over(alert: str) -> None:
    parts = ENTRIES[alert].parts

    assert tuple(parts) == PARTS
    assert queries(parts["Look"])
    assert queries(parts["Over when"])


@pytest.mark.parametrize("alert", alerts())
def test_what_an_entry_says_of_vm_sync_check_stands_where_looking_begins(alert: str) -> None:
    look = ENTRIES[alert].parts["Look"]

    assert checked(look) or not re.match(r".*`vm-sync check`, the line", look, flags=re.DOTALL)


@pytest.mark.parametrize("alert", alerts())
def test_a_page_is_found_by_its_alert(alert: str) -> None:
    assert f"](#{alert.lower()})" in TEXTS["By alert"]


@pytest.mark.parametrize("alert", alerts())
def test_the_lines_of_vm_sync_check_that_a_page_names_exist(alert: str) -> None:
    for text in quoted(checked(ENTRIES[alert].parts["Look"])):
        if not text.startswith(("vm-sync ", "VM_SYNC_", "kubectl ")) and not text.isdecimal():
            assert is_said(text), text


@pytest.mark.parametrize("heading", TEXTS)
def test_what_is_looked_for_in_the_log_is_written_by_the_service(heading: str) -> None:
    assert [text for text in looked_for(TEXTS[heading]) if not is_said(text)] == []


def test_a_log_line_that_the_service_does_not_write_is_found() -> None:
    assert looked_for("```sh\nkubectl -n vm-sync logs POD | grep -E 'Kafka denies|Kafka refuses'\n```\n") == {
        "Kafka denies",
        "Kafka refuses",
    }
    assert is_said("Kafka denies")
    assert not is_said("Kafka refuses the right")


@pytest.mark.parametrize("heading", TEXTS)
def test_the_commands_of_a_section_are_ones_that_vm_sync_understands(heading: str) -> None:
    for arguments in programs(TEXTS[heading]):
        understand(arguments)
    for arguments in programs(TEXTS[heading], quoted=True):
        with contextlib.suppress(MissingParameter):  # a sentence may leave out what the command is about
            understand(arguments)


def understand(arguments: list[str]) -> None:
    """Parse a command as the program does, without running it; raises the program's own errors."""
    command: Any = get_command(app)
    context, rest = command.make_context("vm-sync", [arguments[0]], resilient_parsing=True), arguments
    while isinstance(command, TyperGroup):
        if not rest:  # a group alone, as a sentence may name it
            return
        if (found := command.get_command(context, rest[0])) is None:
            raise LookupError(rest[0])
        command, rest = found, rest[1:]
    command.make_context(arguments[0], list(rest), parent=context)


@pytest.mark.parametrize(
    "wrong", ["dead-letter list", "dead-letters print", "list --status running", "show", "list --state run"]
)
def test_a_command_that_vm_sync_does_not_understand_is_found(wrong: str) -> None:
    understand(["dead-letters", "show", "0:1"])

    with pytest.raises((LookupError, ClickException)):
        understand(wrong.split())


def test_every_command_is_one_that_the_test_of_the_alerts_can_run_or_that_needs_a_cluster() -> None:
    known = (
        r"kubectl -n vm-sync (exec (-it )?(deploy/vm-sync|vm-sync-operator|POD) -- vm-sync )"
        r"|kubectl -n vm-sync (logs|get|describe|port-forward|rollout|scale) "
        r"|curl -s localhost:8080/(readyz|livez|syncs)$|kafka-(transactions|consumer-groups)\.sh "
    )
    for text in TEXTS.values():
        for command in commands(text):
            assert re.match(known, command), command


def test_the_log_of_all_pods_is_read_on_behind_a_pod_that_has_none_yet() -> None:
    of_all = [command for text in TEXTS.values() for command in commands(text) if " logs -l " in command]

    assert of_all
    assert [command for command in of_all if "--ignore-errors" not in command] == []


def test_what_readyz_and_show_are_quoted_with_are_their_words() -> None:
    for text, _ in table("What /readyz says"):
        for word in quoted(text):
            assert is_said(word), word
    words = {*WaitCause, *Reason, *STATES, "completed", "failed", "isolation.level=read_committed"}
    for text, _ in table("A request without an outcome"):
        for word in quoted(text):
            assert word in words or is_said(word), word


def test_every_cause_that_a_request_can_wait_for_has_its_row() -> None:
    named = {word for text, _ in table("A request without an outcome") for word in quoted(text)}

    assert set(WaitCause) <= named


def test_each_reason_for_which_a_partition_stops_is_explained() -> None:
    explained = re.findall(r"^\| `([\w-]+)` \|", TEXTS["VmSyncPartitionStopped"], flags=re.MULTILINE)

    assert set(explained) == set(StopReason)
