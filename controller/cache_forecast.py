"""Forecast of the cache: the shares of requests by the share of heavy steps that a stored state saves them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from solvers.problem import CacheHit

#: Factor by which each observation reduces the weight of the earlier ones: a mean over about a minute.
KEPT = 0.98
#: Number of requests below which there is no forecast.
LEAST_REQUESTS = 10.0
#: Number of fetch times that are kept.
FETCHES = 200
#: Number of successful fetches that the success rate starts with.
PRIOR_FETCHES = 5.0
#: Factor by which each fetch reduces the weight of the earlier ones.
FORGET_FETCHES = 0.95
#: Quantile of the fetch times that plans use.
QUANTILE = 0.95


class CacheForecast:
    """Histogram of cache hits with exponential forgetting. Without a cache it stays empty."""

    def __init__(self) -> None:
        self._requests = 0.0
        self._hits: dict[float, float] = {}
        self._fetches: deque[float] = deque(maxlen=FETCHES)
        self._fetched = self._succeeded = PRIOR_FETCHES

    def observe(
        self, arrivals: int, found: Mapping[float, int], fetches: Sequence[float] = (), resumed: int | None = None
    ) -> None:
        """Adds one observation.

        Args:
            arrivals: number of requests that arrived.
            found: number of lookups that found a state, by the share of steps that it would save.
            fetches: seconds that workers waited for each state.
            resumed: number of images that resumed from a state; None when it is not known, and every fetch counts as
                successful.
        """
        self._fetches.extend(fetches)
        if fetches:
            kept = FORGET_FETCHES ** len(fetches)
            self._fetched = kept * self._fetched + len(fetches)
            self._succeeded = kept * self._succeeded + min(len(fetches), len(fetches) if resumed is None else resumed)
        self._requests = KEPT * self._requests + arrivals
        self._hits = {saved: KEPT * count for saved, count in self._hits.items()}
        for saved, count in found.items():
            self._hits[saved] = self._hits.get(saved, 0.0) + count

    def hits(self, quality: float) -> tuple[CacheHit, ...]:
        """Returns the hits for the allocation problem; their shares add up to at most 1.

        Args:
            quality: quality of a resumed image.
        """
        if self._requests < LEAST_REQUESTS:
            return ()
        whole = max(self._requests, sum(self._hits.values()))
        return tuple(
            CacheHit(count / whole, 1 - saved * self.arriving, quality)
            for saved, count in sorted(self._hits.items())
            if count > 1e-3
        )

    @property
    def arriving(self) -> float:
        """Share of the fetches that succeeded. A failed fetch costs a whole run although the lookup found a state."""
        return self._succeeded / self._fetched

    @property
    def fetch_s(self) -> float:
        """Seconds that a resumed image waits for its state: the 95th percentile of the last 200 fetches; 0 before the
        first one."""
        if not self._fetches:
            return 0.0
        return sorted(self._fetches)[math.ceil(QUANTILE * len(self._fetches)) - 1]
