"""Proteus (Ahmad et al., ASPLOS 2024): accuracy scaling over variants, independent of the prompts."""

from __future__ import annotations

from dataclasses import replace

from controller.batch_size import best_batch
from controller.demand import DemandForecast
from controller.observation import Observation
from controller.policy import Policy
from controller.setting import Setting
from weir.plan import Plan

#: Seconds between plans.
PERIOD_S = 5.0
#: Capacity planned for each request of the forecast.
OVER_PROVISION = 1.25


class Proteus(Policy):
    """Uses the largest number of heavy GPUs with a capacity of 1.25 × the demand, and splits requests at random.

    With two variants and one batch size each, the heavy count is the only unknown of Proteus' program (maximise
    Σ w_i accuracy_i subject to Σ w_i b_i / L_i ≥ 1.25 D), so trying every count solves it. No image is judged. Quality
    is looked up at the light share as for a cascade, which overestimates random mixing.
    """

    name = "proteus"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._demand = DemandForecast()
        self._planned_at_s = 0.0
        gpu = setting.gpus[0]
        self._light_batch = best_batch(gpu.light, setting.slo_s / 2)
        self._heavy_batch = best_batch(gpu.heavy, setting.slo_s)
        self._light_rps = self._light_batch / gpu.light.at(self._light_batch)
        self._heavy_rps = self._heavy_batch / gpu.heavy.at(self._heavy_batch)

    def first_plan(self) -> Plan:
        return self._plan(0.0, self.setting.replicas)

    def observe(self, seen: Observation) -> Plan | None:
        self._demand.observe(seen.arrivals, 1.0)
        if self._planned_at_s and seen.now_s - self._planned_at_s < PERIOD_S:
            return None
        self._planned_at_s = seen.now_s
        self.account.forecast_rps = OVER_PROVISION * self._demand.rate_rps()
        return self._plan(self.account.forecast_rps, sum(seen.replicas))

    def _plan(self, demand_rps: float, n: int) -> Plan:
        fits = [h for h in range(n + 1) if h * self._heavy_rps + (n - h) * self._light_rps >= demand_rps]
        heavy = max(fits, default=0)
        entry = 1.0 if heavy == n else min(1.0, heavy * self._heavy_rps / demand_rps)
        self.rules = replace(self.rules, heavy_entry=entry)
        return self.split(
            n - heavy,
            heavy,
            light_batch=self._light_batch,
            heavy_batch=self._heavy_batch,
            reason=f"demand is {demand_rps:.1f}/s; {entry:.0%} of the requests go to the best variant, at random",
        )
