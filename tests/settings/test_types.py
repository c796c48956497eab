"""The forms of values: durations, addresses, thumbprints, topics; one line says what is wrong."""

from datetime import UTC, datetime, timedelta

import pytest

from service.settings import describe, load
from service.settings.types import iso8601
from tests.support.some_settings import LEAST, refusal


@pytest.mark.parametrize(
    ("text", "seconds"), [("PT30S", 30), ("PT1M30S", 90), ("P1D", 86400), ("P1DT1H", 90000), ("PT1.5S", 1.5)]
)
def test_durations_are_iso_8601(text: str, seconds: float) -> None:
    assert load(LEAST | {"VM_SYNC_SYNC__LOST_AFTER": text}).sync.lost_after == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["30", "30s", "P", "PT", "P1M", "P1Y", "-PT5S", "00:00:30", "pt5s", "1e3"])
def test_nothing_else_is_a_duration(text: str) -> None:
    assert len(refusal({"VM_SYNC_SYNC__LOST_AFTER": text})) == 1


@pytest.mark.parametrize("text", ["P9999999D", "P5218W", "PT876601H", "P99999999999999999999D", "PT1E9S"])
@pytest.mark.parametrize("name", [row.name for row in describe() if row.type == "duration"])
def test_a_duration_that_no_date_can_hold_is_refused_by_its_name(name: str, text: str) -> None:
    (line,) = refusal({name: text})

    assert line.startswith(f"{name}: ")


def test_the_longest_durations_are_taken() -> None:
    lengths = load(LEAST | {"VM_SYNC_SYNC__DEADLINE": "P36525D", "VM_SYNC_SYNC__DEDUPLICATE_FOR": "PT876600H"}).sync

    assert (datetime.now(UTC) + lengths.deadline + lengths.deduplicate_for).year > 2200


@pytest.mark.parametrize("text", ["PT24H", "PT1M30S", "PT0.5S", "PT0S", "PT6H", "PT100H10M0.25S"])
def test_a_duration_is_written_as_it_is_read(text: str) -> None:
    assert iso8601(load(LEAST | {"VM_SYNC_SYNC__LOST_AFTER": text}).sync.lost_after) == text


@pytest.mark.parametrize(
    "url",
    [
        "https://vcda",
        "https://vcda:8443",
        "https://vcda/",
        "http://localhost:8443",
        "http://127.0.0.2",
        "http://[::1]:80",
    ],
)
def test_the_address_is_https_or_on_this_machine(url: str) -> None:
    assert load(LEAST | {"VM_SYNC_VCDA__URL": url}).vcda.url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://vcda",
        "http://10.0.0.1",
        "http://localhost.example.com",
        "vcda",
        "ftp://vcda",
        "https://",
        "https://vcda/api",
        "https://vcda?x=1",
        "https://vcda:99999",
        "https://vcda:0",
        "https://[vcda",
    ],
)
def test_any_other_address_is_refused(url: str) -> None:
    (line,) = refusal({"VM_SYNC_VCDA__URL": url})

    assert line.startswith("VM_SYNC_VCDA__URL: write https://")


