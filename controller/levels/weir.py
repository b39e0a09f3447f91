"""Weir's own: levels for prompts, not for GPUs.

A GPU that holds the heavy model serves every cached level, so no GPU needs a level of its own. Nothing is then lost to
whole GPUs or to unequal queues, and the program decides the level of every class of prompts at once from their measured
qualities, in place of an allocation by mean quality and an alignment after it. Levels are planned for less than the
rate of requests: a queue is free until it takes up the time that the deadline leaves, so a burst is met with it first
and with faster levels only as it fills.
"""

from __future__ import annotations

from dataclasses import replace

from controller.levels.policy import LevelPlan, LevelPolicy
from solvers.allocation import share_levels

#: Share of the time between the slowest level's latency and the deadline that may go by in a queue, unanswered for.
CALM = 0.98
#: Share of the rate that levels are planned for meanwhile. Less gives better images and more late ones.
PLANNED = 0.9


class Weir(LevelPolicy):
    """See the module."""

    name = "weir"
    period_s = 1.0

    def plan(self, demand_rps: float) -> LevelPlan:
        slack_s = max(self.setting.slo_s - self.levels[0].latency_s[0], 1e-9)
        free = min(1.0, max(1e-3, (1 - self._backlog_s / slack_s) / (1 - CALM)))
        found = share_levels(self.aware(PLANNED * demand_rps / free))
        return replace(self.place((), found.shift), hurry=True)
