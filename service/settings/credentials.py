"""The secrets among the settings: credentials that may change while the process runs, and values to redact."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr  # noqa: TC002 - beside runtime imports of its kind

from service.certificates import Certificates, Current, Unusable
from service.clock import Clock
from service.settings.describe import leaves
from service.settings.loading import SettingsError, load
from service.settings.model import Credentials, Kafka, KafkaSettings, Settings, Site

if TYPE_CHECKING:
    from service.kafka.tokens import Tokens


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


def kafka_security(settings: Settings | KafkaSettings, *, clock: Clock | None = None) -> dict[str, Any]:
    """Return aiokafka's keyword arguments for a secure connection. Raises `SettingsError` for unusable certificates."""
    kafka = settings.kafka
    wanted: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if kafka.sasl_mechanism == "OAUTHBEARER":
        wanted |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_oauth_token_provider": _tokens(kafka, clock or Clock()),
        }
    elif kafka.sasl_mechanism and kafka.sasl_password:
        wanted |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password.get_secret_value(),
        }
    if kafka.security_protocol.endswith("SSL"):
        wanted["ssl_context"] = _tls("SSL_", kafka.ssl_ca_file, kafka.ssl_cert_file, kafka.ssl_key_file)
    return wanted


def _tokens(kafka: Kafka, clock: Clock) -> "Tokens":
    # Only here: other logins need neither Kafka's client at this point, nor an HTTP client.
    from service.kafka.token_server import ClientCredentials  # noqa: PLC0415
    from service.kafka.tokens import TokenFile, Tokens  # noqa: PLC0415

    extensions = dict(pair.strip().split("=", 1) for pair in (kafka.oauth_extensions or "").split(",") if pair)
    if kafka.oauth_token_file is not None:
        return Tokens(TokenFile(kafka.oauth_token_file, clock), clock=clock, extensions=extensions)
    server = ClientCredentials(
        kafka.oauth_token_url or "",
        client_id=kafka.oauth_client_id or "",
        client_secret=kafka.oauth_client_secret.get_secret_value() if kafka.oauth_client_secret else "",
        scope=kafka.oauth_scope,
        tls=_tls("OAUTH_", kafka.oauth_ca_file),
        clock=clock,
    )
    return Tokens(server, clock=clock, extensions=extensions)


def _tls(prefix: str, ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None) -> Current:
    certificates = Certificates(
        prefix=f"VM_SYNC_KAFKA__{prefix}", ca_file=ca_file, cert_file=cert_file, key_file=key_file
    )
    try:
        return Current(certificates)
    except Unusable as error:
        raise SettingsError((str(error),)) from None
