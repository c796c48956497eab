"""Run the protocol's model in `docs/protocol/` with Spin: `python -m tools.model`, or `make model`; minutes.

    python -m tools.model              # all scenarios, one after the other
    python -m tools.model window       # those whose name contains "window"
    python -m tools.model --missing    # those without a result

A scenario says which rules and faults the model has, and what is expected: `holds`, or the property that breaks. What
came of it is written to `results.txt`, and the shortest trace to each broken property to `traces.txt`; both keep what
they have of scenarios that aren't run. Runs are breadth first with whole states, so they are exact and traces are the
shortest; "bitstate" in a name means Spin's supertrace, which may miss a state.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parents[1] / "docs" / "protocol"
MODEL, RESULTS, TRACES = FOLDER / "protocol.pml", FOLDER / "results.txt", FOLDER / "traces.txt"

LIMIT: Final = 1200
"""Seconds for one scenario; the longest takes one minute on an idle machine."""

PROPERTY: Final = {1: "a", 4: "c", 8: "d", 16: "e", 32: "f", 64: "dead letter", 128: "doubt", 256: "g", 512: "h"}
"""The bits of the macro PROPS, and the names of the properties; b has no bit: it is Spin's check of end states."""

BITSTATE: Final = "BITSTATE"
NO_B: Final = "-E"
"""Spin's option not to look for stuck states, where only the other properties are asked for."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Macros of the model, a search, and what is expected of them."""

    name: str
    expected: str
    macros: str
    search: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a scenario. `broke` is `holds`, `not finished`, or the violated property; `steps` is its trace."""

    broke: str
    states: int
    seconds: float
    steps: list[str]


SCENARIOS: Final = (
    Scenario("rules: no fault, one deadline, one rejection", "holds", "NF=0 NDL=1 NREJ=1"),
    Scenario("rules: any one fault", "holds", "NF=1"),
    Scenario("rules: any one fault, one deadline", "holds", "NF=1 NDL=1"),
    Scenario("rules: any one fault, one rejection", "holds", "NF=1 NREJ=1"),
    Scenario("rules: two crashes or silences", "holds", "NF=2 FM=3"),
    Scenario("rules: two lost POSTs or answers", "holds", "NF=2 FM=12"),
    Scenario("rules: two of crash, lost answer", "holds", "NF=2 FM=9"),
    Scenario("rules: two of silence, lost answer", "holds", "NF=2 FM=10"),
    Scenario("rules: two of lost ack, epoch bumped", "holds", "NF=2 FM=48"),
    Scenario("rules: a crash, two deadlines", "holds", "NF=1 FM=1 NDL=2"),
    Scenario("rules: a bad message first, any one fault", "holds", "NF=1 POISON=1"),
    Scenario("rules: W=2 D=2, crash or silence", "holds", "NF=1 FM=3 W=2 D=2"),
    Scenario("rules: window 3 longer than session 1", "holds", "NF=1 FM=3 W=3 K=1"),
    Scenario("rules: longer limits in one process, any one fault", "holds", "MORE=1 NF=1"),
    Scenario("rules: longer limits in one process, two of crash, lost answer", "holds", "MORE=1 NF=2 FM=9"),
    Scenario("rules: with quiescing, any one fault", "holds", "NF=1 QUIESCE=1 TAKEBACK=1"),
    Scenario("rules: any two faults (bitstate)", "holds", "NF=2", "BITSTATE"),
    Scenario("rules: three of crash, lost answer, lost ack (bitstate)", "holds", "NF=3 FM=25", "BITSTATE"),
    Scenario(
        "rules: three requests, a crash, lost POST or lost answer (bitstate)", "holds", "NF=1 NREQ=3 FM=13", "BITSTATE"
    ),
    Scenario("rules: account replaced and a crash (a, c-f)", "holds", "ACC=1 NF=2 FM=65 PROPS=125", "-E"),
    Scenario("rules: account replaced, deadlines", "holds", "ACC=1 NF=1 FM=64 NDL=9"),
    Scenario("rules: requests topic replaced", "holds", "TOPIC=1 NF=1 FM=128"),
    Scenario("rules: requests topic replaced and a crash", "holds", "TOPIC=1 NF=2 FM=129"),
    Scenario(
        "rules: account and requests topic replaced (a, c-f)", "holds", "ACC=1 TOPIC=1 NF=2 FM=192 PROPS=125", "-E"
    ),
    Scenario("rules: journal emptied", "holds", "JOURNAL=1 NF=1 FM=256"),
    Scenario("rules: journal emptied and a crash", "holds", "JOURNAL=1 NF=2 FM=257"),
    Scenario("rules: the first request is cancelled, any one fault", "holds", "CANCEL=1 NF=1"),
    Scenario("rules: the second request is cancelled, any one fault", "holds", "CANCEL=1 C=1 NF=1"),
    Scenario("rules: the first request is cancelled, a deadline, a rejection", "holds", "CANCEL=1 NF=0 NDL=1 NREJ=1"),
    Scenario(
        "rules: the first request is cancelled, with quiescing", "holds", "CANCEL=1 NF=1 FM=9 QUIESCE=1 TAKEBACK=1"
    ),
    Scenario("rules: tasks are listed late, repeated POSTs are refused", "holds", "REFUSES=1 LAG=3 NF=1 FM=8"),
    Scenario(
        "rules: tasks are listed late, repeated POSTs are refused, a crash",
        "holds",
        "REFUSES=1 LAG=3 NF=2 FM=9",
    ),
    Scenario("without: Submitting durable", "c", "NF=1 WRITE_AHEAD=0"),
    Scenario("without: window", "c", "NF=1 WINDOW=0"),
    Scenario("without: window, with quiescing", "c", "NF=1 WINDOW=0 QUIESCE=1 TAKEBACK=1"),
    Scenario("without: window counted from the send", "c", "NF=1 FROM_SEND=0"),
    Scenario("without: any wait in doubt", "c", "NF=1 NOWAIT=1"),
    Scenario("without: wait from own init (submitted stamp)", "c", "NF=2 QMODE=0"),
    Scenario("instead: stamp rewritten by every proof, no skew", "holds", "NF=1 QMODE=1"),
    Scenario("instead: stamp rewritten by every proof, skew 1", "c", "NF=2 QMODE=1 SKEWP=1"),
    Scenario("without: D after own last POST", "c", "NF=1 OWNSEND=0"),
    Scenario("without: W in the wait", "c", "NF=1 WAIT_W=0"),
    Scenario("without: the limits of the process that sent the POST", "c", "MORE=1 NF=1 DOUBTFOR=0"),
    Scenario("without: D in the wait", "c", "NF=1 WAIT_D=0"),
    Scenario("without: look-up begun after the wait", "c", "NF=1 LBEGUN=0"),
    Scenario("without: margin of the skew in startTimeAfter", "c", "NF=1 MARGIN=0"),
    Scenario("without: ended tasks in the look-up", "c", "NF=1 LOOKALL=0"),
    Scenario("without: exclusion of others' tasks", "e", "NF=1 EXCL=0"),
    Scenario("without: replication kept taken after a deadline (d)", "d", "NF=0 NDL=1 LINGER=0 PROPS=8"),
    Scenario("without: replication kept taken after a deadline (e)", "e", "NF=1 NDL=1 LINGER=0 PROPS=16"),
    Scenario("without: that being durable", "d", "NF=1 NDL=1 LINGER=2"),
    Scenario("without: waiting deadline in turn", "f", "NF=0 NDL=1 HEADDL=0"),
    Scenario("without: fenced but assigned reopens", "b", "NF=1 REOPEN=0"),
    Scenario("instead: reopens without asking the group", "holds", "NF=1 REOPEN=2"),
    Scenario("without: opening ends with a commit", "b", "NF=1 OPENPROOF=0"),
    Scenario("instead: idle owner proves itself", "holds", "NF=1 OPENPROOF=2"),
    Scenario("without: journal after init", "b", "NF=1 ORD=2"),
    Scenario("without: journal after init (c)", "c", "NF=1 ORD=2 PROPS=4", "-E"),
    Scenario("without: offset after init", "holds", "NF=1 ORD=1"),
    Scenario("without: offset after init, bad message", "dead letter", "NF=1 ORD=1 POISON=1"),
    Scenario("instead: offset before journal, both after init, bad message", "holds", "NF=1 ORD=3 POISON=1"),
    Scenario("without: offset in the transaction (before it)", "b", "NF=1 OFFMODE=1"),
    Scenario("without: offset in the transaction (after it, bitstate)", "holds", "NF=1 OFFMODE=2", "BITSTATE"),
    Scenario("without: offset in the transaction (after it), bad message", "dead letter", "NF=1 OFFMODE=2 POISON=1"),
    Scenario("without: deduplication", "ac", "NF=0 DEDUP=0"),
    Scenario("without: fencing", "a", "NF=1 FENCING=0 PROPS=1", "-E"),
    Scenario("without: reopening after a commit of unknown fate", "a", "NF=1 UNKNOWN_REOPENS=0"),
    Scenario("without: a look-up under the account of the POST", "c", "ACC=1 NF=1 FM=64 ACCRULE=0", "-E"),
    Scenario("without: a POST under the account of its intent", "c", "ACC=1 NF=1 FM=64 ACCPOST=0", "-E"),
    Scenario("without: the topic compared at all", "b", "TOPIC=1 NF=1 FM=128 TOPICCHECK=0"),
    Scenario("without: the topic compared while it is read", "b", "TOPIC=1 NF=1 FM=128 TOPICCHECK=1"),
    Scenario("without: an empty journal is refused", "c", "JOURNAL=1 NF=1 FM=256 JCHECK=0"),
    Scenario("without: a cancelled request whose POST was sent goes on", "g", "CANCEL=3 NF=0 PROPS=256", "-E"),
    Scenario(
        "without: a look-up after the refusal of a repeated POST (h)",
        "h",
        "REFUSES=1 LAG=3 NF=1 FM=8 AGAIN=0 PROPS=512",
        "-E",
    ),
    Scenario(
        "without: a look-up after the refusal of a repeated POST (d)",
        "d",
        "REFUSES=1 LAG=3 NF=1 FM=8 AGAIN=0 PROPS=8",
        "-E",
    ),
    Scenario("without: D before that look-up concludes", "h", "REFUSES=1 LAG=3 NF=1 FM=8 AGAIN=2 PROPS=512", "-E"),
    Scenario("speed: no quiescing", "doubt", "NF=0 PROPS=128"),
    Scenario("speed: quiescing, Submitting not taken back", "doubt", "NF=0 PROPS=128 QUIESCE=1"),
    Scenario("speed: quiescing and taking back", "holds", "NF=0 PROPS=128 QUIESCE=1 TAKEBACK=1"),
    Scenario("residual: POST delayed without bound (c)", "c", "NF=1 DUNB=1 PROPS=4", "-E"),
    Scenario("residual: POST delayed without bound (d)", "d", "NF=1 DUNB=1 PROPS=8", "-E"),
    Scenario("residual: POST delayed without bound (e)", "e", "NF=2 FM=12 DUNB=1 PROPS=16", "-E"),
    Scenario("residual: POST delayed without bound (a, b, f)", "holds", "NF=1 DUNB=1 PROPS=33"),
    Scenario("residual: pause between check and send", "c", "NF=1 CHKSPLIT=1"),
    Scenario("residual: monotonic clock stops with the process", "c", "NF=1 CLOCKSTOP=1"),
    Scenario("residual: VCDA forgets ended tasks", "c", "NF=1 PURGE=1"),
    Scenario("residual: somebody else syncs", "e", "NF=1 FOREIGN=1 PROPS=16", "-E"),
    Scenario(
        "residual: a replication is released while its task can't be seen (e)",
        "e",
        "ACC=1 NF=1 FM=64 NDL=9 LETGO=1 PROPS=16",
        "-E",
    ),
    Scenario(
        "residual: a replication is released while its task can't be seen (d)",
        "d",
        "ACC=1 NF=1 FM=64 NDL=1 LETGO=1 PROPS=8",
        "-E",
    ),
    Scenario(
        "residual: a replication is released while its task can't be seen (a, b, c, f)",
        "holds",
        "ACC=1 NF=1 FM=64 NDL=9 LETGO=1 PROPS=101",
    ),
    Scenario("residual: a request is released while VCDA works on it (d)", "d", "CANCEL=2 NF=0 PROPS=8", "-E"),
    Scenario("residual: a request is released while VCDA works on it (e)", "e", "CANCEL=2 NF=1 PROPS=16", "-E"),
    Scenario(
        "residual: a request is released while VCDA works on it (a, b, c, f)",
        "holds",
        "CANCEL=2 NF=1 FM=9 NDL=1 PROPS=101",
    ),
    Scenario("help: idempotency key, delay unbounded (c, e)", "holds", "NF=1 DUNB=1 RIDEMP=1 PROPS=20", "-E"),
    Scenario("help: idempotency key, delay unbounded, deadline (d)", "d", "NF=1 DUNB=1 RIDEMP=1 NDL=1 PROPS=8", "-E"),
    Scenario(
        "help: idempotency key and refusal while one runs, deadline (e)",
        "e",
        "NF=1 DUNB=1 RIDEMP=1 R409=1 NDL=1 PROPS=28",
        "-E",
    ),
    Scenario(
        "help: those and look-up by the key, deadline (c, d, e; bitstate)",
        "holds",
        "NF=1 DUNB=1 RIDEMP=1 R409=1 RLOOK=1 NDL=1 PROPS=29",
        "BITSTATE",
    ),
)


def missing_programs() -> list[str]:
    """Return the programs that are needed and can't be found."""
    return [name for name in ("spin", "gcc") if shutil.which(name) is None]


