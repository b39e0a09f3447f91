"""Cache: what reused states save, what lookups cost, and the condition of the store."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboards.frame import dashboard
from deploy.monitoring.dashboards.queries import each, name, now, or_zero, quantile, quantiles, rate
from deploy.monitoring.panels import Query, heatmap, row, timeseries
from weir import metrics

#: Outcomes of calls of the store.
_OUTCOMES = ("read", "written", "absent", "failed", "write_failed", "refused")


def cache() -> dict[str, Any]:
    return dashboard(
        "cache",
        "Weir: Cache",
        "What reused states save, what lookups cost, and the condition of the store.",
        [*_savings(), *_costs(), *_contents()],
    )


def _savings() -> list[dict[str, Any]]:
    """What reused states save."""
    return [
        row("Savings"),
        timeseries(
            "Requests by K",
            [Query(rate(metrics.SERVED, by="k"), "K = {{k}}")],
            unit="reqps",
            width=8,
            style="stacked",
            help="Step at which the heavy run began: K steps were skipped. 0 is a miss or a light answer.",
        ),
        timeseries(
            "Hit share and steps saved",
            [
                Query("weir:hit:ratio_rate1m", "hit share"),
                Query("weir:steps_saved:ratio_rate1m", "heavy steps saved"),
            ],
            unit="percentunit",
            width=8,
            limits=(0, 1),
            help="Share of hits among requests that used the cache, and share of heavy steps that were skipped.",
        ),
        heatmap(
            "Similarity of the nearest prompt",
            name(metrics.SIMILARITY),
            unit="short",
            width=8,
            help="Cosine similarity of the prompts' embeddings; the selector's thresholds map it to K.",
        ),
    ]


def _costs() -> list[dict[str, Any]]:
    """What lookups cost."""
    return [
        row("Costs"),
        timeseries(
            "Lookup time",
            [*quantiles(metrics.LOOKUP_SECONDS), Query(quantile(0.99, metrics.SEARCH_SECONDS), "p99 without encoding")],
            unit="s",
            width=8,
            help="Time in the cache: waiting for a batch, encoding the prompt, searching, selecting K.",
        ),
        timeseries(
            "Fetch time of states",
            quantiles(metrics.FETCH_SECONDS),
            unit="s",
            width=8,
            help="Time that a worker waits for a state, whether it arrives or not; at most cache.fetch_s.",
        ),
        timeseries(
            "Lookups",
            [
                Query(rate(metrics.LOOKUPS), "answered"),
                *each(metrics.CACHE_UNANSWERED, "reason", ("timeout", "resting", "error")),
            ],
            unit="reqps",
            width=8,
            help="A lookup without an answer is a miss. Resting: after several failures the cache is not called.",
        ),
    ]


def _contents() -> list[dict[str, Any]]:
    """What the store holds, and how it does."""
    return [
        row("Contents"),
        timeseries(
            "Size",
            [Query(now(metrics.CACHE_BYTES), "states"), Query(now(metrics.CACHE_BUDGET_BYTES), "budget")],
            unit="bytes",
            width=8,
            help="Size of the states in the store, and its limit.",
        ),
        timeseries(
            "Prompts and states",
            [Query(now(metrics.CACHE_ENTRIES), "prompts"), Query(now(metrics.CACHE_STATES), "states")],
            unit="short",
            width=8,
            help="A prompt has several states, one for each K.",
        ),
        timeseries(
            "Insertions and evictions",
            [
                Query(or_zero(rate(metrics.INSERTED)), "inserted"),
                Query(or_zero(rate(metrics.EVICTED)), "evicted"),
            ],
            unit="short",
            width=8,
            help="States per second.",
        ),
        timeseries(
            "Store calls",
            each(metrics.STORE_CALLS, "outcome", _OUTCOMES),
            unit="reqps",
            width=8,
            help="Calls by the cache and all workers. Refused: no valid tag. Absent: evicted in the meantime.",
        ),
        timeseries(
            "Circuit breaker",
            [Query(now(metrics.BREAKER_OPEN, "side"), "{{side}}")],
            unit="short",
            width=8,
            limits=(0, 1),
            style="steps",
            help="1 while a process does not call the store after several consecutive failures.",
        ),
        timeseries(
            "Unused lookups and states",
            each(
                metrics.TROUBLES,
                "reason",
                ("state_not_used", "state_lost", "store_failed", "captured_not_there", "never_finished"),
            ),
            unit="reqps",
            width=8,
            help="Each of these costs speed and nothing else.",
        ),
    ]