@pytest.mark.parametrize("text", ["AB:" * 31 + "AB", "ab" * 32, "SHA-256:" + "AB:" * 31 + "AB"])
def test_a_thumbprint_may_have_colons(text: str) -> None:
    assert load(LEAST | {"VM_SYNC_VCDA__THUMBPRINT": text}).vcda.thumbprint == "ab" * 32


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"VCDA__THUMBPRINT": "ab" * 20}, "VCDA__THUMBPRINT"),
        ({"VCDA__CA_FILE": "/nowhere/ca.pem"}, "VCDA__CA_FILE"),
        ({"VCDA__REQUEST_TIMEOUT": "PT0S"}, "VCDA__REQUEST_TIMEOUT"),
        ({"KAFKA__SESSION_TIMEOUT": "PT5.9S"}, "KAFKA__SESSION_TIMEOUT"),
        ({"KAFKA__BOOTSTRAP_SERVERS": "kafka"}, "KAFKA__BOOTSTRAP_SERVERS"),
        ({"KAFKA__BOOTSTRAP_SERVERS": "a:1,,b:2"}, "KAFKA__BOOTSTRAP_SERVERS"),
        ({"KAFKA__SECURITY_PROTOCOL": "TLS"}, "KAFKA__SECURITY_PROTOCOL"),
        ({"KAFKA__SASL_USERNAME": "me"}, "KAFKA__SASL_USERNAME"),
        ({"KAFKA__SSL_CA_FILE": __file__}, "KAFKA__SSL_CA_FILE"),
        ({"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__SSL_KEY_FILE": __file__}, "KAFKA__SSL_CERT_FILE"),
        ({"KAFKA__CREATE_TOPICS": "perhaps"}, "KAFKA__CREATE_TOPICS"),
        ({"KAFKA__PARTITIONS": "0"}, "KAFKA__PARTITIONS"),
        ({"SYNC__POLL_MIN": "PT2M"}, "SYNC__POLL_MIN"),
        ({"SYNC__POLL_MIN": "PT0S"}, "SYNC__POLL_MIN"),
        ({"SYNC__SETTLE": "PT6H"}, "SYNC__SETTLE"),
        ({"SYNC__MAX_RUNNING": "-1"}, "SYNC__MAX_RUNNING"),
        ({"SYNC__MAX_IN_FLIGHT": "many"}, "SYNC__MAX_IN_FLIGHT"),
        ({"OPS__DRAIN_LIMIT": "PT0S"}, "OPS__DRAIN_LIMIT"),
        ({"LOG__FORMAT": "xml"}, "LOG__FORMAT"),
        ({"TOPICS__REQUESTS": "a/b"}, "TOPICS__REQUESTS"),
        ({"TOPICS__FAILED": "vm-sync.journal"}, "TOPICS__JOURNAL"),
        ({"TOPICS__PROGRESS": "vm-sync.completed"}, "TOPICS__PROGRESS"),
        ({"VCDA__CREDENTIALS__TYPE": "vcdCookie"}, "VCDA__CREDENTIALS__TYPE"),
        ({"VCDA__CREDENTIALS__USER": "admin"}, "VCDA__CREDENTIALS__ORG"),
        ({"VCDA__CREDENTIALS__TYPE": "vcdAccessToken", "VCDA__CREDENTIALS__ORG": "o"}, "VCDA__CREDENTIALS__TOKEN"),
        ({"VCDA__CREDENTIALS__TYPE": "vcdAccessToken", "VCDA__CREDENTIALS__TOKEN": "t"}, "VCDA__CREDENTIALS__ORG"),
        ({"VCDA__SITES": "berlin"}, "VCDA__SITES"),
        ({"VCDA__SITES": '["berlin"]'}, "VCDA__SITES"),
        ({"VCDA__SITES": '[{"name": 1}]'}, "VCDA__SITES"),
        ({"VCDA__SITES": '[{"name": "berlin", "token": "x", "tokn": "x"}]'}, "VCDA__SITES__0__TOKN"),
        ({"VCDA__SITES": '[{"name": "b", "token": "x", "user": "x"}]'}, "VCDA__SITES__0__TOKEN"),
        ({"VCDA__SITES": '[{"name": "b", "user": "x"}]'}, "VCDA__SITES__0__PASSWORD"),
        ({"VCDA__SITES": '[{"token": "x"}]'}, "VCDA__SITES__0__NAME"),
        ({"VCDA__SITES": '[{"name": "b", "token": "x"}, {"name": "b", "token": "y"}]'}, "VCDA__SITES__1__NAME"),
        ({"VCDA__SITES__1__NAME": "b", "VCDA__SITES__1__TOKEN": "t"}, "VCDA__SITES"),
    ],
)
def test_what_does_not_fit_is_one_line_that_begins_with_its_variable(environ: dict[str, str], name: str) -> None:
    (line,) = refusal({f"VM_SYNC_{short}": value for short, value in environ.items()})

    assert line.startswith(f"VM_SYNC_{name}: ")


def test_a_thumbprint_and_a_ca_exclude_each_other() -> None:
    (line,) = refusal({"VM_SYNC_VCDA__CA_FILE": __file__, "VM_SYNC_VCDA__THUMBPRINT": "ab" * 32})

    assert line.startswith("VM_SYNC_VCDA__THUMBPRINT: give either a thumbprint or CA_FILE")


def test_sasl_needs_mechanism_user_and_password_and_says_so_for_each() -> None:
    lines = refusal({"VM_SYNC_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"})

    assert [line.split(":")[0] for line in lines] == [
        "VM_SYNC_KAFKA__SASL_MECHANISM",
        "VM_SYNC_KAFKA__SASL_PASSWORD",
        "VM_SYNC_KAFKA__SASL_USERNAME",
    ]


SERVER = {
    "SASL_MECHANISM": "OAUTHBEARER",
    "SECURITY_PROTOCOL": "SASL_SSL",
    "OAUTH_TOKEN_URL": "https://tokens.example/token",
    "OAUTH_CLIENT_ID": "me",
    "OAUTH_CLIENT_SECRET": "Client-Secret",
}
FILE = {"SASL_MECHANISM": "OAUTHBEARER", "SECURITY_PROTOCOL": "SASL_SSL", "OAUTH_TOKEN_FILE": __file__}


