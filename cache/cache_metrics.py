"""Publishes the cache's metrics: each lookup, and every few seconds the cached entries and the counts."""

from __future__ import annotations

from cache.cache import ApproximateCache
from weir import metrics as metrics_of
from weir.core import CacheLookup
from weir.metrics import OTHER
from weir.states import capture_steps
from weir.telemetry import Growth, Metrics


class CacheMetrics:
    """The cache's metrics. It reads the cache from any thread, without changing it or waiting.

    Args:
        steps: steps of a whole run of the heavy variant. The K of runs of other lengths are reported as ``other``.
    """

    def __init__(self, cache: ApproximateCache, metrics: Metrics, steps: int):
        self._cache = cache
        self._metrics = metrics
        self._growth = Growth(metrics)
        self._ks = {0, *capture_steps(steps)}

    def looked_up(self, found: CacheLookup, seconds: float) -> None:
        """Records a lookup, which took ``seconds`` from its encoded prompt on, including its wait for earlier work."""
        self._metrics.observe(metrics_of.SEARCH_SECONDS, seconds)
        if found.similarity is not None:
            self._metrics.observe(metrics_of.SIMILARITY, found.similarity)

    def record(self) -> None:
        """Records the cached entries, and the counts since the last call."""
        catalog, counters = self._cache.catalog, self._cache.counters
        self._metrics.set(metrics_of.CACHE_ENTRIES, len(catalog))
        self._metrics.set(metrics_of.CACHE_STATES, catalog.states)
        self._metrics.set(metrics_of.CACHE_BYTES, catalog.used_bytes)
        self._metrics.set(metrics_of.CACHE_BUDGET_BYTES, catalog.budget_bytes)
        self._cache.store.show()
        served: dict[str, float] = {}
        for k, count in dict(counters.served).items():
            label = str(k) if k in self._ks else OTHER
            served[label] = served.get(label, 0) + count
        self._growth.counts(metrics_of.SERVED, served)
        self._growth.count(metrics_of.LOOKUPS, counters.lookups)
        self._growth.count(metrics_of.INSERTED, counters.inserted)
        self._growth.count(metrics_of.EVICTED, counters.evicted)
        self._growth.counts(metrics_of.TROUBLES, dict(counters.reasons))
