"""The values of options, without the modules that use them, so that `--help` is fast."""

from enum import StrEnum


class State(StrEnum):
    """The states of a request, with the names that `/syncs` and the metrics use."""

    WAITING = "waiting"
    SUBMITTING = "submitting"
    IN_DOUBT = "in_doubt"
    RUNNING = "running"
    LINGERING = "lingering"
    COMPLETED = "completed"
    FAILED = "failed"


class Format(StrEnum):
    """The formats of the AsyncAPI document."""

    JSON = "json"
    YAML = "yaml"
    HTML = "html"


class FileFormat(StrEnum):
    """The formats of a file of requests."""

    IDS = "ids"
    JSON = "json"
    CSV = "csv"


class Rows(StrEnum):
    """The forms in which `outcomes` prints each outcome, for programs."""

    CSV = "csv"
    IDS = "ids"
