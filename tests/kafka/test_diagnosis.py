"""What Kafka's client raises and logs becomes a sentence; with a real Kafka, see test_kafka_security.py."""

import asyncio
import errno
import logging
import os
import socket

import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    SaslAuthenticationFailed,
    TransactionalIdAuthorizationFailed,
)

from service.kafka.diagnosis import diagnosis, overheard
from service.settings.model import Kafka

KAFKA = Kafka(bootstrap_servers="kafka.example:9092")
BOOTSTRAP = KafkaConnectionError("Unable to bootstrap")


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (BOOTSTRAP, "Kafka can't be reached at kafka.example:9092: check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS"),
        (TimeoutError(), "Kafka can't be reached at kafka.example:9092: check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS"),
        (GroupAuthorizationFailedError("g"), "Kafka denies this user the right Read on group g: grant it to this user"),
        (
            TransactionalIdAuthorizationFailed("x"),
            "Kafka denies this user the right Write on transactional id x: grant",
        ),
        (NodeNotReadyError("x"), "Kafka can't be reached at kafka.example:9092: check VM_SYNC_KAFKA__BOOTSTRAP"),
        (KafkaTimeoutError("x"), "Kafka can't be reached at kafka.example:9092: check VM_SYNC_KAFKA__BOOTSTRAP"),
        (InvalidTopicError("x"), "Kafka at kafka.example:9092 refuses: InvalidTopicError: x."),
        (InvalidTopicError("No such name."), "Kafka at kafka.example:9092 refuses: InvalidTopicError: No such name."),
        (
            InconsistentGroupProtocolError(),
            (
                "Kafka at kafka.example:9092 refuses: InconsistentGroupProtocolError: Returned in join group when the "
                "member provides a protocol type or set of protocols which is not compatible with the current group."
            ),
        ),
    ],
)
def test_what_is_raised_becomes_a_sentence(raised: KafkaError | OSError, sentence: str) -> None:
    said = diagnosis(raised, [], kafka=KAFKA)

    assert said.startswith(sentence)
    assert "secret" not in said


def test_what_was_logged_last_and_tells_most_is_chosen() -> None:
    log = logging.getLogger("aiokafka")
    with overheard() as errors:
        log.error('Unable connect to "%s:%s": %s', "kafka.example", 9092, ConnectionRefusedError())
        log.error('Unable connect to "%s:%s": %s', "kafka.example", 9092, SaslAuthenticationFailed("no"))
        log.error('Unable connect to "%s:%s": %s', "kafka.example", 9092, ConnectionRefusedError())
    log.error("after it: %s", SaslAuthenticationFailed("no"))

    assert len(errors) == 3
    assert "VM_SYNC_KAFKA__SASL_PASSWORD" in diagnosis(BOOTSTRAP, errors, kafka=KAFKA)


async def test_what_another_client_of_the_process_logs_meanwhile_is_not_taken_for_the_reason() -> None:
    log = logging.getLogger("aiokafka")
    may_end = asyncio.Event()

    async def client(reason: str) -> None:
        log.error("Unable connect: %s", ConnectionRefusedError(reason))
        await may_end.wait()
        log.error("Unable connect: %s", ConnectionRefusedError(reason))

    other = asyncio.create_task(client("other"))
    with overheard() as outer, overheard() as errors:
        own = asyncio.create_task(client("own"))
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(own, other)

    assert [str(error) for error in errors] == ["own", "own"]
    assert outer == errors


def test_a_name_that_can_not_be_resolved_is_the_reason_that_is_given() -> None:
    said = diagnosis(BOOTSTRAP, [socket.gaierror(-2, "Name or service not known")], kafka=KAFKA)

    where = "kafka.example:9092, the name of a broker can't be resolved"
    assert said == f"Kafka can't be reached at {where}: check VM_SYNC_KAFKA__BOOTSTRAP_SERVERS, and DNS."


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_process_without_file_descriptors_is_the_reason_that_is_given(code: int) -> None:
    said = diagnosis(BOOTSTRAP, [OSError(code, os.strerror(code))], kafka=KAFKA)

    why = "this process may open no more files and connections: raise its limit (ulimit -n)"
    assert said == f"Kafka can't be reached at kafka.example:9092: {why}."


def test_somebody_who_hangs_up_is_told_from_nobody() -> None:
    hung_up = diagnosis(BOOTSTRAP, [KafkaConnectionError("Connection at kafka.example:9092 closed")], kafka=KAFKA)
    nobody = diagnosis(BOOTSTRAP, [ConnectionRefusedError()], kafka=KAFKA)

    assert hung_up.startswith("Kafka at kafka.example:9092 closes the connection: check whether the brokers' listener")
    assert nobody.startswith("Kafka can't be reached")
