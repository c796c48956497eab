"""Reads many requests from a file: ids, JSON lines or CSV, a request in each line. Pure: bytes in, requests out.

    C4-0c0e8bc5-...                         ids; behind a space or tab may stand the site
    {"replicationId": "C4-...", ...}        JSON lines: SyncRequested objects
    replicationId,site,deadlineSeconds      CSV: a header with the names of fields, then comma, semicolon or tab

A request without an operationID gets `<batch>-<hash of its replicationId>`. So it has the same identity whenever it is
read as part of the same batch, also where other lines were added, removed or sorted meanwhile.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO, Final, NoReturn, TypeAlias

from pydantic_core import from_json

from service.cli.options import FileFormat
from service.cli.output import Exit, NoAnswer
from service.messages.kafka_record import MAX_REQUEST_BYTES, Record
from service.messages.requests import InvalidRequest, SyncRequested, read_request

MAX_LINES: Final = 1_000_000
"""Some 500 MB of requests in memory."""

FIELDS: Final = ("replicationId", "operationID", "site", "deadlineSeconds")
"""What a request is made of, with the names of the contract."""

Line: TypeAlias = tuple[int, str]
Body: TypeAlias = dict[str, object] | str
"""The fields of a line, or what is wrong with it."""

_SEPARATORS: Final = ",;\t"

_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A valid request, as it is published, and the line that it came from."""

    line: int
    identity: str
    operation_id: str
    replication_id: str
    site: str | None
    value: bytes


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A line that is no valid request. `detail` contains nothing of the line."""

    line: int
    detail: str


@dataclass(slots=True)
class RequestFile:
    """What a file holds: the requests by identity, in the order of the lines."""

    requests: dict[str, FileRequest] = field(default_factory=dict)
    invalid: list[InvalidLine] = field(default_factory=list)
    repeated: int = 0
    """Lines whose request is that of an earlier line; it is sent once."""
    unused: set[str] = field(default_factory=set)
    """Names of fields or columns that a request does not have."""

    def add(self, line: int, body: Mapping[str, object], *, batch: str) -> None:
        """Add the request of a line."""
        read = _read(line, body, batch=batch)
        if isinstance(read, InvalidLine):
            self.invalid.append(read)
        elif (earlier := self.requests.setdefault(read.identity, read)) is not read:
            if earlier.value == read.value:
                self.repeated += 1
            else:
                self.invalid.append(InvalidLine(line, f"the request of line {earlier.line}, with other fields"))


def batch_of(file: BinaryIO, defaults: Mapping[str, object]) -> str:
    """Return the name of a file's batch: the same for the same content with the same defaults. Rewinds the file."""
    digest = hashlib.sha256(json.dumps(defaults, sort_keys=True).encode())
    while part := file.read(1 << 20):
        digest.update(part)
    file.seek(0)
    return f"from-{digest.hexdigest()[:12]}"


def read_file(
    file: BinaryIO, *, form: FileFormat | None, batch: str, defaults: Mapping[str, object] | None = None
) -> RequestFile:
    """Read all of it. `defaults` are fields for lines without them; without a `form` the first line shows it.

    Raises:
        NoAnswer: the file as a whole can't be read: not lines, too many of them, or CSV without the column.
    """
    found = RequestFile()
    lines = _lines(file)
    first = next(((number, line) for number, line in lines if line.strip() and not line.startswith("#")), None)
    if first is None:
        return found
    form = form or _form(first[1])
    bodies = {FileFormat.IDS: _ids, FileFormat.JSON: _json, FileFormat.CSV: _csv}[form](chain([first], lines))
    for number, body in bodies:
        if isinstance(body, str):
            found.invalid.append(InvalidLine(number, body))
            continue
        found.unused |= body.keys() - {*FIELDS, ""}
        given = {name: body[name] for name in FIELDS if body.get(name) is not None}
        found.add(number, {**(defaults or {}), **given}, batch=batch)
    return found


