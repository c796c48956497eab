"""The schemas of the messages: the only definition of their fields.

The JSON Schemas in `schemas/`, the AsyncAPI document and the validation of requests are derived from it. A rule is
never loosened or tightened without a new version of the message: other teams rely on it. `outcomes.py` writes outcomes
without these models, so that no text of VCDA can prevent an outcome; tests validate every outcome against its schema.
"""

import copy
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema
from typing_extensions import override

from service import sync
from service.sync import MAX_LIST, MAX_TEXT

OPERATION_ID: Final = "^[A-Za-z0-9._:-]+$"
REPLICATION_ID: Final = "^[A-Za-z0-9_-]+$"
MAX_ID: Final = 128
"""What ids in requests consist of, and their length: they travel in headers and paths of URLs as they are."""

MAX_SITE: Final = 255
"""The length of a site's name."""

_UNPRINTABLE: Final = (
    r"\u0000-\u001f\u007f-\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f"
    r"\u205f-\u206f\u3000\ue000-\uf8ff\ufeff\ufff0-\uffff"
)
"""Controls, separators other than the plain space, invisible formatting, private use. Written as ranges, since the
regular expressions of different languages agree on these, and not on Unicode's categories."""

_IDENTITY: Final = "^(ce|op):[A-Za-z0-9._~%-]+:[A-Za-z0-9._~%-]+$"
_MAX_IDENTITY: Final = 6_124
"""Two parts of 255 characters, each of four bytes, percent-encoded."""

_MOMENT: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"


def _whole(value: object) -> object:
    """JSON has one type of number: 60.0 is the integer 60, as in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


OperationId = Annotated[
    str,
    Field(
        alias="operationID",
        title="Operation id",
        description=(
            "Id of the request, sent to VCDA as the `operationID` header. Unless the request is a CloudEvent, "
            "operationID and replicationId are its identity."
        ),
        pattern=OPERATION_ID,
        min_length=1,
        max_length=MAX_ID,
        examples=["nightly-2026-03-01.17"],
    ),
]
ReplicationId = Annotated[
    str,
    Field(
        alias="replicationId",
        title="Replication id",
        description="VCDA's id of the replication: \"C4-\" and a UUID. Also the record's key, so that requests for one "
        "replication are in order.",
        pattern=REPLICATION_ID,
        min_length=1,
        max_length=MAX_ID,
        examples=["C4-5a6ccf7a-45ab-4d5b-8b5d-2a6a0b0f0c55"],
    ),
]
Site = Annotated[
    str,
    Field(
        title="Site",
        description="Site of the replication, sent to VCDA as the `site` query parameter; without it, the local site.",
        pattern=f"^[^{_UNPRINTABLE}]+$",
        min_length=1,
        max_length=MAX_SITE,
        examples=["Site B"],
    ),
]
Moment = Annotated[
    str,
    Field(pattern=_MOMENT, json_schema_extra={"format": "date-time"}, examples=["2026-03-01T22:00:00.000Z"]),
]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Note = Annotated[str, Field(pattern=f"^[^{_UNPRINTABLE}]+$", min_length=1, max_length=255)]


class SyncRequestedModel(BaseModel):
    """Asks for one sync of one replication. Unknown fields are ignored."""

    model_config = ConfigDict(title="SyncRequested", strict=True, frozen=True)

    operation_id: OperationId
    replication_id: ReplicationId
    # These two may be left out, but not null; so the value that stands for "left out" is one that can't be sent.
    site: Site = ""
    deadline_seconds: Annotated[
        int,
        Field(
            alias="deadlineSeconds",
            title="Deadline",
            description=(
                "Seconds from acceptance until the request fails as `timed-out` or `not-started`. Default: the "
                "service's deadline, `VM_SYNC_SYNC__DEADLINE`."
            ),
            ge=1,
            le=604_800,
            examples=[3600],
        ),
        BeforeValidator(_whole),
    ] = 0


class CancelledIds(BaseModel):
    """The ids of the request to cancel. A CloudEvent with these ids is meant, too."""

    model_config = ConfigDict(strict=True, frozen=True)

    operation_id: OperationId
    replication_id: ReplicationId


class SyncCancelRequestedModel(BaseModel):
    """Cancels a request that was sent before; has the key of that request. Unknown fields are ignored.

    A message with `operationID` or `replicationId` at its top level is a SyncRequested.
    """

    model_config = ConfigDict(title="SyncCancelRequested", strict=True, frozen=True)

    cancel: Annotated[
        Annotated[str, Field(pattern=_IDENTITY, max_length=_MAX_IDENTITY)] | CancelledIds,
        Field(
            title="Request",
            description="The request to cancel: its `requestId`, or its replicationId and operationID.",
            examples=["op:C4-5a6ccf7a-45ab-4d5b-8b5d-2a6a0b0f0c55:nightly-2026-03-01.17"],
        ),
    ]
    release: Annotated[
        bool,
        Field(
            title="Release",
            description="End also a request that is submitting, in doubt, running or lingering, and free its "
            "replication at once. VCDA has no cancel and may still work on it: make sure that it does not, "
            "otherwise two syncs of the replication overlap. Default: false, such a request goes on.",
            examples=[True],
        ),
    ] = False
    # As above: the value that stands for "left out" is one that can't be sent.
    by: Annotated[
        Note,
        Field(title="By", description="Who cancels the request; for its outcome.", examples=["night shift"]),
    ] = ""
    reason: Annotated[
        Note,
        Field(
            title="Reason",
            description="Why the request is cancelled; for its outcome.",
            examples=["Site B moves today"],
        ),
    ] = ""


class Warned(BaseModel):
    """A warning of the task, in VCDA's words."""

    model_config = ConfigDict(title="Warning", strict=True, frozen=True)

    code: Annotated[Text, Field(title="Code", examples=["SomeDisksSkipped"])]
    msg: Annotated[Text, Field(title="Message")]


