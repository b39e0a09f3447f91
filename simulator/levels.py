"""The twin of a cluster that serves a ladder of approximation levels.

Every request belongs to a class of prompts; the plan in force says with which probability it is served at each level.
It goes to the GPU of its level that is free first, of all GPUs when the plan gives GPUs no levels. A GPU takes up the
next image after 1 / rate seconds and delivers each after the level's latency. What cannot be ready by the deadline is
dropped when it arrives: queues are first come, first served and times are known, so nothing is gained by waiting. A GPU
that takes up another model is lost for its loading time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.levels import LevelPlan, LevelPolicy, LevelSetting
from weir.approximation_levels import Strategy

#: Seconds between observations.
TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class LevelOutcome:
    """One run. By request: arrival and finish (infinite when dropped), class of prompts, and level in the ladder."""

    policy: str
    setting: LevelSetting
    arrivals_s: np.ndarray
    finished_s: np.ndarray
    classes: np.ndarray
    levels: np.ndarray

    @property
    def answered(self) -> np.ndarray:
        """By request: whether it was answered, always by its deadline."""
        return np.isfinite(self.finished_s)

    @property
    def qualities(self) -> np.ndarray:
        """Of each request at its level, relative to level 0, in percent."""
        ladder = self.setting.ladder
        rows = [group.quality for group in ladder.prompts] or [tuple(level.quality for level in ladder.levels)]
        return 100 * np.array(rows)[self.classes, self.levels]


class _Fleet:
    """When each GPU takes up its next image, and the model it holds."""

    def __init__(self, setting: LevelSetting):
        ladder = setting.ladder
        self.setting = setting
        self.seconds = [1 / rate for rate in ladder.rates_rps(ladder.levels)]
        self.latency = [level.latency_s[0] for level in ladder.levels]
        self.load_s = [level.load_s for level in ladder.levels]
        self.model = [level.variant if level.strategy is Strategy.SM else "" for level in ladder.levels]
        self.free_s = [0.0] * setting.gpus
        self.held: list[str | None] = [None] * setting.gpus
        self.members: list[list[int]] = []
        self.hurry = False

    def follow(self, plan: LevelPlan, now_s: float) -> None:
        """Takes up the levels of a plan. What is at GPUs already stays there."""
        self.hurry = plan.hurry
        gpus = list(range(self.setting.gpus))
        self.members = [[g for g in gpus if not plan.levels or plan.levels[g] == k] for k in range(len(self.seconds))]
        for gpu, level in enumerate(plan.levels):
            model = self.model[level]
            if self.held[gpu] not in (None, model):
                self.free_s[gpu] = max(self.free_s[gpu], now_s) + self.load_s[level]
            self.held[gpu] = model

    def backlog_s(self, now_s: float) -> float:
        return sum(max(0.0, free - now_s) for free in self.free_s) / len(self.free_s)

    def serve(self, level: int, now_s: float) -> tuple[int, float]:
        """Sends a request to the GPU of its level that is free first: the level that it gets, and when its image is
        ready, which is infinity when that is too late."""
        for k in range(level, len(self.members)) if self.hurry else (level,):
            if not self.members[k] or self.model[k] != self.model[level]:
                continue
            gpu = min(self.members[k], key=self.free_s.__getitem__)
            start = max(now_s, self.free_s[gpu])
            if start + self.latency[k] <= now_s + self.setting.slo_s:
                self.free_s[gpu] = start + self.seconds[k]
                return k, start + self.latency[k]
        return level, np.inf


def simulate_levels(policy: LevelPolicy, arrivals_s: np.ndarray, classes: np.ndarray, *, seed: int = 0) -> LevelOutcome:
    """One policy over one trace.

    Args:
        arrivals_s: ascending, from 0 s.
        classes: of the prompt of every request, below ``policy.setting.classes``.
        seed: of the draws from the plan's probabilities.
    """
    setting, fleet = policy.setting, _Fleet(policy.setting)
    kinds = setting.classes
    draws = np.random.default_rng(seed).random(len(arrivals_s))
    levels = np.zeros(len(arrivals_s), dtype=int)
    finished = np.full(len(arrivals_s), np.inf)
    counts = [0] * kinds
    tick = TICK_S

    def follow(plan: LevelPlan, now_s: float) -> np.ndarray:
        fleet.follow(plan, now_s)
        reachable = np.array([bool(members) for members in fleet.members])
        # An aligner that misses its target may send prompts to levels that no GPU has.
        shift = np.where(reachable, plan.shift, 0.0)
        bare = shift.sum(axis=1) <= 0
        shift[bare] = reachable
        probabilities = np.cumsum(shift, axis=1)
        return probabilities / probabilities[:, -1:]

    probabilities = follow(policy.plan(0.0), 0.0)
    for i, now in enumerate(arrivals_s.tolist()):
        while now >= tick:
            plan = policy.observe(tick, counts, fleet.backlog_s(tick))
            if plan is not None:
                probabilities = follow(plan, tick)
            counts = [0] * kinds
            tick += TICK_S
        kind = int(classes[i])
        counts[kind] += 1
        level = int(np.searchsorted(probabilities[kind], draws[i], side="right"))
        levels[i], finished[i] = fleet.serve(level, now)
    return LevelOutcome(policy.name, setting, arrivals_s, finished, np.asarray(classes), levels)
