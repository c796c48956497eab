"""The deployment on a real cluster: faults while requests flow, each request counted, times measured.

`make cluster-test`, or `python -m tests.stress.kubernetes`, works on the cluster that kubectl points at, in namespaces
of its own: the overlay `local`, with three instances that share one simulated VCDA. Nobody else's objects are touched,
except that `drain` cordons a node for half a minute.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console

from tests.stress.kubernetes import timings
from tests.stress.kubernetes.environment import ROOT, built, cluster, prepare, remove, signals
from tests.stress.kubernetes.kubectl import ClusterError, Kubectl, PodWatch, fewest_ready
from tests.stress.kubernetes.report import MARKS, Result, Timing, codes_of, counted, faults_of, inserted, kept, table
from tests.stress.kubernetes.rows import ROWS, Row
from tests.stress.kubernetes.stage import LABEL, Flow, NotHere, Stage

README: Final = ROOT / "deploy" / "README.md"

NAMESPACE: Final = "vm-sync-cluster-test"

EXAMPLE: Final = """example:
  IMAGE=registry.example.com/vm-sync:0.1.0 make cluster-test
  python -m tests.stress.kubernetes --image vm-sync --only kill drain --keep

Without --image the image is built by Docker and loaded into the cluster, if it is one of kind or minikube.
"""


class Progress:
    """A line that says how far a row is."""

    def __init__(self, row: Row, flow: Flow) -> None:
        self._row, self._flow, self._began = row, flow, time.monotonic()

    def __rich__(self) -> str:
        return (
            f"{self._row.name}: {self._flow.sent} requests, {self._flow.ended} ended, "
            f"{time.monotonic() - self._began:.0f} s"
        )


def play(stage: Stage, row: Row, *, rate: float, console: Console) -> Result:
    """Do what a row says while requests flow, and count."""
    faults: list[str] = []
    note = ""
    try:
        stage.settled()
        with stage.flow(rate=rate) as flow, console.status(Progress(row, flow)):
            began = time.monotonic()
            try:
                note = row.act(stage)
                stage.settled()
            except ClusterError as error:
                faults.append(str(error))
            until = time.monotonic()
            facts = flow.stop()
    except NotHere as error:
        return Result(row=row.name, words=row.words, not_run=str(error))
    except ClusterError as error:
        return Result(row=row.name, words=row.words, not_run="it failed", faults=[*faults, str(error)])
    found, ends = counted(facts), stage.watch.ends(since=began)
    return Result(
        row=row.name,
        words=row.words,
        counted=found,
        codes=codes_of(ends),
        fewest_ready=fewest_ready(stage.watch.seen(), since=began, until=until),
        took=until - began,
        note=note,
        faults=[*faults, *faults_of(found, ends, expected=row.codes)],
    )


def run(given: argparse.Namespace, console: Console) -> tuple[list[Result], list[Timing], str]:
    """Make what is needed, play the rows, and remove it again."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    where = cluster()
    image = given.image or built(say)
    namespace = given.namespace
    own = [namespace, f"{namespace}-node", f"{namespace}-local"]
    remove(own)
    say(f"{where}; image {image}")
    chosen = [row for row in ROWS if not given.only or row.name in given.only]
    timed = {name for name in timings.WORDS if not given.only or name in given.only}
    shared, local = prepare(namespace=namespace, image=image)
    results: list[Result] = []
    measured: list[Timing] = []
    try:
        if timings.FIRST_OUTCOME in timed:
            say(f"{timings.FIRST_OUTCOME}:")
            measured.append(timings.first_outcome(Kubectl(own[2]), folder=str(local), say=say))
        if chosen or timings.START in timed:
            Kubectl()("apply", "--kustomize", str(shared), within=120)
            Kubectl()("apply", "--filename=-", given=signals(namespace=own[1], image=image))
            kubectl = Kubectl(namespace)
            with PodWatch(kubectl, label=LABEL) as watch:
                stage = Stage(kubectl, watch, folder=shared, image=image, other=given.other, signals=Kubectl(own[1]))
                say("Waiting for the deployment ...")
                for name in ("kafka", "vcda"):
                    kubectl("rollout", "status", f"deploy/{name}", "--timeout=300s", within=330)
                stage.settled()
                if timings.START in timed:
                    say(f"{timings.START}:")
                    measured.append(timings.start(stage, say=say))
                for row in chosen:
                    results.append(play(stage, row, rate=given.rate, console=console))
                    say(f"{row.name}: {results[-1].row_of_table()}")
                    for fault in results[-1].faults:
                        console.print(f"  {fault}", style="bold red", markup=False)
    finally:
        if given.keep:
            say(f"Kept: kubectl delete namespace {' '.join(own)}")
        else:
            say("Removing the namespaces ...")
            remove(own)
    return results, measured, where


def page(
    results: Sequence[Result], measured: Sequence[Timing], *, before: str, where: str, rate: float, today: str
) -> str:
    """Return what deploy/README has of a run; what this run did not do, or not well, stays as it was `before`."""
    how = (
        f"{where}; {today}. {rate:g} requests a second, a quarter of them for a remote site; syncs of 2 to 8 s; three "
        "instances. The time is that until all instances are ready again; numbers behind exit codes count processes."
    )
    found = {result.row: [result.row_of_table()] for result in results if not result.faults}
    skipped = {result.row for result in results if result.not_run}
    rows: list[str] = []
    for row in ROWS:
        earlier = kept(before, f"| {row.words} |", f"| {row.words}: ")
        rows += earlier if earlier and row.name in skipped else found.get(row.name, earlier)
    times = {timing.words: [timing.text()] for timing in measured}
    lines = [line for words in timings.WORDS.values() for line in times.get(words, kept(before, f"- {words}: "))]
    parts = (how, table(rows).rstrip("\n"), "\n".join(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.kubernetes",
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*timings.WORDS, *(row.name for row in ROWS)]
    parser.add_argument("--image", default="", help="the service's image, where the cluster's nodes find it")
    parser.add_argument("--other", default=None, help="the image of another release, for the row `upgrade`")
    parser.add_argument("--only", nargs="*", default=[], choices=names, metavar="ROW", help=f"of: {', '.join(names)}")
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second")
    parser.add_argument("--namespace", default=NAMESPACE, help="its own; two more have this name with an ending")
    parser.add_argument("--keep", action="store_true", help="leave everything there")
    parser.add_argument(
        "--write", action="store_true", help="put what was done well into the table of deploy/README.md"
    )
    given = parser.parse_args(arguments)
    given.other = given.other or None
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if everything was as it should be."""
    given = options(arguments)
    console = Console(soft_wrap=True)
    try:
        results, measured, where = run(given, console)
    except ClusterError as error:
        console.print(f"Error: {error}", style="bold red", markup=False)
        return 1
    before, today = README.read_text(encoding="utf-8"), datetime.now(UTC).strftime("%Y-%m-%d")
    text = page(
        results, measured, before=before if given.write else "\n".join(MARKS), where=where, rate=given.rate, today=today
    )
    console.print(text, markup=False, highlight=False)
    if given.write:
        README.write_text(inserted(before, text), encoding="utf-8")
    return 1 if any(result.faults for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
