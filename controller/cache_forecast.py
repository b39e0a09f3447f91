"""What the cache saves now: the shares of requests by the share of heavy steps that they do not run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from solvers.problem import CacheHit

#: What one observation leaves of the ones before it: a mean over about a minute of seconds.
KEPT = 0.98
#: Requests below which nothing is believed.
LEAST_REQUESTS = 10.0
#: Fetches of states that are remembered, and the quantile of them that plans reckon with.
FETCHES = 200
#: Fetches that count as having come before any was seen, and what one fetch leaves of those before it.
PRIOR_FETCHES = 5.0
FORGET_FETCHES = 0.95
QUANTILE = 0.95


class LiveHits:
    """An exponentially forgetting histogram. Without a cache it stays empty."""

    def __init__(self) -> None:
        self._requests = 0.0
        self._hits: dict[float, float] = {}
        self._fetches: deque[float] = deque(maxlen=FETCHES)
        self._asked = self._came = PRIOR_FETCHES

    def observe(
        self, arrivals: int, found: Mapping[float, int], fetches: Sequence[float] = (), resumed: int | None = None
    ) -> None:
        """Takes in one observation: requests that came, the cached states found for them, by the share of steps that
        they would save, the seconds that workers waited for states, and the images that went on from one (None: it is
        not known, and as many as were asked for)."""
        self._fetches.extend(fetches)
        if fetches:
            kept = FORGET_FETCHES ** len(fetches)
            self._asked = kept * self._asked + len(fetches)
            self._came = kept * self._came + min(len(fetches), len(fetches) if resumed is None else resumed)
        self._requests = KEPT * self._requests + arrivals
        self._hits = {saved: KEPT * count for saved, count in self._hits.items()}
        for saved, count in found.items():
            self._hits[saved] = self._hits.get(saved, 0.0) + count

    def hits(self, quality: float) -> tuple[CacheHit, ...]:
        """The hits for the allocation problem; shares add up to at most 1.

        Args:
            quality: of a resumed image.
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
        """Share of the states asked for that came: the others cost a whole run, whatever the lookup promised."""
        return self._came / self._asked

    @property
    def fetch_s(self) -> float:
        """Seconds that a resumed image waits for its state: the 95th percentile of the last 200; 0 before any."""
        if not self._fetches:
            return 0.0
        return sorted(self._fetches)[math.ceil(QUANTILE * len(self._fetches)) - 1]
