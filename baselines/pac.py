"""PAC, the prompt-agnostic baseline of AccuScale: the same allocation, with a random level for each prompt."""

from __future__ import annotations

from controller.level_policy import LevelPlan, LevelPolicy
from solvers.allocation import allocate


class PromptAgnostic(LevelPolicy):
    """PAC's policy; see the module."""

    name = "pac"

    def plan(self, demand_rps: float) -> LevelPlan:
        found = allocate(self.agnostic(demand_rps))
        return self.place(found.levels(), [found.target])
