"""The pictures of commands: each is of a run that went well, and a browser fetches nothing for it."""

import re

import pytest

from tools import command_pictures

SHOWN = {
    "request-many": "failed.jsonl",
    "top": "in&#160;flight",
    "list": "running",
    "show": "deadline",
    "outcomes": "p99",
}


@pytest.mark.parametrize("name", command_pictures.NAMES)
def test_a_picture_shows_its_command_and_loads_nothing(name: str) -> None:
    drawn = command_pictures.path(name).read_text(encoding="utf-8")

    assert SHOWN[name] in drawn
    assert "Traceback" not in drawn
    fetched = re.findall(r"(?:href|src|url)[=(]([^\s)]+)", drawn)
    assert [address for address in fetched if not address.startswith("#")] == []


def test_a_view_is_taken_from_what_was_written_to_the_terminal() -> None:
    leave = "\r\x1b[2K\x1b[1A\x1b[2K"

    assert command_pictures._last(f"q ends{leave}and 3 more q ends{leave}q ends", full="and ") == "and 3 more q ends"
    with pytest.raises(RuntimeError, match="no view has"):
        command_pictures._last(f"q ends{leave}q ends", full="and ")
    moments = ["sent 1", "sent 2 1 completed", "sent 3 7 completed", "sent 3 9 completed"]
    assert command_pictures._sending(leave.join([*moments, " the end"])) == "sent 3 7 completed\n\nthe end"
