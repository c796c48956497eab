"""Whatever VCDA, or something in front of it, says: a value comes out."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.sync import ApiError, Instance, Task
from service.vcda import translate
from service.vcda.translate import (
    MOST_SITES,
    MOST_TASKS,
    MOST_VALUES,
    Page,
    read_api_error,
    read_created,
    read_page,
    read_session,
    read_task,
)
from tests.support.scripted_http_server import REPLICATION_ID, TASK_ID, task

STARTED = datetime(2017, 7, 13, 7, 5, 48, 951000, tzinfo=UTC)


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


# ---------------------------------------------------------------- what is understood


def test_a_running_task_is_read() -> None:
    assert read_task(encode(task(progress=42)), local=frozenset({"site1"})) == Task(
        id=TASK_ID,
        state="RUNNING",
        site=None,
        user="admin1@Org1",
        replication_id=REPLICATION_ID,
        progress=42,
        started_at=STARTED,
    )


def test_a_task_of_another_site_keeps_its_name() -> None:
    read = read_task(encode(task(site="site2")), local=frozenset({"site1"}))

    assert read is not None
    assert read.site == "site2"


def test_of_a_result_only_the_latest_instance_is_read() -> None:
    latest = {"sequenceNumber": 11, "timestamp": 1469701818743, "transferBytes": 512000, "transferSeconds": 4}
    result = {
        "guestCustomization": {"adminPassword": "hush"},
        "destinationState": {"latestInstance": latest, "lastError": {"msg": "hush"}},
    }
    read = read_task(encode(task(state="SUCCEEDED", endTime=1499929558827, result=result)))

    assert read is not None
    assert read.ended_at == STARTED + timedelta(milliseconds=9876)
    assert read.instance == Instance(
        sequence_number=11,
        timestamp=datetime(2016, 7, 28, 10, 30, 18, 743000, tzinfo=UTC),
        transfer_bytes=512000,
        transfer_seconds=4.0,
    )
    assert "hush" not in repr(read)


def test_errors_and_warnings_are_cut_and_never_bring_a_stack_trace() -> None:
    long = {"code": "C" * 2000, "msg": "m" * 2000, "args": ["a" * 2000, 7, None, {}] * 20, "stacktrace": "secret"}
    read = read_task(encode(task(state="FAILED", error=long, warnings=[long] * 30 + ["odd"])))

    assert read is not None
    assert read.error is not None
    assert read.error.code == "C" * 1000
    assert read.error.msg == "m" * 1000
    assert read.error.args == ("a" * 1000, "7") * 5
    assert read.warnings == (read.error,) * 20
    assert "secret" not in repr(read)


@pytest.mark.parametrize("odd", [None, "1499929548951", 1499929548951.0])
def test_numbers_may_be_written_as_text_or_missing(odd: object) -> None:
    read = read_task(encode(task(startTime=odd, progress="7")))

    assert read is not None
    assert read.started_at == (None if odd is None else STARTED)
    assert read.progress == 7


@pytest.mark.parametrize("odd", [-1, 0, True, "soon", 10**15, 10**400, -(10**18), 1e308, [], {}, None])
def test_a_moment_that_is_none_is_left_out(odd: object) -> None:
    read = read_task(encode(task(endTime=odd, progress=odd)))

    assert read is not None
    assert read.ended_at is None
    assert read.progress in {None, 0}


@pytest.mark.parametrize("odd", [None, 7, "", "..", ".", "a/b", "a,b", "a b", "a%2Fb", "?x", "x" * 129, "é", "a\n"])
def test_a_task_that_cannot_be_asked_for_is_none(odd: object) -> None:
    assert read_task(encode(task(id=odd))) is None


@pytest.mark.parametrize("state", ["SUCCEEDED", "succeeded", "Succeeded"])
def test_the_letter_case_of_a_state_does_not_count(state: str) -> None:
    read = read_task(encode(task(state=state)))

    assert read is not None
    assert read.state == "SUCCEEDED"


@pytest.mark.parametrize("odd", [None, 7, {}, ""])
def test_a_task_without_a_state_is_one_that_goes_on(odd: object) -> None:
    read = read_task(encode(task(state=odd)))

    assert read is not None
    assert read.state == ""


@pytest.mark.parametrize(("kind", "read"), [("sync", "sync"), ("a,b", None), (7, None), (None, None)])
def test_a_created_task_is_read_with_a_type_that_a_query_can_name(kind: object, read: str | None) -> None:
    body = encode(task(workflowInfo={"type": kind}))
    assert read_created(body) == (read_task(body), read)
    assert read_created(encode(task(id=None))) is None


def test_an_error_of_vcda_is_told_from_a_proxys() -> None:
    assert read_api_error(encode({"code": "Forbidden", "msg": "Permission denied.", "args": ["x"]})) == ApiError(
        "Forbidden", "Permission denied.", ("x",)
    )
    for other in (
        b"<html><h1>404</h1></html>",
        b"",
        b"{",
        b"[]",
        encode({"status": 404, "error": "Not Found", "path": "/x"}),
        encode({"code": 404, "msg": "Not Found"}),
        encode({"code": "NotFound", "message": "no upstream"}),
        encode({"code": "", "msg": ""}),
    ):
        assert read_api_error(other) is None


def test_a_page_is_read_with_its_count() -> None:
    failover = task(id="other", workflowInfo={"type": "failover"})
    body = encode({"items": [task(), failover, task(id="bare", workflowInfo=None)], "total": "7"})

    page = read_page(body, kind="sync")

    assert page is not None
    assert [one.id for one in page.tasks] == [TASK_ID, "bare"]
    assert page.seen == {TASK_ID, "other", "bare"}
    assert (page.count, page.total) == (3, 7)
    assert read_page(body) == Page(page.tasks[:1] + _tasks(failover) + page.tasks[1:], page.seen, 3, 7)


def _tasks(*values: object) -> tuple[Task, ...]:
    read = [read_task(encode(value)) for value in values]
    return tuple(one for one in read if one is not None)


@pytest.mark.parametrize(
    "odd",
    [
        {"items": []},
        {"total": 0},
        {"items": {}, "total": 0},
        {"items": [], "total": -1},
        {"items": [], "total": None},
        {"items": [task(), task(id=None)], "total": 2},
        {"items": [None], "total": 1},
        [],
    ],
)
def test_a_page_that_may_hide_a_task_is_none(odd: object) -> None:
    assert read_page(encode(odd)) is None


@pytest.mark.parametrize("body", [b"", b"[]", b'{"user": "u", "authenticatedSites": [{"si'])
def test_a_session_that_cannot_be_parsed_is_none(body: bytes) -> None:
    assert read_session(body) is None


def test_a_session_without_words_is_still_one() -> None:
    assert read_session(b"{}") == (None, frozenset())
    assert read_session(encode({"user": 7, "authenticatedSites": [None, {}, {"site": 7}, {"site": "a"}]})) == (
        None,
        frozenset({"a"}),
    )


def test_of_a_session_at_very_many_sites_some_are_left_out() -> None:
    names = [*(f"site{number}" for number in range(MOST_SITES + 5)), "x" * 255, "x" * 256]

    _, sites = read_session(encode({"authenticatedSites": [{"site": name} for name in reversed(names)]})) or (None, ())

    assert len(sites) == MOST_SITES
    assert "x" * 255 in sites
    assert "x" * 256 not in sites


@pytest.mark.parametrize("value", [b"{}", b"[]", b"1", b'{"id":"a"}'])
def test_a_page_of_very_many_values_is_not_parsed(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    monkeypatch.setattr(translate, "from_json", lambda body, **_: parsed.append(len(body)))
    count = MOST_VALUES // (1 + value.count(b"{") + value.count(b"["))
    few, many = (b'{"total":1,"items":[' + b",".join([value] * times) + b"]}" for times in (count - 2, count + 2))

    assert read_page(many) is None
    assert parsed == []
    assert read_page(few + b" " * MOST_VALUES) is None
    assert parsed == [len(few) + MOST_VALUES]


def test_a_page_of_more_tasks_than_were_asked_for_is_read_within_bounds() -> None:
    def of(count: int) -> Page | None:
        return read_page(encode({"items": [task(id=f"t{number}") for number in range(count)], "total": count}))

    assert (of(MOST_TASKS) or Page((), frozenset(), 0, 0)).count == MOST_TASKS
    assert of(MOST_TASKS + 1) is None


# ---------------------------------------------------------------- totality

SCALARS: Any = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**63, 10**25, 10**400, "12", "-1", "1e999", "nan", "\ud800", "٣"])
    | st.floats()
    | st.text(max_size=8)
)
NAMES = st.sampled_from(
    [
        *("id", "state", "user", "site", "progress", "startTime", "endTime", "error", "warnings", "result", "total"),
        *("workflowInfo", "resourceId", "type", "destinationState", "latestInstance", "sequenceNumber", "timestamp"),
        *("transferBytes", "transferSeconds", "code", "msg", "args", "items", "authenticatedSites", "stacktrace"),
    ]
)
VALUES: Any = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=25
)
TASKS: Any = st.fixed_dictionaries(
    {"id": st.just(TASK_ID)},
    optional=dict.fromkeys(("state", "user", "site", "progress", "startTime", "endTime", "error"), VALUES)
    | {
        "warnings": st.lists(VALUES),
        "workflowInfo": VALUES | st.fixed_dictionaries({"resourceId": VALUES, "type": VALUES}),
        "result": st.fixed_dictionaries(
            {"destinationState": VALUES | st.fixed_dictionaries({"latestInstance": VALUES})}
        ),
    },
)


DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b'{"id":"x","result":' + b"[" * 5000 + b"]" * 5000 + b"}"]


def read_everything(body: bytes) -> None:
    pages = (read_page(body), read_page(body, kind="sync"))
    for outcome in (read_task(body), read_created(body), *pages, read_api_error(body)):
        str(outcome).encode()  # and it can be written down
    str(read_session(body)).encode()


@given(st.binary(max_size=64) | st.sampled_from(DEEP))
@settings(max_examples=200)
def test_no_bytes_make_the_reader_fail(body: bytes) -> None:
    read_everything(body)


@given(VALUES | TASKS | st.fixed_dictionaries({"items": st.lists(TASKS | VALUES, max_size=4), "total": SCALARS}))
@settings(max_examples=100)
def test_no_json_makes_the_reader_fail(value: object) -> None:
    read_everything(encode(value))


@given(TASKS)
@settings(max_examples=50)
def test_a_task_whose_id_can_be_read_is_read_whatever_else_it_says(value: dict[str, object]) -> None:
    body = encode(value)
    if translate.read_object(body) is not None:  # JSON's odd surrogates aren't text
        assert read_task(body) is not None
