"""Secrets among the settings are never shown, and credentials change while the process runs."""

import traceback
from pathlib import Path

import pytest

from service.settings import CredentialsReader, SettingsError, describe, load, secrets, secrets_of
from tests.support.descriptors import no_more_descriptors
from tests.support.some_settings import LEAST, SECRET


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
    with no_more_descriptors():
        assert secrets_of(read()) == {"old"}
    assert f"VM_SYNC_SECRETS_DIR: the folder {tmp_path} can't be read: Too many open files" in read.trouble
    assert secrets_of(read()) == {"new"}
    assert not read.trouble
