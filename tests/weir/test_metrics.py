"""Every metric has a name with its unit, a help text, and a bounded number of series."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from weir import metrics
from weir.errors import NotFinite, Overloaded
from weir.metrics import OTHER, Metric

UNITS = ("seconds", "bytes", "rps", "total")
#: Names without a unit: current counts, shares, cosines, versions.
UNITLESS = {
    "weir_batch_size",
    "weir_cache_breaker_open",
    "weir_cache_entries",
    "weir_cache_similarity",
    "weir_cache_states",
    "weir_confidence",
    "weir_drained_replicas",
    "weir_in_flight",
    "weir_latency_factor",
    "weir_levels_drifted",
    "weir_pinned",
    "weir_plan_batch_size",
    "weir_plan_heavy_steps",
    "weir_plan_light",
    "weir_plan_replicas",
    "weir_plan_threshold",
    "weir_plan_version",
    "weir_planned_deferral",
    "weir_queued",
    "weir_replicas_alive",
    "weir_replicas_ready",
}
#: Largest number of series of a metric in one process; a histogram has one for each bucket and three more.
MAX_SERIES = 130
EVERY = pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)


def test_names_are_unique():
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)


@EVERY
def test_a_name_ends_in_its_unit_and_a_help_text_is_a_sentence(metric: Metric):
    assert metric.name.startswith("weir_")
    assert metric.name.rpartition("_")[2] in UNITS or metric.name in UNITLESS
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert metric.help.endswith(".")
    assert metric.help.isascii()  # Ray accepts only ASCII


@EVERY
def test_the_number_of_series_is_bounded(metric: Metric):
    series = math.prod(len(label.values) + 1 for label in metric.labels)
    if metric.kind == "histogram":
        series *= len(metric.buckets) + 3
    assert series <= MAX_SERIES
    assert {label.name for label in metric.labels} <= {
        "role", "path", "code", "kind", "cause", "reason", "status", "k", "side", "outcome", "action",
    }  # fmt: skip


@EVERY
def test_only_a_histogram_has_buckets_and_they_ascend(metric: Metric):
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert all(low < high for low, high in pairwise((0.0, *metric.buckets)))  # Ray accepts no bound at or below 0


def test_every_error_code_is_a_value_of_the_label_code():
    assert {Overloaded.code, NotFinite.code} <= set(metrics.CODE.values)


def test_a_value_that_a_label_does_not_list_becomes_other():
    checked = metrics.FAILED.checked({"code": "a prompt"})
    assert checked == {"code": OTHER}
    with pytest.raises(KeyError):
        metrics.FAILED.checked({})


def test_every_metric_can_be_recorded_and_read_back():
    from weir.telemetry import PrometheusMetrics

    registry = CollectorRegistry()
    recorder = PrometheusMetrics(registry)
    for metric in metrics.ALL:
        record = {"gauge": recorder.set, "counter": recorder.add, "histogram": recorder.observe}[metric.kind]
        record(metric, 0.5, **{label.name: label.values[0] for label in metric.labels})
    from prometheus_client import generate_latest

    families = {it.name: it for it in text_string_to_metric_families(generate_latest(registry).decode())}
    for metric in metrics.ALL:
        family = families[metric.name.removesuffix("_total")]
        assert (family.documentation, family.type) == (metric.help, metric.kind)
