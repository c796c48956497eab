"""Tests are where a reader looks for them: `service/<folder>/<module>.py` has `tests/<folder>/test_<module>.py`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import pytest

from tests.conftest import longest_first

ROOT: Final = Path(__file__).resolve().parents[2]

ELSEWHERE: Final = {
    "asyncapi/examples.py": "tests/asyncapi/test_document.py",
    "asyncapi/page.py": "tests/asyncapi/test_document.py",
    "asyncapi/serialize.py": "tests/asyncapi/test_document.py",
    "cli/cancel.py": "tests/cli/test_cli_kafka.py",
    "cli/commands.py": "tests/cli/test_cli.py",
    "cli/describe.py": "tests/cli/test_cli.py",
    "cli/kafka.py": "tests/cli/test_cli_kafka.py",
    "cli/options.py": "tests/cli/test_cli.py",
    "cli/operators.py": "tests/cli/test_cli_kafka.py",
    "cli/outcome_events.py": "tests/cli/test_outcomes.py",
    "cli/process.py": "tests/system/test_process.py",
    "cli/request.py": "tests/cli/test_cli_kafka.py",
    "cli/run.py": "tests/cli/test_cli.py",
    "cli/syncs.py": "tests/cli/test_cli_kafka.py",
    "intake/group_commits.py": "tests/intake/test_supervisor.py",
    "intake/reachability.py": "tests/intake/test_group_errors.py",
    "intake/subscriber.py": "tests/intake/test_group.py",
    "kafka/connection.py": "tests/kafka/test_clients.py",
    "kafka/rights.py": "tests/kafka/test_check.py",
    "kafka/topic_descriptions.py": "tests/kafka/test_topics.py",
    "live_view.py": "tests/system/test_demo.py",
    "partition/admission.py": "tests/partition/test_admission_log.py",
    "partition/expiry.py": "tests/partition/test_exits.py",
    "partition/journal_writer.py": "tests/partition/test_backlog.py",
    "partition/postponements.py": "tests/partition/test_slots.py",
    "sandbox/child_processes.py": "tests/sandbox/test_kafka.py",
    "sandbox/demo/demo.py": "tests/system/test_demo.py",
    "sandbox/demo/seen.py": "tests/system/test_demo.py",
    "sandbox/demo/view.py": "tests/system/test_demo.py",
    "sandbox/kafka_jars.py": "tests/sandbox/test_kafka.py",
    "sandbox/vcda/faults.py": "tests/sandbox/test_vcda_simulator.py",
    "sandbox/vcda/logins.py": "tests/sandbox/test_vcda_simulator.py",
    "sandbox/vcda/operations.py": "tests/sandbox/test_vcda_simulator.py",
    "sandbox/vcda/requests.py": "tests/sandbox/test_vcda_simulator.py",
    "sandbox/vcda/shapes.py": "tests/sandbox/test_vcda_simulator.py",
    "sandbox/vcda/simulator.py": "tests/sandbox/test_vcda_simulator.py",
    "sandbox/vcda/world.py": "tests/sandbox/test_vcda_simulator.py",
    "settings/describe.py": "tests/settings/test_loading.py",
    "sync.py": "tests/sync/test_sync.py",
    "vcda/look_ups.py": "tests/partition/test_reconciler.py",
    "vcda/operator_pauses.py": "tests/vcda/test_lanes.py",
}
"""Modules that only show what they do together with others, and where they do: the commands by what they print, with
Kafka or without; the demo and a process as a whole; the simulated VCDA over HTTP; topics that are replaced."""

NOTHING_TO_TEST: Final = {
    "intake/timings.py": "numbers, with the reason for each",
    "kafka/journal_api.py": "an interface and its values",
    "messages/record_fate.py": "an enumeration",
    "messages/wait_cause.py": "an enumeration",
    "partition/dependencies.py": "an interface and its values",
}


def _modules() -> list[str]:
    package = ROOT / "service"
    return sorted(
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if not path.name.startswith("__")
    )


def _mirror(module: str) -> str:
    folder, _, name = module.rpartition("/")
    return f"tests/{folder}/test_{name}" if folder else f"tests/test_{name}"


@pytest.mark.parametrize("module", _modules())
def test_every_module_has_its_test_file(module: str) -> None:
    assert module in NOTHING_TO_TEST or (ROOT / ELSEWHERE.get(module, _mirror(module))).is_file()


def test_no_exception_is_left_over() -> None:
    listed = [*ELSEWHERE, *NOTHING_TO_TEST]
    assert [module for module in listed if module not in _modules()] == []
    assert [module for module in listed if (ROOT / _mirror(module)).exists()] == []
    assert ELSEWHERE.keys().isdisjoint(NOTHING_TO_TEST)


@dataclass
class Item:
    """What a test is sorted by."""

    file: str
    marks: dict[str, pytest.Mark] = field(default_factory=dict)

    @property
    def location(self) -> tuple[str, int, str]:
        return self.file, 0, ""

    @property
    def keywords(self) -> dict[str, pytest.Mark]:
        return self.marks

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self.marks.get(name)

    def iter_markers(self, name: str) -> Iterator[pytest.Mark]:
        if mark := self.marks.get(name):
            yield mark


def test_workers_begin_with_the_files_that_take_longest_and_each_file_stays_in_order() -> None:
    e2e, kafka, hour = pytest.mark.e2e.mark, pytest.mark.kafka.mark, pytest.mark.timeout(3600).mark
    fast, slow = Item("fast"), Item("slow", {"timeout": hour})
    broker = [Item("broker"), Item("broker", {"kafka": kafka})]
    process = [Item("process", {"kafka": kafka}), Item("process", {"e2e": e2e, "kafka": kafka}), Item("process")]
    items = [fast, *broker, *process, slow]

    longest_first(cast("list[pytest.Item]", items))

    assert items == [slow, *process, *broker, fast]
