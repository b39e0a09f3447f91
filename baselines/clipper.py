"""One level for everything: the two ends of Clipper (Crankshaw et al., NSDI 2017), as AccuScale compares them."""

from __future__ import annotations

from controller.level_policy import LevelPlan, LevelPolicy
from weir.approximation_levels import Ladder, Level, Strategy


class ClipperHighAccuracy(LevelPolicy):
    """The best level."""

    name = "clipper-heavy"
    needs_states = False

    def plan(self, demand_rps: float) -> LevelPlan:
        return self.everything_at(0)


class ClipperHighThroughput(LevelPolicy):
    """The smallest model; the fastest cached level when the ladder has no smaller model."""

    name = "clipper-light"
    needs_states = False

    def chosen_levels(self, ladder: Ladder) -> tuple[Level, ...]:
        smaller = ladder.of(Strategy.SM)
        return smaller if len(smaller) > 1 else ladder.of(Strategy.AC)

    def plan(self, demand_rps: float) -> LevelPlan:
        return self.everything_at(len(self.levels) - 1)
