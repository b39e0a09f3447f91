"""Every metric: its name (with the unit), kind, labels, buckets, help text, and the folder that records it.

Ray's endpoints export them with the prefix ``ray_``. ``python -m deploy.monitoring.reference`` writes
``docs/metrics.md`` from this file; :mod:`weir.telemetry` exports the values.

Labels are bounded: each lists its values, and any other value is recorded as ``other``. A prompt, an id, a tenant or a
key is never a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from weir import errors
from weir.cascade import AT_DEADLINE, FROM_CACHE
from weir.plan import HEAVY, LIGHT

#: Recorded in place of a value that the label does not list.
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and its possible values, besides ``other``."""

    name: str
    values: tuple[str, ...]

    def checked(self, value: str) -> str:
        return value if value in self.values else OTHER


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        room: the folder whose code records the metric.
        buckets: upper bounds of a histogram, ascending and above 0.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    room: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    def checked(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels in their order; a value that is not listed becomes ``other``.

        Raises:
            KeyError: a label is missing.
        """
        return {label.name: label.checked(labels[label.name]) for label in self.labels}


# ------------------------------------------------------------------------------------------------ labels and buckets


def _codes(error: type[errors.WeirError]) -> tuple[str, ...]:
    below = (code for child in error.__subclasses__() for code in _codes(child))
    return tuple(dict.fromkeys((error.code, *below)))


#: Keys of variants that have a name of their own in the metrics; those of other ladders are recorded as ``other``.
VARIANTS = (LIGHT, "medium", HEAVY)
ROLE = Label("role", VARIANTS)
PATH = Label("path", (*VARIANTS, *(it + AT_DEADLINE for it in VARIANTS[:-1]), FROM_CACHE))
CODE = Label("code", _codes(errors.WeirError))
#: Step at which a run began. A family uses only the few steps at which it captures states.
K = Label("k", tuple(str(k) for k in range(101)))

#: From one network hop to the longest supported deadline.
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)
#: For work besides generation: from a dictionary lookup to a store that hangs.
SHORT_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
#: Finer where the selectors' thresholds lie.
COSINES = (0.2, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.999, 1.0)
#: Bounds lie between whole numbers, so that the interpolated median of equal sizes is exact.
SIZES = (0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 12.5, 16.5, 24.5, 32.5, 64.5)

# ------------------------------------------------------------------------------------------------------- load balancer

_LB = "load_balancer"
ASKED = Metric("weir_images_asked_total", "counter", "Requested images, including refused ones: the demand.", _LB)
ADMITTED = Metric("weir_images_admitted_total", "counter", "Admitted images.", _LB)
REFUSED = Metric("weir_images_refused_total", "counter", "Refused images, by error code.", _LB, (CODE,))
ANSWERED = Metric("weir_images_answered_total", "counter", "Answered images, by path.", _LB, (PATH,))
FAILED = Metric(
    "weir_images_failed_total", "counter", "Admitted images that could not be generated, by error code.", _LB, (CODE,)
)
VIOLATIONS = Metric(
    "weir_violations_total",
    "counter",
    "Images that violated the SLO: answered after the deadline, failed, or refused.",
    _LB,
    (Label("kind", ("late", "failed", "refused")),),
)
LATENCY = Metric(
    "weir_latency_seconds", "histogram", "Time from admission to the answer, by path.", _LB, (PATH,), buckets=SECONDS
)
GOOD = Metric(
    "weir_answers_good_total",
    "counter",
    "Estimated number of good answers: the sum of the confidences of light images, plus 1 for each heavy image. "
    "Divided by the number of answers it is the estimated quality.",
    _LB,
)
CONFIDENCE = Metric(
    "weir_confidence", "histogram", "Confidence of the discriminator in light images.", _LB, buckets=SHARES
)
JUDGED = Metric("weir_light_judged_total", "counter", "Light images that were accepted or deferred.", _LB)
DEFERRED = Metric("weir_light_deferred_total", "counter", "Light images that were deferred to the heavy variant.", _LB)
QUEUE_SECONDS = Metric(
    "weir_queue_seconds",
    "histogram",
    "Time that an image waits at its replica before its first step, by role.",
    _LB,
    (ROLE,),
    buckets=SECONDS,
)
SERVICE_SECONDS = Metric(
    "weir_service_seconds",
    "histogram",
    "Time from an image's first step to the finished image, by role.",
    _LB,
    (ROLE,),
    buckets=SECONDS,
)
BATCH_SIZE = Metric(
    "weir_batch_size",
    "histogram",
    "Size of the batch in which an image was generated, by role.",
    _LB,
    (ROLE,),
    buckets=SIZES,
)
FETCH_SECONDS = Metric(
    "weir_state_fetch_seconds",
    "histogram",
    "Time that a worker waits for a state from the store, whether it arrives or not.",
    _LB,
    buckets=SHORT_SECONDS,
)
BUSY_SECONDS = Metric(
    "weir_busy_seconds_total",
    "counter",
    "Time that replicas spent on generation, by role; its rate per replica is the utilisation.",
    _LB,
    (ROLE,),
)
STEPS = Metric("weir_steps_total", "counter", "Denoising steps that were run, by role.", _LB, (ROLE,))
STEPS_SAVED = Metric(
    "weir_steps_saved_total",
    "counter",
    "Heavy denoising steps that were skipped because the run resumed from a state.",
    _LB,
)
RETRIES = Metric(
    "weir_retries_total",
    "counter",
    "Images that were sent to a replica again, because the first one died, failed, or changed its role.",
    _LB,
    (Label("cause", ("replica_lost", "role_changed", "failed")),),
)
REDRAWN = Metric(
    "weir_redraws_total",
    "counter",
    "Redraws: heavy images that were generated again because the discriminator doubted them.",
    _LB,
)
IN_FLIGHT = Metric("weir_in_flight", "gauge", "Images that are admitted and not yet answered.", _LB)
QUEUED = Metric("weir_queued", "gauge", "Images that wait at replicas, by role.", _LB, (ROLE,))
REPLICAS_READY = Metric("weir_replicas_ready", "gauge", "Live replicas, by their role in the plan.", _LB, (ROLE,))
CAPACITY = Metric(
    "weir_capacity_rps",
    "gauge",
    "Images per second that the live replicas of a role can generate in full batches, at the current batch times.",
    _LB,
    (ROLE,),
)
DEADLINE = Metric("weir_deadline_seconds", "gauge", "Deadline of requests: the SLO of the configuration.", _LB)
PLAN_VERSION = Metric("weir_plan_version", "gauge", "Version of the current plan.", _LB)
PLAN_AGE = Metric("weir_plan_age_seconds", "gauge", "Time since the current plan came into force.", _LB)
PLAN_THRESHOLD = Metric("weir_plan_threshold", "gauge", "Confidence below which a light image is deferred.", _LB)
PLAN_HEAVY_STEPS = Metric(
    "weir_plan_heavy_steps",
    "gauge",
    "Denoising steps of heavy runs from noise; 0 stands for the variant's own number.",
    _LB,
)
PLAN_LIGHT = Metric(
    "weir_plan_light",
    "gauge",
    "Position in the family's ladder of the first variant that the plan uses; 0 is the fastest variant.",
    _LB,
)
PLAN_REPLICAS = Metric("weir_plan_replicas", "gauge", "Replicas that the plan assigns to a role.", _LB, (ROLE,))
PLAN_BATCH_SIZE = Metric(
    "weir_plan_batch_size", "gauge", "Largest batch size that the plan allows in a role.", _LB, (ROLE,)
)
PLAN_ADMITTED = Metric(
    "weir_plan_admitted_rps", "gauge", "Requests per second that the plan admits; -1 when there is no limit.", _LB
)
PINNED = Metric("weir_pinned", "gauge", "1 while an operator's pin holds the plan or a part of it.", _LB)
DRAINED = Metric(
    "weir_drained_replicas", "gauge", "Drained replicas: they finish what they have, and get nothing new.", _LB
)
ADMIN_ACTIONS = Metric(
    "weir_admin_actions_total",
    "counter",
    "Actions of operators; an unpin is also counted when the time of a pin is over.",
    _LB,
    (Label("action", ("pin", "unpin", "policy", "drain", "return", "purge")),),
)
CLOCK_SKEW = Metric(
    "weir_clock_skew_seconds",
    "gauge",
    "Largest difference between the wall clock of a replica's host and the load balancer's. No deadline depends on it; "
    "times in logs of different hosts do.",
    _LB,
)
CONTROLLER_SILENT = Metric(
    "weir_controller_silent_seconds",
    "gauge",
    "Time since the controller last read the load balancer's counters; not recorded under the policy static.",
    _LB,
)
CACHE_UNANSWERED = Metric(
    "weir_cache_unanswered_total",
    "counter",
    "Lookups without an answer: after a timeout, after an error, or while the cache is not called after failures.",
    _LB,
    (Label("reason", ("timeout", "resting", "error")),),
)

# ---------------------------------------------------------------------------------------------------------- controller

_CONTROLLER = "controller"
FORECAST = Metric(
    "weir_forecast_rps", "gauge", "Demand that the last plan was made for, including headroom.", _CONTROLLER
)
REPLICAS = Metric("weir_replicas_alive", "gauge", "Live replicas, as counted by the controller.", _CONTROLLER)
PLANNED_DEFERRAL = Metric(
    "weir_planned_deferral", "gauge", "Share of light images that the last solution defers, from 0 to 1.", _CONTROLLER
)
PLANNED_SHED = Metric("weir_planned_shed_rps", "gauge", "Demand for which the last solution had no GPUs.", _CONTROLLER)
PLANS = Metric("weir_plans_published_total", "counter", "Plans that were published.", _CONTROLLER)
ROLE_FLIPS = Metric("weir_role_flips_total", "counter", "Role changes of replicas.", _CONTROLLER)
SOLVE_SECONDS = Metric(
    "weir_solve_seconds",
    "histogram",
    "Time to build, solve and check one allocation problem.",
    _CONTROLLER,
    buckets=SHORT_SECONDS,
)
SOLVES = Metric(
    "weir_solves_total",
    "counter",
    "Solutions of the allocation problem, by status.",
    _CONTROLLER,
    (Label("status", ("optimal", "feasible", "relaxed", "lightest")),),
)
LATENCY_FACTOR = Metric(
    "weir_latency_factor", "gauge", "Ratio of measured to profiled batch times, by role.", _CONTROLLER, (ROLE,)
)
FAILURES = Metric(
    "weir_controller_failures_total", "counter", "Seconds in which a controller iteration failed.", _CONTROLLER
)

# -------------------------------------------------------------------------------------------------------------- deploy

_DEPLOY = "deploy"
SHADOW_SAMPLES = Metric(
    "weir_shadow_samples_total",
    "counter",
    "Shadow samples: prompts that were generated at every level in idle time, and judged.",
    _DEPLOY,
)
LEVELS_DRIFTED = Metric(
    "weir_levels_drifted",
    "gauge",
    "1 while the quality loss of a predicted level differs significantly from the recorded one.",
    _DEPLOY,
)
LEVELS_REFITTED = Metric(
    "weir_levels_refitted_total", "counter", "Level heads that were fitted again from shadow samples.", _DEPLOY
)

# --------------------------------------------------------------------------------------------------------------- cache

_CACHE = "cache"
LOOKUPS = Metric("weir_cache_lookups_total", "counter", "Lookups that the cache answered.", _CACHE)
LOOKUP_SECONDS = Metric(
    "weir_cache_lookup_seconds",
    "histogram",
    "Time of a lookup in the cache: waiting for a batch, encoding the prompt, searching, and selecting K.",
    _CACHE,
    buckets=SHORT_SECONDS,
)
SEARCH_SECONDS = Metric(
    "weir_cache_search_seconds",
    "histogram",
    "The part of a lookup after the prompt was encoded: waiting for other work of the cache, searching, selecting K.",
    _CACHE,
    buckets=SHORT_SECONDS,
)
SIMILARITY = Metric(
    "weir_cache_similarity",
    "histogram",
    "Cosine similarity of a prompt to the nearest cached prompt.",
    _CACHE,
    buckets=COSINES,
)
SERVED = Metric(
    "weir_cache_served_total",
    "counter",
    "Requests that used the cache, by the step K at which their heavy run began; 0 for noise or no heavy run.",
    _CACHE,
    (K,),
)
TROUBLES = Metric(
    "weir_cache_troubles_total",
    "counter",
    "Events in which the cache was of no use, by reason.",
    _CACHE,
    (
        Label(
            "reason",
            (
                "predicted_miss",
                "state_not_used",
                "state_lost",
                "store_failed",
                "captured_not_there",
                "never_finished",
            ),
        ),
    ),
)
CACHE_ENTRIES = Metric("weir_cache_entries", "gauge", "Prompts in the index.", _CACHE)
CACHE_STATES = Metric("weir_cache_states", "gauge", "Denoising states in the store.", _CACHE)
CACHE_BYTES = Metric("weir_cache_bytes", "gauge", "Size of the states in the store.", _CACHE)
CACHE_BUDGET_BYTES = Metric("weir_cache_budget_bytes", "gauge", "Largest total size of the states.", _CACHE)
INSERTED = Metric("weir_cache_inserted_total", "counter", "States that were inserted.", _CACHE)
EVICTED = Metric("weir_cache_evicted_total", "counter", "States that were evicted.", _CACHE)
BREAKER_OPEN = Metric(
    "weir_cache_breaker_open",
    "gauge",
    "1 while the store is not called after several consecutive failures; recorded by the cache and by every worker.",
    "cache, workers",
    (Label("side", ("read", "write")),),
)
STORE_CALLS = Metric(
    "weir_store_calls_total",
    "counter",
    "Reads and writes of states, by outcome. Reads: read, absent, refused (no valid tag), failed. "
    "Writes: written, write_failed. At the start: orphans (states without an entry).",
    "cache, workers",
    (Label("outcome", ("read", "absent", "refused", "failed", "written", "write_failed", "orphans")),),
)

# ------------------------------------------------------------------------------------------------------------- workers

_WORKERS = "workers"
WORKER_FAILURES = Metric(
    "weir_worker_failures_total",
    "counter",
    "Images and states that failed in a worker, by error code.",
    _WORKERS,
    (Label("code", (*CODE.values, "state_fetch", "state_store")),),
)

# -------------------------------------------------------------------------------------------------------------- traces

_TRACES = "traces"
REPLAYED = Metric(
    "weir_replay_requests_total",
    "counter",
    "Finished requests of a replay, by the outcome that the client observed.",
    _TRACES,
    (Label("outcome", ("in_time", "late", "refused", "failed")),),
)
REPLAY_LATENCY = Metric(
    "weir_replay_latency_seconds",
    "histogram",
    "Time from sending a request of a replay to its complete answer or its failure.",
    _TRACES,
    buckets=SECONDS,
)

ALL = tuple(it for it in list(globals().values()) if isinstance(it, Metric))