class Error(BaseModel):
    """An error, in VCDA's words if VCDA gave any. Never contains a stack trace."""

    model_config = ConfigDict(strict=True, frozen=True)

    code: Annotated[Text, Field(title="Code", examples=["BadRequest"])]
    msg: Annotated[Text, Field(title="Message")]
    args: Annotated[list[Text], Field(title="Arguments", max_length=MAX_LIST)]


class Instance(BaseModel):
    """The replication's latest instance, from the task's result."""

    model_config = ConfigDict(strict=True, frozen=True)

    sequence_number: Annotated[int | None, Field(alias="sequenceNumber", title="Sequence number")]
    timestamp: Annotated[
        Moment | None, Field(title="Timestamp", description="The point in time that the instance holds.")
    ]
    transfer_bytes: Annotated[int | None, Field(alias="transferBytes", title="Bytes transferred")]
    transfer_seconds: Annotated[float | None, Field(alias="transferSeconds", title="Seconds of transfer")]


class _About(BaseModel):
    """The fields that identify an event's request."""

    model_config = ConfigDict(strict=True, frozen=True)

    request_id: Annotated[
        str,
        Field(
            alias="requestId",
            title="Request id",
            description="The request's identity: `ce:<source>:<id>` for a CloudEvent, else "
            "`op:<replicationId>:<operationID>`, parts percent-encoded.",
            pattern="^(ce|op):[^:]+:[^:]+$",
            examples=["op:C4-5a6ccf7a-45ab-4d5b-8b5d-2a6a0b0f0c55:nightly-2026-03-01.17"],
        ),
    ]
    operation_id: OperationId
    replication_id: ReplicationId
    site: Annotated[Site | None, Field(description="As in the request; null if the request named no site.")]


class _Outcome(_About):
    task_id: Annotated[
        str | None,
        Field(
            alias="taskId",
            title="Task id",
            description="Id of VCDA's task; null if no task is known.",
            examples=["6f5d31f2-3b0e-4c53-9a53-0f3e6f3ed1c4"],
        ),
    ]
    requested_at: Annotated[
        Moment,
        Field(alias="requestedAt", title="Requested at", description="The request record's Kafka timestamp."),
    ]
    submitted_at: Annotated[
        Moment | None,
        Field(
            alias="submittedAt",
            title="Submitted at",
            description="When VCDA accepted the request: the task's `startTime`, by VCDA's clock.",
        ),
    ]
    ended_at: Annotated[
        Moment,
        Field(
            alias="endedAt",
            title="Ended at",
            description="The task's `endTime`, by VCDA's clock; for outcomes decided by the service, the moment of "
            "the decision.",
        ),
    ]
    attempts: Annotated[int, Field(title="Attempts", description="POSTs made for this request.", ge=0, examples=[1])]
    warnings: Annotated[
        list[Warned],
        Field(
            title="Warnings",
            description=f"The task's warnings, at most {MAX_LIST}, texts cut at {MAX_TEXT} characters.",
            max_length=MAX_LIST,
        ),
    ]


