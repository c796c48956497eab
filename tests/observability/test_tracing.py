import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typing_extensions import override

from service.messages.trace_context import TraceContext, context_of
from service.observability.tracing import Spans, Tracing, header_secrets, tracing
from service.sandbox.kafka import Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from service.sync import Completed, Failed, Reason, Request
from tests.conftest import TopicNamer
from tests.support.process_harness import Ledger, appliance

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def request(traceparent: str | None = PARENT) -> Request:
    return Request(
        identity="op:C4-1:op-1",
        operation_id="op-1",
        replication_id="C4-1",
        site=None,
        offset=0,
        requested_at=NOW,
        accepted_at=NOW,
        deadline=NOW + timedelta(hours=1),
        traceparent=traceparent,
        tracestate="vendor=1" if traceparent else None,
    )


def completed(of: Request) -> Completed:
    return Completed(request=of, task_id="task-1", submitted_at=NOW, ended_at=NOW, attempts=1)


@pytest.fixture
def seen() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(seen: InMemorySpanExporter) -> Spans:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(seen))
    return Spans(provider)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def test_each_step_is_a_span_of_its_own_within_the_trace_that_the_request_brought(
    spans: Spans, seen: InMemorySpanExporter
) -> None:
    spans.accepted(request())
    with spans.submitting(request()):
        pass
    spans.told(completed(request()))

    finished = seen.get_finished_spans()
    assert [span.name for span in finished] == ["vm-sync accept", "vm-sync submit", "vm-sync outcome"]
    assert {trace_of(span) for span in finished} == {TRACE}
    assert {f"{span.parent.span_id:016x}" for span in finished if span.parent} == {"b7ad6b7169203331"}


def test_a_poll_is_a_child_of_nobody_and_has_a_link_to_each_request_it_asks_about(
    spans: Spans, seen: InMemorySpanExporter
) -> None:
    other = TraceContext("00-11111111111111111111111111111111-2222222222222222-01")
    with spans.polling("site2", [context_of(request()), None, other]):
        pass

    (poll,) = seen.get_finished_spans()
    assert poll.parent is None
    assert [f"{link.context.trace_id:032x}" for link in poll.links] == [TRACE, "1" * 32]


def test_the_outcome_carries_the_context_of_its_own_span_on(spans: Spans, seen: InMemorySpanExporter) -> None:
    carried = spans.told(completed(request()))

    (span,) = seen.get_finished_spans()
    assert span.context is not None
    assert carried == TraceContext(f"00-{TRACE}-{span.context.span_id:016x}-01", "vendor=1")


def test_an_upstream_that_does_not_sample_is_not_overruled(spans: Spans, seen: InMemorySpanExporter) -> None:
    unsampled = request(PARENT.removesuffix("01") + "00")
    carried = spans.told(completed(unsampled))

    assert seen.get_finished_spans() == ()
    assert carried is not None
    assert carried.traceparent.split("-")[1::2] == [TRACE, "00"]


def test_a_request_without_a_trace_begins_one(spans: Spans, seen: InMemorySpanExporter) -> None:
    carried = spans.told(completed(request(None)))

    (span,) = seen.get_finished_spans()
    assert carried is not None
    assert carried.traceparent.split("-")[1] == trace_of(span)


def test_a_failure_tells_its_reason_and_no_text_of_vcda(spans: Spans, seen: InMemorySpanExporter) -> None:
    spans.told(Failed(request=request(), reason=Reason.TIMED_OUT, ended_at=NOW, attempts=2, task_id="task-1"))

    (span,) = seen.get_finished_spans()
    assert dict(span.attributes or {}) == {
        "vm_sync.operation_id": "op-1",
        "vm_sync.replication_id": "C4-1",
        "vm_sync.site": "local",
        "vm_sync.outcome": "failed",
        "vm_sync.reason": "timed-out",
        "vm_sync.attempts": 2,
        "vm_sync.task_id": "task-1",
    }


