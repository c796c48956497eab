"""Every setting: its name, default and description, and which settings fit together."""

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from service.settings import SettingsError, describe, kafka_security, load
from tests.support.some_settings import LEAST, refusal

# The contract's table; what it leaves open has an empty default.
CONTRACT = """
VM_SYNC_TOPICS__REQUESTS vm-sync.requests
VM_SYNC_TOPICS__COMPLETED vm-sync.completed
VM_SYNC_TOPICS__FAILED vm-sync.failed
VM_SYNC_TOPICS__DEAD_LETTER vm-sync.dead-letter
VM_SYNC_TOPICS__JOURNAL vm-sync.journal
VM_SYNC_TOPICS__CONTROL vm-sync.control
VM_SYNC_TOPICS__PROGRESS
VM_SYNC_KAFKA__BOOTSTRAP_SERVERS localhost:9092
VM_SYNC_KAFKA__GROUP_ID vm-sync
VM_SYNC_KAFKA__SESSION_TIMEOUT PT10S
VM_SYNC_KAFKA__START_LIMIT PT5M
VM_SYNC_KAFKA__CREATE_TOPICS true
VM_SYNC_KAFKA__PARTITIONS 12
VM_SYNC_KAFKA__SECURITY_PROTOCOL PLAINTEXT
VM_SYNC_KAFKA__SASL_MECHANISM
VM_SYNC_KAFKA__SASL_USERNAME
VM_SYNC_KAFKA__SASL_PASSWORD
VM_SYNC_KAFKA__OAUTH_TOKEN_URL
VM_SYNC_KAFKA__OAUTH_CLIENT_ID
VM_SYNC_KAFKA__OAUTH_CLIENT_SECRET
VM_SYNC_KAFKA__OAUTH_SCOPE
VM_SYNC_KAFKA__OAUTH_CA_FILE
VM_SYNC_KAFKA__OAUTH_TOKEN_FILE
VM_SYNC_KAFKA__OAUTH_EXTENSIONS
VM_SYNC_KAFKA__SSL_CA_FILE
VM_SYNC_KAFKA__SSL_CERT_FILE
VM_SYNC_KAFKA__SSL_KEY_FILE
VM_SYNC_VCDA__URL required
VM_SYNC_VCDA__CREDENTIALS__TYPE vcdCredentials
VM_SYNC_VCDA__CREDENTIALS__USER
VM_SYNC_VCDA__CREDENTIALS__PASSWORD
VM_SYNC_VCDA__CREDENTIALS__TOKEN
VM_SYNC_VCDA__CREDENTIALS__ORG
VM_SYNC_VCDA__SITES []
VM_SYNC_VCDA__CA_FILE
VM_SYNC_VCDA__THUMBPRINT
VM_SYNC_VCDA__REQUEST_TIMEOUT PT30S
VM_SYNC_SYNC__DEADLINE PT6H
VM_SYNC_SYNC__DEDUPLICATE_FOR PT24H
VM_SYNC_SYNC__SETTLE PT1M
VM_SYNC_SYNC__LOST_AFTER PT10M
VM_SYNC_SYNC__MAX_IN_FLIGHT 50000
VM_SYNC_SYNC__MAX_CONCURRENT_SUBMITS 16
VM_SYNC_SYNC__MAX_RUNNING 200
VM_SYNC_SYNC__POLL_MIN PT1S
VM_SYNC_SYNC__POLL_MAX PT1M
VM_SYNC_OPS__HOST 0.0.0.0
VM_SYNC_OPS__PORT 8080
VM_SYNC_OPS__DRAIN_LIMIT PT25S
VM_SYNC_LOG__FORMAT json
VM_SYNC_LOG__LEVEL INFO
VM_SYNC_SECRETS_DIR /run/secrets/vm-sync
"""


def test_names_and_defaults_are_the_contracts() -> None:
    rows = [[row.name, row.default] if row.default else [row.name] for row in describe()]

    assert rows == [line.split() for line in CONTRACT.split("\n") if line]


def test_each_setting_says_what_it_means_and_where_there_is_a_choice_why_its_default_is_so() -> None:
    assert [row.name for row in describe() if not row.meaning] == []
    plain = {
        "TOPICS__REQUESTS",
        "TOPICS__COMPLETED",
        "TOPICS__DEAD_LETTER",
        "TOPICS__JOURNAL",
        "TOPICS__CONTROL",
        "KAFKA__BOOTSTRAP_SERVERS",
        "KAFKA__GROUP_ID",
        "OPS__PORT",
    }
    silent = {row.name.removeprefix("VM_SYNC_") for row in describe() if row.default and not row.why}
    assert silent == plain | {"VCDA__URL"}


