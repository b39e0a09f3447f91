"""PAC, AccuScale's prompt-agnostic baseline: its allocation, with prompts dealt to the levels at random."""

from __future__ import annotations

from controller.level_policy import LevelPlan, LevelPolicy
from solvers.allocation import allocate


class PromptAgnostic(LevelPolicy):
    """See the module."""

    name = "pac"

    def plan(self, demand_rps: float) -> LevelPlan:
        found = allocate(self.agnostic(demand_rps))
        return self.place(found.levels(), [found.target])
