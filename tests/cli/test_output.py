"""What commands print: nothing of it controls the terminal, wherever its texts come from."""

import json

import pytest

from service.cli import output

HOSTILE = (
    "\x1b[2J",
    "\x9b31m",  # one character that some terminals take for two
    "\x9d0;title\x07",
    "\x7f\x00\x08",
    "\u202egnp.exe\u2066",
    "\u2028\x85\r",
    "half a pair \ud83d",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_json_is_the_same_and_controls_no_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = {text: [text, f"a\n{text}", "Zürich \u2705"]}

    output.show_json(value)

    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "Zürich \u2705" in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_a_sentence_and_a_fact_control_no_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"First {text}\nSecond.")
    output.show_facts([(text, f"it is {text}")])

    shown = capsys.readouterr()
    assert all(line.isprintable() for line in (shown.err + shown.out).split("\n"))
    assert shown.err.count("\n") == 2
    assert shown.out.count("\n") == 1
