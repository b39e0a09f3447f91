"""Sommelier (Guo et al., 2022) as AccuScale compares it: a heuristic selects the model, independent of prompts and
queues.

The heuristic was not published for this use. This implementation selects, for all GPUs, the best level whose capacity
suffices for the demand.
"""

from __future__ import annotations

from controller.level_policy import LevelPlan, LevelPolicy


class Sommelier(LevelPolicy):
    """Sommelier's policy; see the module."""

    name = "sommelier"

    def plan(self, demand_rps: float) -> LevelPlan:
        rates = self.ladder.rates_rps(self.levels)
        enough = (k for k, rate in enumerate(rates) if self._gpus * rate >= demand_rps)
        return self.everything_at(next(enough, len(rates) - 1))
