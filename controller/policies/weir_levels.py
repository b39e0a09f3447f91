"""Weir's policy for approximation levels, which assigns levels to prompts and not to GPUs.

A GPU that holds the heavy model serves every cached level, so no GPU needs a level of its own. Nothing is lost to whole
GPU counts or to unequal queues, and one program decides the level of every class of prompts from their measured
qualities, instead of an allocation by mean quality followed by an alignment.

A queue costs nothing until it uses up the slack before the deadline, so it grows before images get worse. Levels are
planned for the smaller of the forecast and the last second's rate. Only when the queue approaches the slack of the
fastest level are they planned for more than the arrival rate. Levels that the queue leaves no time for are removed from
the program: their requests would be moved to a faster level that the program did not choose.
"""

from __future__ import annotations

from dataclasses import replace

from controller.level_policy import LevelPlan, LevelPolicy
from controller.observation import Observation
from controller.setting import Setting
from solvers.allocation import LevelProblem, share_levels
from weir.plan import Plan

#: Share of the slack of the fastest level that the queue may use before levels are planned for more demand.
CALM = 0.75
#: Least share of the capacity to plan with, for any length of the queue.
LEAST_FREE = 1e-3


class WeirLevels(LevelPolicy):
    """Policy that assigns levels to classes of prompts; see the module."""

    name = "weir-levels"
    period_s = 1.0

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._last_rps = 0.0

    def observe(self, seen: Observation) -> Plan | None:
        self._last_rps = seen.arrivals / max(seen.now_s - self._seen_at_s, 1e-9)
        return super().observe(seen)

    def plan(self, demand_rps: float) -> LevelPlan:
        slack_s = max(self.setting.slo_s - self.levels[-1].latency_s[0], 1e-9)
        free = min(1.0, max(LEAST_FREE, (1 - self._backlog_s / slack_s) / (1 - CALM)))
        found = share_levels(self._in_time(self.aware(min(demand_rps, self._last_rps) / free)))
        return replace(self.place((), found.shift), hurry=True)

    def _in_time(self, problem: LevelProblem) -> LevelProblem:
        """Returns the problem without the levels whose images would be late after the queue. The fastest level always
        stays."""
        left_s = self.setting.slo_s - self._backlog_s
        fits = [level.latency_s[0] <= left_s for level in self.levels[:-1]] + [True]
        (gpu,) = problem.gpus
        rates = tuple(rate if fit else 0.0 for rate, fit in zip(gpu.rate_rps, fits, strict=True))
        return replace(problem, gpus=(replace(gpu, rate_rps=rates),))
