"""Baseline that runs the heavy variant only: the high-quality configuration of Clipper (Crankshaw et al., NSDI
2017)."""

from __future__ import annotations

from dataclasses import replace

from controller.batch_size import best_batch
from controller.policy import PUBLISHED, Policy
from weir.plan import Plan


class AllHeavy(Policy):
    """Every replica runs the last variant, at the batch size with the highest throughput within the deadline."""

    name = "all-heavy"

    def first_plan(self) -> Plan:
        self.rules = replace(self.rules, heavy_entry=1.0)
        batch = best_batch(self.setting.gpus[0].heavy, self.setting.slo_s)
        return self.one_variant(self.setting.last, batch, reason="every image is of the best variant")


class AllHeavyAsPublished(Policy):
    """DiffServe's baseline: batch 1, random routing, and its drop bound of 1.5 × 15 s whatever the deadline."""

    name = "all-heavy-published"

    def first_plan(self) -> Plan:
        self.rules = replace(PUBLISHED, heavy_entry=1.0)
        return self.one_variant(self.setting.last, 1, reason="every image is of the best variant")
