"""Weir's own: levels for prompts, not for GPUs.

A GPU that holds the heavy model serves every cached level, so no GPU needs a level of its own. Nothing is then lost to
whole GPUs or to unequal queues, and the program decides the level of every class of prompts at once from their measured
qualities, in place of an allocation by mean quality and an alignment after it.

A queue is free until it takes up the time that the deadline leaves, so it is used before images get worse: levels are
planned for the lesser of the forecast and the last second's rate, and only as the queue comes near to what the fastest
level's images can still wait for, for more than comes. What the queue no longer leaves time for is out of the program:
a level that is too slow would only be hurried to a faster one that the program did not choose.
"""

from __future__ import annotations

from dataclasses import replace

from controller.level_policy import LevelPlan, LevelPolicy
from controller.observation import Observation
from controller.setting import Setting
from solvers.allocation import LevelProblem, share_levels
from weir.plan import Plan

#: Share of the time between the fastest level's latency and the deadline that may go by in a queue, unanswered for.
CALM = 0.75
#: Share of the capacity that is planned with at least, however long the queue.
LEAST_FREE = 1e-3


class WeirLevels(LevelPolicy):
    """See the module."""

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
        """The problem without the levels whose images would be late behind the queue; the fastest always stays."""
        left_s = self.setting.slo_s - self._backlog_s
        fits = [level.latency_s[0] <= left_s for level in self.levels[:-1]] + [True]
        (gpu,) = problem.gpus
        rates = tuple(rate if fit else 0.0 for rate, fit in zip(gpu.rate_rps, fits, strict=True))
        return replace(problem, gpus=(replace(gpu, rate_rps=rates),))
