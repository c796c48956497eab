"""What an operator meets: where settings come from, what is refused, and in which words."""

import json
import ssl
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from service.settings import CredentialsReader, SettingsError, describe, kafka_security, load, secrets, secrets_of
from service.settings.types import iso8601

SECRET = "s3cret-Of-Ours"
LEAST = {
    "VM_SYNC_VCDA__URL": "https://vcda.example.com",
    "VM_SYNC_VCDA__CREDENTIALS__USER": "admin@org",
    "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": SECRET,
}
# The contract's table; what it leaves open has an empty default.
CONTRACT = """
VM_SYNC_TOPICS__REQUESTS vm-sync.requests
VM_SYNC_TOPICS__COMPLETED vm-sync.completed
VM_SYNC_TOPICS__FAILED vm-sync.failed
VM_SYNC_TOPICS__DEAD_LETTER vm-sync.dead-letter
VM_SYNC_TOPICS__JOURNAL vm-sync.journal
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


def refusal(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(LEAST | environ)
    return list(caught.value.lines)


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


# ---------------------------------------------------------------- variables and files


def test_a_file_stands_for_a_variable_whatever_its_case_and_loses_its_last_newline(tmp_path: Path) -> None:
    (tmp_path / "vcda__credentials__password").write_text(" from a file \n")
    (tmp_path / "KAFKA__Group_Id").write_text("blue")
    environ = {**LEAST, "VM_SYNC_SECRETS_DIR": str(tmp_path)}
    del environ["VM_SYNC_VCDA__CREDENTIALS__PASSWORD"]

    settings = load(environ)

    assert settings.vcda.credentials.password is not None
    assert settings.vcda.credentials.password.get_secret_value() == " from a file "
    assert settings.kafka.group_id == "blue"


VARIANTS = {
    "as it is": "pass word",
    "a newline": "pass word\n",
    "Windows' newlines": "pass word\r\n\r\n",
    "a byte order mark": "\ufeffpass word",
    "both": "\ufeffpass word\n",
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("place", ["a variable", "a file"])
def test_variables_and_files_lose_newlines_at_their_end_and_byte_order_marks_alike(
    variant: str, place: str, tmp_path: Path
) -> None:
    text = VARIANTS[variant]
    names = ("VCDA__CREDENTIALS__PASSWORD", "VCDA__CREDENTIALS__USER", "KAFKA__GROUP_ID")
    environ = LEAST | {"VM_SYNC_SECRETS_DIR": f"{tmp_path}\n"}
    for name in names:
        environ.pop(f"VM_SYNC_{name}", None)
        if place == "a file":
            (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        else:
            environ[f"VM_SYNC_{name}"] = text

    settings = load(environ | {"VM_SYNC_VCDA__CREDENTIALS__ORG": "org"})

    login = settings.vcda.credentials
    assert login.password is not None
    assert [login.password.get_secret_value(), login.user, settings.kafka.group_id] == ["pass word"] * 3


def test_a_variable_of_nothing_but_a_newline_is_not_set() -> None:
    assert load(LEAST | {"VM_SYNC_KAFKA__GROUP_ID": "\n"}).kafka.group_id == "vm-sync"


def test_a_variable_that_is_not_utf_8_is_refused_as_a_file_is() -> None:
    bad = b"caf\xe9".decode(errors="surrogateescape")

    (line,) = refusal({"VM_SYNC_VCDA__CREDENTIALS__PASSWORD": bad})

    assert line == "VM_SYNC_VCDA__CREDENTIALS__PASSWORD: the environment's value is not UTF-8"


def test_a_variable_wins_over_a_file_and_an_empty_one_is_not_set(tmp_path: Path) -> None:
    (tmp_path / "kafka__group_id").write_text("file")
    (tmp_path / "kafka__partitions").write_text("24")
    environ = {"VM_SYNC_SECRETS_DIR": str(tmp_path), "VM_SYNC_KAFKA__GROUP_ID": "variable"}

    settings = load(LEAST | environ | {"VM_SYNC_KAFKA__PARTITIONS": ""})

    assert (settings.kafka.group_id, settings.kafka.partitions) == ("variable", 24)


def test_each_value_tells_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "kafka__group_id").write_text("file")
    rows = {row.name: row for row in describe(load(LEAST | {"VM_SYNC_SECRETS_DIR": str(tmp_path)}))}

    assert rows["VM_SYNC_KAFKA__GROUP_ID"].origin == "file"
    assert rows["VM_SYNC_VCDA__URL"].origin == "environment"
    assert rows["VM_SYNC_OPS__PORT"].origin == "default"
    assert rows["VM_SYNC_SYNC__DEADLINE"].value == "PT6H"
    assert rows["VM_SYNC_SECRETS_DIR"].origin == "environment"


def test_certificates_may_lie_beside_the_secrets(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"\xff\x00")
    (tmp_path / "..data__x").write_text("kubernetes' own")

    assert load(LEAST | {"VM_SYNC_SECRETS_DIR": str(tmp_path)}).kafka.partitions == 12


def test_a_misspelt_file_and_an_unreadable_one_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "vcda__credentials__pasword").write_text(SECRET)
    (tmp_path / "kafka__sasl_password").write_bytes(b"\xff\xfe")

    lines = refusal({"VM_SYNC_SECRETS_DIR": str(tmp_path)})

    assert lines == [
        f"VM_SYNC_KAFKA__SASL_PASSWORD: the file {tmp_path}/kafka__sasl_password can't be read: UnicodeDecodeError",
        (
            "VM_SYNC_VCDA__CREDENTIALS__PASWORD: there is no such setting; "
            "did you mean VM_SYNC_VCDA__CREDENTIALS__PASSWORD?"
        ),
    ]


def test_a_folder_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    assert refusal({"VM_SYNC_SECRETS_DIR": f"{tmp_path}/no"}) == [
        f"VM_SYNC_SECRETS_DIR: there is no folder {tmp_path}/no"
    ]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("VM_SYNC_VCDA__ULR", "VM_SYNC_VCDA__URL"),
        ("VM_SYNC_OPS_PORT", "VM_SYNC_OPS__PORT"),
        ("VM_SYNC_SYNC__DEAD_LINE", "VM_SYNC_SYNC__DEADLINE"),
        ("VM_SYNC_VCDA__SITES__0__NAM", "VM_SYNC_VCDA__SITES__0__NAME"),
        ("vm_sync_log__levl", "VM_SYNC_LOG__LEVEL"),
    ],
)
def test_a_misspelt_name_stops_the_start_and_the_nearest_right_one_is_suggested(wrong: str, right: str) -> None:
    assert refusal({wrong: "9090"}) == [f"{wrong.upper()}: there is no such setting; did you mean {right}?"]


def test_a_misspelt_name_hides_no_other_fault_and_what_it_leaves_missing_has_one_line() -> None:
    lines = refusal({"VM_SYNC_VCDA__URL": "", "VM_SYNC_VCDA__ULR": "https://vcda", "VM_SYNC_OPS__PORT": "http"})

    assert [line.partition(":")[0] for line in lines] == ["VM_SYNC_VCDA__ULR", "VM_SYNC_OPS__PORT"]


def test_a_whole_part_as_json_is_no_setting() -> None:
    assert refusal({"VM_SYNC_KAFKA": "{}"})[0].startswith("VM_SYNC_KAFKA: there is no such setting")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VM_SYNC_SERVICE_HOST", "10.0.0.1"),
        ("VM_SYNC_SERVICE_PORT", "8080"),
        ("VM_SYNC_SERVICE_PORT_HTTP_METRICS", "8080"),
        ("VM_SYNC_PORT", "tcp://10.0.0.1:8080"),
        ("VM_SYNC_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("VM_SYNC_PORT_8080_TCP_PROTO", "tcp"),
        ("VM_SYNC_PORT_8080_TCP_PORT", "8080"),
        ("VM_SYNC_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("VM_SYNC_OPS_PORT", "tcp://10.0.0.1:8080"),
        ("VM_SYNC_TEST_BOOTSTRAP", "localhost:9092"),
        ("PATH", "/bin"),
    ],
)
def test_what_kubernetes_injects_for_a_service_of_this_name_does_not_count(name: str, value: str) -> None:
    assert load(LEAST | {name: value}) == load(LEAST)


# ---------------------------------------------------------------- values


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


# ---------------------------------------------------------------- sites


def test_sites_come_as_a_list_as_numbered_names_and_as_files_together(tmp_path: Path) -> None:
    (tmp_path / "vcda__sites__0__password").write_text("from-file")
    environ = {
        "VM_SYNC_SECRETS_DIR": str(tmp_path),
        "VM_SYNC_VCDA__SITES": json.dumps([{"name": "berlin", "user": "u@o"}, {"name": "paris", "token": "t"}]),
        "VM_SYNC_VCDA__SITES__2__NAME": "rome",
        "VM_SYNC_VCDA__SITES__2__TOKEN": "12345",
    }

    sites = load(LEAST | environ).vcda.sites

    assert [site.name for site in sites] == ["berlin", "paris", "rome"]
    assert sites[0].password is not None
    assert sites[0].password.get_secret_value() == "from-file"
    assert sites[2].token is not None
    assert sites[2].token.get_secret_value() == "12345"


@pytest.mark.parametrize("value", ["123", "null", "true", '{"a": 1}', "[1]", '"quoted"'])
def test_a_password_that_looks_like_json_stays_a_text(value: str) -> None:
    environ = {
        "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": value,
        "VM_SYNC_VCDA__SITES__0__NAME": "1",
        "VM_SYNC_VCDA__SITES__0__TOKEN": value,
    }

    settings = load(LEAST | environ)

    assert secrets(settings) == {value}


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "environ",
    [
        {"VM_SYNC_VCDA__CREDENTIALS__USER": "no-org"},
        {"VM_SYNC_KAFKA__SASL_PASSWORD": SECRET},
        {"VM_SYNC_KAFKA__SASL_PASWORD": SECRET},
        {"VM_SYNC_VCDA__SITES": f'[{{"name": "b", "pasword": "{SECRET}"}}]'},
        {"VM_SYNC_VCDA__SITES": f'[{{"name": "b", "password": "{SECRET}"'},
        {"VM_SYNC_VCDA__SITES": f'[{{"name": "b", "password": "{SECRET}"}}]'},
        {"VM_SYNC_VCDA__SITES": f'[{{"name": "", "token": "{SECRET}"}}]'},
        {"VM_SYNC_VCDA__SITES__0__PASSWORD": SECRET},
        {"VM_SYNC_VCDA__URL": f"https://admin:{SECRET}@vcda"},
    ],
)
def test_no_secret_is_in_a_refusal_nor_in_its_traceback(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(LEAST | environ)

    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(caught.value)
    assert caught.value.__context__ is None


def test_no_secret_is_in_a_row_or_in_the_settings_as_a_text() -> None:
    settings = load(LEAST | {"VM_SYNC_VCDA__SITES": f'[{{"name": "b", "token": "{SECRET}"}}]'})

    assert SECRET not in repr(describe(settings))
    assert SECRET not in repr(settings) + str(settings)
    assert {row.name: row.value for row in describe(settings)}["VM_SYNC_VCDA__CREDENTIALS__PASSWORD"] == "**********"


def test_all_secrets_are_named_to_whoever_redacts() -> None:
    environ = {
        "VM_SYNC_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "VM_SYNC_KAFKA__SASL_MECHANISM": "PLAIN",
        "VM_SYNC_KAFKA__SASL_USERNAME": "me",
        "VM_SYNC_KAFKA__SASL_PASSWORD": "kafka-password",
        "VM_SYNC_VCDA__SITES": '[{"name": "b", "token": "site-token"}]',
    }

    assert secrets(load(LEAST | environ)) == {SECRET, "kafka-password", "site-token"}


def test_settings_never_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(LEAST).kafka.partitions = 1  # type: ignore[misc]


def test_credentials_are_read_again_and_a_half_written_change_leaves_the_last_good_ones(tmp_path: Path) -> None:
    password = tmp_path / "vcda__credentials__password"
    password.write_text("old")
    environ = {**LEAST, "VM_SYNC_SECRETS_DIR": str(tmp_path)}
    del environ["VM_SYNC_VCDA__CREDENTIALS__PASSWORD"]
    read = CredentialsReader(load(environ), environ=environ)

    assert secrets_of(read()) == {"old"}
    password.write_text("")
    assert secrets_of(read()) == {"old"}
    assert read.trouble == ("VM_SYNC_VCDA__CREDENTIALS__PASSWORD: required for TYPE vcdCredentials",)
    password.write_text("new")
    assert secrets_of(read()) == {"new"}
    assert not read.trouble


# ---------------------------------------------------------------- Kafka's security


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


@pytest.mark.parametrize("name", ["VM_SYNC_KAFKA__SSL_CA_FILE", "VM_SYNC_KAFKA__SSL_CERT_FILE"])
def test_a_file_that_holds_no_certificate_is_refused_by_name(name: str) -> None:
    settings = load(LEAST | {"VM_SYNC_KAFKA__SECURITY_PROTOCOL": "SSL", name: __file__})

    with pytest.raises(SettingsError) as caught:
        kafka_security(settings)
    assert caught.value.lines[0].startswith(f"{name}: no certificate")
