"""PromQL expressions for counters, gauges and histograms, aggregated over all processes of the cluster."""

from __future__ import annotations

from deploy.monitoring.panels import Query
from weir.metrics import Metric

WINDOW = "$__rate_interval"


def name(metric: Metric) -> str:
    """Name of a metric in Prometheus."""
    return f"ray_{metric.name}"


def rate(metric: Metric, where: str = "", by: str = "") -> str:
    """Growth of a counter per second, summed over all processes."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({name(metric)}{where}[{WINDOW}]))"


def or_zero(expr: str) -> str:
    """The expression, or 0 while its counters do not exist: a counter appears with its first event."""
    return f"({expr}) or vector(0)"


def each(metric: Metric, label: str, values: tuple[str, ...]) -> list[Query]:
    """One query for each value of a label, which is 0 until the first event."""
    return [Query(or_zero(rate(metric, f'{{{label}="{value}"}}')), value) for value in values]


def now(metric: Metric, by: str = "") -> str:
    """Current value of a gauge: the maximum, because Prometheus may still show processes that have ended."""
    return f"max by ({by}) ({name(metric)})" if by else f"max({name(metric)})"


def quantile(share: float, metric: Metric, by: str = "") -> str:
    """A quantile of a histogram, over all processes."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({name(metric)}_bucket[{WINDOW}])))"


def quantiles(metric: Metric) -> list[Query]:
    """Median, 95th and 99th percentile of a histogram."""
    return [Query(quantile(share, metric), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)]


def by_role(metric: Metric) -> list[Query]:
    """Median and 95th percentile of a histogram for each role."""
    return [
        Query(quantile(0.5, metric, "role"), "{{role}} p50"),
        Query(quantile(0.95, metric, "role"), "{{role}} p95"),
    ]
