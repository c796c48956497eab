"""The settings, read once at the start: `load` them, `describe` them; nobody below the application reads them.

In reading order: `model` has every setting with its meaning and the reason for its default, `kinds` how values are
written, `reading` where they come from, `rows` how they are shown, `credentials` what of them is secret, `diagnosis`
which of them to look at when Kafka can't be used.
"""

from service.settings.credentials import CredentialsReader, Logins, kafka_security, secrets, secrets_of
from service.settings.model import Credentials, Kafka, KafkaSettings, Log, Ops, Settings, Site, Sync, Topics, Vcda
from service.settings.reading import SettingsError, load, load_for_kafka
from service.settings.rows import Row, describe

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
