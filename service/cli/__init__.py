"""`vm-sync`: what a person, or a script, can ask for at a command line.

- `process`: what has to be right before anything else is imported.
- `commands`: all commands, with their options and help; `options`: what options can be.
- `output`: how every command ends: what it prints, where, and with which exit code.
- `kafka`: Kafka as the commands see it, and a sentence for each way in which it can refuse.
- `request`, `syncs`, `dead_letters`, `describe`, `run`: what the commands do.

Exit codes, the same for every command:

    0    done; for a request that is waited for: completed
    1    the answer is no: the request failed, the topics don't fit, some letters were refused, a promise was broken
    2    the command line, or a setting, is invalid; one line on stderr for each
    3    no answer: Kafka is unreachable or refuses access, nothing of that name was found, no outcome came in time, or
         the answer could not be written to stdout
    130  interrupted

`run` alone has its own: 0 after a clean stop, 1 when Kafka stayed unreachable or after an internal error, 2 for
settings or topics that don't fit. Answers go to stdout, everything else to stderr. A command never shows a stack trace
for an error that an operator can correct, nor a secret, and imports only what it needs itself: `--help` is quick.
"""


def main() -> None:
    """Run the command that the process's arguments name."""
    import sys

    from service.cli.process import prepare

    prepare(sys.argv)

    from service.cli.commands import app
    from service.cli.output import delivering

    with delivering():
        app(prog_name="vm-sync")
