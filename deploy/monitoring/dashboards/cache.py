"""Cache: what other prompts' states save, what it costs to look for them, and how the store is."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboards.frame import dashboard
from deploy.monitoring.dashboards.queries import each, name, now, or_zero, quantiles, rate
from deploy.monitoring.panels import Query, lines, row, spread
from weir import metrics


def cache() -> dict[str, Any]:
    outcomes = ("read", "written", "absent", "failed", "write_failed", "refused")
    return dashboard(
        "cache",
        "Weir: Cache",
        "What other prompts' states save, what it costs to look for them, and how the store is.",
        [
            row("What it saves"),
            lines(
                "Requests by K",
                [Query(rate(metrics.SERVED, by="k"), "K = {{k}}")],
                unit="reqps",
                width=8,
                stacked=True,
                help="The step at which the heavy run began: K steps were not run. 0 is a miss, or a light answer.",
            ),
            lines(
                "Hit share and steps saved",
                [
                    Query("weir:hit:ratio_rate1m", "hit share"),
                    Query("weir:steps_saved:ratio_rate1m", "heavy steps saved"),
                ],
                unit="percentunit",
                width=8,
                most=1,
                help="Of the requests that asked the cache; and of the heavy steps that would have run without it.",
            ),
            spread(
                "Similarity of the nearest prompt",
                name(metrics.SIMILARITY),
                unit="short",
                width=8,
                help="Cosine of the prompts' embeddings; the selector's thresholds say how many steps that is worth.",
            ),
            row("What it costs"),
            lines(
                "Time of a lookup",
                quantiles(metrics.LOOKUP_SECONDS),
                unit="s",
                width=8,
                help="In the cache: waiting for its thread, encoding the prompt, searching, choosing.",
            ),
            lines(
                "Wait for a state",
                quantiles(metrics.FETCH_SECONDS),
                unit="s",
                width=8,
                help="By the worker, whether it came or not; cache.fetch_s is the longest.",
            ),
            lines(
                "Lookups",
                [
                    Query(rate(metrics.LOOKUPS), "answered"),
                    *each(metrics.CACHE_UNANSWERED, "reason", ("timeout", "resting", "error")),
                ],
                unit="reqps",
                width=8,
                help="An unanswered lookup is a miss. Resting: the cache failed several times and is left alone.",
            ),
            row("What it holds"),
            lines(
                "Bytes",
                [Query(now(metrics.CACHE_BYTES), "states"), Query(now(metrics.CACHE_BUDGET_BYTES), "budget")],
                unit="bytes",
                width=8,
                help="Of the states in the store, and what they may have.",
            ),
            lines(
                "Prompts and states",
                [Query(now(metrics.CACHE_ENTRIES), "prompts"), Query(now(metrics.CACHE_STATES), "states")],
                unit="short",
                width=8,
                help="A prompt keeps several states, one for each K.",
            ),
            lines(
                "Taken in and evicted",
                [
                    Query(or_zero(rate(metrics.INSERTED)), "taken in"),
                    Query(or_zero(rate(metrics.EVICTED)), "evicted"),
                ],
                unit="short",
                width=8,
                help="States per second.",
            ),
            lines(
                "Store calls",
                each(metrics.STORE_CALLS, "outcome", outcomes),
                unit="reqps",
                width=8,
                help="By the cache and all workers. Refused: not proven to be ours. Absent: evicted meanwhile.",
            ),
            lines(
                "Breaker",
                [Query(now(metrics.BREAKER_OPEN, "side"), "{{side}}")],
                unit="short",
                width=8,
                most=1,
                steps=True,
                help="1 while a process does not ask the store, for it failed several times in a row.",
            ),
            lines(
                "What kept it from helping",
                each(
                    metrics.TROUBLES,
                    "reason",
                    ("state_not_used", "state_lost", "store_failed", "captured_not_there", "never_finished"),
                ),
                unit="reqps",
                width=8,
                help="Each costs speed and nothing else.",
            ),
        ],
    )
