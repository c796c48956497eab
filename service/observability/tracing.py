"""OpenTelemetry traces of a request through several services. Off unless the environment enables them.

A sync takes hours and outlives its process, so there is no span from its beginning to its end: each step is a short
span, a child of the request's trace context, which is stored in the journal. A poll concerns up to a hundred syncs: its
span has a link to each of them. The outcome's headers have the context of the outcome's span.

    the upstream's span
     +-- vm-sync accept        the request is admitted
     +-- vm-sync submit        one POST and its answer
     +-- vm-sync outcome       the outcome is published; its reader continues here
    vm-sync poll               links to the polled requests

It never puts a secret, a site's password or a task's result into a span, and decides nothing.
"""

import asyncio
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote

from typing_extensions import override

from service.messages.trace_context import TraceContext, context_of
from service.sync import Failed, Outcome, Request

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own settings (https://opentelemetry.io/docs/specs/otel/protocol/exporter/): one of them switches
tracing on; its other OTEL_ variables work as usual."""

HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
"""Where the keys of a collector are: `name=value,...`. OpenTelemetry logs a part of another form as it is."""

SHORTEST_KEY = 8
"""Characters of the shortest value of a header that is taken for a key. Headers also name tenants and teams: `1` would
be hidden in each line about one request, partition or second."""

NUMBERS = re.compile(r"OTEL_BSP_\w+|OTEL_\w+_LIMIT")
"""The variables that OpenTelemetry takes for whole numbers, with a traceback where they aren't."""


class Tracing:
    """Makes no traces; `Spans` makes them."""

    def accepted(self, request: Request) -> None:
        """A request was accepted."""

    def submitting(self, request: Request) -> AbstractContextManager[object]:
        """Enclose one POST."""
        del request
        return nullcontext()

    def polling(self, site: str | None, about: Iterable[TraceContext | None]) -> AbstractContextManager[object]:
        """Enclose one poll; `about`: the contexts of the polled requests."""
        del site, about
        return nullcontext()

    def told(self, outcome: Outcome) -> TraceContext | None:
        """An outcome is written; return the trace context for its readers."""
        return context_of(outcome.request)

    async def close(self) -> None:
        """Send the remaining spans. May be cancelled at any time."""


class Spans(Tracing):
    """Traces by OpenTelemetry. Which are kept, and where they go, is the provider's."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace  # noqa: PLC0415 - an extra: imported where traces are wanted
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("vm-sync")
        self._propagator = TraceContextTextMapPropagator()

    @override
    def accepted(self, request: Request) -> None:
        self._tracer.start_span(
            "vm-sync accept", context=self._read(context_of(request)), attributes=_attributes(request)
        ).end()

    @override
    def submitting(self, request: Request) -> AbstractContextManager[object]:
        return self._tracer.start_as_current_span(
            "vm-sync submit",
            context=self._read(context_of(request)),
            kind=self._trace.SpanKind.CLIENT,
            attributes=_attributes(request),
        )

    @override
    def polling(self, site: str | None, about: Iterable[TraceContext | None]) -> AbstractContextManager[object]:
        spans = [self._trace.get_current_span(self._read(one)).get_span_context() for one in about if one is not None]
        return self._tracer.start_as_current_span(
            "vm-sync poll",
            context=self._read(None),
            kind=self._trace.SpanKind.CLIENT,
            attributes={"vm_sync.site": site or "local"},
            links=[self._trace.Link(span) for span in spans if span.is_valid],
        )

    @override
    def told(self, outcome: Outcome) -> TraceContext | None:
        attributes = _attributes(outcome.request) | {
            "vm_sync.outcome": "failed" if isinstance(outcome, Failed) else "completed",
            "vm_sync.attempts": outcome.attempts,
        }
        if isinstance(outcome, Failed):
            attributes["vm_sync.reason"] = outcome.reason.value
        if outcome.task_id is not None:
            attributes["vm_sync.task_id"] = outcome.task_id
        span = self._tracer.start_span(
            "vm-sync outcome",
            context=self._read(context_of(outcome.request)),
            kind=self._trace.SpanKind.PRODUCER,
            attributes=attributes,
        )
        span.end()
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=self._trace.set_span_in_context(span))
        if "traceparent" not in carrier:
            return context_of(outcome.request)
        return TraceContext(carrier["traceparent"], carrier.get("tracestate"))

    @override
    async def close(self) -> None:
        shutdown = getattr(self._provider, "shutdown", None)  # the API's provider has none, the SDK's has
        if shutdown is None:
            return
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            shutdown()
            with suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(done.set)

        # OpenTelemetry waits for half a minute for a collector that hangs. At their ends, neither the event loop nor
        # Python waits for a daemon thread, as both would for a thread of the loop's own.
        thread = threading.Thread(target=close, name="tracing's end", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            log.warning("The last spans are not sent: no thread can be started")
            return
        await done.wait()

    def _read(self, where: TraceContext | None) -> "Context":
        """Return the context to be a child of; an empty one, where there is none, begins a trace of its own."""
        from opentelemetry.context import Context  # noqa: PLC0415 - as above

        carrier: dict[str, str] = {}
        if where is not None:
            carrier["traceparent"] = where.traceparent
            if where.tracestate is not None:
                carrier["tracestate"] = where.tracestate
        return self._propagator.extract(carrier, context=Context())


def tracing(environ: Mapping[str, str] | None = None) -> Tracing:
    """Return traces by OpenTelemetry where its own environment variables ask for them and fit, none otherwise.

    OpenTelemetry itself reads the process's environment, whatever is handed in.
    """
    wanted = os.environ if environ is None else environ
    if not any(wanted.get(name) for name in ENDPOINTS):
        return Tracing()
    wrong = [name for name, text in sorted(wanted.items()) if NUMBERS.fullmatch(name) and not _is_number(text)]
    if wrong:
        log.warning("Tracing is off: %s must be an integer", " and ".join(wrong))
        return Tracing()
    try:
        return _traced(wanted.get("OTEL_SERVICE_NAME") or "vm-sync")
    except ImportError:
        log.warning(
            "Tracing is off: %s is set, but OpenTelemetry is not installed: pip install 'vm-sync[tracing]'",
            " or ".join(ENDPOINTS),
        )
    except Exception as error:  # noqa: BLE001 - it is made of variables that anybody sets, and no sync depends on it
        log.warning("Tracing is off: OpenTelemetry refuses its OTEL_ variables: %s", error)
    return Tracing()


def header_secrets(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the values of the headers that are sent to the collector, for the redaction of logs; no short ones."""
    parts = [part for name in HEADERS for part in environ.get(name, "").split(",")]
    texts = {re.sub(r"^[^=:]*[=:]", "", part).strip() for part in parts}
    return frozenset(text for text in texts | set(map(unquote, texts)) if len(text) >= SHORTEST_KEY)


def _traced(name: str) -> Tracing:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    # Not on exit: there it would wait for a collector that hangs, after all else has ended.
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*\d*\s*", text) is not None  # empty: not set


def _attributes(request: Request) -> dict[str, str | int]:
    return {
        "vm_sync.operation_id": request.operation_id,
        "vm_sync.replication_id": request.replication_id,
        "vm_sync.site": request.site or "local",
    }
