"""Makes docs/check-answers.md: what `vm-sync check` says of set-ups that are broken in one way each.

`python -m tools.check_page` runs it against a real Kafka and simulated VCDAs; a test compares.
"""

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from tests.support.broken_setups import SETUPS, Answer, Grounds, Setup, grounds

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "check-answers.md"

HEAD: Final = """\
# What `vm-sync check` says of broken set-ups

Made by `python -m tools.check_page` from `tests/support/broken_setups.py`: it makes each of these set-ups with a
real Kafka and a simulated VCDA, and runs the command. Not to be edited by hand. Lines that are ok, and those that are
skipped because another check failed, are left out, as is the warning that the Kafka here has a single broker.

Exit codes: 0 the service will work; 1 it won't work like this; 2 a setting is invalid; 3 Kafka, VCDA or a site does not
answer at present. The service itself waits for what doesn't answer, so 3 need not keep it from being started.
"""

Found: TypeAlias = Mapping[str, list[tuple[Setup, Answer, str]]]
"""By the page's headings: the set-ups, what was said of each, and the rows of the page."""


async def answers(place: Grounds) -> Found:
    """Run the command in each set-up; return what it said, and the row of the page."""
    return {
        title: [(setup, answer := await place.answer(setup), _row(setup, answer, place)) for setup in setups]
        for title, setups in SETUPS.items()
    }


def page(found: Found) -> str:
    """Return the whole page."""
    parts = [HEAD]
    for title, rows in found.items():
        parts.append(f"\n## {title}\n\n| what is wrong | exit code | what it says |\n|---|---|---|\n")
        parts.extend(row for _, _, row in rows)
    return "".join(parts)


def _row(setup: Setup, answer: Answer, place: Grounds) -> str:
    said = [
        f"{line['result']}: {line['about']}, {line['check']}: {line['text']}"
        for line in answer.wrong
        if not line["text"].startswith("Fewer than 3 replicas")
    ]
    return f"| {setup.situation} | {answer.code} | {place.tidied('<br>'.join(said)).replace('|', '&#124;')} |\n"


async def _write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with grounds(Path(folder)) as place:
            PAGE.write_text(page(await answers(place)), encoding="utf-8")


def main() -> None:
    """Write into the repository."""
    asyncio.run(_write())


if __name__ == "__main__":
    main()
