"""The strategy in force, switched by recent measurements of the fetches of states."""

from __future__ import annotations

import math

from controller.cache_forecast import CacheForecast
from controller.observation import Observation
from controller.strategy import CacheHealth, StrategyState, SwitchRules, next_strategy, saved_seconds
from weir.approximation_levels import Strategy

#: Seconds for which the last fetch counts as a measurement; under SM fetches are rare.
MEASURED_S = 30.0
DEFAULT_RULES = SwitchRules()


class LiveStrategy:
    """Selects AC while fetching states saves time, and SM while it does not."""

    def __init__(self, rules: SwitchRules = DEFAULT_RULES):
        self.rules = rules
        self._state = StrategyState()
        self._fetched_at_s = -math.inf

    @property
    def strategy(self) -> Strategy:
        return self._state.strategy

    def observe(self, seen: Observation, hits: CacheForecast, whole_run_s: float) -> Strategy:
        """Adds the observation of one second and returns the strategy.

        Args:
            hits: the forecast of the cache, which includes this observation already.
            whole_run_s: seconds of a whole run of the last variant.
        """
        if seen.fetches:
            self._fetched_at_s = seen.now_s
        measured = seen.now_s - self._fetched_at_s <= MEASURED_S
        health = CacheHealth(
            fetch_s=hits.fetch_s if measured else None,
            saved_s=saved_seconds({1 - hit.work: hit.share for hit in hits.hits(1.0)}, whole_run_s),
            # Few hits cost nothing, because a miss runs whole as it would without a cache. A failed fetch costs a whole
            # run that the plan does not contain.
            hit_share=hits.arriving if measured else None,
        )
        self._state = next_strategy(self._state, health, seen.now_s, self.rules)
        return self.strategy