def _read(line: int, body: Mapping[str, object], *, batch: str) -> FileRequest | InvalidLine:
    replication_id = body.get("replicationId")
    name = hashlib.sha256(str(replication_id).encode("utf-8", "replace")).hexdigest()[:10]
    value = json.dumps({"operationID": f"{batch}-{name}", **body}).encode()
    key = replication_id.encode("utf-8", "replace") if isinstance(replication_id, str) else None
    read = read_request(Record(topic="", partition=0, offset=0, timestamp_ms=0, key=key, value=value))
    if isinstance(read, SyncRequested):
        return FileRequest(line, read.identity, read.operation_id, read.replication_id, read.site, value)
    return InvalidLine(line, read.detail if isinstance(read, InvalidRequest) else "not a request for a sync")


# ---------------------------------------------------------------- lines


def _lines(file: BinaryIO) -> Iterator[Line]:
    """Yield the numbered lines. Bytes that are not UTF-8 become surrogates, which no request may have.

    Raises:
        NoAnswer: it isn't made of lines, or of too many.
    """
    number = 0
    while raw := file.readline(MAX_REQUEST_BYTES + 1):
        number += 1
        if number == 1:
            if raw.startswith(_UTF16):
                _refuse("The file is in UTF-16: save it as UTF-8.")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > MAX_REQUEST_BYTES:
            _refuse(f"Line {number} is longer than {MAX_REQUEST_BYTES} bytes: not a list of requests.")
        if number > MAX_LINES:
            _refuse(f"The file has more than {MAX_LINES} lines: split it.")
        yield number, raw.decode("utf-8", "surrogateescape")


def _refuse(text: str) -> NoReturn:
    raise NoAnswer(text, code=Exit.USAGE)


def _form(line: str) -> FileFormat:
    """Tell the format by the first line."""
    text = line.strip()
    if text.startswith("["):
        _refuse("The file is one JSON array: write an object in each line, for instance by `jq -c '.[]'`.")
    if text.startswith("{"):
        return FileFormat.JSON
    return FileFormat.CSV if "replicationid" in [name.lower() for name in _header(text)] else FileFormat.IDS


def _ids(lines: Iterable[Line]) -> Iterator[tuple[int, Body]]:
    for number, line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        replication_id, *site = text.split(maxsplit=1)
        if set(_SEPARATORS) & set(replication_id):
            yield number, "more than an id: CSV needs a first line that names the columns"
        else:
            yield number, {"replicationId": replication_id, "site": site[0] if site else None}


def _json(lines: Iterable[Line]) -> Iterator[tuple[int, Body]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            body: Any = from_json(line.encode("utf-8", "surrogateescape"), allow_inf_nan=False)
        except ValueError:
            yield number, "not JSON in UTF-8"
            continue
        yield number, body if isinstance(body, dict) else "not a JSON object"


def _csv(lines: Iterable[Line]) -> Iterator[tuple[int, Body]]:
    numbers = [0]

    def texts() -> Iterator[str]:
        for number, line in lines:
            numbers[0] = number
            yield line

    text = texts()
    first = next(text)
    names = _header(first)
    known = {name.lower(): name for name in FIELDS}
    columns = [known.get(name.lower(), name) for name in names]
    if "replicationId" not in columns:
        _refuse("The CSV has no column replicationId.")
    if twice := {name for name in columns if name in FIELDS and columns.count(name) > 1}:
        _refuse(f"The CSV has more than one column {min(twice)}.")
    rows = csv.reader(text, delimiter=_separator(first), strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield numbers[0], f"not CSV: {error}"
            continue
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(columns):
            yield numbers[0], f"{len(row)} cells for {len(columns)} columns"
            continue
        cells = zip(columns, [cell.strip() for cell in row], strict=False)
        yield numbers[0], {name: _cell(name, cell) for name, cell in cells if cell}


def _cell(name: str, cell: str) -> object:
    short = name == "deadlineSeconds" and cell.isascii() and cell.isdecimal() and len(cell) < 20  # noqa: PLR2004 - an int
    return int(cell) if short else cell


def _separator(header: str) -> str:
    return max(_SEPARATORS, key=header.count)


def _header(line: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line.strip("\r\n")], delimiter=_separator(line)), [])]
    except csv.Error:
        return []
