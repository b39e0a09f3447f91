"""Recorders of metrics: through Ray in the processes of a cluster, through ``prometheus_client`` elsewhere, or none.

Code that records metrics takes a :class:`Metrics`, so that only the entry point of a process chooses the recorder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from weir.errors import ServiceError
from weir.metrics import Metric

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from rich.console import Console


class Metrics(Protocol):
    """Records the values of metrics."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets a gauge."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Increases a counter by ``value``."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Adds an observation to a histogram."""


class NoMetrics:
    """Discards all values."""

    def set(self, metric: Metric, value: float, **labels: str) -> None: ...

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None: ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None: ...


class RayMetrics:
    """Records through Ray, in any process of a cluster; the agent of its node exports the values."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._of(metric).set(value, tags=metric.checked(labels))

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        if value > 0:
            self._of(metric).inc(value, tags=metric.checked(labels))

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._of(metric).observe(value, tags=metric.checked(labels))

    def _of(self, metric: Metric) -> Any:
        made = self._made.get(metric.name)
        if made is None:
            from ray.util import metrics  # imported late, because only processes of a cluster need it

            keys = tuple(label.name for label in metric.labels)
            if metric.kind == "histogram":
                made = metrics.Histogram(metric.name, metric.help, list(metric.buckets), keys)
            else:
                kind = metrics.Gauge if metric.kind == "gauge" else metrics.Counter
                made = kind(metric.name, description=metric.help, tag_keys=keys)
            self._made[metric.name] = made
        return made


class PrometheusMetrics:
    """Records through ``prometheus_client``, in processes outside of a cluster."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry
        self._made: dict[str, Any] = {}

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._of(metric, labels).set(value)

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        self._of(metric, labels).inc(value)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._of(metric, labels).observe(value)

    def _of(self, metric: Metric, labels: Mapping[str, str]) -> Any:
        made = self._made.get(metric.name)
        if made is None:
            import prometheus_client as client

            keys = [label.name for label in metric.labels]
            if metric.kind == "histogram":
                made = client.Histogram(metric.name, metric.help, keys, buckets=metric.buckets, registry=self._registry)
            else:
                kind = client.Gauge if metric.kind == "gauge" else client.Counter
                made = kind(metric.name, metric.help, keys, registry=self._registry)
            self._made[metric.name] = made
        return made.labels(**metric.checked(labels)) if labels else made


def exposed(port: int, console: Console) -> PrometheusMetrics:
    """Starts a recorder that Prometheus can scrape at a port of the loopback interface until the process ends.

    Args:
        port: 0 picks a free one.

    Raises:
        ServiceError: another process listens on the port.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    try:
        server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ServiceError(
            f"cannot export metrics on 127.0.0.1:{port}: {error.strerror}; choose another port"
        ) from None
    console.print(f"metrics at http://127.0.0.1:{server.server_port}/metrics", highlight=False)
    return PrometheusMetrics(registry)


class Growth:
    """Records counters from cumulative counts: adds the growth since the last call.

    So counters are recorded once a second and not once a request. A count that has decreased was restarted from 0, and
    is added completely.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._recorded: dict[tuple[str, str], float] = {}

    def count(self, metric: Metric, value: float) -> None:
        """Records that the count of a metric without labels is now ``value``."""
        self._metrics.add(metric, self._since(metric, "", value))

    def counts(self, metric: Metric, values: Mapping[str, float]) -> None:
        """Records that the counts of a metric with one label are now ``values``."""
        (label,) = metric.labels
        for key, value in values.items():
            self._metrics.add(metric, self._since(metric, key, value), **{label.name: key})

    def _since(self, metric: Metric, key: str, value: float) -> float:
        before = self._recorded.get((metric.name, key), 0.0)
        self._recorded[metric.name, key] = value
        return value - before if value >= before else value
