"""Queries that panels share: Ray's counters, gauges and histograms as PromQL, over all processes of the cluster."""

from __future__ import annotations

from deploy.monitoring.panels import Query
from weir.metrics import Metric

WINDOW = "$__rate_interval"


def name(metric: Metric) -> str:
    return f"ray_{metric.name}"


def rate(metric: Metric, where: str = "", by: str = "") -> str:
    """How fast a counter grows in all processes together."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({name(metric)}{where}[{WINDOW}]))"


def or_zero(expr: str) -> str:
    """Counters that nothing has happened to are not there yet."""
    return f"({expr}) or vector(0)"


def each(metric: Metric, label: str, values: tuple[str, ...], unit: str = "") -> list[Query]:
    """One curve for each value of a label, there even while nothing happened."""
    return [Query(or_zero(rate(metric, f'{{{label}="{value}"}}')), unit or value) for value in values]


def now(metric: Metric, by: str = "") -> str:
    """A gauge; processes that went away may still be shown beside the one that took their place."""
    return f"max by ({by}) ({name(metric)})" if by else f"max({name(metric)})"


def quantile(share: float, metric: Metric, by: str = "") -> str:
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({name(metric)}_bucket[{WINDOW}])))"


def quantiles(metric: Metric) -> list[Query]:
    return [Query(quantile(share, metric), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)]


def by_role(metric: Metric) -> list[Query]:
    return [
        Query(quantile(0.5, metric, "role"), "{{role}} p50"),
        Query(quantile(0.95, metric, "role"), "{{role}} p95"),
    ]
