"""Every metric: name (with its unit), kind and help text. Ray's endpoints show them with ``ray_`` in front.

Who measures takes a :class:`Metrics`, so that only the edge knows where the figures go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``labels`` are the names of its labels; each has a few values that are known beforehand."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()


PLAN_VERSION = Metric("weir_plan_version", "gauge", "Version of the plan in force.")
PLAN_AGE = Metric("weir_plan_age_seconds", "gauge", "Since the plan in force came into force.")
PLAN_THRESHOLD = Metric("weir_plan_threshold", "gauge", "Confidence below which a light image is deferred.")
PLAN_REPLICAS = Metric("weir_plan_replicas", "gauge", "Replicas that the plan gives a role.", ("role",))
PLAN_BATCH_SIZE = Metric("weir_plan_batch_size", "gauge", "Largest batch that the plan allows in a role.", ("role",))
PLAN_ADMITTED = Metric("weir_plan_admitted_rps", "gauge", "Requests per second to admit; -1 when all are.")
PLANS = Metric("weir_plans_published_total", "counter", "Plans sent on their way.")
ROLE_FLIPS = Metric("weir_role_flips_total", "counter", "Replicas that a plan gave another role.")
DEMAND = Metric("weir_demand_rps", "gauge", "Images asked for per second, over the last observation.")
FORECAST = Metric("weir_forecast_rps", "gauge", "Demand that the last plan was made for, head-room included.")
REPLICAS = Metric("weir_replicas_alive", "gauge", "Live replicas, as the controller sees them.")
IN_FLIGHT = Metric("weir_in_flight", "gauge", "Images admitted, not answered, and not given up.")
SOLVE_SECONDS = Metric("weir_solve_seconds", "gauge", "Time of the last solution, building and checking included.")
SOLVES = Metric("weir_solves_total", "counter", "Solutions, by how sure they are.", ("status",))
LATENCY_FACTOR = Metric("weir_latency_factor", "gauge", "Measured over profiled batch times, by role.", ("role",))
FAILURES = Metric("weir_controller_failures_total", "counter", "Seconds in which the controller failed.")

ALL = tuple(it for it in list(globals().values()) if isinstance(it, Metric))


class Metrics(Protocol):
    """Where figures go."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """The gauge now has this value."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """The counter grows by so much."""


class NoMetrics:
    """Nobody looks."""

    def set(self, metric: Metric, value: float, **labels: str) -> None: ...

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None: ...


class RayMetrics:
    """Through Ray: any process of a cluster can use it, and the agent of its node answers for it."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._of(metric).set(value, tags=labels)

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        if value > 0:
            self._of(metric).inc(value, tags=labels)

    def _of(self, metric: Metric) -> Any:
        if metric.name not in self._made:
            from ray.util import metrics  # only a process of a cluster pays for it

            kind = metrics.Gauge if metric.kind == "gauge" else metrics.Counter
            self._made[metric.name] = kind(metric.name, description=metric.help, tag_keys=metric.labels)
        return self._made[metric.name]
