"""What the documentation says of the code is made of the code: pages, tables and pictures are as they would be made."""

import re
import shutil
from pathlib import Path

import pytest

import service
from benchmarks import long_run
from benchmarks.page import write
from benchmarks.results import Results
from service import sync
from tools import architecture, states, tables

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_settings_says_what_the_settings_say_of_themselves() -> None:
    assert tables.SETTINGS.read_text() == tables.settings_page(), "run: make pages"


def test_the_table_of_metrics_says_what_the_metrics_say_of_themselves() -> None:
    assert tables.METRICS_PAGE.read_text() == tables.metrics_page(), "run: make pages"


def test_the_readme_shows_some_of_both_and_of_what_was_measured_as_they_are() -> None:
    text = tables.README.read_text()

    assert tables.readme(text) == text, "run: make pages"


def test_the_runbook_lists_the_alerts_as_the_rules_have_them() -> None:
    text = tables.RUNBOOK.read_text()

    assert tables.runbook(text) == text, "run: make pages"


def test_the_pages_of_performance_and_scaling_say_what_was_measured(tmp_path: Path) -> None:
    docs = tables.MEASURED.parents[1]
    (tmp_path / "performance").mkdir()
    shutil.copy(docs / "performance" / "notes.md", tmp_path / "performance")

    write(Results.read(tables.MEASURED), tmp_path)

    anew = "run: python -m benchmarks --pages docs/performance/raw.json"
    for page in ("performance.md", "scaling.md"):
        assert (tmp_path / page).read_text() == (docs / page).read_text(), anew


def test_the_page_of_the_long_run_says_what_was_measured(tmp_path: Path) -> None:
    folder = tables.MEASURED.parent

    long_run.write(long_run.LongRun.read(folder / "long-run.json"), tmp_path)

    anew = "run: python -m benchmarks.long_run --pages docs/performance/long-run.json"
    assert (tmp_path / "performance" / "long-run.md").read_text() == (folder / "long-run.md").read_text(), anew


def test_the_picture_of_the_architecture_shows_the_contracts_and_the_imports() -> None:
    assert architecture.PAGE.read_text() == architecture.page(), "run: make pages"


def test_every_module_has_its_place_in_the_picture() -> None:
    layers, _ = architecture._contracts()

    assert {module for modules in layers for module in modules} == _modules()


def test_the_picture_of_one_sync_shows_where_every_transition_leads() -> None:
    assert states.PAGE.read_text() == states.page(), "run: make pages"


def test_a_transition_that_nobody_drew_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def retried(state: sync.Running) -> sync.Step:
        return sync.Step(state)

    retried.__module__ = sync.__name__
    monkeypatch.setattr(sync, "retried", retried, raising=False)

    with pytest.raises(LookupError, match=r"sync\.retried"):
        states.arrows()


def test_an_observation_without_an_example_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(states.SEEN, "VCDA refuses")

    with pytest.raises(LookupError, match="Refused"):
        states.arrows()


def test_a_state_without_an_example_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(states.STATES, "Waiting")

    with pytest.raises(LookupError, match="Waiting"):
        states.arrows()


def test_every_outcome_of_the_contract_is_told_somewhere_in_the_picture() -> None:
    told = {arrow.tells for arrow in states.arrows()} - {""}

    assert told == {"completed", *sync.Reason}


def test_the_map_in_the_package_names_every_module_once() -> None:
    bullets = re.findall(r"^- (.+?):", service.__doc__ or "", flags=re.MULTILINE)
    named = [name for bullet in bullets for name in re.findall(r"`(\w+)`", bullet)]

    assert sorted(named) == sorted(_modules())


def _modules() -> set[str]:
    return {
        path.stem for path in (ROOT / "service").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}
