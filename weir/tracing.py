"""Traces: spans of what happens to a request in all processes, exported over OTLP; off unless an endpoint is named.

Processes of a service call :func:`configure` once. OpenTelemetry's own environment variables decide the rest:

* ``OTEL_EXPORTER_OTLP_ENDPOINT``: URL of a collector that takes OTLP over HTTP; ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``
  is the whole URL of its spans. Without both, no span is recorded and nothing of OpenTelemetry is imported.
* ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_…``, …: see
  :mod:`weir.otlp`.

Spans have the id of their request. They never have a prompt, a key, a tenant, or the message of an error, which may
quote one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

from weir.core import ImageRequest
from weir.errors import ConfigError, WeirError
from weir.logs import REQUEST_ID

if TYPE_CHECKING:
    from weir.otlp import OtlpTracer

ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL, TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"

#: What a span is to the call that it belongs to; ``client`` and ``server`` are the two ends of a call.
Kind = Literal["internal", "client", "server"]
Value = str | int | float | bool | None

_tracer: OtlpTracer | None = None


class Span(Protocol):
    """A span that is being recorded. It ends with its context; an exception marks it as failed."""

    def set(self, **attributes: Value) -> None:
        """Sets attributes; those that are None are left out."""

    def fail(self, error: str) -> None:
        """Marks the span as failed. ``error`` is a code or the name of a class, never a message."""


class _NoSpan:
    """The span of a process that records none."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *error: object) -> None: ...

    def set(self, **attributes: Value) -> None: ...

    def fail(self, error: str) -> None: ...


_NO_SPAN = _NoSpan()


def endpoint() -> str:
    """The collector that the environment names; "" for none.

    Raises:
        ConfigError: it is no URL, or the environment names another protocol than OTLP over HTTP.
    """
    name = TRACES_ENDPOINT if os.environ.get(TRACES_ENDPOINT) else ENDPOINT
    url = os.environ.get(name, "")
    if not url:
        return ""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{name} is {url!r}; accepted: the URL of a collector, such as http://127.0.0.1:4318")
    name = TRACES_PROTOCOL if os.environ.get(TRACES_PROTOCOL) else PROTOCOL
    protocol = os.environ.get(name) or "http/protobuf"
    if protocol != "http/protobuf":
        raise ConfigError(
            f"{name} is {protocol!r}; accepted: http/protobuf, which a collector takes at another port than gRPC, "
            "usually 4318"
        )
    return url


def configure(component: str) -> None:
    """Records the spans of this process if the environment names an endpoint.

    Args:
        component: what the process is, such as ``worker``; names it in traces.

    Raises:
        ConfigError: as :func:`endpoint`, or another of OpenTelemetry's variables is wrong.
    """
    global _tracer
    if _tracer is not None:
        _tracer.close()
        _tracer = None
    if endpoint():
        from weir.otlp import OtlpTracer  # imported here, because it loads OpenTelemetry

        _tracer = OtlpTracer(component)


def span(
    name: str, kind: Kind = "internal", *, parent: str = "", since: float | None = None, **attributes: Value
) -> AbstractContextManager[Span]:
    """Context manager of one span; spans within the context, and tasks created there, are its children.

    Args:
        parent: the ``traceparent`` that a call from another process brought; "": the current span of this process, if
            there is one. One that is malformed starts a new trace.
        since: begin of the span, unix time; None: now.
        attributes: as :meth:`Span.set`.
    """
    if _tracer is None:
        return _NO_SPAN
    return _tracer.span(name, kind, parent, since, {"request_id": REQUEST_ID.get() or None, **attributes})


def span_of_each(name: str, requests: Iterable[ImageRequest]) -> AbstractContextManager[object]:
    """Context manager of one span for each of several images that are processed together.

    Each is a child of the span that its request brought; a request without one, as of a self-test, has no span.
    """
    if _tracer is None:
        return _NO_SPAN
    spans = ExitStack()
    for request in filter(lambda it: it.traceparent, requests):
        about = {"request_id": request.request_id or None}
        spans.enter_context(_tracer.span(name, "internal", request.traceparent, None, about))
    return spans


def traceparent() -> str:
    """The current span for a call to another process, as W3C's header of this name; "" if there is none."""
    return "" if _tracer is None else _tracer.traceparent()


def code_of(error: BaseException) -> str:
    """What a span says of an error: its code, or the name of its class."""
    return error.code if isinstance(error, WeirError) else type(error).__name__
