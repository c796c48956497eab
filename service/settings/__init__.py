"""The settings, read once at the start by `load`; used by `app`, `wiring` and the commands only.

In reading order: `model` defines every setting with its meaning and the reason for its default, `types` parses values,
`loading` reads variables and files, `describe` makes the tables, `credentials` handles the secrets,
`fingerprint` makes the hash by which instances are compared.
"""

from service.settings.credentials import CredentialsReader, Logins, kafka_security, secrets, secrets_of
from service.settings.describe import Row, describe
from service.settings.fingerprint import fingerprint
from service.settings.loading import SettingsError, load, load_for_kafka
from service.settings.model import Credentials, Kafka, KafkaSettings, Log, Ops, Settings, Site, Sync, Topics, Vcda

__all__ = [
    "Credentials",
    "CredentialsReader",
    "Kafka",
    "KafkaSettings",
    "Log",
    "Logins",
    "Ops",
    "Row",
    "Settings",
    "SettingsError",
    "Site",
    "Sync",
    "Topics",
    "Vcda",
    "describe",
    "fingerprint",
    "kafka_security",
    "load",
    "load_for_kafka",
    "secrets",
    "secrets_of",
]
