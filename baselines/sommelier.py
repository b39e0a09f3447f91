"""Sommelier (Guo et al., 2022) as AccuScale compares it: a heuristic picks the model, prompts and queues unseen.

How it picks was not published for this use; ours takes, for all GPUs, the best level at which they carry the demand.
"""

from __future__ import annotations

from controller.level_policy import LevelPlan, LevelPolicy


class Sommelier(LevelPolicy):
    """See the module."""

    name = "sommelier"

    def plan(self, demand_rps: float) -> LevelPlan:
        rates = self.ladder.rates_rps(self.levels)
        enough = (k for k, rate in enumerate(rates) if self._gpus * rate >= demand_rps)
        return self.everything_at(next(enough, len(rates) - 1))
