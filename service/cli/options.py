"""The words that options take, apart from what they stand for, so that `--help` needn't import that."""

from enum import StrEnum


class State(StrEnum):
    """What can be true of a request, in the journal's own words."""

    WAITING = "waiting"
    SUBMITTING = "submitting"
    RUNNING = "running"
    LINGERING = "lingering"
    COMPLETED = "completed"
    FAILED = "failed"


class Format(StrEnum):
    """How the AsyncAPI document is written."""

    JSON = "json"
    YAML = "yaml"
    HTML = "html"
