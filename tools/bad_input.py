"""Writes docs/bad-input.md from the table that tests/messages/test_messages.py proves: `python -m tools.bad_input`."""

from pathlib import Path

from service.messages.requests import DeadLetterReason, InvalidRequest, read_request
from tests.support.bad_requests import BAD_REQUESTS, BadRequest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bad-input.md"

HEAD = """\
# What nobody should send, and what the service answers

Made by `python -m tools.bad_input` from `tests/support/bad_requests.py`. `tests/messages/test_messages.py` reads each
row, and `tests/system/test_hostile.py` sends it to a running service.

Such a message goes to the dead-letter topic with its value, key and headers untouched, together with why: the *reason*
as header `vm-sync-reason`, a stable word that is also the label of `vm_sync_dead_letters_total`, and the *detail* as
`vm-sync-detail`, a sentence that names the field and repeats nothing of what stood there. Nothing behind it waits, and
nothing of it reaches VCDA.

Not in the table, since it is understood: of a field or a header given twice the last one counts, and fields that
nobody knows are ignored. Names of headers are read without regard to case, and `ce-id` is `ce_id`. Headers that say
nothing here may hold any bytes, such as the schema ids of a registry; a malformed trace context is dropped.
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
    detail = "(what Kafka's client says about it)" if read.reason is DeadLetterReason.UNREADABLE else read.detail
    return f"| {bad.name} | {detail} |\n"


def main() -> None:
    """Write into the repository."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
