"""The size of a record or an event: key, value and headers, as Kafka carries them."""

import pytest

from service.messages.kafka_record import Event, Header, record_size


@pytest.mark.parametrize(
    ("key", "value", "headers", "size"),
    [
        (None, None, (), 0),
        (b"key", b"value", (), 8),
        (b"", b"", (("name", b"value"),), 9),
        (None, None, (("name", None),), 4),
        (None, None, (("näme", b""),), 5),
        (None, None, (("\ud800", b""),), 1),
    ],
)
def test_names_count_in_utf_8_and_what_is_null_counts_nothing(
    key: bytes | None, value: bytes | None, headers: tuple[Header, ...], size: int
) -> None:
    assert record_size(Event(topic="t", key=key, value=value, headers=headers)) == size
