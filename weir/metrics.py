"""Every metric: name (with its unit), kind, labels, buckets, help text, and the room that tells it.

Ray's endpoints show them with ``ray_`` in front. ``python -m deploy.monitoring.reference`` writes ``docs/metrics.md``
from this file; :mod:`weir.telemetry` says where figures go.

Labels are bounded: each lists its values, and anything else is told as ``other``. A prompt, an id, a tenant or a key is
never a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from weir import errors
from weir.cascade import AT_DEADLINE, FROM_CACHE
from weir.plan import HEAVY, LIGHT

#: What a value becomes that its label does not list.
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and the values that it may have, beside ``other``."""

    name: str
    values: tuple[str, ...]

    def checked(self, value: str) -> str:
        return value if value in self.values else OTHER


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        room: the folder whose process tells it.
        buckets: of a histogram: upper bounds, ascending, above 0.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    room: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    def checked(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels, in order; a value that is not listed becomes ``other``.

        Raises:
            KeyError: one is missing.
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
#: Step that a run began at. A family uses a handful, those that it captures at, and tells any other as ``other``.
K = Label("k", tuple(str(k) for k in range(101)))

#: From a hop to the longest deadline that is served.
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)
#: What is done beside drawing: from a dictionary's lookup to a store that hangs.
SHORT_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
#: Finer where the selectors' thresholds lie.
COSINES = (0.2, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.999, 1.0)
#: Between whole numbers, so that the interpolated median of ones is 1.
SIZES = (0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 12.5, 16.5, 24.5, 32.5, 64.5)

# ------------------------------------------------------------------------------------------------------- load balancer