@pytest.mark.parametrize(
    "given",
    [
        SERVER,
        FILE,
        SERVER | {"OAUTH_TOKEN_URL": "http://127.0.0.1:8080/token?a=b", "SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
        SERVER | {"OAUTH_SCOPE": "a b", "OAUTH_CA_FILE": __file__},
        SERVER | {"OAUTH_EXTENSIONS": "logicalCluster=lkc-1,identityPoolId=pool-2"},
    ],
)
def test_a_token_comes_from_a_server_or_from_a_file(given: dict[str, str]) -> None:
    settings = load(LEAST | {f"VM_SYNC_KAFKA__{name}": value for name, value in given.items()})

    assert settings.kafka.sasl_mechanism == "OAUTHBEARER"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (SERVER | {"OAUTH_TOKEN_URL": ""}, "OAUTH_CLIENT_ID OAUTH_CLIENT_SECRET OAUTH_TOKEN_URL"),
        (SERVER | {"OAUTH_TOKEN_FILE": __file__}, "OAUTH_TOKEN_FILE"),
        (SERVER | {"OAUTH_CLIENT_ID": ""}, "OAUTH_CLIENT_ID"),
        (SERVER | {"OAUTH_CLIENT_SECRET": ""}, "OAUTH_CLIENT_SECRET"),
        (FILE | {"OAUTH_SCOPE": "a", "OAUTH_CA_FILE": __file__}, "OAUTH_CA_FILE OAUTH_SCOPE"),
        (FILE | {"OAUTH_TOKEN_FILE": "/nowhere/token"}, "OAUTH_TOKEN_FILE"),
        (SERVER | {"SASL_USERNAME": "me", "SASL_PASSWORD": "p"}, "SASL_PASSWORD SASL_USERNAME"),
        (
            SERVER | {"SASL_MECHANISM": "PLAIN", "SASL_USERNAME": "me", "SASL_PASSWORD": "p"},
            "OAUTH_CLIENT_ID OAUTH_CLIENT_SECRET OAUTH_TOKEN_URL",
        ),
        (SERVER | {"SECURITY_PROTOCOL": "SSL"}, "SASL_MECHANISM"),
        (SERVER | {"OAUTH_TOKEN_URL": "http://tokens.example/token"}, "OAUTH_TOKEN_URL"),
        (SERVER | {"OAUTH_TOKEN_URL": "tokens.example"}, "OAUTH_TOKEN_URL"),
        (SERVER | {"OAUTH_TOKEN_URL": "https://me:secret@tokens.example/token"}, "OAUTH_TOKEN_URL"),
        (SERVER | {"OAUTH_TOKEN_URL": "https://tokens.example:0/token"}, "OAUTH_TOKEN_URL"),
        (SERVER | {"OAUTH_TOKEN_URL": "https://[tokens/token"}, "OAUTH_TOKEN_URL"),
        (SERVER | {"OAUTH_TOKEN_URL": "http://localhost/token", "OAUTH_CA_FILE": __file__}, "OAUTH_CA_FILE"),
        (SERVER | {"OAUTH_EXTENSIONS": "logicalCluster"}, "OAUTH_EXTENSIONS"),
        (SERVER | {"OAUTH_EXTENSIONS": "auth=x"}, "OAUTH_EXTENSIONS"),
        (SERVER | {"OAUTH_EXTENSIONS": "a=b,c=\x01"}, "OAUTH_EXTENSIONS"),
    ],
)
def test_settings_of_a_token_that_do_not_fit_together_are_a_line_each(given: dict[str, str], names: str) -> None:
    wanted = [f"VM_SYNC_KAFKA__{name}" for name in names.split()]

    lines = refusal({f"VM_SYNC_KAFKA__{name}": value for name, value in given.items()})

    assert [name for name in sorted({line.split(":")[0] for line in lines}) if "CREDENTIALS" not in name] == wanted
    assert not [line for line in lines if "Client-Secret" in line or "me:secret" in line]


def test_completed_and_failed_may_be_one_topic() -> None:
    settings = load(LEAST | {"VM_SYNC_TOPICS__FAILED": "outcomes", "VM_SYNC_TOPICS__COMPLETED": "outcomes"})

    assert settings.topics.completed == settings.topics.failed


def test_brokers_come_one_by_one() -> None:
    settings = load(LEAST | {"VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "a:9092, b:9092,[::1]:9092"})

    assert settings.kafka.servers == ["a:9092", "b:9092", "[::1]:9092"]


@pytest.mark.parametrize(
    ("environ", "login"),
    [
        ({"TYPE": "vcdCredentials", "USER": "admin@org"}, "admin@org"),
        ({"TYPE": "vcdCredentials", "USER": "admin", "ORG": "org"}, "admin@org"),
        ({"TYPE": "vcdCredentials", "USER": "admin@org", "ORG": "other"}, "admin@org"),
        ({"TYPE": "localUser", "USER": "root"}, "root"),
        ({"TYPE": "ssoCredentials", "USER": "a@vsphere.local"}, "a@vsphere.local"),
        ({"TYPE": "vcdAccessToken", "USER": "", "ORG": "org", "TOKEN": "t"}, None),
    ],
)
def test_each_type_of_credentials_knows_how_vcda_wants_its_user(environ: dict[str, str], login: str | None) -> None:
    settings = load(LEAST | {f"VM_SYNC_VCDA__CREDENTIALS__{name}": value for name, value in environ.items()})

    assert settings.vcda.credentials.login == login
