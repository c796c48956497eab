"""The commands `simulator`, `kafka` and `demo`."""

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


def kafka(*, brokers: int, version: str, users: Sequence[str], authorizer: bool) -> None:
    """Run the embedded Kafka; its addresses are the answer, on stdout. Each user is `name:password`."""
    from service.sandbox.kafka import LOGIN, EmbeddedKafka
    from service.sandbox.kafka_jars import KafkaError, major

    named = dict(_user(text) for text in users)
    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    try:
        major(version)
    except KafkaError as error:
        raise NoAnswer(str(error), code=Exit.USAGE) from None
    try:
        with EmbeddedKafka(brokers=brokers, version=version, users=named, authorizer=authorizer) as embedded:
            print(embedded.bootstrap, flush=True)
            if named:
                print(embedded.address(LOGIN), flush=True)
                say("Users log in at the second address: SASL_PLAINTEXT, with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.")
            say("Kafka is ready at the address above; Ctrl-C stops Kafka and removes its data.")
            stop.wait()
    except KafkaError as error:
        raise NoAnswer(str(error)) from None


def _user(text: str) -> tuple[str, str]:
    name, _, password = text.partition(":")
    if not name or not password:
        msg = "A --user is written NAME:PASSWORD."
        raise NoAnswer(msg, code=Exit.USAGE)
    return name, password


def demo(*, requests: int, keep: bool) -> int:
    """Run the demo."""
    from service.sandbox.demo.demo import run
    from service.sandbox.kafka import KafkaError

    try:
        return run(requests=requests, keep=keep)
    except KafkaError as error:
        raise NoAnswer(str(error)) from None
