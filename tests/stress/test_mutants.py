"""The mechanisms that `python -m tests.stress.mutants` takes out are still where it looks for them, and its table."""

from pathlib import Path

import pytest

from tests.stress import mutants
from tests.stress.mutants import HERE, MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_is_broken_stands_in_the_code_exactly_once(mutant: Mutant) -> None:
    text = (HERE / mutant.file).read_text(encoding="utf-8")

    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_that_have_to_notice_exist(mutant: Mutant) -> None:
    assert mutant.tests
    assert all((HERE / file).is_file() for file in mutant.tests)


def test_what_is_seen_of_a_mutant_replaces_its_row_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{mutants.BEGIN}\n| of | no | mutant |\n{mutants.END}\nAfter.\n")
    monkeypatch.setattr(mutants, "PAGE", page)
    first, second = mutants.MUTANTS[:2]

    mutants.write(mutants.Found(second, "tests/x/test_it.py::test_it_is_noticed[a]"))
    mutants.write(mutants.Found(first, None))
    mutants.write(mutants.Found(first, "tests/x/test_it.py::test_another"))

    assert page.read_text().splitlines() == [
        "# Before",
        mutants.BEGIN,
        *mutants.HEAD,
        f"| {first.name} | {first.rule} | `test_it.py`: another |",
        f"| {second.name} | {second.rule} | `test_it.py`: it is noticed |",
        mutants.END,
        "After.",
    ]
