"""The least that has to be set, and what is said of settings that are wrong."""

import pytest

from service.settings import SettingsError, load

SECRET = "s3cret-Of-Ours"

LEAST = {
    "VM_SYNC_VCDA__URL": "https://vcda.example.com",
    "VM_SYNC_VCDA__CREDENTIALS__USER": "admin@org",
    "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": SECRET,
}


def refusal(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(LEAST | environ)
    return list(caught.value.lines)
