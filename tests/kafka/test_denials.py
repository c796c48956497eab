"""What Kafka's client has raised is said in one line, in words that can be searched for."""

import pytest
from aiokafka.errors import (
    InvalidProducerIdMapping,
    InvalidSessionTimeoutError,
    InvalidTimestampError,
    KafkaConnectionError,
    KafkaError,
    NotEnoughReplicasError,
    UnknownTopicOrPartitionError,
)

from service.kafka.denials import explain


def wrapped(cause: Exception) -> Exception:
    """Return what aiokafka's producer makes of an error that it doesn't expect."""
    error: Exception = KafkaError("Unexpected error during batch delivery")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "TimeoutError"),
        (KafkaConnectionError("refused"), "KafkaConnectionError: refused"),
        (UnknownTopicOrPartitionError("vm-sync.completed"), "UnknownTopicOrPartitionError: vm-sync.completed"),
        (
            NotEnoughReplicasError(),
            (
                "NotEnoughReplicasError: Returned from a produce request when the number of in-sync replicas is lower "
                "than the configured minimum and requiredAcks is -1"
            ),
        ),
        (
            wrapped(InvalidProducerIdMapping()),
            (
                "InvalidProducerIdMapping: The producer attempted to use a producer id which is not currently assigned "
                "to its transactional id"
            ),
        ),
        (
            InvalidTimestampError(),
            (
                "InvalidTimestampError: The timestamp of the message is out of acceptable range: compare this "
                "machine's clock with the brokers'"
            ),
        ),
        (
            InvalidSessionTimeoutError(),
            (
                "InvalidSessionTimeoutError: Return in join group when the requested session timeout is outside of the "
                "allowed range on the broker: compare VM_SYNC_KAFKA__SESSION_TIMEOUT with the brokers' "
                "group.min.session.timeout.ms and group.max.session.timeout.ms"
            ),
        ),
        (wrapped(KeyError("a bug")), "KafkaError: Unexpected error during batch delivery"),
    ],
)
def test_an_error_is_said_with_its_name_and_what_kafka_means_by_it(error: Exception, said: str) -> None:
    assert explain(error) == said
