"""The settings, read once at the start: `load` them, `describe` them; nobody below the application reads them.

In reading order: `model` has every setting with its meaning and the reason for its default, `types` how values are
written, `loading` where they come from, `describe` how they are shown, `credentials` what of them is secret.
"""

from service.settings.credentials import CredentialsReader, Logins, kafka_security, secrets, secrets_of
from service.settings.describe import Row, describe
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
    "kafka_security",
    "load",
    "load_for_kafka",
    "secrets",
    "secrets_of",
]
