"""Baselines with a single level: the two configurations of Clipper (Crankshaw et al., NSDI 2017) that AccuScale
compares.
"""

from __future__ import annotations

from controller.level_policy import LevelPlan, LevelPolicy
from weir.approximation_levels import Ladder, Level, Strategy


class ClipperHighAccuracy(LevelPolicy):
    """Every GPU and prompt at the best level."""

    name = "clipper-heavy"
    needs_states = False

    def plan(self, demand_rps: float) -> LevelPlan:
        return self.everything_at(0)


class ClipperHighThroughput(LevelPolicy):
    """Every GPU and prompt at the smallest model, or at the fastest cached level when the ladder has no smaller
    model."""

    name = "clipper-light"
    needs_states = False

    def chosen_levels(self, ladder: Ladder) -> tuple[Level, ...]:
        smaller = ladder.of(Strategy.SM)
        return smaller if len(smaller) > 1 else ladder.of(Strategy.AC)

    def plan(self, demand_rps: float) -> LevelPlan:
        return self.everything_at(len(self.levels) - 1)
