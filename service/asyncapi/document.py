"""The AsyncAPI 3.0 document, from the schemas of the messages, the examples and the names of the topics. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from service.asyncapi import examples
from service.asyncapi.examples import Example
from service.messages import schemas
from service.messages.kafka_record import MAX_REQUEST_BYTES
from service.messages.outcomes import COMPLETED_TYPE, FAILED_TYPE, PROGRESS_TYPE, SOURCE
from service.messages.requests import MAX_IDENTITY_PART, STRUCTURED, DeadLetterReason

Object: TypeAlias = dict[str, Any]

BINDING_VERSION: Final = "0.5.0"
_IN_COMPONENTS: Final = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """The topics that other teams use. `completed` and `failed` may be the same; `progress` None: not published."""

    requests: str = "vm-sync.requests"
    completed: str = "vm-sync.completed"
    failed: str = "vm-sync.failed"
    dead_letter: str = "vm-sync.dead-letter"
    progress: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The Kafka cluster of the topics; security protocol and SASL mechanism as Kafka names them."""

    hosts: Sequence[str] = ("localhost:9092",)
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None


def document(
    topics: Topics,
    *,
    version: str,
    server: Server | None = None,
    group_id: str = "vm-sync",
    partitions: int | None = None,
    replicas: int | None = None,
) -> Object:
    """Describe what the service reads and writes. `partitions` and `replicas` are the requests topic's, where known."""
    one_topic = topics.completed == topics.failed
    channels = {"requests": _requests_channel(topics, partitions=partitions, replicas=replicas)}
    if one_topic:
        channels["outcomes"] = _channel(
            topics.completed,
            title="Outcomes",
            description=f"How each request ended. {_READ_COMMITTED}",
            messages=("syncCompleted", "syncFailed"),
        )
    else:
        channels["completed"] = _channel(
            topics.completed,
            title="Completed syncs",
            description=f"A message for each request that was fulfilled. {_READ_COMMITTED}",
            messages=("syncCompleted",),
        )
        channels["failed"] = _channel(
            topics.failed,
            title="Failed requests",
            description=f"A message for each request that was not, with the reason. {_READ_COMMITTED}",
            messages=("syncFailed",),
        )
    if topics.progress is not None:
        channels["progress"] = _channel(
            topics.progress,
            title="Progress",
            description=(
                "How far running syncs are, for progress displays: at most one event for every 5 percent or 30 "
                "seconds, in order for each sync. Delivery is not guaranteed: an event may be missing, arrive twice, "
                "or arrive after the outcome. Only the outcome says how a request ended."
            ),
            messages=("syncProgressed",),
        )
    channels["deadLetters"] = _channel(
        topics.dead_letter,
        title="Dead letters",
        description="Messages that could not be understood: the original's bytes, untouched, and why.",
        messages=("deadLetter",),
    )
    return {
        "asyncapi": "3.0.0",
        "id": "urn:vm-sync",
        "info": _info(version),
        "defaultContentType": "application/json",
        "servers": _servers(server or Server()),
        "channels": channels,
        "operations": _operations(channels, group_id=group_id),
        "components": {
            "messages": _messages(progress=topics.progress is not None),
            "schemas": _schemas(progress=topics.progress is not None),
            "securitySchemes": _SECURITY,
        },
    }


_READ_COMMITTED: Final = (
    "Consumers read with `isolation.level=read_committed`; then each request has exactly one outcome."
)


def _info(version: str) -> Object:
    return {
        "title": "vm-sync",
        "version": version,
        "description": "Starts one sync of a VM replication at VMware Cloud Director Availability for each request, "
        "and publishes how it ended. Requests for one replication run one after another, in the order of the topic; "
        "different replications run side by side.",
        "license": {"name": "Apache-2.0"},
        "tags": [{"name": "kafka"}, {"name": "cloudevents"}],
    }


# ---------------------------------------------------------------- where


