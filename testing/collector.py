"""Collector of traces: takes spans over OTLP/HTTP on 127.0.0.1 and writes traces as text.

    python -m testing.collector --port 4318

shows what a service sends that was started with ``OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318``.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from rich.console import Console

from weir import tracing

#: Attributes that only identify, and are left out of the text.
_IDS = ("weir.request_id", "weir.image")


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as the exporter sent it.

    Attributes:
        service: name of the process that recorded it.
        parent_id: "" at the top of a trace.
        start_s, end_s: unix time.
    """

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_s: float
    end_s: float
    failed: bool
    attributes: dict[str, Any]


class Collector:
    """Collects the spans that are sent to :attr:`url` within its context.

    Args:
        port: 0 picks a free one.

    Attributes:
        spans: all spans so far.
        bodies: bodies of all requests so far.
        status: HTTP status of the responses; spans are kept with status 200 only.
        open: responses wait until it is set.
    """

    def __init__(self, port: int = 0):
        self.spans: list[ReceivedSpan] = []
        self.bodies: list[bytes] = []
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.bodies.append(body)
                collector.open.wait()
                if collector.status == 200:
                    collector.spans += received(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *about: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def recorded(component: str = "test") -> Iterator[Collector]:
    """Context manager in which this process records its spans; its collector has all of them at the end."""
    with Collector() as collector:
        os.environ[tracing.ENDPOINT] = collector.url
        tracing.configure(component)
        try:
            yield collector
        finally:
            del os.environ[tracing.ENDPOINT]
            collector.open.set()
            tracing.configure(component)


def received(exported: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    """The spans of one export."""
    for resource in exported.resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for it in scope.spans:
                yield ReceivedSpan(
                    service,
                    it.name,
                    it.trace_id.hex(),
                    it.span_id.hex(),
                    it.parent_span_id.hex(),
                    it.start_time_unix_nano / 1e9,
                    it.end_time_unix_nano / 1e9,
                    it.status.code == Status.STATUS_CODE_ERROR,
                    _values(it.attributes),
                )


def text(spans: Iterable[ReceivedSpan]) -> str:
    """The spans of one trace as a tree: milliseconds from its begin, duration, process, name and attributes."""
    spans = sorted(spans, key=lambda it: it.start_s)
    known = {it.span_id for it in spans}

    def lines(parents: Iterable[ReceivedSpan], depth: int) -> Iterator[str]:
        for it in parents:
            begin_ms, took_ms = 1e3 * (it.start_s - spans[0].start_s), 1e3 * (it.end_s - it.start_s)
            about = [f"{k.removeprefix('weir.')}={_short(v)}" for k, v in it.attributes.items() if k not in _IDS]
            name = f"{'  ' * depth}{it.name}{' FAILED' if it.failed else ''}"
            yield f"{begin_ms:8.1f} {took_ms:8.1f}  {it.service:18} {name}  {' '.join(about)}".rstrip()
            yield from lines((child for child in spans if child.parent_id == it.span_id), depth + 1)

    return "\n".join(lines((it for it in spans if it.parent_id not in known), 0))


def _values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {it.key: getattr(it.value, str(it.value.WhichOneof("value"))) for it in attributes}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the traces that a service sends, on Ctrl-C.")
    parser.add_argument("--port", type=int, default=4318)
    port, console = parser.parse_args().port, Console(highlight=False, markup=False, soft_wrap=True)
    try:
        collector = Collector(port)
    except OSError as error:
        parser.error(f"cannot listen on 127.0.0.1:{port}: {error.strerror}; choose another --port")
    with collector:
        console.print(f"takes spans at {collector.url}; Ctrl-C writes them as text")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            for trace in dict.fromkeys(it.trace_id for it in collector.spans):
                console.print(text(it for it in collector.spans if it.trace_id == trace), end="\n\n")


if __name__ == "__main__":
    main()
