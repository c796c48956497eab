"""The pages' pictures, as SVG, from the raw figures alone: the same figures give the same files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Results, Spread

COLOURS = {"service": "#1b6ca8", "obvious": "#d1495b", "listing": "#edae49", "running": "#66a182", "bare": "#7a7a7a"}
LABELS = {
    "service": "the service",
    "obvious": "obvious service",
    "listing": "list-all poller",
    "running": "poller of what runs",
    "bare": "bare loop",
}
WORKLOADS = ("20 s, 1000/s", "90 s", "10 min")


def draw(results: Results, folder: Path) -> None:
    """Draw all of them."""
    _prepare()
    _burst(results, folder / "burst.svg")
    _curves(results, "S2", "lag_s", folder / "lag.svg", x="seconds from a task's end to its outcome")
    _curves(results, "trickle", "wait_s", folder / "trickle.svg", x="seconds from Kafka's record to the POST")
    _flight(results, folder / "flight.svg")
    _policy(results, folder / "policy.svg")


def draw_long_run(samples: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the memory of each process of a long run, and the journal's size and records, over time."""
    _prepare()
    figure, (axes,) = _figure(1, 3, size=(10, 2.8))
    minutes = [sample["at"] / 60 for sample in samples]
    for place in range(len(samples[0]["processes"]) if samples else 0):
        axes[0].plot(minutes, [sample["processes"][place]["memory, MB"] for sample in samples], linewidth=1.2)
    for axis, what, scale in ((axes[1], "bytes", 1e6), (axes[2], "records", 1e3)):
        values = [sample["journal"][what] / scale for sample in samples]
        axis.plot(minutes, values, color=COLOURS["service"], linewidth=1.2)
    titles = ("memory of each process, MB", "the journal's files, MB", "the journal's records, thousands")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="minutes", ylim=(0, None))
        axis.set_title(title, loc="left")
    _save(figure, path)


def _prepare() -> None:
    import matplotlib as mpl

    mpl.use("svg")
    # The identifiers and the date would differ from one drawing to the next.
    mpl.rcParams |= {"svg.hashsalt": "vm-sync", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    mpl.rcParams["axes.spines.right"] = False


def _figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib's types are not worth an import at start
    from matplotlib import pyplot as plt

    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _bars(axis: Any, spreads: dict[str, Spread], *, title: str) -> None:  # noqa: ANN401
    names = list(spreads)
    middles = [spreads[name].middle for name in names]
    reach = [
        [spreads[name].middle - spreads[name].low for name in names],
        [spreads[name].high - spreads[name].middle for name in names],
    ]
    axis.barh([LABELS[name] for name in names], middles, xerr=reach, color=[COLOURS[name] for name in names], capsize=3)
    axis.invert_yaxis()
    axis.set_title(title, loc="left")


def _burst(results: Results, path: Path) -> None:
    figure, ((left, right),) = _figure(1, 2, size=(9, 2.4))
    for axis, what, title in ((left, "posts_per_second", "POSTs per second"), (right, "cpu_ms", "CPU ms per task")):
        spreads = {name: spread for name in LABELS if (spread := results.spread("S1", name, what)) is not None}
        _bars(axis, spreads, title=title)
    _save(figure, path)


def _curves(results: Results, scenario: str, curve: str, path: Path, *, x: str) -> None:
    figure, ((axis,),) = _figure(1, 1, size=(7, 3))
    for run in results.of(scenario):
        samples = [max(sample, 1e-4) for sample in run.curves.get(curve, ())]
        if samples:
            label = LABELS.get(run.subject, run.subject) if run.round == 0 else None
            parts = [100 * (number + 1) / len(samples) for number in range(len(samples))]
            axis.plot(samples, parts, color=COLOURS.get(run.subject), label=label, linewidth=1.2, alpha=0.8)
    axis.set(xscale="log", xlabel=x, ylabel="percent are as fast")
    axis.grid(visible=True, which="both", alpha=0.2)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)
    _save(figure, path)


def _flight(results: Results, path: Path) -> None:
    levels = sorted(map(int, results.subjects("flight")))
    figure, (axes,) = _figure(1, 3, size=(10, 2.8))
    for axis, what, title in zip(
        axes,
        ("held_mb", "net_cpu_ms", "lag_p99_s"),
        ("memory, MB", "CPU ms per request", "lag p99, s"),
        strict=True,
    ):
        spreads = [(level, results.spread("flight", str(level), what)) for level in levels]
        known = [(level, spread) for level, spread in spreads if spread is not None]
        _line(axis, known)
        top = max((spread.high for _, spread in known), default=1.0)
        axis.set(xscale="log", xlabel="in flight", ylim=(0, 1.15 * top or 1.0))
        _few_ticks(axis.xaxis)
        axis.set_title(title, loc="left")
    _save(figure, path)


def _line(axis: Any, known: Sequence[tuple[int, Spread]]) -> None:  # noqa: ANN401
    x = [level for level, _ in known]
    axis.plot(x, [spread.middle for _, spread in known], marker="o", color=COLOURS["service"])
    axis.fill_between(x, [s.low for _, s in known], [s.high for _, s in known], color=COLOURS["service"], alpha=0.2)


def _few_ticks(axis: Any) -> None:  # noqa: ANN401
    """Name the powers of ten alone: what lies between would be written over each other."""
    from matplotlib.ticker import NullFormatter

    axis.set_minor_formatter(NullFormatter())


def _policy(results: Results, path: Path) -> None:
    """Small multiples: workloads down, kinds of tasks across; fixed intervals make a line, the policy a point."""
    kinds = list(dict.fromkeys(row["kind"] for row in results.policy))
    if not kinds:
        return
    figure, axes = _figure(len(WORKLOADS), len(kinds), size=(2.3 * len(kinds), 2.2 * len(WORKLOADS)))
    for line, workload in zip(axes, WORKLOADS, strict=True):
        for axis, kind in zip(line, kinds, strict=True):
            rows = [row for row in results.policy if (row["workload"], row["kind"]) == (workload, kind)]
            for lag, style, fill in (("lag_p50", "-", "full"), ("lag_p99", "--", "none")):
                fixed = [row for row in rows if row["poller"] != "adaptive"]
                own = [row for row in rows if row["poller"] == "adaptive"]
                word = lag.removeprefix("lag_")
                axis.plot(
                    [row["answers_per_task"] for row in fixed],
                    [max(row[lag], 0.01) for row in fixed],
                    style,
                    color=COLOURS["bare"],
                    marker=".",
                    label=f"every 1 ... 30 s, {word}",
                )
                axis.plot(
                    [row["answers_per_task"] for row in own],
                    [max(row[lag], 0.01) for row in own],
                    "o",
                    color=COLOURS["service"],
                    fillstyle=fill,
                    label=f"the service, {word}",
                )
            axis.set(xscale="log", yscale="log")
            _few_ticks(axis.xaxis)
            axis.set_title(f"{workload}: {kind}", loc="left", fontsize=7)
            axis.tick_params(labelsize=7)
    figure.supxlabel("answers per task")
    figure.supylabel("lag, s")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    _save(figure, path)
