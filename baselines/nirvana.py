"""NIRVANA (Agarwal et al., NSDI 2024): the similarity to a cached prompt alone determines K, for any load."""

from __future__ import annotations

from dataclasses import replace

from controller.batch_size import best_batch
from controller.policy import Policy
from weir.plan import Plan


class Nirvana(Policy):
    """Every replica runs the last variant, and every request resumes at the K that its similarity to a cached prompt
    admits."""

    name = "nirvana"
    reuses = True

    def first_plan(self) -> Plan:
        self.rules = replace(self.rules, heavy_entry=1.0, direct=0.0)
        batch = best_batch(self.setting.gpus[0].heavy, self.setting.slo_s)
        return self.one_variant(self.setting.last, batch, reason="similarity alone chooses the step to resume at")
