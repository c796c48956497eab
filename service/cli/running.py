"""Commands that run until they are stopped: the service, and what stands in for its surroundings."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from service.cli.answers import Exit, NoAnswer, say


def run() -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Settings come from VM_SYNC_ variables and from files; `vm-sync settings` lists them.

    Example: VM_SYNC_VCDA__URL=https://vcda.example VM_SYNC_LOG__FORMAT=text ... vm-sync run
    """
    from service.app import serve
    from service.settings import load

    raise typer.Exit(serve(load()))


def simulator(  # noqa: PLR0913 - as many as the simulated VCDA has
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one and prints it.")] = 8046,
    duration: Annotated[
        str | None,
        typer.Option(
            help="How long a sync takes: seconds, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or "
            "lognormal-mean:MEAN:SIGMA."
        ),
    ] = None,
    queued: Annotated[str | None, typer.Option(help="How long it stays in QUEUED first, likewise.")] = None,
    submit_latency: Annotated[str | None, typer.Option(help="How long answering a POST takes, likewise.")] = None,
    failing: Annotated[float, typer.Option(min=0, max=1, help="Share of syncs that fail.")] = 0.0,
    warned: Annotated[float, typer.Option(min=0, max=1, help="Share of syncs with a warning.")] = 0.0,
    password: Annotated[str | None, typer.Option(help="Of administrator@System, at every site.")] = None,
    cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM: serve https.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same durations and failures.")] = 1,
) -> None:
    """Run a simulated VCDA until Ctrl-C: strict, and breakable on demand.

    Example: vm-sync simulator --port 8046 --duration lognormal:90:0.8 --failing 0.05
    """
    from service.sandbox import simulator as simulated

    given: dict[str, object] = {
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
    raise typer.Exit(simulated.main(arguments))


def kafka() -> None:
    """Run a real Kafka of one node until Ctrl-C, without Docker or an installed Java; its data go with it.

    Prints the address for VM_SYNC_KAFKA__BOOTSTRAP_SERVERS. The first time it downloads Kafka, some 45 MB.

    Example: vm-sync kafka
    """
    from service.sandbox.kafka import EmbeddedKafka, KafkaError

    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    try:
        with EmbeddedKafka() as embedded:
            print(embedded.bootstrap, flush=True)
            say("Kafka is ready at the address above; Ctrl-C stops it and removes its data.")
            stop.wait()
    except KafkaError as error:
        raise NoAnswer(str(error), code=Exit.NO_ANSWER) from None
