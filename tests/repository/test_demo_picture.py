"""The picture of the demo: one moment of its live view and its end, drawn so that a browser fetches nothing for it."""

import re

import pytest

from tools import demo_picture

LEAVE = "\r\x1b[2K\x1b[1A\x1b[2K"
END = "\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K"


def test_the_picture_shows_the_last_full_moment_and_the_end() -> None:
    moments = ["progress\r\nearly\r\nand 3 more", "progress\r\nlater\r\nand 1 more", "progress\r\nnearly done"]
    written = f"Starting\r\n{LEAVE}{LEAVE.join(moments)}{END}All is well\r\n"

    assert demo_picture.scene(written) == "\x1b[1m$ vm-sync demo\x1b[0m\nprogress\nlater\nand 1 more\n\nAll is well"


def test_a_run_without_a_full_moment_makes_no_picture() -> None:
    with pytest.raises(SystemExit, match="nothing to take a picture of"):
        demo_picture.scene(f"{LEAVE}progress{LEAVE}progress{END}All is well")


def test_the_picture_in_the_readme_is_of_a_run_that_went_well_and_loads_nothing() -> None:
    drawn = demo_picture.PAGE.read_text()

    assert "Every&#160;request&#160;has&#160;exactly&#160;one&#160;outcome" in drawn
    fetched = [
        address for address in re.findall(r"(?:href|src|url)[=(]([^\s)]+)", drawn) if not address.startswith("#")
    ]
    assert fetched == []
