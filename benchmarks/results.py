"""What was measured: runs with their figures, ratios between runs of the same round, and the raw JSON of it all."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from service.sandbox.kafka_jars import KAFKA_VERSION

PACKAGES = ("vm-sync", "aiokafka", "aiohttp", "faststream", "httpx", "httpx-aiohttp", "uvloop")

POINTS = 200
"""So many points of a distribution are kept for the plots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One subject measured once. Figures are named with their units; curves are sorted samples, thinned out."""

    scenario: str
    subject: str
    round: int
    figures: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spread:
    """Minimum, median and maximum over the rounds."""

    low: float
    middle: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Sum up values; None if there are none."""
        known = sorted(values)
        return cls(known[0], median(known), known[-1], len(known)) if known else None


@dataclass(slots=True)
class Results:
    """All that one benchmark measured."""

    form: str
    taken: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    runs: list[Run] = field(default_factory=list)
    policy: list[dict[str, Any]] = field(default_factory=list)
    virtual: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begun(cls, settings: Mapping[str, Any]) -> "Results":
        """Begin, on this machine, now."""
        return cls(
            form=str(settings["form"]),
            taken=datetime.now(UTC).isoformat(timespec="minutes"),
            machine=machine(),
            versions={
                "Python": platform.python_version(),
                "Apache Kafka": KAFKA_VERSION,
                **{name: version(name) for name in PACKAGES},
            },
            settings=settings,
        )

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read it again."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        runs = [Run(**run) for run in raw.pop("runs")]
        return cls(runs=runs, **raw)

    # ------------------------------------------------------------ looking into it

    def of(self, scenario: str, subject: str | None = None) -> Iterator[Run]:
        """Yield the runs of a scenario, of one subject or all."""
        for run in self.runs:
            if run.scenario == scenario and subject in {None, run.subject}:
                yield run

    def spread(self, scenario: str, subject: str, figure: str) -> Spread | None:
        """Sum a figure up over the rounds."""
        return Spread.of(run.figures[figure] for run in self.of(scenario, subject) if figure in run.figures)

    def middle(self, scenario: str, subject: str, figure: str) -> float | None:
        """Return a figure's median; None if it was not measured."""
        spread = self.spread(scenario, subject, figure)
        return None if spread is None else spread.middle

    def ratio(self, scenario: str, subject: str, control: str, figure: str, of: str | None = None) -> Spread | None:
        """Sum up a figure's ratio to the control's (its figure `of`, if that has another name), round by round."""
        controls = {run.round: run.figures.get(of or figure) for run in self.of(scenario, control)}
        return Spread.of(
            run.figures[figure] / base
            for run in self.of(scenario, subject)
            if figure in run.figures and (base := controls.get(run.round))
        )

    def excess(self, scenario: str, subject: str, control: str, figure: str) -> Spread | None:
        """Sum up by how much a figure is above the control's, round by round."""
        controls = {run.round: run.figures.get(figure) for run in self.of(scenario, control)}
        return Spread.of(
            run.figures[figure] - base
            for run in self.of(scenario, subject)
            if figure in run.figures and (base := controls.get(run.round)) is not None
        )

    def subjects(self, scenario: str) -> list[str]:
        """List a scenario's subjects, in the order of their first run in the first round, sorted by name."""
        return sorted({run.subject for run in self.of(scenario)})


def quantile(samples: Sequence[float], part: float) -> float:
    """Return a quantile of sorted samples; the upper neighbour where it falls between two."""
    return samples[min(len(samples) - 1, int(part * len(samples)))]


def thinned(samples: Sequence[float]) -> list[float]:
    """Keep POINTS of sorted samples, the first and the last among them."""
    if len(samples) <= POINTS:
        return [round(sample, 5) for sample in samples]
    return [round(samples[number * (len(samples) - 1) // (POINTS - 1)], 5) for number in range(POINTS)]


def histogram_quantile(before: str, after: str, metric: str, part: float) -> float:
    """Return the upper bound of the bucket in which a quantile lies, of what a histogram saw between two scrapes."""
    pattern = re.compile(rf'^{metric}_bucket\{{le="([^"]+)"\}} (\S+)$', re.MULTILINE)
    was = {bound: float(count) for bound, count in pattern.findall(before)}
    counts = [(float(bound), float(count) - was.get(bound, 0.0)) for bound, count in pattern.findall(after)]
    total = counts[-1][1] if counts else 0.0
    for bound, count in counts:
        if total and count >= part * total:
            return bound
    return 0.0


def machine() -> dict[str, str]:
    """Describe the hardware as far as the operating system tells."""
    cpus = re.search(r"^model name\s*: (.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return {
        "processor": cpus[1] if cpus else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) / 1024**2:.0f} GB" if memory else "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "interpreter": sys.implementation.name,
        "revision": _revision(),
    }


def _revision() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - whichever git there is
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip() or "unknown"


def _text(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.exists() else ""
