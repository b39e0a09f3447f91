"""Where figures go: to Ray in the processes of a cluster, to ``prometheus_client`` elsewhere, or nowhere.

Who measures takes a :class:`Metrics`, so that only the edge of a process knows which it is.
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
    """Where figures go."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """The gauge now has this value."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """The counter grows by so much."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """The histogram takes one more value in."""


class NoMetrics:
    """Nobody looks."""

    def set(self, metric: Metric, value: float, **labels: str) -> None: ...

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None: ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None: ...


class RayMetrics:
    """Through Ray: any process of a cluster can use it, and the agent of its node answers for it."""

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
            from ray.util import metrics  # only a process of a cluster pays for it

            keys = tuple(label.name for label in metric.labels)
            if metric.kind == "histogram":
                made = metrics.Histogram(metric.name, metric.help, list(metric.buckets), keys)
            else:
                kind = metrics.Gauge if metric.kind == "gauge" else metrics.Counter
                made = kind(metric.name, description=metric.help, tag_keys=keys)
            self._made[metric.name] = made
        return made


class PrometheusMetrics:
    """Through ``prometheus_client``, for processes outside of a cluster."""

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
    """A sink that Prometheus can scrape at a port of the loopback interface, until the process ends; 0: a free one.

    Raises:
        ServiceError: something else listens there.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    try:
        server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ServiceError(f"cannot show metrics on 127.0.0.1:{port}: {error.strerror}; choose another port") from None
    console.print(f"metrics at http://127.0.0.1:{server.server_port}/metrics", highlight=False)
    return PrometheusMetrics(registry)


class Growth:
    """Tells counters what running counts have grown by since it last looked: one call a second in place of one a
    request. Counts that went back are those of a new life and count whole."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._told: dict[tuple[str, str], float] = {}

    def count(self, metric: Metric, value: float) -> None:
        """A counter without labels stands at ``value``."""
        self._metrics.add(metric, self._since(metric, "", value))

    def counts(self, metric: Metric, values: Mapping[str, float]) -> None:
        """A counter with one label stands at ``values``."""
        (label,) = metric.labels
        for key, value in values.items():
            self._metrics.add(metric, self._since(metric, key, value), **{label.name: key})

    def _since(self, metric: Metric, key: str, value: float) -> float:
        before = self._told.get((metric.name, key), 0.0)
        self._told[metric.name, key] = value
        return value - before if value >= before else value
