"""The commands `topics`, `settings` and `asyncapi`."""

import asyncio
from importlib.metadata import version

import typer

from service import asyncapi as document
from service.cli import interrupts, kafka
from service.cli.options import Format
from service.cli.output import Exit, printable, say, show_json
from service.cli.tables import Column, show_table
from service.kafka import topics as needed
from service.settings import SettingsError, describe, load


def topics(*, create: bool, as_json: bool) -> None:
    """Create the missing topics, if `create`, and print what does not fit."""
    place = kafka.settings()
    findings = interrupts.run(_ensured(place, create=create))
    words = {
        needed.Refusal: "refused",
        needed.Unsupported: "unsupported",
        needed.Denied: "denied",
        needed.Advice: "advice",
        needed.Unavailable: "advice",
        needed.Created: "created",
    }
    fits = not any(isinstance(finding, needed.Refusal | needed.Denied) for finding in findings)
    if as_json:
        told = [{"finding": words[type(finding)], "text": finding.text} for finding in findings]
        show_json({"fits": fits, "topics": list(place.names.all()), "findings": told})
    else:
        for finding in findings:
            print(printable(f"{words[type(finding)]}: {finding.text}"))
        print("The topics fit." if fits else "The service can't work with these topics.")
    if not fits:
        unsupported = any(isinstance(finding, needed.Unsupported) for finding in findings)
        raise typer.Exit(Exit.USAGE if unsupported else Exit.NO)


async def _ensured(place: kafka.KafkaContext, *, create: bool) -> list[needed.Finding]:
    async with kafka.explained(place):
        async with asyncio.timeout(kafka.SILENCE + needed.CREATE_LIMIT.total_seconds()):
            return await needed.ensure_topics(
                place.connection,
                names=place.names,
                partitions=place.settings.kafka.partitions,
                create=create,
            )


def settings(*, wide: bool, as_json: bool) -> None:
    """Print the settings; errors are printed in the table and on stderr."""
    wrong: dict[str, str] = {}
    lines: tuple[str, ...] = ()
    try:
        rows = describe(load())
    except SettingsError as error:
        rows, lines = describe(), error.lines
        wrong = dict([line.split(": ", 1) for line in lines])
    if as_json:
        show_json(
            [
                {
                    "name": row.name,
                    "type": row.type,
                    "default": row.default,
                    "value": None if lines else row.value,
                    "origin": None if lines else row.origin,
                    "wrong": wrong.get(row.name),
                    "meaning": row.meaning,
                    "why": row.why,
                }
                for row in rows
            ]
        )
    else:
        show_table(
            (
                Column("setting"),
                Column("wrong" if lines else "value", rank=1, text=True),
                Column("from", rank=2),
                Column("default", rank=3, text=True),
                Column("type", rank=4, text=True),
                Column("meaning", rank=5, text=True),
            ),
            [
                (
                    row.name,
                    wrong.get(row.name, "") if lines else row.value,
                    "" if lines else row.origin,
                    row.default,
                    row.type,
                    row.meaning,
                )
                for row in rows
            ],
            wide=wide,
        )
    for line in lines:
        say(line)
    if lines:
        raise typer.Exit(Exit.USAGE)


def asyncapi(form: Format) -> None:
    """Print the document."""
    found = kafka.settings().settings
    described = document.document(
        document.Topics(
            requests=found.topics.requests,
            completed=found.topics.completed,
            failed=found.topics.failed,
            dead_letter=found.topics.dead_letter,
            progress=found.topics.progress,
        ),
        version=version("vm-sync"),
        server=document.Server(
            hosts=found.kafka.servers,
            security_protocol=found.kafka.security_protocol,
            sasl_mechanism=found.kafka.sasl_mechanism,
        ),
        group_id=found.kafka.group_id,
    )
    write = {Format.JSON: document.to_json, Format.YAML: document.to_yaml, Format.HTML: document.to_page}
    text = write[form](described)
    print(text, end="")
