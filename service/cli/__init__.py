"""The command line, `vm-sync`.

- `process`: prepares the process before anything else is imported.
- `commands`: all commands, with their options and help; `options`: what options can be.
- `output`: how commands print results and errors, and their exit codes; `interrupts`: Ctrl-C.
- `kafka`: access to Kafka for commands, and a sentence for each error.
- `request`, `request_many`, `request_file`: send one request, or those of a file.
- `outcomes`, `outcome_events`, `outcome_summary`: read and sum up the outcome topics.
- `top`, `top_state`: the live view over all instances.
- `syncs`, `cancel`, `dead_letters`, `describe`, `check`, `run`: the other commands.

Exit codes, the same for every command:

    0    success; of `request --wait`: all requests completed
    1    negative result: a request failed, topics are invalid, a check failed, letters were refused, or the demo
         broke a guarantee
    2    the command line or a setting is invalid; one line on stderr for each
    3    no result: Kafka is unreachable or refuses access, nothing of that name was found, no outcome arrived in time,
         or stdout could not be written
    130  interrupted
    141  the reader of stdout has left, as `head` does; nothing is said

`run` has its own: 0 after a clean stop, 1 when Kafka stayed unreachable or after an internal error, 2 for invalid
settings or topics. Results go to stdout, everything else to stderr. A command never shows a stack trace for an error
that an operator can correct, nor a secret, and imports only what it needs itself: `--help` is quick.
"""


def main() -> None:
    """Run the command that the process's arguments name.

    Raises:
        SystemExit: always, with the exit code.
    """
    try:
        _main()
    except KeyboardInterrupt:  # in the imports: after them, the command itself says how far it is
        raise SystemExit(130) from None


def _main() -> None:
    import sys
    import threading

    from service.cli.process import prepare

    prepare(sys.argv)

    from service.cli.commands import app
    from service.cli.output import Exit, delivering

    try:
        with delivering():
            app(prog_name="vm-sync")
    except SystemExit as end:
        if threading.active_count() > 1:  # such as a name look-up
            from service.event_loop import end_soon

            end_soon(end.code if isinstance(end.code, int) else Exit.DONE)
        raise
