"""Everything light: the fast end of Clipper (Crankshaw et al., NSDI 2017)."""

from __future__ import annotations

from dataclasses import replace

from controller.policy import PUBLISHED, Policy, best_batch, one_role
from weir.core import Plan, Role


class AllLight(Policy):
    """Every replica light, at the batch size with the most images per second of those within half the deadline."""

    name = "all-light"

    def first_plan(self) -> Plan:
        light = self.setting.gpus[0].light
        return one_role(self, Role.LIGHT, best_batch(light, self.setting.slo_s / 2))


class AllLightAsPublished(Policy):
    """DiffServe's baseline: batch 1, random routing, dropped at the deadline."""

    name = "all-light-published"

    def first_plan(self) -> Plan:
        self.rules = replace(PUBLISHED, drop_after_s=self.setting.slo_s)
        return one_role(self, Role.LIGHT, 1)