_LB = "load_balancer"
ASKED = Metric("weir_images_asked_total", "counter", "Images asked for: the demand, refused ones included.", _LB)
ADMITTED = Metric("weir_images_admitted_total", "counter", "Images let in.", _LB)
REFUSED = Metric("weir_images_refused_total", "counter", "Images not let in, by the code of the answer.", _LB, (CODE,))
ANSWERED = Metric("weir_images_answered_total", "counter", "Images answered, by the way that they went.", _LB, (PATH,))
FAILED = Metric("weir_images_failed_total", "counter", "Images let in and not drawn, by the code.", _LB, (CODE,))
VIOLATIONS = Metric(
    "weir_violations_total",
    "counter",
    "Images that broke the promise: answered after the deadline, failed, or refused.",
    _LB,
    (Label("kind", ("late", "failed", "refused")),),
)
LATENCY = Metric(
    "weir_latency_seconds", "histogram", "From admission to the answer, by path.", _LB, (PATH,), buckets=SECONDS
)
GOOD = Metric(
    "weir_answers_good_total",
    "counter",
    "Answers, each counted as much as it is likely to be good enough: a light image its confidence, a heavy one 1. "
    "Over all answers it is the estimated quality.",
    _LB,
)
CONFIDENCE = Metric(
    "weir_confidence", "histogram", "The discriminator's confidence in light images.", _LB, buckets=SHARES
)
JUDGED = Metric("weir_light_judged_total", "counter", "Light images that the cascade decided about.", _LB)
DEFERRED = Metric("weir_light_deferred_total", "counter", "Of these, those to be drawn again, heavy.", _LB)
QUEUE_SECONDS = Metric(
    "weir_queue_seconds",
    "histogram",
    "An image's wait at its replica before its first step, by role.",
    _LB,
    (ROLE,),
    buckets=SECONDS,
)
SERVICE_SECONDS = Metric(
    "weir_service_seconds",
    "histogram",
    "From an image's first step to the finished picture, by role.",
    _LB,
    (ROLE,),
    buckets=SECONDS,
)
BATCH_SIZE = Metric(
    "weir_batch_size", "histogram", "Images that shared an image's batch, by role.", _LB, (ROLE,), buckets=SIZES
)
FETCH_SECONDS = Metric(
    "weir_state_fetch_seconds",
    "histogram",
    "A worker's wait for a state from the store, whether it came or not.",
    _LB,
    buckets=SHORT_SECONDS,
)
BUSY_SECONDS = Metric(
    "weir_busy_seconds_total", "counter", "Seconds that replicas drew, by role: utilisation, per replica.", _LB, (ROLE,)
)
STEPS = Metric("weir_steps_total", "counter", "Denoising steps that ran, by role.", _LB, (ROLE,))
STEPS_SAVED = Metric(
    "weir_steps_saved_total", "counter", "Heavy denoising steps that did not run, for a state went before them.", _LB
)
RETRIES = Metric(
    "weir_retries_total",
    "counter",
    "Images sent again: their replica died or failed, or changed its role before they began.",
    _LB,
    (Label("cause", ("replica_lost", "role_changed", "failed")),),
)
REDRAWN = Metric("weir_redraws_total", "counter", "Heavy images drawn once more, for the last one was doubted.", _LB)
IN_FLIGHT = Metric("weir_in_flight", "gauge", "Images admitted and not answered.", _LB)
QUEUED = Metric("weir_queued", "gauge", "Images that wait at replicas, by role.", _LB, (ROLE,))
REPLICAS_READY = Metric(
    "weir_replicas_ready", "gauge", "Live replicas, by the role that the plan gives them.", _LB, (ROLE,)
)
CAPACITY = Metric(
    "weir_capacity_rps",
    "gauge",
    "Images per second that the live replicas of a role can draw whole, in full batches, by the batch times of now.",
    _LB,
    (ROLE,),
)
DEADLINE = Metric("weir_deadline_seconds", "gauge", "The deadline that is served: the SLO of the configuration.", _LB)
PLAN_VERSION = Metric("weir_plan_version", "gauge", "Version of the plan in force.", _LB)
PLAN_AGE = Metric("weir_plan_age_seconds", "gauge", "Since the plan in force came into force.", _LB)
PLAN_THRESHOLD = Metric("weir_plan_threshold", "gauge", "Confidence below which a light image is deferred.", _LB)
PLAN_HEAVY_STEPS = Metric(
    "weir_plan_heavy_steps", "gauge", "Denoising steps of heavy runs from noise; 0: the variant's own.", _LB
)
PLAN_LIGHT = Metric(
    "weir_plan_light", "gauge", "Light variant in use: 0 the family's own, 1 the first of the service's pairs.", _LB
)
PLAN_REPLICAS = Metric("weir_plan_replicas", "gauge", "Replicas that the plan gives a role.", _LB, (ROLE,))
PLAN_BATCH_SIZE = Metric("weir_plan_batch_size", "gauge", "Largest batch that the plan allows in a role.", _LB, (ROLE,))
PLAN_ADMITTED = Metric("weir_plan_admitted_rps", "gauge", "Requests per second to admit; -1 when all are.", _LB)
CONTROLLER_SILENT = Metric(
    "weir_controller_silent_seconds",
    "gauge",
    "Since the controller last looked at the load balancer; not told under the policy static.",
    _LB,
)
CACHE_UNANSWERED = Metric(
    "weir_cache_unanswered_total",
    "counter",
    "Lookups that the cache did not answer: in time, at all, or because it is left alone after failures.",
    _LB,
    (Label("reason", ("timeout", "resting", "error")),),
)

# ---------------------------------------------------------------------------------------------------------- controller

_CONTROLLER = "controller"
FORECAST = Metric(
    "weir_forecast_rps", "gauge", "Demand that the last plan was made for, head-room included.", _CONTROLLER
)
REPLICAS = Metric("weir_replicas_alive", "gauge", "Live replicas, as the controller sees them.", _CONTROLLER)
PLANNED_DEFERRAL = Metric(
    "weir_planned_deferral", "gauge", "Share of light images that the last solution defers, 0 to 1.", _CONTROLLER
)
PLANNED_SHED = Metric("weir_planned_shed_rps", "gauge", "Demand that the last solution found no GPUs for.", _CONTROLLER)
PLANS = Metric("weir_plans_published_total", "counter", "Plans sent on their way.", _CONTROLLER)
ROLE_FLIPS = Metric("weir_role_flips_total", "counter", "Replicas that a plan gave another role.", _CONTROLLER)
SOLVE_SECONDS = Metric(
    "weir_solve_seconds",
    "histogram",
    "Time of a solution, building and checking included.",
    _CONTROLLER,
    buckets=SHORT_SECONDS,
)
SOLVES = Metric(
    "weir_solves_total",
    "counter",
    "Solutions, by how sure they are.",
    _CONTROLLER,
    (Label("status", ("optimal", "feasible", "relaxed", "lightest")),),
)
LATENCY_FACTOR = Metric(
    "weir_latency_factor", "gauge", "Measured over profiled batch times, by role.", _CONTROLLER, (ROLE,)
)
FAILURES = Metric("weir_controller_failures_total", "counter", "Seconds in which the controller failed.", _CONTROLLER)

