"""Writes docs/vcda-answers.md from the table that tests/system/test_answers.py proves.

Run it by `python -m tools.vcda_answers`.
"""

from pathlib import Path

from tests.support.answers import TABLES, End, Row

PAGE = Path(__file__).resolve().parents[1] / "docs" / "vcda-answers.md"

HEAD = """\
# VCDA's answers and their effect on a request

Made by `python -m tools.vcda_answers` from `tests/support/answers.py`. `tests/system/test_answers.py` runs every row
against a running service, with a simulated VCDA, and compares.

Three rules explain all rows:

- A refusal by VCDA itself, with an ApiError, ends the request; an answer of a proxy, or no answer, does not. A refusal
  of a repeated POST takes effect only after look-ups have found no task of an earlier POST of the request.
- A POST that VCDA may have received is not repeated before look-ups have shown that it has created no task and no
  longer can.
- Only `SUCCEEDED` and `FAILED` end a task, and an unknown state with an `endTime`, if it stays so.

*POSTs* is the number of POSTs that reached VCDA, *tasks* the number of tasks that VCDA created; an *adopted* task was
found by a look-up.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for title, rows in TABLES.items():
        parts.append(
            f"\n## {title}\n\n| VCDA answers | what happens | outcome | POSTs | tasks |\n|---|---|---|---|---|\n"
        )
        parts.extend(_line(row) for row in rows)
    return "".join(parts)


def _line(row: Row) -> str:
    ends = row.ends
    posts = "several" if ends.posts is None else str(ends.posts)
    tasks = f"{ends.tasks}, adopted" if ends.adopted else str(ends.tasks)
    return f"| {row.answer} | {row.then} | {_outcome(ends)} | {posts} | {tasks} |\n"


def _outcome(ends: End) -> str:
    why = [f"`{ends.code}`"] if ends.code else []
    if ends.http_status is not None:
        why.append(str(ends.http_status))
    said = f"`{ends.outcome}`" + (f" ({', '.join(why)})" if why else "")
    return said + (f", warning {', '.join(f'`{code}`' for code in ends.warnings)}" if ends.warnings else "")


def main() -> None:
    """Write into the repository."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
