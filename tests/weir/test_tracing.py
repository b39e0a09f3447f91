"""Spans reach a collector over OTLP, without an endpoint there are none, and no collector holds the program up."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest

from testing.collector import Collector, recorded, text
from weir import tracing
from weir.errors import ConfigError, Overloaded
from weir.logs import logged_as
from weir.tracing import ENDPOINT, PROTOCOL, TRACES_ENDPOINT

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WITHOUT = """
import sys
from weir import tracing
tracing.configure("worker")
with tracing.span("image", path="light") as span:
    span.set(confidence=0.5)
    span.fail("late")
    assert tracing.traceparent() == ""
assert not [it for it in sys.modules if it.startswith("opentelemetry")]
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENDPOINT, TRACES_ENDPOINT, PROTOCOL, "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_without_an_endpoint_no_span_is_recorded_and_opentelemetry_is_not_imported() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


async def test_spans_arrive_with_their_request_attributes_and_children_in_other_tasks() -> None:
    async def child() -> None:
        with tracing.span("run", "client", replica=None):
            await asyncio.sleep(0)

    with recorded("worker") as collector, logged_as("mine"), tracing.span("image", confidence=0.5) as span:
        span.set(path="light")
        await asyncio.create_task(child())
    run, image = collector.spans
    assert (image.service, image.name, image.parent_id, image.failed) == ("weir-worker", "image", "", False)
    assert image.attributes == {"weir.request_id": "mine", "weir.confidence": 0.5, "weir.path": "light"}
    assert (run.trace_id, run.parent_id) == (image.trace_id, image.span_id)
    assert run.attributes == {"weir.request_id": "mine"}
    assert image.start_s <= run.start_s <= run.end_s <= image.end_s
    assert [line.split()[2:4] for line in text(collector.spans).splitlines()] == [
        ["weir-worker", "image"],
        ["weir-worker", "run"],
    ]


def test_a_span_continues_the_trace_of_another_process() -> None:
    with recorded() as collector:
        with tracing.span("run"):
            sent = tracing.traceparent()
        with tracing.span("generate", parent=sent):
            pass
        with tracing.span("generate", parent=f"00-{TRACE}-{SPAN}-01"):
            pass
    run, generate, other = collector.spans
    assert (generate.trace_id, generate.parent_id) == (run.trace_id, run.span_id)
    assert (other.trace_id, other.parent_id) == (TRACE, SPAN)


def test_a_malformed_parent_starts_a_trace_and_an_unsampled_one_is_not_recorded() -> None:
    with recorded() as collector:
        for parent in ("nonsense", f"00-{TRACE}-{'0' * 16}-01"):
            with tracing.span("generate", parent=parent):
                pass
        with tracing.span("generate", parent=f"00-{TRACE}-{SPAN}-00"), tracing.span("judge"):
            pass
    assert [(it.name, it.parent_id) for it in collector.spans] == [("generate", ""), ("generate", "")]


def test_a_failed_span_names_the_error_and_never_quotes_its_message() -> None:
    with recorded() as collector:
        for error in (ValueError("a red fox"), Overloaded("a red fox")):
            with pytest.raises(type(error)), tracing.span("image"):
                raise error
    assert [(it.failed, it.attributes) for it in collector.spans] == [
        (True, {"error.type": "ValueError"}),
        (True, {"error.type": Overloaded.code}),
    ]


def test_the_environment_may_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    with recorded() as collector, tracing.span("image"):
        pass
    assert [it.service for it in collector.spans] == ["pictures"]


def test_a_collector_that_does_not_answer_holds_nobody_up_and_gets_no_more_than_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with recorded() as collector:
        collector.open.clear()
        for _ in range(1000):
            with tracing.span("image"):
                pass
        assert not collector.spans, "the collector has answered no export, and all spans have ended"
    assert 0 < len(collector.spans) < 1000


def test_a_failing_collector_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    with recorded() as collector:
        collector.status = 400
        for _ in range(5):
            with tracing.span("image"):
                pass
    assert len(collector.bodies) == 5
    [warning] = [it for it in caplog.records if it.levelno >= logging.WARNING]
    assert warning.name == "weir.otlp"
    assert warning.message.startswith("spans may be missing from traces: Failed to export spans batch code: 400")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (ENDPOINT, "localhost:4318", "OTEL_EXPORTER_OTLP_ENDPOINT is 'localhost:4318'; accepted: the URL of a"),
        (TRACES_ENDPOINT, "http://", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is 'http://'; accepted"),
        (PROTOCOL, "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; accepted: http/protobuf"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000", "environment variables .* is wrong: max_export_batch_size"),
    ],
)
def test_a_wrong_setting_is_refused(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=says):
            tracing.configure("worker")
