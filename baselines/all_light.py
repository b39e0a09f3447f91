"""Baseline that runs the light variant only: the fast configuration of Clipper (Crankshaw et al., NSDI 2017)."""

from __future__ import annotations

from dataclasses import replace

from controller.batch_size import best_batch
from controller.policy import PUBLISHED, Policy
from weir.plan import Plan


class AllLight(Policy):
    """Every replica runs the first variant, at the batch size with the highest throughput within half the deadline."""

    name = "all-light"

    def first_plan(self) -> Plan:
        batch = best_batch(self.setting.gpus[0].light, self.setting.slo_s / 2)
        return self.one_variant(self.setting.variants[0], batch, reason="every image is of the fastest variant")


class AllLightAsPublished(Policy):
    """DiffServe's baseline: batch 1, random routing, dropped at the deadline."""

    name = "all-light-published"

    def first_plan(self) -> Plan:
        self.rules = replace(PUBLISHED, drop_after_s=self.setting.slo_s)
        return self.one_variant(self.setting.variants[0], 1, reason="every image is of the fastest variant")
