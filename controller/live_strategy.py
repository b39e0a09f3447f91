"""The strategy in force by what was measured of fetching states lately."""

from __future__ import annotations

import math

from controller.cache_forecast import LiveHits
from controller.observation import Observation
from controller.strategy import CacheHealth, StrategyState, SwitchRules, next_strategy, saved_seconds
from weir.approximation_levels import Strategy

#: Seconds for which fetches count as measured: under SM seconds without any are many.
MEASURED_S = 30.0
DEFAULT_RULES = SwitchRules()


class LiveStrategy:
    """AC while states are fetched for what they save, SM while that does not pay."""

    def __init__(self, rules: SwitchRules = DEFAULT_RULES):
        self.rules = rules
        self._state = StrategyState()
        self._fetched_at_s = -math.inf

    @property
    def strategy(self) -> Strategy:
        return self._state.strategy

    def observe(self, seen: Observation, hits: LiveHits, whole_run_s: float) -> Strategy:
        """Takes in one second.

        Args:
            hits: that have taken it in already.
            whole_run_s: seconds of a whole run of the last variant.
        """
        if seen.fetches:
            self._fetched_at_s = seen.now_s
        measured = seen.now_s - self._fetched_at_s <= MEASURED_S
        health = CacheHealth(
            fetch_s=hits.fetch_s if measured else None,
            saved_s=saved_seconds({1 - hit.work: hit.share for hit in hits.hits(1.0)}, whole_run_s),
            # Few hits cost nothing, for what finds no state runs whole as it would without a cache; what costs a whole
            # run beyond the plan is a state that was promised and does not come.
            hit_share=hits.arriving if measured else None,
        )
        self._state = next_strategy(self._state, health, seen.now_s, self.rules)
        return self.strategy
