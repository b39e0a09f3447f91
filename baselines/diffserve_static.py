"""DiffServe-Static: the cascade with one allocation and one threshold for the whole run."""

from __future__ import annotations

from dataclasses import replace

from baselines.published import CASCADES
from controller.batch_size import best_batch
from controller.policy import PUBLISHED, Policy
from solvers.solve import solve
from weir.plan import Plan


class DiffServeStatic(Policy):
    """The published static plan for a published cascade on 16 GPUs; otherwise the plan of the published program for the
    demand that equals the capacity of an all-heavy pool."""

    name = "diffserve-static"

    def first_plan(self) -> Plan:
        self.rules = PUBLISHED
        setting = self.setting
        for cascade in CASCADES.values():
            if (
                setting.replicas == 16
                and setting.gpus[0].heavy == cascade.heavy
                and setting.gpus[0].light == cascade.light
            ):
                threshold, light, heavy, light_batch, heavy_batch = cascade.static
                return self.split(light, heavy, light_batch=light_batch, heavy_batch=heavy_batch, threshold=threshold)
        gpu = setting.gpus[0]
        heavy_batch = best_batch(gpu.heavy, setting.slo_s * 0.8)
        rate = setting.replicas * heavy_batch / gpu.heavy.at(heavy_batch)
        problem = setting.published(rate)
        return replace(solve(problem).to_plan(problem, self.next_version()), rules=self.rules)
