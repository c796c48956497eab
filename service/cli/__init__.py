"""`vm-sync`: what a person, or a script, can ask for at a command line.

- `commands`: all commands as one program.
- `running`: run the service, or what stands in for its surroundings.
- `answers`: how every command ends: what it prints, and where; the sentences for what goes wrong.

Exit codes, the same for every command:

    0    done; for a request that is waited for: completed
    1    the answer is no: the request failed, the topics don't fit, not every outcome of the demo was seen
    2    the command line, or a setting, can't be right; one line on stderr for each
    3    no answer: Kafka is away or refuses us, there is nothing of that name, no outcome came in time
    130  interrupted

`run` alone has its own: 0 after a clean stop, 1 when Kafka stayed away or after an internal error, 2 for settings or
topics that don't fit. Answers go to stdout, everything else to stderr. It never shows a stack trace for what an
operator can mend, nor a secret, and never imports for one command what only another one needs: `--help` is quick.
"""


def main() -> None:
    """Run the command that the process's arguments name."""
    from service.cli.commands import app

    app(prog_name="vm-sync")
