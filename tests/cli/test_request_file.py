"""Files of requests: each format, what is wrong with a line, and the identities, which stay the same."""

import json
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli.options import FileFormat
from service.cli.output import NoAnswer
from service.cli.request_file import RequestFile, batch_of, read_file

ONE = "C4-0c0e8bc5-1a3d-4a4f-9b6e-6a2b1c5d7e9f"


def reading(text: str | bytes, form: FileFormat | None = None, batch: str = "b", **defaults: object) -> RequestFile:
    raw = text if isinstance(text, bytes) else text.encode()
    return read_file(BytesIO(raw), form=form, batch=batch, defaults=defaults)


def bodies(found: RequestFile) -> list[dict[str, Any]]:
    return [json.loads(request.value) for request in found.requests.values()]


@pytest.mark.parametrize(
    "text",
    [
        "C4-1\n\n# the big one\nC4-2\tSite B\n",
        "C4-1  \r\nC4-2 Site B",
        '{"replicationId": "C4-1", "site": null, "name": "x"}\n\n{"replicationId": "C4-2", "site": "Site B"}\n',
        "replicationId,site\nC4-1,\nC4-2,Site B\n",
        'name;REPLICATIONID;Site\n"a;\nb";C4-1\n;C4-2;Site B\n;;\n',
        "\ufeffreplicationId\tsite\nC4-1\nC4-2\tSite B\n",
        "replicationId,site\n C4-1 ,\nC4-2, Site B \n",
    ],
    ids=["ids", "ids of Windows", "JSON", "CSV", "CSV with semicolons", "CSV with tabs and a mark", "CSV with spaces"],
)
def test_the_first_line_shows_the_format_and_each_gives_the_same_requests(text: str) -> None:
    found = reading(text)

    assert not found.invalid
    assert [(body["replicationId"], body.get("site")) for body in bodies(found)] == [("C4-1", None), ("C4-2", "Site B")]


def test_fields_of_a_request_are_taken_and_others_are_named() -> None:
    found = reading("operationID,replicationId,deadlineSeconds,site,vm,\nop-1,C4-1,60,,web,\n,C4-2,,s,db,\n")

    first, second = bodies(found)
    assert first == {"operationID": "op-1", "replicationId": "C4-1", "deadlineSeconds": 60}
    assert second.keys() == {"operationID", "replicationId", "site"}
    assert found.unused == {"vm"}
    assert next(iter(found.requests)) == "op:C4-1:op-1"


def test_defaults_are_for_lines_without_the_field() -> None:
    found = reading("C4-1\nC4-2 other\n", site="site2", deadlineSeconds=60)

    assert [(body["site"], body["deadlineSeconds"]) for body in bodies(found)] == [("site2", 60), ("other", 60)]


def test_a_replication_has_the_same_identity_in_its_batch_wherever_it_stands() -> None:
    before, after = reading("C4-1\nC4-2\nC4-3\n"), reading("C4-3\nC4-1\n")

    assert after.requests.keys() < before.requests.keys()
    assert reading("C4-1\n", batch="c").requests.keys().isdisjoint(before.requests)
    assert {request.operation_id[:2] for request in before.requests.values()} == {"b-"}


def test_the_batch_is_that_of_the_content_and_the_defaults() -> None:
    def batch(text: str, **defaults: object) -> str:
        return batch_of(BytesIO(text.encode()), defaults)

    assert batch("C4-1\n") == batch("C4-1\n")
    assert len({batch("C4-1\n"), batch("C4-2\n"), batch("C4-1\n", site="s")}) == 3
    file = BytesIO(b"C4-1\n")
    batch_of(file, {})
    assert file.read() == b"C4-1\n"


def test_a_line_that_comes_twice_is_one_request_and_with_other_fields_an_error() -> None:
    found = reading("C4-1\nC4-2\nC4-1\nC4-2 site2\n")

    assert len(found.requests) == 2
    assert found.repeated == 1
    assert [(bad.line, bad.detail) for bad in found.invalid] == [(4, "the request of line 2, with other fields")]