_SECURITY: Final[Object] = {
    "plain": {"type": "plain", "description": "SASL/PLAIN: user name and password, over TLS."},
    "scramSha256": {"type": "scramSha256", "description": "SASL/SCRAM-SHA-256."},
    "scramSha512": {"type": "scramSha512", "description": "SASL/SCRAM-SHA-512."},
    "gssapi": {"type": "gssapi", "description": "SASL/GSSAPI: Kerberos."},
    "certificate": {"type": "X509", "description": "A client certificate."},
}
_SCHEMES: Final = {
    "PLAIN": "plain",
    "SCRAM-SHA-256": "scramSha256",
    "SCRAM-SHA-512": "scramSha512",
    "GSSAPI": "gssapi",
}


def _servers(server: Server) -> Object:
    protocol = server.security_protocol.upper()
    described: Object = {
        "protocol": "kafka-secure" if protocol.endswith("SSL") else "kafka",
        "description": f"Kafka, {protocol}.",
    }
    scheme = _SCHEMES.get(server.sasl_mechanism or "PLAIN") if protocol.startswith("SASL") else None
    if protocol == "SSL":
        scheme = "certificate"
    if scheme is not None:
        described["security"] = [{"$ref": f"#/components/securitySchemes/{scheme}"}]
    names = ["kafka"] if len(server.hosts) == 1 else [f"kafka{place}" for place in range(1, len(server.hosts) + 1)]
    return {name: {"host": host, **described} for name, host in zip(names, server.hosts, strict=True)}


def _requests_channel(topics: Topics, *, partitions: int | None, replicas: int | None) -> Object:
    return _channel(
        topics.requests,
        title="Requests",
        description="Partitioned by murmur2 of the key, the replicationId, as Java and aiokafka do (librdkafka: "
        "`partitioner=murmur2_random`), so that all requests for one replication share a partition. Requests without a "
        f"key have no order among them. Largest message: {MAX_REQUEST_BYTES // 1024} KiB, key and headers included. "
        "An invalid message goes to the dead-letter topic and does not delay the messages behind it. A second "
        "message whose identity is in flight, or ended recently, is a duplicate and is dropped. A cancel names a "
        "request that was sent before it, and has the same key.",
        messages=("syncRequested", "syncRequestedCloudEvent", "syncRequestedStructured", "syncCancelRequested"),
        partitions=partitions,
        replicas=replicas,
    )


def _channel(
    address: str,
    *,
    title: str,
    description: str,
    messages: Sequence[str],
    partitions: int | None = None,
    replicas: int | None = None,
) -> Object:
    binding: Object = {"topic": address}
    if partitions is not None:
        binding["partitions"] = partitions
    if replicas is not None:
        binding["replicas"] = replicas
    return {
        "address": address,
        "title": title,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": {**binding, "bindingVersion": BINDING_VERSION}},
    }


def _operations(channels: Object, *, group_id: str) -> Object:
    """Build the document's operations: the service receives requests and sends all other messages."""
    summaries = {
        "syncRequested": "Accept requests",
        "syncCompleted": "Publish the outcomes of completed syncs",
        "syncFailed": "Publish the outcomes of failed requests",
        "syncProgressed": "Publish the progress of running syncs",
        "deadLetter": "Write invalid messages to the dead-letter topic",
    }
    operations: Object = {}
    for channel, described in channels.items():
        for name in described["messages"]:
            if name not in summaries:
                continue
            receives = channel == "requests"
            operations["receiveRequests" if receives else f"send{name[0].upper()}{name[1:]}"] = {
                "action": "receive" if receives else "send",
                "channel": {"$ref": f"#/channels/{channel}"},
                "summary": summaries[name],
                "messages": [
                    {"$ref": f"#/channels/{channel}/messages/{message}"}
                    for message in (described["messages"] if receives else [name])
                ],
                "bindings": {
                    "kafka": {
                        **({"groupId": {"type": "string", "enum": [group_id]}} if receives else {}),
                        "bindingVersion": BINDING_VERSION,
                    }
                },
            }
    return operations


# ---------------------------------------------------------------- what


def _schemas(*, progress: bool) -> Object:
    """Collect the messages' shapes and their parts. Those of one name are one shape: a test holds them together."""
    collected: Object = {}
    for name, model in schemas.MESSAGES.items():
        if model is schemas.SyncProgressed and not progress:
            continue
        shape = schemas.shape(name, definitions=_IN_COMPONENTS)
        collected |= shape.pop("$defs", {})
        collected[shape["title"]] = shape
    return collected


