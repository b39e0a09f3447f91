"""AccuScale/Argus (Agarwal et al., Middleware 2025): allocation by mean quality, followed by an alignment of levels."""

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

#: Share of the requests that fetch a state while smaller models are in use, to detect when fetching pays off again.
PROBES = 0.02


class Argus(LevelPolicy):
    """Argus as published, with its own aligner. Without predicted levels it equals PAC.

    While fetching states takes longer than it saves, smaller models replace cached states, if the ladder has any. When
    the number of classes differs from the number of levels, classes are mapped linearly: the hardest class to the best
    level, and the easiest one to the fastest level.
    """

    name = "argus"
    aligner = "oda"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._hits = CacheForecast()
        self._strategy = LiveStrategy()

    @property
    def strategy(self) -> Strategy:
        """Strategy of the levels in use: AC or SM."""
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
        level_of = _levels_of_classes(self.classes, len(self.levels))
        predicted = np.bincount(level_of, self.predicted_shares(), len(self.levels))
        return self.place(found.levels(), align(predicted.tolist(), found.target, self.aligner)[level_of])

    def routing(self, decided: LevelPlan) -> LevelRouting:
        """Adds probes while smaller models are in use; they run on GPUs that hold the last variant."""
        routing = super().routing(decided)
        cached = self.ladder.of(Strategy.AC)
        if self.strategy is Strategy.AC or 0 not in decided.levels:
            return routing
        probe = self.planned(cached[len(cached) // 2], routing.levels[0].role)
        shares = [(row[0] - min(PROBES, row[0]), *row[1:], min(PROBES, row[0])) for row in routing.shares]
        return replace(routing, levels=(*routing.levels, probe), shares=tuple(shares))


def _levels_of_classes(classes: int, levels: int) -> np.ndarray:
    """Returns the level of each class, int [classes]."""
    return np.rint(np.linspace(0, levels - 1, classes)).astype(int)