def test_it_is_off_unless_opentelemetrys_own_variables_ask_for_it() -> None:
    assert type(tracing({})) is Tracing
    assert type(tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": ""})) is Tracing


WRONG = {
    "OTEL_BSP_MAX_QUEUE_SIZE=many": "OTEL_BSP_MAX_QUEUE_SIZE must be an integer",
    "OTEL_BSP_SCHEDULE_DELAY=5s": "OTEL_BSP_SCHEDULE_DELAY must be an integer",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=-1": "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be an integer",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT=1.5": "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT must be an integer",
    "OTEL_BSP_MAX_QUEUE_SIZE=0": "refuses its OTEL_ variables: max_queue_size",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=1000000": "refuses its OTEL_ variables: max_export_batch_size",
}


@pytest.mark.parametrize("given", WRONG)
def test_variables_that_do_not_fit_are_one_warning_and_no_traces(
    given: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, _, text = given.partition("=")
    monkeypatch.setenv(name, text)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")

    assert type(tracing()) is Tracing

    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert WRONG[given] in record.message


@pytest.mark.parametrize(
    ("variable", "headers"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-team: s3cret-1, api-key=s3cret%20two,=s3cret-3, s3cret-4"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=Basic s3cret==,X Y=s3cret-5"),
    ],
)
def test_a_key_of_the_collector_is_in_no_line_even_where_it_is_misspelt(variable: str, headers: str) -> None:
    given = {
        "PATH": os.environ["PATH"],
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        variable: headers,
        "VM_SYNC_VCDA__URL": "https://127.0.0.1:9",
        "VM_SYNC_VCDA__CREDENTIALS__USER": "user@org",
        "VM_SYNC_VCDA__CREDENTIALS__PASSWORD": "password",
        "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9",
        "VM_SYNC_KAFKA__START_LIMIT": "PT1S",
        "VM_SYNC_OPS__HOST": "127.0.0.1",
        "VM_SYNC_OPS__PORT": "0",
    }
    run = subprocess.run(
        [sys.executable, "-m", "service.cli", "run"],
        env=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert run.returncode == 1
    assert "Header format invalid" in run.stderr
    assert "s3cret" not in run.stderr


def test_the_tenant_at_the_collector_is_no_secret() -> None:
    given = {"OTEL_EXPORTER_OTLP_HEADERS": "X-Scope-OrgID=1,x-team=prod,authorization=Basic%20s3cret"}

    assert header_secrets(given) == {"Basic%20s3cret", "Basic s3cret"}


async def test_without_traces_the_outcome_continues_what_the_request_brought() -> None:
    off = Tracing()
    off.accepted(request())
    with off.submitting(request()), off.polling(None, [None]):
        pass

    assert off.told(completed(request())) == TraceContext(PARENT, "vendor=1")
    assert off.told(completed(request(None))) is None
    await off.close()


# ---------------------------------------------------------------- real processes


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Receive spans as a collector does: the endpoint, and (trace id, name) of what has come."""
    received: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            export = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            received.extend(
                (span.trace_id.hex(), span.name)
                for resource in export.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
            self.send_response(200)
            self.end_headers()

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


ENDING = """
import asyncio, contextlib, datetime, json, time
from service.sync import Request
from service.observability.tracing import tracing

async def work():
    spans = tracing()
    now = datetime.datetime.now(datetime.UTC)
    moments = {name: now for name in ("requested_at", "accepted_at", "deadline")}
    names = {"identity": "op:a:b", "operation_id": "b", "replication_id": "a", "site": None}
    spans.accepted(Request(**names, **moments, offset=0))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(spans.close(), 0.5)
    print(json.dumps({"spans": type(spans).__name__, "ended": time.monotonic()}), flush=True)

asyncio.run(work())
"""


@pytest.mark.parametrize("collector_", ["hangs", "refuses"])
def test_no_collector_holds_up_the_end_of_a_process(collector_: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        port = hanging.getsockname()[1] if collector_ == "hangs" else 1
        environment = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        }
        with subprocess.Popen([sys.executable, "-c", ENDING], env=environment, stdout=subprocess.PIPE) as process:
            assert process.wait(240) == 0
            after = time.monotonic()
            assert process.stdout is not None
            said = json.loads(process.stdout.read())

    assert said["spans"] == "Spans"
    assert after - said["ended"] < 25  # OpenTelemetry itself waits for half a minute


@pytest.mark.e2e
async def test_a_trace_survives_a_kill(kafka: Kafka, topic_name: TopicNamer) -> None:
    replication = f"C4-{uuid.uuid4()}"
    with collector() as (endpoint, received):
        async with (
            Simulator(appliance(Plan(queued=Durations.of("0.1"), duration=Durations.of("12")))) as vcda,
            Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=topic_name("traced"), partitions=1) as ledger,
        ):
            settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
            first = ledger.start(command=(), **settings)
            await ledger.ready(first)
            await ledger.send_raw(
                partition=0,
                key=replication.encode(),
                value=f'{{"operationID": "op-1", "replicationId": "{replication}"}}'.encode(),
                headers=[("traceparent", PARENT.encode())],
            )
            async with asyncio.timeout(30):
                while (TRACE, "vm-sync submit") not in received:
                    await asyncio.sleep(0.05)
            await first.kill()
            second = ledger.start(command=(), **settings)
            await ledger.ready(second)
            (told,) = await ledger.wait(within=60, least=1)
            await second.stop()

    assert dict(told.headers)["traceparent"].decode().split("-")[1] == TRACE
    assert {name for trace, name in received if trace == TRACE} == {
        "vm-sync accept",
        "vm-sync submit",
        "vm-sync outcome",
    }
