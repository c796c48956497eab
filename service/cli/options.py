"""The words that options take, apart from what they stand for, so that `--help` needn't import that."""

from enum import StrEnum


class State(StrEnum):
    """What can be true of a request, in the words of `/syncs` and the metrics."""

    WAITING = "waiting"
    SUBMITTING = "submitting"
    IN_DOUBT = "in_doubt"
    RUNNING = "running"
    LINGERING = "lingering"
    COMPLETED = "completed"
    FAILED = "failed"


class Format(StrEnum):
    """How the AsyncAPI document is written."""

    JSON = "json"
    YAML = "yaml"
    HTML = "html"
