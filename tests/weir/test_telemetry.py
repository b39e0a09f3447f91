"""Metrics are recorded and exported, and cumulative counts are recorded by their growth."""

from __future__ import annotations

import pickle

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from rich.console import Console

from weir import metrics
from weir.errors import ServiceError
from weir.metrics import OTHER
from weir.telemetry import Growth, NoMetrics, PrometheusMetrics, RayMetrics, exposed


@given(st.lists(st.integers(0, 50), max_size=20))
def test_a_growing_count_is_recorded_completely(steps):
    registry = CollectorRegistry()
    growth, stand = Growth(PrometheusMetrics(registry)), 0
    for step in steps:
        stand += step
        growth.count(metrics.ASKED, stand)
        growth.counts(metrics.ANSWERED, {"light": 2 * stand})
    if steps:
        assert registry.get_sample_value("weir_images_asked_total") == stand
        assert registry.get_sample_value("weir_images_answered_total", {"path": "light"}) == 2 * stand


def test_a_count_that_decreased_is_added_completely():
    registry = CollectorRegistry()
    growth = Growth(PrometheusMetrics(registry))
    for stand in (7, 3, 4):
        growth.count(metrics.ASKED, stand)
    assert registry.get_sample_value("weir_images_asked_total") == 7 + 4


def test_a_label_value_that_is_not_listed_is_recorded_as_other():
    registry = CollectorRegistry()
    PrometheusMetrics(registry).add(metrics.FAILED, code="unknown")
    assert registry.get_sample_value("weir_images_failed_total", {"code": OTHER}) == 1


def test_values_can_be_discarded():
    discarding = NoMetrics()
    discarding.set(metrics.IN_FLIGHT, 1)
    discarding.add(metrics.ASKED)
    discarding.observe(metrics.CONFIDENCE, 0.5)


def test_a_recorder_can_be_sent_to_another_process():
    assert isinstance(pickle.loads(pickle.dumps(RayMetrics())), RayMetrics)  # noqa: S301 — as Ray does it


def test_prometheus_can_scrape_a_process_outside_of_a_cluster(capsys):
    recorder = exposed(0, Console())
    recorder.add(metrics.REPLAYED, outcome="in_time")
    url = capsys.readouterr().out.split()[-1]
    assert 'weir_replay_requests_total{outcome="in_time"} 1.0' in httpx.get(url).text
    port = int(url.split(":")[2].split("/")[0])
    with pytest.raises(ServiceError, match=f"127.0.0.1:{port}.*another port"):
        exposed(port, Console())
