"""Site pauses: what their records say, and which of them counts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.messages.site_pause import (
    LONGEST,
    InvalidPause,
    SitePause,
    SitePauses,
    pause_key,
    read_pause,
    write_pause,
)

AT = datetime(2026, 3, 1, 22, tzinfo=UTC)

PAUSE = SitePause(site="Site B", until=AT + timedelta(hours=2), since=AT, by="alice", reason="storage upgrade")


def test_a_pause_is_read_as_it_was_written() -> None:
    assert read_pause(*write_pause(PAUSE)) == PAUSE
    assert read_pause(*write_pause(least := SitePause(site="local", until=AT))) == least


def test_a_pause_is_described_in_words() -> None:
    assert str(PAUSE) == (
        "site Site B is paused by alice since 2026-03-01 22:00:00Z until 2026-03-02 00:00:00Z: storage upgrade"
    )
    assert str(SitePause(site="local", until=AT)) == "site local is paused until 2026-03-01 22:00:00Z"


def test_a_pause_lasts_until_its_moment_and_no_longer() -> None:
    assert PAUSE.lasts(PAUSE.until - timedelta(microseconds=1))
    assert not PAUSE.lasts(PAUSE.until)


def test_moments_of_any_zone_and_unknown_fields_are_read() -> None:
    read = read_pause(b"site:a", b'{"until": "2026-03-02T00:00:00+02:00", "newer": {"a": 1}}')

    assert read == SitePause(site="a", until=AT)


@pytest.mark.parametrize(
    ("key", "value", "detail"),
    [
        (b"site:", b"{}", "key: a name of 1 to 255 printable characters"),
        (b"site:\xff", b"{}", "key: a name of 1 to 255 printable characters"),
        (b"site:a\nb", b"{}", "key: a name of 1 to 255 printable characters"),
        (b"site:a", b"", "value: a JSON object"),
        (b"site:a", b"\xff", "value: a JSON object"),
        (b"site:a", b"[]", "value: a JSON object"),
        (b"site:a", b"{}", "until: a moment such as 2026-03-01T22:00:00Z"),
        (b"site:a", b'{"until": null}', "until: a moment such as 2026-03-01T22:00:00Z"),
        (b"site:a", b'{"until": 1772400000}', "until: a moment such as 2026-03-01T22:00:00Z"),
        (b"site:a", b'{"until": "2026-03-01T22:00:00"}', "until: a moment such as 2026-03-01T22:00:00Z"),
        (b"site:a", b'{"until": "9999-12-31T23:59:59-14:00"}', "until: a moment such as 2026-03-01T22:00:00Z"),
        (
            b"site:a",
            b'{"until": "2026-03-01T22:00:00Z", "by": "secret\\n"}',
            "by: a string of 1 to 255 printable characters",
        ),
        (
            b"site:a",
            b'{"until": "2026-03-01T22:00:00Z", "reason": ""}',
            "reason: a string of 1 to 255 printable characters",
        ),
    ],
)
def test_an_invalid_record_is_described_by_its_field_without_its_content(key: bytes, value: bytes, detail: str) -> None:
    read = read_pause(key, value)

    assert isinstance(read, InvalidPause)
    assert str(read) == detail


@given(st.binary() | st.none(), st.binary() | st.none())
def test_no_record_raises(key: bytes | None, value: bytes | None) -> None:
    read_pause(key, value)
    read_pause(b"site:" + (key or b""), value)
    SitePauses().take(key, value, offset=0)


def test_the_latest_record_of_a_site_counts() -> None:
    pauses, longer = SitePauses(), replace(PAUSE, until=AT + timedelta(hours=3))
    for offset, pause in enumerate((PAUSE, longer)):
        pauses.take(*write_pause(pause), offset=offset)
    pauses.take(*write_pause(SitePause(site="local", until=AT)), offset=2)

    assert dict(pauses.by_site()) == {"Site B": longer, "local": SitePause(site="local", until=AT)}
    pauses.take(pause_key("Site B"), None, offset=3)
    assert list(pauses.by_site()) == ["local"]


def test_an_invalid_record_is_no_pause_and_is_reported_until_a_later_one_of_its_site() -> None:
    pauses = SitePauses()
    pauses.take(*write_pause(PAUSE), offset=0)
    pauses.take(pause_key("Site B"), b"{}", offset=7)

    assert dict(pauses.by_site()) == {}
    assert pauses.invalid == 1
    assert pauses.faults() == ["the record at offset 7 is invalid (until: a moment such as 2026-03-01T22:00:00Z)"]
    pauses.take(pause_key("Site B"), None, offset=8)
    assert (pauses.invalid, pauses.faults()) == (0, [])


def test_keys_of_other_kinds_are_left_to_newer_versions() -> None:
    pauses = SitePauses()
    for key in (b"drain:a", b"", None):
        pauses.take(key, b"?", offset=0)

    assert (dict(pauses.by_site()), pauses.invalid) == ({}, 0)


def test_a_pause_that_a_whole_reading_lacks_is_kept_until_its_end_or_a_record_of_its_site() -> None:
    known, whole = SitePauses(), SitePauses()
    resumed, over = replace(PAUSE, site="b"), replace(PAUSE, site="c", until=AT)
    for offset, pause in enumerate((PAUSE, resumed, over)):
        known.take(*write_pause(pause), offset=offset)
    whole.take(pause_key("b"), None, offset=0)

    whole.keep(known, now=AT)

    assert dict(whole.by_site()) == {"Site B": PAUSE}
    assert not whole.by_site()["Site B"].recorded
    whole.take(*write_pause(PAUSE), offset=1)
    assert whole.by_site()["Site B"].recorded
    again = SitePauses()
    again.keep(whole, now=AT)
    again.take(pause_key("Site B"), None, offset=0)
    assert dict(again.by_site()) == {}


def test_what_is_odd_about_a_pause_is_said_with_the_commands_that_end_it() -> None:
    (unrecorded,) = replace(PAUSE, recorded=False).doubts(AT)
    (long,) = replace(PAUSE, until=AT + LONGEST + timedelta(seconds=1)).doubts(AT)

    assert unrecorded.startswith(
        "the control topic no longer has the pause of site Site B, since the topic was created"
    )
    assert "holds it until 2026-03-02 00:00:00Z" in unrecorded
    assert unrecorded.endswith("`vm-sync sites resume Site B` ends it")
    assert long == (
        "the pause of site Site B lasts until 2026-04-01 22:00:01Z, more than 31 days from now: if that is a mistake, "
        "`vm-sync sites resume Site B` ends it"
    )
    assert replace(PAUSE, until=AT + LONGEST).doubts(AT) == []