def _text(description: str, *example: str, **rules: object) -> Object:
    return {"type": "string", "description": description, **rules, **({"examples": list(example)} if example else {})}


def _headers(properties: Object, *required: str) -> Object:
    return {"type": "object", "properties": properties, "required": list(required)}


_TRACE: Final[Object] = {
    "traceparent": _text(
        "W3C trace context; ignored if malformed.", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ),
    "tracestate": _text("W3C trace state.", "rojo=1"),
}
_ATTRIBUTES: Final[Object] = {
    "specversion": _text("CloudEvents version; with any other version the message is invalid.", const="1.0"),
    "id": _text(
        "The id; together with the source it is the request's identity.",
        "0f4e2c1a-17",
        minLength=1,
        maxLength=MAX_IDENTITY_PART,
    ),
    "source": _text(
        "The CloudEvent's source; together with the id it is the request's identity.",
        "/scheduler/nightly",
        minLength=1,
        maxLength=MAX_IDENTITY_PART,
    ),
    "type": _text("Any value; the service ignores it.", "scheduler.sync-wanted"),
}
_REQUEST_ID: Final = {
    "description": "The operationID, which its outcome carries as the header `correlation_id`.",
    "location": "$message.payload#/operationID",
}


def _messages(*, progress: bool) -> Object:
    return {
        "syncRequested": _message(
            title="Sync requested",
            summary="A request as plain JSON. Its identity is its replicationId and operationID.",
            headers=_headers(
                {"content-type": _text("Any content type other than a CloudEvent's.", "application/json"), **_TRACE}
            ),
            payload="SyncRequested",
            correlation=_REQUEST_ID,
            samples=examples.PLAIN,
        ),
        "syncRequestedCloudEvent": _message(
            title="Sync requested, as a CloudEvent in binary mode",
            summary="A request whose identity is the CloudEvent's source and id.",
            headers=_headers(
                {
                    "content-type": _text("Content type of the value.", "application/json"),
                    **{f"ce_{name}": rule for name, rule in _ATTRIBUTES.items()},
                    **_TRACE,
                },
                *("ce_specversion", "ce_id", "ce_source"),
            ),
            payload="SyncRequested",
            correlation=_REQUEST_ID,
            samples=examples.BINARY,
        ),
        "syncRequestedStructured": _message(
            title="Sync requested, as a CloudEvent in structured mode",
            summary="A request whose identity is the CloudEvent's source and id, everything in the value.",
            content_type=STRUCTURED,
            headers=_headers(
                {"content-type": _text("Parameters such as charset are ignored.", STRUCTURED), **_TRACE},
                "content-type",
            ),
            payload=_structured(),
            correlation={**_REQUEST_ID, "location": "$message.payload#/data/operationID"},
            samples=examples.STRUCTURED_MODE,
        ),
        "syncCancelRequested": _message(
            title="Sync cancel requested",
            summary="Cancels a request that was sent before: plain JSON, or the data of a CloudEvent in either mode, "
            "whose attributes mean nothing then. A request that waits ends as `cancelled`; with `release` any other "
            "one does, too.",
            headers=_headers({"content-type": _text("As of a request.", "application/json")}),
            payload="SyncCancelRequested",
            key="The key of the request that is cancelled: its replicationId.",
            samples=examples.CANCELS,
        ),
        "syncCompleted": _told(
            "SyncCompleted",
            title="Sync completed",
            summary="How a request ended, as a CloudEvent in binary mode.",
            kind=COMPLETED_TYPE,
            samples=examples.COMPLETED,
        ),
        "syncFailed": _told(
            "SyncFailed",
            title="Sync failed",
            summary="How a request ended, as a CloudEvent in binary mode.",
            kind=FAILED_TYPE,
            samples=examples.FAILED,
        ),
        **({"syncProgressed": _progressed()} if progress else {}),
        "deadLetter": _message(
            title="Dead letter",
            summary="A message that could not be understood: value, key and headers are the original's.",
            content_type="application/octet-stream",
            headers=_headers(_DEAD_LETTER_HEADERS, *_ALWAYS_ON_DEAD_LETTERS),
            payload={
                "description": "The original bytes; empty if Kafka's client could not read them, or Kafka refused them "
                "for their size."
            },
            key="The original key.",
            samples=examples.DEAD_LETTERS,
        ),
    }


