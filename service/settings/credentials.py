"""The secrets among the settings: credentials that may change while the process runs, and values to redact."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr  # noqa: TC002 - beside runtime imports of its kind

from service.certificates import Certificates, Current, Unusable
from service.settings.describe import leaves
from service.settings.loading import SettingsError, load
from service.settings.model import Credentials, Kafka, KafkaSettings, Settings, Site


@dataclass(frozen=True, slots=True)
class Logins:
    """The credentials of the login and of remote sites."""

    credentials: Credentials
    sites: tuple[Site, ...]


class CredentialsReader:
    """Reads the credentials again, at each login, since mounted secrets change while the process runs."""

    def __init__(self, settings: Settings, *, environ: Mapping[str, str] | None = None) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._last = Logins(settings.vcda.credentials, settings.vcda.sites)
        self.trouble: tuple[str, ...] = ()
        """Why the last reading found nothing that fits, for the log; empty when it did."""

    def __call__(self) -> Logins:
        """Return what is there now, or the last that fitted: a reading may meet files that are just being replaced."""
        try:
            settings = load(self._environ)
        except SettingsError as error:
            self.trouble = error.lines
        else:
            self.trouble = ()
            self._last = Logins(settings.vcda.credentials, settings.vcda.sites)
        return self._last


def secrets(settings: Settings) -> frozenset[str]:
    """Return the values that must never be seen, for the redaction of logs."""
    found: list[SecretStr | None] = [leaf.of(settings) for leaf in leaves() if leaf.secret]
    return secrets_of(Logins(settings.vcda.credentials, settings.vcda.sites)) | {
        secret.get_secret_value() for secret in found if secret is not None
    }


def secrets_of(logins: Logins) -> frozenset[str]:
    """Return the secret values of logins alone; they may be newer than the settings."""
    parts: tuple[Credentials | Site, ...] = (logins.credentials, *logins.sites)
    return frozenset(
        secret.get_secret_value() for part in parts for secret in (part.password, part.token) if secret is not None
    )


def kafka_security(settings: Settings | KafkaSettings) -> dict[str, Any]:
    """Return aiokafka's keyword arguments for a secure connection. Raises `SettingsError` for unusable certificates."""
    kafka = settings.kafka
    wanted: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if kafka.sasl_mechanism and kafka.sasl_password:
        wanted |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password.get_secret_value(),
        }
    if kafka.security_protocol.endswith("SSL"):
        wanted["ssl_context"] = _tls(kafka)
    return wanted


def _tls(kafka: Kafka) -> Current:
    certificates = Certificates(
        prefix="VM_SYNC_KAFKA__SSL_",
        ca_file=kafka.ssl_ca_file,
        cert_file=kafka.ssl_cert_file,
        key_file=kafka.ssl_key_file,
    )
    try:
        return Current(certificates)
    except Unusable as error:
        raise SettingsError((str(error),)) from None
