"""Makes `docs/check.svg` from a real run of `vm-sync check`: `python -m tools.check_picture`, some seconds.

It runs the command at a terminal of its own, in a set-up with two things that are wrong: a right that Kafka's user
lacks, and the password of a remote site.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Final

from tests.support.broken_setups import SITE, WRONG, Grounds, Setup, grounds
from tests.support.brokers import Operation, Resource
from tools.demo_picture import at_a_terminal, svg

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "check.svg"
COLUMNS: Final = 140

SHOWN: Final = Setup(
    situation="a right is missing, and the password of a site is wrong",
    settings=SITE | {"VCDA__SITES__0__PASSWORD": WRONG},
    denied=((Resource.TOPIC, "vm-sync.completed", Operation.WRITE),),
    odd=lambda vcda: [vcda.world.by_hand(replication=f"C4-{n:08}-0000-0000-0000-000000000000") for n in range(3)],
    check="extension",
    says="VM_SYNC_VCDA__SITES__0__PASSWORD",
)


async def shown() -> str:
    """Run the command, and return what it wrote to its terminal."""
    with tempfile.TemporaryDirectory() as folder:
        async with grounds(Path(folder)) as place, place.made(SHOWN) as environment:
            written = await asyncio.to_thread(
                at_a_terminal, "check", columns=COLUMNS, environment=environment, failing=True
            )
            return _tidied(written, place)


def _tidied(written: str, place: Grounds) -> str:
    return "\x1b[1m$ vm-sync check\x1b[0m\n" + place.tidied(written.replace("\r\n", "\n")).rstrip()


def main() -> None:
    """Write into the repository."""
    PAGE.write_text(svg(asyncio.run(shown()), title="vm-sync check", columns=COLUMNS), encoding="utf-8")


if __name__ == "__main__":
    main()