@pytest.mark.parametrize(
    ("text", "line", "detail"),
    [
        ("C4-1\nC4-ü\n", 2, "replicationId must be a string of 1 to 128 characters of A-Z a-z 0-9 _ -"),
        (b"C4-1\nC4-\xff\n", 2, "UTF-8"),
        (b"C4-1\nC4-2 \xff\n", 2, "UTF-8"),
        ("C4-1\n" + "x" * 129, 2, "replicationId must be"),
        ("C4-1,site2\n", 1, "more than an id: CSV needs a first line that names the columns"),
        ('{"replicationId": "C4-1"}\n{"replicationId": 7}\n', 2, "replicationId must be"),
        ('{"replicationId": "C4-1"}\n{}\n', 2, "replicationId is missing"),
        ('{"replicationId": "C4-1"}\n[]\n', 2, "not a JSON object"),
        ('{"replicationId": "C4-1"}\nC4-2\n', 2, "not JSON in UTF-8"),
        (b'{"replicationId": "C4-1"}\n{"replicationId": "\xff"}\n', 2, "not JSON in UTF-8"),
        ('{"replicationId": "C4-1"}\n{"cancel": "op:r:o"}\n', 2, "replicationId is missing"),
        ('{"replicationId": "C4-1", "deadlineSeconds": 0}\n', 1, "deadlineSeconds must be"),
        ("replicationId,deadlineSeconds\nC4-1,60\nC4-2,soon\n", 3, "deadlineSeconds must be an integer"),
        ("replicationId,site\nC4-1,a,b\n", 2, "3 cells for 2 columns"),
        ('replicationId,site\nC4-1,"a"b\n', 2, "not CSV"),
        ("replicationId,site\nC4-1\n,site2\n", 3, "replicationId is missing"),
        (b"replicationId,site\nC4-1,\xff\n", 2, "UTF-8"),
    ],
)
def test_a_line_that_would_be_a_dead_letter_is_named_with_what_is_wrong(
    text: str | bytes, line: int, detail: str
) -> None:
    (bad,) = reading(text).invalid

    assert bad.line == line
    assert detail in bad.detail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"replicationId": "C4-1"}]', "one JSON array"),
        ("C4-1\n".encode("utf-16"), "UTF-16"),
        (b"\0" * 70_000, "Line 1 is longer than 65536 bytes"),
        ("replicationId,site,Site\nC4-1\n", "more than one column site"),
    ],
)
def test_a_file_that_is_no_list_of_requests_is_refused_in_a_sentence(text: str | bytes, said: str) -> None:
    with pytest.raises(NoAnswer, match=said):
        reading(text)


def test_a_csv_without_the_column_is_refused() -> None:
    with pytest.raises(NoAnswer, match="no column replicationId"):
        reading("vm,site\nweb,a\n", FileFormat.CSV)


def test_too_many_lines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.request_file.MAX_LINES", 2)

    assert len(reading("C4-1\nC4-2\n").requests) == 2
    with pytest.raises(NoAnswer, match="more than 2 lines"):
        reading("C4-1\nC4-2\nC4-3\n")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "replicationId,site\n"])
def test_a_file_may_hold_no_request(text: str) -> None:
    found = reading(text)

    assert (found.requests, found.invalid) == ({}, [])


@given(st.binary(max_size=300), st.sampled_from([None, *FileFormat]))
def test_whatever_a_file_holds_each_line_is_a_request_or_an_error(raw: bytes, form: FileFormat | None) -> None:
    try:
        found = read_file(BytesIO(raw), form=form, batch="b")
    except NoAnswer:
        return
    assert all(bad.detail.isprintable() for bad in found.invalid)
    assert all(json.loads(request.value)["operationID"] for request in found.requests.values())


@given(st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True), min_size=1, unique=True))
def test_the_same_ids_in_each_format_are_the_same_requests(names: list[str]) -> None:
    ids = "".join(f"{name}\n" for name in names)
    lines = "".join(json.dumps({"replicationId": name}) + "\n" for name in names)
    table = "replicationId\n" + ids

    found = [
        reading(text, form).requests.keys()
        for text, form in ((ids, FileFormat.IDS), (lines, FileFormat.JSON), (table, FileFormat.CSV))
    ]

    assert found[0] == found[1] == found[2]
    assert len(found[0]) == len(names)
