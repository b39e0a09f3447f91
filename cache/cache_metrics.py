"""What the cache shows of itself: each lookup as it happens, and every few seconds what is cached and came of it."""

from __future__ import annotations

from cache.cache import ApproximateCache
from weir import metrics as metrics_of
from weir.core import CacheLookup
from weir.metrics import OTHER
from weir.states import capture_steps
from weir.telemetry import Growth, Metrics


class CacheMetrics:
    """Reads the cache from any thread; nothing of it is changed or waited for.

    Args:
        steps: of a whole run of the heavy variant. Runs of other lengths resume at other K, which are told as one.
    """

    def __init__(self, cache: ApproximateCache, metrics: Metrics, steps: int):
        self._cache = cache
        self._metrics = metrics
        self._growth = Growth(metrics)
        self._ks = {0, *capture_steps(steps)}

    def looked_up(self, found: CacheLookup, seconds: float) -> None:
        """A lookup was answered after so many seconds, its wait for the one before included."""
        self._metrics.observe(metrics_of.LOOKUP_SECONDS, seconds)
        if found.similarity is not None:
            self._metrics.observe(metrics_of.SIMILARITY, found.similarity)

    def tell(self) -> None:
        """Tells what is cached now, and what happened since the last time."""
        ledger, counters = self._cache.ledger, self._cache.counters
        self._metrics.set(metrics_of.CACHE_ENTRIES, len(ledger))
        self._metrics.set(metrics_of.CACHE_STATES, ledger.states)
        self._metrics.set(metrics_of.CACHE_BYTES, ledger.used_bytes)
        self._metrics.set(metrics_of.CACHE_BUDGET_BYTES, ledger.budget_bytes)
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
