"""Tables: one line a row at any width, nothing cut where a program reads, and the least useful gives way first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from service.cli.output import show_facts
from service.cli.tables import Column, table

COLUMNS = (
    Column("operationID"),
    Column("replicationId", rank=2),
    Column("state", rank=1, text=True),
    Column("task", rank=3),
)
LONG = "failed: rejected, ReplicationNotFoundOrNotVisible"
ROWS = [
    ("nightly-2026-08-17", "C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f", LONG, "4f1d8b52-0000-4000-8000-000000000000"),
    ("op", "C4-1", "running", ""),
]


def test_where_a_program_reads_nothing_is_cut_and_columns_are_aligned() -> None:
    head, first, second = table(COLUMNS, ROWS, width=None)

    assert first == "  ".join(ROWS[0])
    assert second.split() == ["op", "C4-1", "running"]
    assert [head.index(column.name) for column in COLUMNS] == [first.index(cell) for cell in ROWS[0]]


def test_where_it_is_narrow_columns_are_left_out_by_rank_after_texts_were_cut() -> None:
    def heads(width: int) -> list[str]:
        return table(COLUMNS, ROWS, width=width)[0].split()

    assert heads(160) == ["operationID", "replicationId", "state", "task"]
    assert heads(130) == ["operationID", "replicationId", "state", "task"]
    assert heads(80) == ["operationID", "replicationId", "state"]
    assert heads(40) == ["operationID", "state"]
    assert table(COLUMNS, ROWS, width=130)[1].split("  ")[2].startswith("failed: reje")


def test_the_room_of_a_column_that_was_left_out_goes_to_the_texts() -> None:
    assert f"  {LONG}" in table(COLUMNS, ROWS, width=len(ROWS[0][0]) + len(ROWS[0][1]) + len(LONG) + 4)[1]


@given(st.integers(1, 200), st.lists(st.tuples(*[st.text(max_size=60)] * 4), max_size=5))
def test_a_row_is_one_line_no_wider_than_the_terminal_whatever_it_holds(
    width: int, rows: list[tuple[str, str, str, str]]
) -> None:
    lines = table(COLUMNS, rows, width=width)

    assert len(lines) == len(rows) + 1
    assert all("\n" not in line and "\x1b" not in line for line in lines)
    assert all(cell_len(line) <= max(width, 3) for line in lines)


def test_a_fact_that_is_wider_than_the_terminal_goes_on_in_the_next_line_so_that_it_can_be_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, and no bold type
    request_id = "op:C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f:cli-f7907ee6-6d31-451f-834f-dfcdcd7c82b7"

    show_facts([("requestId", request_id), ("site", "local")])

    *lines, last = capsys.readouterr().out.splitlines()
    assert "".join(line.removeprefix("requestId").strip() for line in lines) == request_id
    assert last.split() == ["site", "local"]