# -------------------------------------------------------------------------------------------------------------- deploy

_DEPLOY = "deploy"
SHADOW_SAMPLES = Metric(
    "weir_shadow_samples_total", "counter", "Prompts drawn at every level in idle time, and judged.", _DEPLOY
)
LEVELS_DRIFTED = Metric(
    "weir_levels_drifted", "gauge", "1 while predicted levels surely lose other than what was recorded.", _DEPLOY
)
LEVELS_REFITTED = Metric(
    "weir_levels_refitted_total", "counter", "Level heads fitted again from shadow samples.", _DEPLOY
)

# --------------------------------------------------------------------------------------------------------------- cache

_CACHE = "cache"
LOOKUPS = Metric("weir_cache_lookups_total", "counter", "Lookups that the cache answered.", _CACHE)
LOOKUP_SECONDS = Metric(
    "weir_cache_lookup_seconds",
    "histogram",
    "Time of a lookup in the cache: encoding the prompt, searching, choosing.",
    _CACHE,
    buckets=SHORT_SECONDS,
)
SIMILARITY = Metric(
    "weir_cache_similarity", "histogram", "Cosine of a prompt to the nearest cached one.", _CACHE, buckets=COSINES
)
SERVED = Metric(
    "weir_cache_served_total",
    "counter",
    "Requests that asked the cache, by the step K that their heavy run began at; 0 from noise, or without one.",
    _CACHE,
    (K,),
)
TROUBLES = Metric(
    "weir_cache_troubles_total",
    "counter",
    "What kept the cache from helping.",
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
CACHE_BYTES = Metric("weir_cache_bytes", "gauge", "Bytes of these states.", _CACHE)
CACHE_BUDGET_BYTES = Metric("weir_cache_budget_bytes", "gauge", "Bytes that they may have.", _CACHE)
INSERTED = Metric("weir_cache_inserted_total", "counter", "States taken in.", _CACHE)
EVICTED = Metric("weir_cache_evicted_total", "counter", "States that left to make room.", _CACHE)
BREAKER_OPEN = Metric(
    "weir_cache_breaker_open",
    "gauge",
    "1 while the store is not asked, for it failed several times in a row; in the cache and in every worker.",
    "cache, workers",
    (Label("side", ("read", "write")),),
)
STORE_CALLS = Metric(
    "weir_store_calls_total",
    "counter",
    "States read from the store and written to it, by outcome: read, absent, refused (not proven to be ours), failed; "
    "written, write_failed; and orphans found at the start.",
    "cache, workers",
    (Label("outcome", ("read", "absent", "refused", "failed", "written", "write_failed", "orphans")),),
)

# ------------------------------------------------------------------------------------------------------------- workers

_WORKERS = "workers"
WORKER_FAILURES = Metric(
    "weir_worker_failures_total",
    "counter",
    "Images and states that a worker could not do, by code.",
    _WORKERS,
    (Label("code", (*CODE.values, "state_fetch", "state_store")),),
)

# -------------------------------------------------------------------------------------------------------------- traces

_TRACES = "traces"
REPLAYED = Metric(
    "weir_replay_requests_total",
    "counter",
    "Requests of a replay that ended, as the client saw it.",
    _TRACES,
    (Label("outcome", ("in_time", "late", "refused", "failed")),),
)
REPLAY_LATENCY = Metric(
    "weir_replay_latency_seconds",
    "histogram",
    "From sending a request of a replay to its whole answer, or to its failure.",
    _TRACES,
    buckets=SECONDS,
)

ALL = tuple(it for it in list(globals().values()) if isinstance(it, Metric))
