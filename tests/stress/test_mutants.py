"""The mechanisms that `python -m tests.stress.mutants` takes out are still where it looks for them."""

import pytest

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
