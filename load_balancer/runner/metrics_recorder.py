"""What the load balancer shows of itself: counts and distributions of the images that pass, and its state each second.

The balancer says what happens; how it is counted is decided here, and where it is shown by a
:class:`weir.telemetry.Metrics`. A request costs a handful of histogram entries; counts are told once a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.runner.generation_task import GeneratedImage
from weir import metrics as metrics_of
from weir.core import ImageResult, Path, Plan, Role
from weir.errors import WeirError
from weir.telemetry import Growth, Metrics, NoMetrics

#: How failed lookups of the cache are told, by what the cache counts them as; any other is an error.
_UNANSWERED = {"TimeoutError": "timeout", "resting": "resting"}
#: Not a lookup: the cache was not told how a request ended.
_NO_LOOKUP = "tell"


class MetricsRecorder:
    """Counts since the start. Lives on the balancer's event loop.

    Args:
        slo_s: answers that take longer break the promise.
    """

    def __init__(self, slo_s: float, metrics: Metrics | None = None):
        self._slo_s = slo_s
        self._metrics = metrics or NoMetrics()
        self._growth = Growth(self._metrics)
        self._asked = self._admitted = self._judged = self._deferred = self._steps_saved = self._redrawn = 0
        self._good = 0.0
        self._refused: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._violations: Counter[str] = Counter()
        self._retried: Counter[str] = Counter()
        self._steps: Counter[str] = Counter()
        self._busy_s: dict[str, float] = {}
        self._looked_at: float | None = None

    # ----------------------------------------------------------------------------------------- as it happens

    def asked(self, images: int) -> None:
        """So many images are asked for."""
        self._asked += images

    def admitted(self, images: int) -> None:
        """They are let in."""
        self._admitted += images

    def refused(self, images: int, error: WeirError) -> None:
        """They are not."""
        self._refused[error.code] += images
        self._violations["refused"] += images

    def answered(self, drawn: GeneratedImage) -> None:
        """An image is ready."""
        self._answered[drawn.path.value] += 1
        self._violations["late"] += drawn.latency_s > self._slo_s
        self._redrawn += max(0, drawn.draws - 1)
        self._good += 1.0 if drawn.path in (Path.HEAVY, Path.CACHE) else drawn.confidence or 0.0
        self._metrics.observe(metrics_of.LATENCY, drawn.latency_s, path=drawn.path.value)

    def failed(self, error: WeirError) -> None:
        """An image that was let in will not be ready."""
        self._failed[error.code] += 1
        self._violations["failed"] += 1

    def judged(self, confidence: float | None, deferred: bool) -> None:
        """The cascade decided about a light image; no confidence counts as 0."""
        self._judged += 1
        self._deferred += deferred
        self._metrics.observe(metrics_of.CONFIDENCE, confidence or 0.0)

    def replied(self, role: Role, result: ImageResult, whole: int) -> None:
        """A worker drew an image, which has ``whole`` steps from noise."""
        name = role.value
        self._steps[name] += result.steps
        self._steps_saved += whole - result.steps if result.resumed_at else 0
        self._busy_s[name] = self._busy_s.get(name, 0.0) + result.compute_s / max(1, result.batch_size)
        self._metrics.observe(metrics_of.QUEUE_SECONDS, result.queue_s, role=name)
        self._metrics.observe(metrics_of.SERVICE_SECONDS, result.compute_s, role=name)
        self._metrics.observe(metrics_of.BATCH_SIZE, result.batch_size, role=name)
        if result.fetch_s is not None:
            self._metrics.observe(metrics_of.FETCH_SECONDS, result.fetch_s)

    def retried(self, cause: str) -> None:
        """An image goes to another replica: ``replica_lost``, ``role_changed`` or ``failed``."""
        self._retried[cause] += 1

    def looked(self, now: float) -> None:
        """A controller looked at the balancer's counters (unix time)."""
        self._looked_at = now

    # ---------------------------------------------------------------------------------------- once a second

    def tell(
        self,
        plan: Plan,
        dispatcher: Dispatcher,
        *,
        now: float,
        plan_since: float,
        light: int = 0,
        in_flight: int,
        unanswered: Mapping[str, int],
    ) -> None:
        """Tells the state at ``now`` (unix time), and the counts since the last time.

        Args:
            light: place of the plan's light variant among the service's.
            unanswered: lookups that the cache did not answer, by what went wrong.
        """
        self._tell_counts(unanswered)
        tell = self._metrics.set
        tell(metrics_of.IN_FLIGHT, in_flight)
        tell(metrics_of.DEADLINE, self._slo_s)
        tell(metrics_of.PLAN_VERSION, plan.version)
        tell(metrics_of.PLAN_AGE, now - plan_since)
        tell(metrics_of.PLAN_THRESHOLD, plan.threshold)
        tell(metrics_of.PLAN_HEAVY_STEPS, plan.rules.heavy_steps or 0)
        tell(metrics_of.PLAN_LIGHT, light)
        tell(metrics_of.PLAN_ADMITTED, -1.0 if plan.admitted_rps is None else plan.admitted_rps)
        for role in Role:
            sizes = [a.batch_size for a in plan.assignments if a.role is role]
            tell(metrics_of.PLAN_REPLICAS, len(sizes), role=role.value)
            tell(metrics_of.PLAN_BATCH_SIZE, max(sizes, default=0), role=role.value)
            tell(metrics_of.REPLICAS_READY, dispatcher.ready(role), role=role.value)
            tell(metrics_of.QUEUED, dispatcher.queued(role), role=role.value)
            tell(metrics_of.CAPACITY, dispatcher.capacity_rps(role), role=role.value)
        if self._looked_at is not None:
            tell(metrics_of.CONTROLLER_SILENT, max(0.0, now - self._looked_at))

    def _tell_counts(self, unanswered: Mapping[str, int]) -> None:
        growth = self._growth
        growth.count(metrics_of.ASKED, self._asked)
        growth.count(metrics_of.ADMITTED, self._admitted)
        growth.counts(metrics_of.REFUSED, self._refused)
        growth.counts(metrics_of.ANSWERED, self._answered)
        growth.counts(metrics_of.FAILED, self._failed)
        growth.counts(metrics_of.VIOLATIONS, self._violations)
        growth.count(metrics_of.GOOD, self._good)
        growth.count(metrics_of.JUDGED, self._judged)
        growth.count(metrics_of.DEFERRED, self._deferred)
        growth.counts(metrics_of.BUSY_SECONDS, self._busy_s)
        growth.counts(metrics_of.STEPS, self._steps)
        growth.count(metrics_of.STEPS_SAVED, self._steps_saved)
        growth.counts(metrics_of.RETRIES, self._retried)
        growth.count(metrics_of.REDRAWN, self._redrawn)
        reasons: Counter[str] = Counter()
        for name, count in unanswered.items():
            if name != _NO_LOOKUP:
                reasons[_UNANSWERED.get(name, "error")] += count
        growth.counts(metrics_of.CACHE_UNANSWERED, reasons)
