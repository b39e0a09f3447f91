"""AccuScale/Argus (Agarwal et al., Middleware 2025): allocate by mean quality, then align predicted levels with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controller.cache_forecast import CacheForecast
from controller.level_policy import LevelPlan, LevelPolicy
from controller.live_strategy import LiveStrategy
from controller.observation import Observation
from controller.setting import Setting
from solvers.alignment import align
from solvers.allocation import allocate
from weir.approximation_levels import Strategy
from weir.plan import LevelRouting

#: Share of the requests that fetch a state while smaller models are in use, so that it is seen when that pays again.
PROBES = 0.02


class Argus(LevelPolicy):
    """As published, with its own aligner. Without predicted levels it is PAC.

    While fetching states takes longer than it saves, smaller models take the place of cached states, where the ladder
    has any. Classes of prompts and levels in use may differ in number; then the hardest class stands for the best level
    and the easiest for the fastest, and those between for the levels between.
    """

    name = "argus"
    aligner = "oda"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._hits = CacheForecast()
        self._strategy = LiveStrategy()

    @property
    def strategy(self) -> Strategy:
        """AC or SM, whichever the levels in use are of."""
        return self._strategy.strategy

    def changed(self, seen: Observation) -> bool:
        self._hits.observe(seen.arrivals, seen.found, seen.fetches, sum(seen.reused.values()))
        before = self.strategy
        if len(self.ladder.of(Strategy.SM)) < 2:
            return False
        after = self._strategy.observe(seen, self._hits, self.setting.gpus[0].heavy.at(1))
        self.use(self.ladder.of(after))
        return after is not before

    def plan(self, demand_rps: float) -> LevelPlan:
        found = allocate(self.agnostic(demand_rps))
        if self.classes == 1:
            return self.place(found.levels(), [found.target])
        wanted = _levels_of_classes(self.classes, len(self.levels))
        predicted = np.bincount(wanted, self.predicted_shares(), len(self.levels))
        return self.place(found.levels(), align(predicted.tolist(), found.target, self.aligner)[wanted])

    def routing(self, decided: LevelPlan) -> LevelRouting:
        """With probes while smaller models are in use, at GPUs that hold the last variant."""
        routing = super().routing(decided)
        cached = self.ladder.of(Strategy.AC)
        if self.strategy is Strategy.AC or 0 not in decided.levels:
            return routing
        probe = self.planned(cached[len(cached) // 2], routing.levels[0].role)
        shares = [(row[0] - min(PROBES, row[0]), *row[1:], min(PROBES, row[0])) for row in routing.shares]
        return replace(routing, levels=(*routing.levels, probe), shares=tuple(shares))


def _levels_of_classes(classes: int, levels: int) -> np.ndarray:
    """The level that each class stands for, int [classes]."""
    return np.rint(np.linspace(0, levels - 1, classes)).astype(int)