def run(scenario: Scenario) -> Result:
    """Run a scenario.

    Raises:
        subprocess.CalledProcessError: the model isn't valid, or no C.
    """
    macros = [f"-D{macro}" for macro in scenario.macros.split()]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(MODEL, Path(folder) / "m.pml")

        def call(*words: str, check: bool = True) -> str:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=check)  # noqa: S603 - our own words
            return done.stdout

        call("spin", "-a", *macros, "m.pml")
        bitstate = scenario.search == BITSTATE
        store = ("-DBITSTATE",) if bitstate else ("-DBFS", "-DMEMLIM=3600")
        call("gcc", "-O2", "-w", "-DSAFETY", "-DNOREDUCE", *store, "-o", "pan", "pan.c")
        options = ("-w34", "-k3", "-m2000000") if bitstate else scenario.search.split()
        began = time.monotonic()
        try:
            said = call(f"{folder}/pan", "-n", *options, check=False)
        except subprocess.TimeoutExpired:
            return Result("not finished", -1, LIMIT, [])
        seconds = time.monotonic() - began
        stored = re.search(r"(\d+) states, stored", said)
        states = int(stored[1]) if stored else -1
        if not (Path(folder) / "m.pml.trail").exists():
            whole = stored and "Search not completed" not in said
            return Result("holds" if whole else "not finished", states, seconds, [])
        return Result(_broken(said), states, seconds, _steps(call("spin", "-t", *macros, "m.pml")))


