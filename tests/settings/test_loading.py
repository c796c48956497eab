"""Where settings come from: variables, files and numbered sites; misspelt names are reported."""

import json
from pathlib import Path

import pytest

from service.settings import describe, load, secrets
from tests.support.descriptors import no_more_descriptors
from tests.support.some_settings import LEAST, SECRET, refusal


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


def test_a_folder_that_cannot_be_read_is_said_by_the_setting_that_names_it(tmp_path: Path) -> None:
    with no_more_descriptors():
        lines = refusal({"VM_SYNC_SECRETS_DIR": str(tmp_path)})

    assert lines == [f"VM_SYNC_SECRETS_DIR: the folder {tmp_path} can't be read: Too many open files"]


def test_a_folder_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    assert refusal({"VM_SYNC_SECRETS_DIR": f"{tmp_path}/no"}) == [
        f"VM_SYNC_SECRETS_DIR: there is no folder {tmp_path}/no"
    ]


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
