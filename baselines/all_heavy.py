"""Everything heavy: the good end of Clipper (Crankshaw et al., NSDI 2017)."""

from __future__ import annotations

from dataclasses import replace

from controller.policy import PUBLISHED, Policy, best_batch, one_role
from weir.core import Plan, Role


class AllHeavy(Policy):
    """Every replica heavy, at the batch size with the most images per second of those that meet the deadline."""

    name = "all-heavy"

    def first_plan(self) -> Plan:
        self.rules = replace(self.rules, heavy_entry=1.0)
        heavy = self.setting.gpus[0].heavy
        return one_role(self, Role.HEAVY, best_batch(heavy, self.setting.slo_s))


class AllHeavyAsPublished(Policy):
    """DiffServe's baseline: batch 1, random routing, and its drop bound of 1.5 × 15 s whatever the deadline."""

    name = "all-heavy-published"

    def first_plan(self) -> Plan:
        self.rules = replace(PUBLISHED, heavy_entry=1.0)
        return one_role(self, Role.HEAVY, 1)