def _message(
    *,
    title: str,
    summary: str,
    headers: Object,
    payload: str | Object,
    samples: Sequence[Example],
    correlation: Object | None = None,
    content_type: str = "application/json",
    key: str = "The replicationId, so that all messages about a replication are in order.",
) -> Object:
    return {
        "title": title,
        "summary": summary,
        "contentType": content_type,
        "headers": headers,
        "payload": {"$ref": f"#/components/schemas/{payload}"} if isinstance(payload, str) else payload,
        **({"correlationId": correlation} if correlation else {}),
        "bindings": {
            "kafka": {"key": {"type": "string", "description": key}, "bindingVersion": BINDING_VERSION},
        },
        "examples": [
            {"name": sample.name, "summary": sample.summary, "headers": sample.headers, "payload": sample.value}
            for sample in samples
        ],
    }


def _structured() -> Object:
    data: Object = {"$ref": "#/components/schemas/SyncRequested"}
    base64: Object = _text("The request as JSON in base64.", contentEncoding="base64")
    return {
        "type": "object",
        "properties": {**_ATTRIBUTES, "data": data, "data_base64": base64, **_TRACE},
        "required": ["specversion", "id", "source"],
        "oneOf": [{"required": ["data"]}, {"required": ["data_base64"]}],
    }


def _progressed() -> Object:
    return _told(
        "SyncProgressed",
        title="Sync progressed",
        summary="How far a sync is, as a CloudEvent in binary mode.",
        kind=PROGRESS_TYPE,
        identity="Id of this event; a repetition of the event has the same id.",
        samples=examples.PROGRESS,
    )


def _told(
    payload: str,
    *,
    title: str,
    summary: str,
    kind: str,
    samples: Sequence[Example],
    identity: str = "Derived from the request's identity, so a repetition of the event has the same id.",
) -> Object:
    properties: Object = {
        "content-type": _text("Content type of the value.", const="application/json"),
        "ce_specversion": _text("CloudEvents version.", const="1.0"),
        "ce_type": _text("The event's type.", const=kind),
        "ce_source": _text("The service that published the event.", const=SOURCE),
        "ce_id": _text(identity, pattern="^[0-9a-f]{32}$"),
        "ce_subject": _text("The replicationId."),
        "ce_time": _text("When the event was created.", format="date-time"),
        "correlation_id": _text("The operationID."),
    }
    return _message(
        title=title,
        summary=summary,
        headers=_headers({**properties, **_CONTINUED}, *properties),
        payload=payload,
        correlation={"description": "The request's operationID.", "location": "$message.header#/correlation_id"},
        samples=samples,
    )


_CONTINUED: Final[Object] = {
    name: {**rule, "description": "As in the request, if the request had one."} for name, rule in _TRACE.items()
}
_ALWAYS_ON_DEAD_LETTERS: Final = tuple(
    f"vm-sync-{name}" for name in ("reason", "detail", "topic", "partition", "offset", "timestamp", "redriven")
)
_DEAD_LETTER_HEADERS: Final[Object] = {
    "vm-sync-reason": _text("Why the message is invalid.", enum=[reason.value for reason in DeadLetterReason]),
    "vm-sync-detail": _text("A sentence that names the field and contains nothing of the message."),
    "vm-sync-topic": _text("The topic from which the message was read."),
    "vm-sync-partition": _text("The partition.", pattern="^[0-9]+$"),
    "vm-sync-offset": _text("The offset.", pattern="^[0-9]+$"),
    "vm-sync-timestamp": _text("The record's Kafka timestamp, in milliseconds since 1970.", pattern="^-?[0-9]+$"),
    "vm-sync-redriven": _text("How often the message was redriven.", pattern="^[0-9]+$"),
    "vm-sync-truncated": _text(
        "Present, with the value `true`, if the value, or key and headers as well, were too large to keep.",
        const="true",
    ),
}
