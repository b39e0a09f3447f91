"""Records the load balancer's metrics: counts and distributions of the images that pass, and its state each second.

The balancer reports events, this module counts them, and a :class:`weir.telemetry.Metrics` publishes them: a few
histogram entries for each request, and the counts once a second.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.runner.generation_task import GeneratedImage
from weir import metrics as metrics_of
from weir.cascade import Action, Event, Judged, Progress, Reason, Run, RunFailed
from weir.core import ImageResult
from weir.errors import Blocked, WeirError
from weir.plan import Assignment, Plan
from weir.telemetry import Growth, Metrics, NoMetrics

#: Seconds over which the demand is averaged.
DEMAND_S = 60
#: Metric labels of failed cache lookups, by the cache client's reasons; all other reasons are ``error``.
_LOOKUP_FAILURES = {"TimeoutError": "timeout", "resting": "resting"}
#: The cache client's reason for a failed report of a request's end, which is not a lookup.
_REPORT_FAILURE = "finish"
#: Metric labels of retried runs, by the reason of the failure.
_RETRIES = {
    Reason.LOST: "replica_lost",
    Reason.FAILED: "failed",
    Reason.NOT_FINITE: "failed",
    Reason.ROLE_CHANGED: "role_changed",
}


class MetricsRecorder:
    """Counts since the start. Lives on the balancer's event loop.

    Args:
        slo_s: answers that take longer are SLO violations.
        ladder: keys of the family's variants, from the fastest to the best.
    """

    def __init__(self, slo_s: float, ladder: Sequence[str], metrics: Metrics | None = None):
        self._slo_s = slo_s
        self._ladder = tuple(ladder)
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
        self._counters_read_at: float | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=DEMAND_S)  # times, and images requested until then

    # ----------------------------------------------------------------------------------------------- events

    def asked(self, images: int) -> None:
        """Counts requested images."""
        self._asked += images

    def admitted(self, images: int) -> None:
        """Counts admitted images."""
        self._admitted += images

    def refused(self, images: int, error: WeirError) -> None:
        """Counts refused images."""
        self._refused[error.code] += images
        self._violations["refused"] += images

    def answered(self, image: GeneratedImage) -> None:
        """Counts an answered image."""
        self._answered[image.path] += 1
        self._violations["late"] += image.latency_s > self._slo_s
        self._redrawn += max(0, image.draws - 1)
        self._good += 1.0 if image.variant == self._ladder[-1] else image.confidence or 0.0
        self._metrics.observe(metrics_of.LATENCY, image.latency_s, path=image.path)

    def failed(self, error: WeirError) -> None:
        """Counts an admitted image that failed; one that is blocked violates no promise."""
        self._failed[error.code] += 1
        self._violations["failed"] += not isinstance(error, Blocked)

    def follow(self, progress: Progress, event: Event, actions: Iterable[Action]) -> None:
        """Counts one step of the cascade: verdicts on the chain's first variant, and retried runs."""
        failed = event.reason if isinstance(event, RunFailed) else None
        for action in actions:
            if isinstance(action, Judged) and action.variant == progress.task.plan.first:
                self._judged += 1
                self._deferred += action.deferred
                self._metrics.observe(metrics_of.CONFIDENCE, action.confidence or 0.0)
            elif isinstance(action, Run) and (action.avoid or failed is Reason.ROLE_CHANGED) and failed in _RETRIES:
                self._retried[_RETRIES[failed]] += 1

    def replied(self, run: Run, result: ImageResult, whole: int) -> None:
        """Counts a worker's reply to a run that takes ``whole`` steps from noise."""
        role = run.role
        self._steps[role] += result.steps
        self._steps_saved += whole - result.steps if result.resumed_at and run.strength is None else 0
        self._busy_s[role] = self._busy_s.get(role, 0.0) + result.device_s / max(1, result.batch_size)
        self._metrics.observe(metrics_of.QUEUE_SECONDS, result.queue_s, role=role)
        self._metrics.observe(metrics_of.SERVICE_SECONDS, result.compute_s, role=role)
        self._metrics.observe(metrics_of.BATCH_SIZE, result.batch_size, role=role)
        if result.fetch_s is not None:
            self._metrics.observe(metrics_of.FETCH_SECONDS, result.fetch_s)

    def counters_read(self, now: float) -> None:
        """Records that a controller read the balancer's counters at ``now``, in seconds of the balancer's clock."""
        self._counters_read_at = now

    def totals(self, now: float) -> dict[str, Any]:
        """Counts of images since the start by what became of them, and the demand of the last minute."""
        since, before = self._recent[0] if self._recent else (now, 0)
        return {
            "demand_rps": (self._asked - before) / (now - since) if now > since else None,
            "answered": sum(self._answered.values()),
            "late": self._violations["late"],
            "refused": self._violations["refused"],
            "failed": self._violations["failed"],
        }

    # ---------------------------------------------------------------------------------------- once a second

    def record(
        self,
        plan: Plan,
        assignments: Sequence[Assignment],
        dispatcher: Dispatcher,
        *,
        now: float,
        plan_since: float,
        in_flight: int,
        unanswered: Mapping[str, int],
    ) -> None:
        """Records the state at ``now``, in seconds of the balancer's clock, and the counts since the last call.

        Args:
            assignments: the plan's for the replicas that are not drained.
            unanswered: number of failed calls to the cache, by reason.
        """
        self._record_counts(unanswered)
        self._recent.append((now, self._asked))
        record = self._metrics.set
        record(metrics_of.IN_FLIGHT, in_flight)
        record(metrics_of.DEADLINE, self._slo_s)
        record(metrics_of.PLAN_VERSION, plan.version)
        record(metrics_of.PLAN_AGE, now - plan_since)
        record(metrics_of.PLAN_THRESHOLD, plan.threshold)
        record(metrics_of.PLAN_HEAVY_STEPS, plan.rules.heavy_steps or 0)
        record(metrics_of.PLAN_LIGHT, self._ladder.index(plan.first))
        record(metrics_of.PLAN_ADMITTED, -1.0 if plan.admitted_rps is None else plan.admitted_rps)
        for role in dict.fromkeys((*self._ladder, *plan.roles)):
            sizes = [a.batch_size for a in assignments if a.role == role]
            record(metrics_of.PLAN_REPLICAS, len(sizes), role=role)
            record(metrics_of.PLAN_BATCH_SIZE, max(sizes, default=0), role=role)
            record(metrics_of.REPLICAS_READY, dispatcher.replicas.ready(role), role=role)
            record(metrics_of.QUEUED, dispatcher.replicas.queued(role), role=role)
            record(metrics_of.CAPACITY, dispatcher.replicas.capacity_rps(role, plan.variant_of(role)), role=role)
        if self._counters_read_at is not None:
            record(metrics_of.CONTROLLER_SILENT, max(0.0, now - self._counters_read_at))

    def record_clock_skew(self, seconds: float) -> None:
        """Records the largest difference between the wall clock of a replica's host and this one's."""
        self._metrics.set(metrics_of.CLOCK_SKEW, seconds)

    def record_controls(self, pinned: bool, drained: int, actions: Mapping[str, int]) -> None:
        """Records the operator's controls.

        Args:
            drained: number of drained replicas.
            actions: number of actions since the start, by name.
        """
        self._metrics.set(metrics_of.PINNED, float(pinned))
        self._metrics.set(metrics_of.DRAINED, drained)
        self._growth.counts(metrics_of.ADMIN_ACTIONS, actions)

    def _record_counts(self, unanswered: Mapping[str, int]) -> None:
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
            if name != _REPORT_FAILURE:
                reasons[_LOOKUP_FAILURES.get(name, "error")] += count
        growth.counts(metrics_of.CACHE_UNANSWERED, reasons)
