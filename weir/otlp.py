"""Records spans with OpenTelemetry's SDK, and exports them over OTLP/HTTP from a thread of their own.

Ended spans wait in a bounded queue (``OTEL_BSP_MAX_QUEUE_SIZE``, 2048), and the oldest are dropped when it is full: the
code that records spans never waits for the collector. The provider belongs to this module. OpenTelemetry's global one
is left to Ray and to the user.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from types import TracebackType

from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_SCHEDULE_DELAY, OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from weir import __version__
from weir.errors import ConfigError
from weir.tracing import Kind, Value, code_of

log = logging.getLogger(__name__)

#: Milliseconds between two exports, unless the environment says otherwise. The SDK's own five seconds would lose more
#: of a process that is killed.
_EXPORT_EVERY_MS = 1000.0
_KINDS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT, "server": SpanKind.SERVER}
#: Attributes for which OpenTelemetry's semantic conventions have a name.
_CONVENTIONS = {"status": "http.response.status_code"}
_TRACE_CONTEXT = TraceContextTextMapPropagator()
_SDK_LOG = logging.getLogger("opentelemetry")


class OtlpTracer:
    """Records and exports the spans of one process.

    Args:
        component: what the process is; it is ``weir-<component>`` in traces unless ``OTEL_SERVICE_NAME`` names it.

    Raises:
        ConfigError: one of OpenTelemetry's environment variables is wrong.
    """

    def __init__(self, component: str):
        own: dict[str, str | int] = {"service.version": __version__, "process.pid": os.getpid()}
        if not os.environ.get(OTEL_SERVICE_NAME):
            own["service.name"] = f"weir-{component}"
        try:
            # A process that ends does not wait for the collector; at most a second of spans is lost.
            self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
            every_ms = None if os.environ.get(OTEL_BSP_SCHEDULE_DELAY) else _EXPORT_EVERY_MS
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=every_ms))
        except ValueError as error:
            raise ConfigError(f"one of OpenTelemetry's environment variables (OTEL_…) is wrong: {error}") from None
        self._tracer = self._provider.get_tracer("weir", __version__)
        self._warnings = _Once()
        _SDK_LOG.addHandler(self._warnings)
        _SDK_LOG.propagate = False

    def span(
        self, name: str, kind: Kind, parent: str, since: float | None, attributes: Mapping[str, Value]
    ) -> RecordedSpan:
        """See :func:`weir.tracing.span`."""
        context = _TRACE_CONTEXT.extract({"traceparent": parent}, Context()) if parent else None
        since_ns = None if since is None else int(since * 1e9)
        recorded = RecordedSpan(self._tracer.start_span(name, context, _KINDS[kind], start_time=since_ns))
        recorded.set(**attributes)
        return recorded

    def traceparent(self) -> str:
        """See :func:`weir.tracing.traceparent`."""
        carrier: dict[str, str] = {}
        _TRACE_CONTEXT.inject(carrier)
        return carrier.get("traceparent", "")

    def close(self) -> None:
        """Exports what is recorded, and stops the exporter."""
        self._provider.shutdown()
        _SDK_LOG.removeHandler(self._warnings)
        _SDK_LOG.propagate = True


class RecordedSpan:
    """A :class:`weir.tracing.Span`: the current span within its context, which it ends with."""

    def __init__(self, span: Span):
        self._span = span

    def __enter__(self) -> RecordedSpan:
        self._token = attach(set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(code_of(error))
        detach(self._token)
        self._span.end()

    def set(self, **attributes: Value) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(_CONVENTIONS.get(name, f"weir.{name}"), value)

    def fail(self, error: str) -> None:
        self._span.set_status(StatusCode.ERROR)
        self._span.set_attribute("error.type", error)


class _Once(logging.Handler):
    """Logs each kind of warning of OpenTelemetry's once: without a collector, the SDK repeats them every second."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._logged: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg not in self._logged:
            self._logged.add(record.msg)
            log.warning("spans may be missing from traces: %s", record.getMessage())
