"""The protocol's model: its smallest scenarios come out as recorded, and each of its rules has its test in the code."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import missing
from tools import model

ROOT = Path(__file__).resolve().parents[2]
PAGE = (model.FOLDER / "README.md").read_text()
HEAD = "| # | rule | macros | without it | code | test |"
RULES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split(f"\n{HEAD}\n")[1].split("\n\n")[0].splitlines()[1:]
]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), flags=re.MULTILINE)
}

SMALLEST = (
    "rules: no fault, one deadline, one rejection",
    "without: the topic compared while it is read",
)
"""One that holds and one that breaks; the model's translation and compilation take longer than the search."""


@pytest.mark.parametrize("name", SMALLEST)
def test_the_model_gives_what_is_recorded(name: str) -> None:
    if lacking := model.missing_programs():
        missing(f"{' and '.join(lacking)} can't be found (apt-get install spin gcc libc6-dev)")
    (scenario,) = [each for each in model.SCENARIOS if each.name == name]
    macros, broke, states, lines, _ = model.results()[name]

    result = model.run(scenario)

    assert (scenario.macros, result.broke) == (macros, broke)
    assert (f"{result.states:,} states", f"{len(result.steps)} lines") == (states, lines)


def test_every_scenario_has_a_result_and_it_is_the_expected_one() -> None:
    recorded = model.results()

    assert list(recorded) == [scenario.name for scenario in model.SCENARIOS], "run: python -m tools.model --missing"
    unexpected = [each.name for each in model.SCENARIOS if not model.as_expected(each, recorded[each.name][1])]
    assert unexpected == []


def test_the_page_says_only_numbers_of_states_that_were_counted() -> None:
    counted = {states.removesuffix(" states") for _, _, states, _, _ in model.results().values()}
    said = set(re.findall(r"\b\d{1,3}(?:,\d{3})+\b", PAGE))

    assert said <= counted, said - counted


def test_every_rule_has_its_number_its_switch_and_its_code() -> None:
    macros = set(re.findall(r"^#define (\w+)", model.MODEL.read_text(), flags=re.MULTILINE))
    modules = {path.stem for path in (ROOT / "service").rglob("*.py")}

    assert [row[0] for row in RULES] == [str(number + 1) for number in range(len(RULES))]
    for number, _, switches, _, code, _ in RULES:
        assert set(switches.split(", ")) <= macros, number
        named = set(re.findall(r"`(\w+)`", code))
        assert named, number
        assert named <= modules, number


def test_every_rule_has_its_test_and_every_test_of_a_rule_its_rule() -> None:
    patterns = {row[0]: row[5].strip("`") for row in RULES}

    assert {
        number: any(fnmatch(name, pattern) for name in TESTS) for number, pattern in patterns.items()
    } == dict.fromkeys(patterns, True)
    of_rules = {found[1] for name in TESTS if (found := re.match(r"test_rule_(\d+)_", name))}
    assert {number for number, pattern in patterns.items() if pattern == f"test_rule_{number}_*"} == of_rules


def test_every_rule_says_how_long_the_traces_are_that_break_something_without_it() -> None:
    recorded = model.results()
    for number, _, switches, without, _, _ in RULES:
        lengths = {
            int(recorded[each.name][3].removesuffix(" lines"))
            for each in model.SCENARIOS
            if each.name.startswith("without:")
            and {macro.partition("=")[0] for macro in each.macros.split()} & set(switches.split(", "))
        }
        said = {int(length) for length in re.findall(r"\b\d+\b", without)}

        assert said, number
        assert said <= lengths, (number, said - lengths)