def _broken(said: str) -> str:
    if "pan:1: invalid end state" in said:
        return "b"
    violated = re.search(r"\(\(\d+&(\d+)\)\)", said)
    return PROPERTY[int(violated[1])] if violated else said


def _steps(replay: str) -> list[str]:
    """Return what the model prints of a trace, without what Spin adds."""
    ours = [
        line for line in replay.splitlines() if not re.match(r"\s+\S+ = |spin:|#processes|\s*\d+:|\d+ process", line)
    ]
    return [line.strip() for line in ours if line.strip()]


def as_expected(scenario: Scenario, broke: str) -> bool:
    """Whether the result is as expected; of several letters any may be violated first."""
    return broke == scenario.expected or (
        len(broke) == 1 and broke in scenario.expected and scenario.expected != "holds"
    )


def results() -> dict[str, list[str]]:
    """Return the recorded rows by scenario: macros, what broke, states, lines of the trace, seconds."""
    rows = (line.split(" | ") for line in RESULTS.read_text().splitlines())
    return {name: rest for name, *rest in rows}


def _traces() -> dict[str, str]:
    parts = TRACES.read_text().strip().split("\n\n")
    return {part.removeprefix("## ").partition(":: ")[0]: part for part in parts}


def record(scenario: Scenario, result: Result) -> None:
    """Write what came of a scenario into both files, in the order of the scenarios."""
    rows, traces = results(), _traces()
    length, seconds = f"{len(result.steps)} lines", f"{result.seconds:.0f} s"
    rows[scenario.name] = [scenario.macros, result.broke, f"{result.states:,} states", length, seconds]
    traces.pop(scenario.name, None)
    if result.steps:
        head = f"## {scenario.name}:: breaks {result.broke} ({scenario.macros})"
        traces[scenario.name] = "\n".join([head, *(f"  {step}" for step in result.steps)])
    names = [each.name for each in SCENARIOS]
    RESULTS.write_text("".join(f"{' | '.join([name, *rows[name]])}\n" for name in names if name in rows))
    TRACES.write_text("\n\n".join(traces[name] for name in names if name in traces) + "\n")


def main() -> None:
    """Run the scenarios that are asked for; the exit code is 1 if one isn't as expected."""
    parser = argparse.ArgumentParser(prog="python -m tools.model", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of scenarios' names; without any, all are run")
    parser.add_argument("--missing", action="store_true", help="only those that have no result yet")
    asked = parser.parse_args()
    if lacking := missing_programs():
        sys.exit(f"{' and '.join(lacking)} can't be found: apt-get install spin gcc libc6-dev")
    unexpected = []
    for scenario in SCENARIOS:
        wanted = not asked.names or any(part in scenario.name for part in asked.names)
        if not wanted or (asked.missing and scenario.name in results()):
            continue
        result = run(scenario)
        record(scenario, result)
        fine = as_expected(scenario, result.broke)
        print(f"{'' if fine else 'UNEXPECTED '}{' | '.join([scenario.name, *results()[scenario.name]])}", flush=True)  # noqa: T201 - what it is for
        if not fine:
            unexpected.append(f"{scenario.name}: expected {scenario.expected}, but {result.broke}")
    sys.exit("\n".join(unexpected) or None)


if __name__ == "__main__":
    main()