def test_the_least_that_is_needed_is_an_address_a_user_and_a_password() -> None:
    settings = load(LEAST)

    assert settings.vcda.url == "https://vcda.example.com"
    assert settings.kafka.session_timeout == timedelta(seconds=10)
    assert settings.vcda.sites == ()


def test_without_anything_each_missing_setting_has_its_line() -> None:
    with pytest.raises(SettingsError) as caught:
        load({})

    assert list(caught.value.lines) == [
        "VM_SYNC_VCDA__CREDENTIALS__PASSWORD: required for TYPE vcdCredentials",
        "VM_SYNC_VCDA__CREDENTIALS__USER: required for TYPE vcdCredentials",
        "VM_SYNC_VCDA__URL: required",
    ]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    lines = refusal(
        {"VM_SYNC_OPS__PORT": "70000", "VM_SYNC_SYNC__DEADLINE": "6h", "VM_SYNC_TOPICS__JOURNAL": "vm-sync.requests"}
    )

    now = "from the environment"
    assert lines == [
        f"VM_SYNC_OPS__PORT: Input should be less than or equal to 65535 (now '70000', {now})",
        f"VM_SYNC_SYNC__DEADLINE: write an ISO 8601 duration, such as PT30S, PT5M or PT6H (now '6h', {now})",
        f"VM_SYNC_TOPICS__JOURNAL: name a topic of its own, not that of REQUESTS (now 'vm-sync.requests', {now})",
    ]


def test_plain_kafka_needs_no_more_than_its_name() -> None:
    assert kafka_security(load(LEAST)) == {"security_protocol": "PLAINTEXT"}


def test_sasl_and_tls_become_what_the_client_takes(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = authority.issue_cert("vm-sync")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    wanted = kafka_security(
        load(
            LEAST
            | {
                "VM_SYNC_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
                "VM_SYNC_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
                "VM_SYNC_KAFKA__SASL_USERNAME": "me",
                "VM_SYNC_KAFKA__SASL_PASSWORD": "p",
                "VM_SYNC_KAFKA__SSL_CA_FILE": str(tmp_path / "ca.pem"),
                "VM_SYNC_KAFKA__SSL_CERT_FILE": str(tmp_path / "own.pem"),
            }
        )
    )

    context = wanted.pop("ssl_context").latest()
    assert wanted == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "p",
    }
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1


OAUTH = {
    "VM_SYNC_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "VM_SYNC_KAFKA__SASL_MECHANISM": "OAUTHBEARER",
    "VM_SYNC_KAFKA__OAUTH_EXTENSIONS": "logicalCluster=lkc-1, identityPoolId=pool-2",
}


@pytest.mark.parametrize("source", ["server", "file"])
async def test_oauth_becomes_a_provider_of_tokens(source: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token")
    given = {
        "server": {"TOKEN_URL": "http://localhost:1/token", "CLIENT_ID": "me", "CLIENT_SECRET": "Client-Secret"},
        "file": {"TOKEN_FILE": str(tmp_path / "token")},
    }[source]
    wanted = kafka_security(
        load(LEAST | OAUTH | {f"VM_SYNC_KAFKA__OAUTH_{name}": text for name, text in given.items()})
    )

    tokens = wanted.pop("sasl_oauth_token_provider")
    assert wanted == {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}
    assert tokens.extensions() == {"logicalCluster": "lkc-1", "identityPoolId": "pool-2"}
    if source == "file":
        assert await tokens.token() == "a-token"
    else:
        assert tokens.source.where == "http://localhost:1/token (VM_SYNC_KAFKA__OAUTH_TOKEN_URL) for the client me"


@pytest.mark.parametrize("name", ["VM_SYNC_KAFKA__SSL_CA_FILE", "VM_SYNC_KAFKA__SSL_CERT_FILE"])
def test_a_file_that_holds_no_certificate_is_refused_by_name(name: str) -> None:
    settings = load(LEAST | {"VM_SYNC_KAFKA__SECURITY_PROTOCOL": "SSL", name: __file__})

    with pytest.raises(SettingsError) as caught:
        kafka_security(settings)
    assert caught.value.lines[0].startswith(f"{name}: no certificate")