class SyncCompleted(_Outcome):
    """A sync that VCDA completed. Consumers ignore fields that they don't know."""

    task_id: Annotated[
        str,
        Field(
            alias="taskId",
            title="Task id",
            description="VCDA's task.",
            examples=["6f5d31f2-3b0e-4c53-9a53-0f3e6f3ed1c4"],
        ),
    ]
    instance: Annotated[
        Instance | None,
        Field(title="Instance", description="The latest instance; null if the task's result has none."),
    ]


class SyncFailed(_Outcome):
    """A request whose sync failed, or has an unknown result, and the reason. Consumers ignore unknown fields."""

    reason: Annotated[
        str,
        Field(
            title="Reason",
            description="`task-failed`: the task ended FAILED. `rejected`: VCDA refused the request and a repetition "
            "will not change that, or the service has no credentials for the site. `timed-out`: the deadline passed "
            "while a task was, or may have been, running; the task may still run. `task-lost`: VCDA no longer knows "
            "a task that it had accepted. "
            "`not-started`: the deadline passed and VCDA is known not to have accepted the request. "
            "`cancelled`: a SyncCancelRequested ended it; `error` says by whom and why, and whether VCDA may still "
            "work on it.",
            json_schema_extra={"enum": [reason.value for reason in sync.Reason]},
        ),
    ]
    error: Annotated[Error | None, Field(title="Error", description="The error, if VCDA or the service gave one.")]
    http_status: Annotated[
        int | None,
        Field(
            alias="httpStatus",
            title="HTTP status",
            description="HTTP status of the answer that decided the outcome, if there was one.",
            examples=[400],
        ),
    ]


class SyncProgressed(_About):
    """Progress of a running sync. Events may be missing; consumers ignore fields that they don't know."""

    task_id: Annotated[
        str,
        Field(
            alias="taskId",
            title="Task id",
            description="VCDA's task.",
            examples=["6f5d31f2-3b0e-4c53-9a53-0f3e6f3ed1c4"],
        ),
    ]
    state: Annotated[
        str,
        Field(
            title="State",
            description=(
                "`started`: VCDA has accepted the request. `running`: the progress has changed since the last event."
            ),
            json_schema_extra={"enum": ["started", "running"]},
        ),
    ]
    progress: Annotated[
        int | None,
        Field(
            title="Progress",
            description=(
                "Percent, as VCDA reports it; it may stand still or decrease. Null while VCDA has reported none."
            ),
            ge=0,
            le=100,
            examples=[45],
        ),
    ]
    at: Annotated[Moment, Field(title="At", description="When the service read the progress, by the service's clock.")]


# ---------------------------------------------------------------- as JSON Schema

MESSAGES: Final[dict[str, type[BaseModel]]] = {
    "sync-requested.v1": SyncRequestedModel,
    "sync-cancel-requested.v1": SyncCancelRequestedModel,
    "sync-completed.v1": SyncCompleted,
    "sync-failed.v1": SyncFailed,
    "sync-progressed.v1": SyncProgressed,
}
"""Every message, by the name of its schema. The first two are read, the others are written."""

READ: Final = frozenset({"sync-requested.v1", "sync-cancel-requested.v1"})
"""Messages that the service reads. Compatible changes differ for messages that it reads and that it writes."""


class _Shape(GenerateJsonSchema):
    """Leaves out defaults: they are this program's way to say "left out", no part of the shape."""

    @override
    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def shape(name: str, *, definitions: str = "#/$defs/{model}") -> dict[str, Any]:
    """Give a message's JSON Schema, 2020-12. `definitions` is where the document around it keeps them."""
    mode: JsonSchemaMode = "validation" if name in READ else "serialization"
    return MESSAGES[name].model_json_schema(ref_template=definitions, schema_generator=_Shape, mode=mode)


def file(name: str) -> dict[str, Any]:
    """Give a message's schema as it is published, a document of its own."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:vm-sync:{name}",
        **copy.deepcopy(shape(name)),
    }
