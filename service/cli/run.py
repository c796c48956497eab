"""What stands in for the service's surroundings, run until it is stopped."""

import signal
import threading
from collections.abc import Sequence

from service.cli.output import Exit, NoAnswer, say


def simulator(arguments: Sequence[str]) -> int:
    """Run the simulated VCDA."""
    from service.sandbox.vcda import simulator as simulated

    try:
        return simulated.main(arguments)
    except OSError as error:
        msg = f"The simulated VCDA can't serve: check --host, --port, --cert and --key ({error.strerror or error})."
        raise NoAnswer(msg, code=Exit.USAGE) from None


def kafka() -> None:
    """Run the embedded Kafka; its address is the answer, on stdout."""
    from service.sandbox.kafka import EmbeddedKafka, KafkaError

    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    try:
        with EmbeddedKafka() as embedded:
            print(embedded.bootstrap, flush=True)
            say("Kafka is ready at the address above; Ctrl-C stops Kafka and removes its data.")
            stop.wait()
    except KafkaError as error:
        raise NoAnswer(str(error)) from None


def demo(*, requests: int, keep: bool) -> int:
    """Run the demo."""
    from service.sandbox.demo.demo import run
    from service.sandbox.kafka import KafkaError

    try:
        return run(requests=requests, keep=keep)
    except KafkaError as error:
        raise NoAnswer(str(error)) from None
