"""The table of runs on three brokers that `python -m tests.stress.chaos --write` puts into docs/testing.md."""

from collections import Counter
from pathlib import Path

import pytest

from tests.stress import chaos
from tests.stress.chaos_runner import Report
from tests.stress.oracle import Disturbance, Silence, Verdict
from tests.stress.schedule import What, draw


def _report(seed: int) -> Report:
    figures = dict.fromkeys(chaos.FIGURES, 0.0) | {"asked": 3087.0, "completed": 2103.0, "posts": 2519.0}
    silences = [
        Silence(Disturbance(words=f"{what}, somebody", began=0.0, until=30.0, bound=bound), 3, longest)
        for what, bound, longest in (
            (What.BROKER_DIES, 14.5, 9.8),
            (What.BROKER_DIES, 14.5, 10.26),
            (What.BROKER_RESTARTS, 5.5, 1.2),
        )
    ]
    verdict = Verdict(figures=figures, silences=silences)
    happened = Counter[str]({What.BROKER_DIES: 4, "sessions": 2})
    return Report(draw(seed, requests=60, brokers=3), verdict, happened, took=181.4)


def test_each_seed_has_a_row_with_its_longest_silences() -> None:
    text = chaos.written([_report(1), _report(2)], command="SEED=1 SEEDS=2 BROKERS=3 make chaos")

    members = draw(2, requests=60, brokers=3).members
    assert f"| 2 | {members} | 3,087 | 2,103 | 0 | 0 | 0 | 0 | 0 | 0 | 2,519 | 10.3 | 1.2 |" in text.splitlines()
    assert "this machine's bounds were 5.5 to 14.5 s" in text
    assert "In these runs: a broker is killed 8 times." in text


def test_the_table_replaces_the_last_one_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, end = chaos.MARKS
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(chaos, "PAGE", page)

    chaos.write("new\n")

    assert page.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"


def test_the_page_has_a_place_for_the_table() -> None:
    text = chaos.PAGE.read_text(encoding="utf-8")

    assert [text.count(mark) for mark in chaos.MARKS] == [1, 1]
