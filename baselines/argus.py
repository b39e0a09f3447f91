"""AccuScale/Argus (Agarwal et al., Middleware 2025): allocate by mean quality, then align predicted levels with it."""

from __future__ import annotations

from controller.level_policy import LevelPlan, LevelPolicy
from solvers.alignment import align
from solvers.allocation import allocate


class Argus(LevelPolicy):
    """As published, with its own aligner. Without predicted levels it is PAC."""

    name = "argus"
    aligner = "oda"

    def plan(self, demand_rps: float) -> LevelPlan:
        found = allocate(self.agnostic(demand_rps))
        if self.setting.classes == 1:
            return self.place(found.levels(), [found.target])
        return self.place(found.levels(), align(self.predicted_shares().tolist(), found.target, self.aligner))
