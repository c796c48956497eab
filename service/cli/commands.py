"""All commands as one program."""

import typer

from service.cli import running
from service.cli.answers import Answering

app = typer.Typer(
    cls=Answering,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a bug's stack trace is for a log; one in colours shows local variables, too
    help="Requests on a Kafka topic become syncs at VMware Cloud Director Availability, and their ends events.",
)

app.command()(running.run)
app.command()(running.simulator)
app.command()(running.kafka)
