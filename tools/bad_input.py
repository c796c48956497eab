"""Writes docs/bad-input.md from the table that tests/messages/test_requests.py proves: `python -m tools.bad_input`."""

from pathlib import Path

from service.messages.requests import DeadLetterReason, InvalidRequest, read_request
from tests.support.bad_requests import BAD_REQUESTS, BadRequest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bad-input.md"

HEAD = """\
# Invalid messages and their dead letters

Made by `python -m tools.bad_input` from `tests/support/bad_requests.py`. `tests/messages/test_requests.py` checks
each row, and `tests/system/test_hostile.py` sends each message to a running service.

An invalid message is written to the dead-letter topic with its value, key and headers unchanged, and two more
headers: the *reason* as `vm-sync-reason`, a stable word that is also the label of `vm_sync_dead_letters_total`, and
the *detail* as `vm-sync-detail`, a sentence that names the field and contains nothing of the message. It does not
delay the messages behind it, and nothing is sent to VCDA.

Valid, and therefore not in the table: if a field or a header occurs twice, the last one counts; unknown fields are
ignored; names of headers are case-insensitive, and `ce-id` is the same as `ce_id`; headers that the service does not
use may contain any bytes, such as the schema ids of a registry; a malformed trace context is ignored.
"""


def page() -> str:
    """Return the whole page, a section for each reason."""
    parts = [HEAD]
    for reason in DeadLetterReason:
        parts.append(f"\n## {reason}\n\n| a message with | detail |\n|---|---|\n")
        parts.extend(_line(bad) for bad in BAD_REQUESTS if bad.reason == reason)
    return "".join(parts)


def _line(bad: BadRequest) -> str:
    read = read_request(bad.record)
    if not isinstance(read, InvalidRequest):
        msg = f"{bad.name} is understood"
        raise TypeError(msg)
    detail = "(the error of Kafka's client)" if read.reason is DeadLetterReason.UNREADABLE else read.detail
    return f"| {bad.name} | {detail} |\n"


def main() -> None:
    """Write into the repository."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
