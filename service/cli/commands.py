"""All commands: names, options and help. Each command imports the module that carries it out.

Nothing that takes long to import is imported up here, since `--help` and a shell's completion read this module.
"""

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from service.cli.options import FileFormat, Format, Rows, State
from service.cli.output import Answering, AsJson, Exit, NoAnswer
from service.sandbox.kafka_jars import KAFKA_VERSION

app = typer.Typer(
    cls=Answering,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a bug's stack trace is for a log; one in colours shows local variables, too
    help="Turn requests on a Kafka topic into syncs at VMware Cloud Director Availability, and report each sync's "
    "outcome as an event.\n\n"
    "Settings are VM_SYNC_ environment variables, the same for every command. Exit codes: 0 success, 1 negative "
    "result, 2 invalid command line or setting, 3 no result.",
    epilog="Example: vm-sync check\n\nExample: vm-sync request C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f --wait",
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    if wanted:
        from importlib.metadata import version

        print(f"vm-sync {version('vm-sync')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


letters = typer.Typer(
    no_args_is_help=True,
    help="List, redrive and discard dead letters: messages that are not valid requests.",
    epilog="Example: vm-sync dead-letters list",
)
topics = typer.Typer(
    no_args_is_help=True, help="Check or create the service's topics.", epilog="Example: vm-sync topics check"
)
app.add_typer(letters, name="dead-letters")
app.add_typer(topics, name="topics")
sites = typer.Typer(help="List the sites; pause a site, resume it.", invoke_without_command=True)
app.add_typer(sites, name="sites")

WHEN: Final = "2h, PT2H, or a date (UTC)"

DURATION: Final = "seconds, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or lognormal-mean:MEAN:SIGMA"


# ---------------------------------------------------------------- run until stopped


@app.command(epilog="Example: VM_SYNC_VCDA__URL=https://vcda.example VM_SYNC_LOG__FORMAT=text vm-sync run")
def run() -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Exit code 0 after a clean stop, 1 when Kafka stayed unreachable or after an
    internal error, 2 for invalid settings or topics.
    """
    from service.app import serve
    from service.settings import load

    raise typer.Exit(serve(load()))


@app.command(epilog="Example: vm-sync demo --requests 200 --keep")
def demo(
    *,
    requests: Annotated[int, typer.Option(min=1, help="Number of requests.")] = 60,
    keep: Annotated[bool, typer.Option("--keep", help="Keep everything running after the demo, until Ctrl-C.")] = False,
) -> None:
    """Run a demo on this machine: a real Kafka, a simulated VCDA, the service, and requests with a live view.

    Needs neither Docker nor an installed Java. Exit code 0 only if every request got exactly one outcome.
    """
    from service.cli import run as running

    raise typer.Exit(running.demo(requests=requests, keep=keep))


@app.command(epilog="Example: vm-sync simulator --port 8046 --duration lognormal:90:0.8 --failing 0.05")
def simulator(  # noqa: PLR0913 - as many as the simulated VCDA has
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one and prints it.")] = 8046,
    duration: Annotated[str | None, typer.Option(help=f"How long a sync takes: {DURATION}.")] = None,
    queued: Annotated[
        str | None, typer.Option(help=("How long a task is QUEUED before it runs, in the same form."))
    ] = None,
    submit_latency: Annotated[
        str | None, typer.Option(help="How long a POST takes to be answered, in the same form.")
    ] = None,
    failing: Annotated[float, typer.Option(min=0, max=1, help="Share of syncs that fail.")] = 0.0,
    warned: Annotated[float, typer.Option(min=0, max=1, help="Share of syncs with a warning.")] = 0.0,
    password: Annotated[
        str | None, typer.Option(help=("Password of the user administrator@System, at every site."))
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help=("Certificate chain, PEM; with it the simulator serves https."))
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key, PEM.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random durations and failures.")] = 1,
) -> None:
    """Run a simulated VCDA until Ctrl-C. It rejects undocumented calls, and injects faults on demand.

    Faults are switched on by POST at the address that it prints behind "control"; docs/practice.md has examples.
    """
    from service.cli import run as running

    given = {
        "--host": host,
        "--port": port,
        "--duration": duration,
        "--queued": queued,
        "--submit-latency": submit_latency,
        "--failing": failing,
        "--warned": warned,
        "--password": password,
        "--cert": cert,
        "--key": key,
        "--seed": seed,
    }
    arguments = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    raise typer.Exit(running.simulator(arguments))


@app.command(epilog="Example: vm-sync kafka --brokers 3 --version 3.9.2 --user alice:secret --authorizer")
def kafka(
    *,
    brokers: Annotated[int, typer.Option(min=1, max=9, help="Number of brokers.")] = 1,
    version: Annotated[str, typer.Option(help="Version of Kafka, from 3.7.0 on.")] = KAFKA_VERSION,
    user: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:PASSWORD", help="A user that can log in with PLAIN or SCRAM; repeatable."),
    ] = None,
    authorizer: Annotated[
        bool,
        typer.Option(
            "--authorizer", help="Check the rights of users by ACLs; clients without a login have all rights."
        ),
    ] = False,
) -> None:
    """Run Apache Kafka until Ctrl-C, without Docker or an installed Java; its data is removed at the end.

    Prints the address for VM_SYNC_KAFKA__BOOTSTRAP_SERVERS; with --user, the
    address for logins on a second line. The first run of a version downloads it,
    some 45 MB.
    """
    from service.cli import run as running

    running.kafka(brokers=brokers, version=version, users=user or (), authorizer=authorizer)


# ---------------------------------------------------------------- requests and syncs


@app.command(
    epilog="Example: vm-sync request C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f --wait --timeout 600\n\n"
    "Example: vm-sync request --from ids.txt --wait --failed-to failed.jsonl"
)
def request(  # noqa: PLR0913 - for one request and for many
    replication_id: Annotated[
        str | None, typer.Argument(metavar="REPLICATION_ID", help='VCDA\'s id of the replication: "C4-" and a UUID.')
    ] = None,
    *,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE|-",
            help="Many requests, one a line: ids, each with its site behind a space if it is remote; JSON lines; or "
            "CSV with a header. The same file again is the same requests: none is sent twice.",
        ),
    ] = None,
    form: Annotated[
        FileFormat | None, typer.Option("--format", help="Format of FILE; default: as its first line looks.")
    ] = None,
    operation_prefix: Annotated[
        str | None,
        typer.Option(
            help="Name of the many: with the same name, a replication's request is the same one, and not sent twice. "
            "Default: from the content of FILE; a new one for -."
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second, at most, with --from.")] = 100,
    failed_to: Annotated[
        Path | None,
        typer.Option(help="File for the requests that failed; --from reads it. Needs --from and --wait."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --from: check FILE and Kafka, and send nothing.")
    ] = False,
    operation_id: Annotated[
        str | None, typer.Option(help="Id of the request; default: a new one. The same id again is a duplicate.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site of the replication; default: the local site.")] = None,
    deadline: Annotated[int | None, typer.Option(help="Deadline in seconds; default: VM_SYNC_SYNC__DEADLINE.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the outcome, or all of them; exit code 1 if one failed.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait, after the last one was sent; then exit code 3.")
    ] = 21_600,
    ops_url: Annotated[
        str | None,
        typer.Option(
            help="URL of the service's operations server, for live progress; default: that of the instance "
            "that has the request's partition."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a request for a sync, or with --from many of them; with --wait, wait for the outcome.

    If --from is interrupted, the same command goes on where it was.
    """
    if source is not None:
        from service.cli import request_many as many

        if replication_id is not None or operation_id is not None or ops_url is not None:
            msg = "REPLICATION_ID, --operation-id and --ops-url are for one request, and don't go with --from."
            raise NoAnswer(msg, code=Exit.USAGE)
        options = many.BulkOptions(
            source=source,
            form=form,
            prefix=operation_prefix,
            site=site,
            deadline=deadline,
            rate=rate,
            wait=timeout if wait else None,
            failed_to=failed_to,
            dry_run=dry_run,
        )
        many.request_many(options, as_json=as_json)
        return
    if replication_id is None or form or operation_prefix or failed_to or dry_run:
        msg = "Name one replication by REPLICATION_ID, or many by --from FILE; the options of FILE need --from."
        raise NoAnswer(msg, code=Exit.USAGE)
    from service.cli import request as requesting

    body: dict[str, object] = {"replicationId": replication_id}
    given = {"operationID": operation_id, "site": site, "deadlineSeconds": deadline}
    body |= {name: value for name, value in given.items() if value is not None}
    requesting.request(body, wait=timeout if wait else None, ops_url=ops_url, as_json=as_json)


Wide: TypeAlias = Annotated[bool, typer.Option("--wide", help="Show all columns, whatever the terminal's width.")]


@app.command("list", epilog="Example: vm-sync list --failed --since 2h --site site2")
def list_(
    *,
    state: Annotated[list[State] | None, typer.Option(help="Only those in this state; repeatable.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those whose outcome is a failure.")] = False,
    since: Annotated[
        str | None, typer.Option(help=f"Only those that ended since then, or were accepted: {WHEN}.")
    ] = None,
    site: Annotated[str | None, typer.Option(help='Only those of this site; "" for the local site.')] = None,
    replication: Annotated[str | None, typer.Option(help="Only those of this replicationId.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many, the latest accepted.")] = 50,
    watch: Annotated[bool, typer.Option("--watch", help="List again every 2 seconds, until Ctrl-C.")] = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """List requests in flight and requests that ended recently, from the journal; works while the service is down.

    Progress and what a request waits for come from the instances of the service, where they can be reached.
    """
    from service.cli import syncs as looking

    wanted = looking.ListFilter(
        states=state or (), failed=failed, since=since, site=site, replication=replication, limit=limit
    )
    looking.list_(wanted, watch=watch, wide=wide, as_json=as_json)


@app.command(epilog="Example: vm-sync show nightly-2026-08-17")
def show(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="An operationID, a replicationId, or a whole identity (requestId).")
    ],
    *,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Show one request's history from the journal; works while the service is down.

    Lists the matches if there are several. Progress, and what a request waits for,
    come from the instances of the service, where they can be reached.
    """
    from service.cli import syncs as looking

    looking.show(name, wide=wide, as_json=as_json)


@app.command(epilog="Example: vm-sync top --interval 5")
def top(
    *,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two views.")] = 2,
    once: Annotated[bool, typer.Option("--once", help="Print it once, for scripts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs; needs --once.")] = False,
) -> None:
    """Show what is in flight, live, over all instances: by site and state, the oldest, the last minute's outcomes.

    From the journal and the outcome topics, so it works while the service is down. q or Ctrl-C ends it.
    """
    from service.cli import top as live

    live.top(interval=interval, once=once, as_json=as_json)


@app.command(
    epilog="Example: vm-sync outcomes --since 7d --site site2\n\n"
    "Example: vm-sync outcomes --failed --since 2h --ids | vm-sync request --from - --wait"
)
def outcomes(  # noqa: PLR0913 - as many as there are ways to choose
    *,
    since: Annotated[str, typer.Option(help=f"Only outcomes published at this time or later: {WHEN}.")] = "1d",
    until: Annotated[str | None, typer.Option(help=f"Only outcomes published before this time: {WHEN}.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only failures.")] = False,
    completed: Annotated[bool, typer.Option("--completed", help="Only completed ones.")] = False,
    reason: Annotated[list[str] | None, typer.Option(help="Only failures with this reason; repeatable.")] = None,
    site: Annotated[str | None, typer.Option(help='Only those of this site; "" for the local site.')] = None,
    replication: Annotated[str | None, typer.Option(help="Only those of this replicationId.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Show at most this many, the latest.")] = 20,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all of them as CSV.")] = False,
    as_ids: Annotated[
        bool,
        typer.Option(
            "--ids",
            help="Print the replications whose last outcome is one of these, each with its site behind a tab, for "
            "`vm-sync request --from -`.",
        ),
    ] = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Show what happened: outcomes with counts and durations, from the outcome topics; works while the service is down.

    Durations are percentiles, accurate to 1 %: from the request to the end, and at VCDA alone.
    """
    from service.cli import outcomes as history

    if as_csv and as_ids:
        msg = "--csv and --ids exclude each other."
        raise NoAnswer(msg, code=Exit.USAGE)
    rows = Rows.CSV if as_csv else Rows.IDS if as_ids else None
    chosen = history.OutcomeFilter.of(
        since=since,
        until=until,
        failed=failed,
        completed=completed,
        reasons=reason or (),
        site=site,
        replication=replication,
    )
    history.outcomes(chosen, limit=limit, rows=rows, wide=wide, as_json=as_json)


@app.command(epilog="Example: vm-sync cancel nightly-2026-08-17 --release --by alice --reason 'task hangs'")
def cancel(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="operationID, replicationId or identity (requestId) of the request.")
    ],
    *,
    release: Annotated[
        bool,
        typer.Option(
            "--release",
            help="End also a request that VCDA has, or may have, and free its replication. VCDA may still work on it.",
        ),
    ] = False,
    by: Annotated[str | None, typer.Option(help="Who cancels it, for the outcome; default: your user name.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the outcome.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Release without asking for confirmation.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the service has read the cancel.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait; then exit code 3.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Cancel a request that waits; with --release, give up one whose task is stuck. Works while the service is down.

    Exit code 1 if the request goes on or has ended already.
    """
    from service.cli import cancel as cancelling

    cancelling.cancel(
        name, release=release, by=by, why=reason, yes=yes, wait=timeout if wait else None, as_json=as_json
    )


# ---------------------------------------------------------------- sites

SiteName = Annotated[
    str, typer.Argument(metavar="NAME", help="The site, as requests name it; `local` for the local site.")
]
Holding = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for the instances of the service.")]


@sites.callback(epilog="Example: vm-sync sites --wide")
def list_sites(context: typer.Context, *, wide: Wide = False, as_json: AsJson = False) -> None:
    """List all sites: their pauses, requests in flight, and what holds back their POSTs.

    Works while the service is down; what each instance holds back is shown where it can be reached.
    """
    if context.invoked_subcommand is None:
        from service.cli import sites as sites_

        sites_.list_(wide=wide, as_json=as_json)


@sites.command("pause", epilog="Example: vm-sync sites pause site2 --for 2h --reason 'storage upgrade'")
def pause_site(
    name: SiteName,
    *,
    lasting: Annotated[str | None, typer.Option("--for", help="How long: 2h, 1d12h or PT2H.")] = None,
    until: Annotated[str | None, typer.Option(help="Until when: a date (UTC), such as 2026-08-17T06:00.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for all who look.")] = None,
    by: Annotated[str | None, typer.Option(help="Who pauses it; default: your user name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Pause an unknown site without asking for confirmation.")] = False,
    timeout: Holding = 10,
    as_json: AsJson = False,
) -> None:
    """Hold back new POSTs to a site on all instances until a moment; what runs there is polled, deadlines pass.

    Works while the service is down. Exit code 1 if an instance that answers goes on sending POSTs.
    """
    from service.cli import sites as sites_

    wanted = sites_.Wanted(site=name, lasting=lasting, until=until, by=by, reason=reason, yes=yes, wait=timeout)
    sites_.pause(wanted, as_json=as_json)


@sites.command("resume", epilog="Example: vm-sync sites resume site2")
def resume_site(name: SiteName, *, timeout: Holding = 10, as_json: AsJson = False) -> None:
    """End a site's pause at once, on all instances. Exit code 1 if the site is not paused."""
    from service.cli import sites as sites_

    sites_.resume(name, wait=timeout, as_json=as_json)


# ---------------------------------------------------------------- dead letters

Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Only dead letters with this reason; repeatable.")]
Since = Annotated[str | None, typer.Option("--since", help=f"Only dead letters written at this time or later: {WHEN}.")]
Until = Annotated[str | None, typer.Option("--until", help=f"Only dead letters written before this time: {WHEN}.")]
Key = Annotated[str | None, typer.Option("--key", help="Only dead letters with this key.")]
SentTo = Annotated[
    list[str] | None,
    typer.Option("--topic", help="Only dead letters of messages that were sent to this topic; repeatable."),
]
SentToHere = Annotated[
    list[str] | None,
    typer.Option(
        "--topic",
        help="Only dead letters of messages that were sent to this topic, instead of VM_SYNC_TOPICS__REQUESTS; "
        "repeatable.",
    ),
]
At = Annotated[
    list[str] | None,
    typer.Option(
        "--at",
        metavar="PARTITION[:OFFSET]",
        help="Only dead letters at this partition or offset of the dead-letter topic; repeatable.",
    ),
]


@letters.command("list", epilog="Example: vm-sync dead-letters list --reason bad-field --since 2h")
def list_dead_letters(
    *,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    topic: SentTo = None,
    at: At = None,
    discarded: Annotated[bool, typer.Option("--discarded", help="List discarded ones, too.")] = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """List dead letters with their reason, their message's beginning, and whether they were redriven."""
    from service.cli import dead_letters

    chosen = dead_letters.LetterFilter.of(
        reasons=reason or (), topics=topic or (), since=since, until=until, key=key, at=at or ()
    )
    dead_letters.list_(chosen, discarded=discarded, wide=wide, as_json=as_json)


@letters.command("show", epilog="Example: vm-sync dead-letters show 0:12")
def show_dead_letter(
    at: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="As `dead-letters list` shows it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Print one dead letter whole: why it is one, its headers, and the message."""
    from service.cli import dead_letters

    dead_letters.show(at, as_json=as_json)


@letters.command("discard", epilog="Example: vm-sync dead-letters discard --reason not-json --since 1d")
def discard(
    *,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    topic: SentToHere = None,
    at: At = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be discarded.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Mark dead letters as dealt with: they are no longer listed, and never redriven. The topic keeps them.

    Asks for confirmation. Letters that were redriven already are left as they
    are, and so are those of messages that were sent to other topics, unless
    --topic names these, or --at the letter: deployments may share a dead-letter
    topic.
    """
    from service.cli import dead_letters

    chosen = dead_letters.LetterFilter.of(
        reasons=reason or (), topics=topic or (), since=since, until=until, key=key, at=at or ()
    )
    dead_letters.discard(chosen, dry_run=dry_run, confirmed=yes, as_json=as_json)


@letters.command("redrive", epilog="Example: vm-sync dead-letters redrive --reason bad-field --dry-run")
def redrive(
    *,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    topic: SentToHere = None,
    at: At = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be redriven.")] = False,
    at_most: Annotated[int, typer.Option(min=1, help="Refuse letters that were redriven this many times already.")] = 3,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Redrive a letter regardless of its number of redrives, and of the topic its message was sent to.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters to the requests topic again, bytes unchanged, each once, even if this command is interrupted.

    Those of messages that were sent to other topics are left as they are, since
    deployments may share a dead-letter topic; --topic, or --at PARTITION:OFFSET,
    with --force redrives them to VM_SYNC_TOPICS__REQUESTS.

    Exit code 1 if some of the selected letters were refused.
    """
    from service.cli import dead_letters

    chosen = dead_letters.LetterFilter.of(
        reasons=reason or (), topics=topic or (), since=since, until=until, key=key, at=at or ()
    )
    dead_letters.redrive(chosen, dry_run=dry_run, at_most=None if force else at_most, as_json=as_json)


# ---------------------------------------------------------------- topics, settings, asyncapi


@app.command(epilog="Example: vm-sync check")
def check(
    *,
    vcda_may_fail: Annotated[
        bool,
        typer.Option("--vcda-may-fail", help="Failures at VCDA and its sites do not change the exit code."),
    ] = False,
    unreachable_may_fail: Annotated[
        bool,
        typer.Option("--unreachable-may-fail", help="What does not answer at present does not change the exit code."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check everything that the service will need of Kafka and VCDA, with the service's settings; changes nothing.

    One line for each check: ok, warning or failure, with the setting to change.

    Exit code 1 if the service won't work with these settings, 3 if Kafka, VCDA or
    a site does not answer at present. With --vcda-may-fail the exit code is about
    Kafka alone: the service starts without VCDA, and waits for it. With
    --unreachable-may-fail there is no exit code 3.
    """
    from service.cli import check as checking

    checking.check(as_json=as_json, vcda_may_fail=vcda_may_fail, unreachable_may_fail=unreachable_may_fail)


@topics.command("check", epilog="Example: vm-sync topics check")
def check_topics(*, as_json: AsJson = False) -> None:
    """Compare the topics with the service's requirements; exit code 1 if the service would refuse to start."""
    from service.cli import describe as describing

    describing.topics(create=False, as_json=as_json)


@topics.command("create", epilog="Example: VM_SYNC_KAFKA__PARTITIONS=24 vm-sync topics create")
def create_topics(*, as_json: AsJson = False) -> None:
    """Create the missing topics, then check all of them. Existing topics are never changed."""
    from service.cli import describe as describing

    describing.topics(create=True, as_json=as_json)


@app.command(epilog="Example: vm-sync settings --json")
def settings(*, wide: Wide = False, as_json: AsJson = False) -> None:
    """Print each setting with its value, the value's source, default, type and meaning; secrets are hidden.

    Invalid settings are marked in the list and printed on stderr; then the exit code is 2.
    """
    from service.cli import describe as describing

    describing.settings(wide=wide, as_json=as_json)


@app.command(epilog="Example: vm-sync asyncapi --format html > asyncapi.html")
def asyncapi(
    *,
    form: Annotated[Format, typer.Option("--format", help="Format: JSON, YAML, or an HTML page.")] = Format.YAML,
    as_json: AsJson = False,
) -> None:
    """Print the AsyncAPI 3.0 document: the topics with their keys, headers and messages. Needs no Kafka."""
    from service.cli import describe as describing

    describing.asyncapi(Format.JSON if as_json else form)
