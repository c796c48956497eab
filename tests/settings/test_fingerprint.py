"""The hash by which instances are compared: what must be equal changes it, what may differ and secrets don't."""

import pytest

from service.settings import fingerprint, load

LEAST = {
    "VM_SYNC_VCDA__URL": "https://vcda.example.com",
    "VM_SYNC_VCDA__CREDENTIALS__USER": "admin@org",
    "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "s3cret",
    "VM_SYNC_VCDA__SITES": '[{"name": "b", "user": "u@o", "password": "p"}, {"name": "a", "token": "t"}]',
}


def hashed(**changed: str) -> str:
    return fingerprint(load({**LEAST, **{f"VM_SYNC_{name}": text for name, text in changed.items()}}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VCDA__SITES", "[]"),
        ("VCDA__SITES", '[{"name": "b", "user": "other@o", "password": "p"}, {"name": "a", "token": "t"}]'),
        ("VCDA__URL", "https://other.example.com"),
        ("VCDA__CREDENTIALS__USER", "somebody@org"),
        ("KAFKA__GROUP_ID", "another"),
        ("TOPICS__JOURNAL", "another"),
        ("SYNC__DEADLINE", "PT1H"),
    ],
)
def test_what_must_be_equal_changes_the_hash(name: str, text: str) -> None:
    assert hashed(**{name: text}) != hashed()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VCDA__SITES", '[{"name": "a", "token": "new"}, {"name": "b", "user": "u@o", "password": "new"}]'),
        ("VCDA__CREDENTIALS__PASSWORD", "new"),
        ("KAFKA__BOOTSTRAP_SERVERS", "kafka-2:9092"),
        ("OPS__PORT", "0"),
        ("LOG__FORMAT", "text"),
        ("SYNC__DEADLINE", "PT360M"),
    ],
)
def test_secrets_and_what_may_differ_do_not(name: str, text: str) -> None:
    assert hashed(**{name: text}) == hashed()
    assert len(hashed()) == 12
