"""Simulator of a cluster that serves a published ladder of approximation levels.

Every request belongs to a class of prompts, for which the plan in force has a probability of each level. The request
goes to the GPU of its level's role that is free first. Under a plan without levels, similarity alone chooses the level
(:attr:`weir.approximation_levels.Ladder.similarity_shares`), and any GPU serves it. A GPU starts the next image after
1 / rate seconds and finishes each one after the latency of its level. A request that cannot be ready by its deadline is
dropped on arrival: queues are first come, first served and times are known, so waiting would not help. A GPU that
changes its model is unavailable for the loading time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.observation import Observation
from controller.policy import Policy
from controller.registry import names
from controller.setting import Setting
from weir.approximation_levels import Ladder, Strategy
from weir.errors import ConfigError
from weir.plan import Level as PlannedLevel
from weir.plan import LevelRouting, Plan

#: Seconds between observations.
TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class LevelOutcome:
    """The outcome of one run, by request.

    Attributes:
        arrivals_s, finished_s: times of arrival and finish; the finish is infinite when the request was dropped.
        classes: class of the prompt.
        levels: index of the level in the ladder.
    """

    policy: str
    setting: Setting
    arrivals_s: np.ndarray
    finished_s: np.ndarray
    classes: np.ndarray
    levels: np.ndarray

    @property
    def answered(self) -> np.ndarray:
        """Mask of the answered requests; every answer meets its deadline."""
        return np.isfinite(self.finished_s)

    @property
    def qualities(self) -> np.ndarray:
        """Quality of each request at its level, in percent of level 0."""
        ladder = ladder_in(self.setting)
        rows = [group.quality for group in ladder.prompts] or [tuple(level.quality for level in ladder.levels)]
        return 100 * np.array(rows)[self.classes, self.levels]


class _Fleet:
    """The GPUs: the time at which each one is free, and the model that it holds."""

    def __init__(self, setting: Setting):
        ladder, gpus = ladder_in(setting), setting.replicas
        self.setting = setting
        self.places = {level.name: k for k, level in enumerate(ladder.levels)}
        self.seconds = [1 / rate for rate in ladder.rates_rps(ladder.levels)]
        self.latency = [level.latency_s[0] for level in ladder.levels]
        self.load_s = [level.load_s for level in ladder.levels]
        self.model = [level.variant if level.strategy is Strategy.SM else "" for level in ladder.levels]
        self.free_s = [0.0] * gpus
        self.held: list[str | None] = [None] * gpus
        self.members: list[list[int]] = []
        self.hurry = False

    def follow(self, plan: Plan, routing: LevelRouting, now_s: float) -> None:
        """Applies the levels of a plan. Requests that were sent to a GPU stay there."""
        self.hurry = routing.hurry
        self.members = [[] for _ in self.seconds]
        roles = [assignment.role for assignment in plan.assignments]
        for level in routing.levels:
            self.members[self.places[level.name]] = [gpu for gpu, role in enumerate(roles) if role == level.role]
        # The levels of one role share one model, and the best of them comes first.
        first = {level.role: self.places[level.name] for level in reversed(routing.levels)}
        for gpu, role in enumerate(roles):
            model = self.model[first[role]]
            if self.held[gpu] not in (None, model):
                self.free_s[gpu] = max(self.free_s[gpu], now_s) + self.load_s[first[role]]
            self.held[gpu] = model

    def backlog_s(self, now_s: float) -> float:
        return sum(max(0.0, free - now_s) for free in self.free_s) / len(self.free_s)

    def serve(self, level: int, now_s: float) -> tuple[int, float]:
        """Sends a request to the GPU of its level that is free first. Returns its level and the finish time, which is
        infinite when the deadline would be missed."""
        for k in range(level, len(self.members)) if self.hurry else (level,):
            if not self.members[k] or self.model[k] != self.model[level]:
                continue
            gpu = min(self.members[k], key=self.free_s.__getitem__)
            start = max(now_s, self.free_s[gpu])
            if start + self.latency[k] <= now_s + self.setting.slo_s:
                self.free_s[gpu] = start + self.seconds[k]
                return k, start + self.latency[k]
        return level, np.inf


def ladder_in(setting: Setting) -> Ladder:
    """Returns the ladder of a setting.

    Raises:
        ConfigError: the setting has no ladder.
    """
    if setting.ladder is None:
        raise ConfigError("the setting has no ladder; make one with Setting.of_ladder")
    return setting.ladder


def _routing(plan: Plan, setting: Setting) -> LevelRouting:
    """Returns the routing of requests to levels under a plan.

    Raises:
        ConfigError: the plan uses a cascade, which a ladder does not have; or it chooses levels by similarity, and the
            ladder has no shares for that.
    """
    if plan.routing is not None:
        return plan.routing
    ladder = ladder_in(setting)
    if plan.rules.direct != 0 or plan.count(setting.last) < len(plan.assignments):
        raise ConfigError(
            f"the ladder of {ladder.family} has levels and no cascade; choose a policy for levels: "
            f"{', '.join(names(levels=True))}"
        )
    if not ladder.similarity_shares:
        raise ConfigError(
            f"the ladder of {ladder.family} has no similarity_shares, the shares of requests that similarity alone "
            "sends to each K; add them"
        )
    cached = [level for level in ladder.levels if level.strategy is Strategy.AC]
    levels = tuple(PlannedLevel(it.name, setting.last, setting.last, skipped=it.skipped_steps) for it in cached)
    return LevelRouting(levels, (ladder.similarity_shares,))


def simulate_levels(policy: Policy, arrivals_s: np.ndarray, classes: np.ndarray, *, seed: int = 0) -> LevelOutcome:
    """Simulates one policy on one trace.

    Args:
        policy: a policy whose setting has a ladder.
        arrivals_s: arrival times, ascending, from 0 s.
        classes: class of every prompt, below the number of classes of the ladder.
        seed: seed of the random choice of levels.

    Raises:
        ConfigError: the policy's plans are not for a ladder.
    """
    setting, fleet = policy.setting, _Fleet(policy.setting)
    kinds = max(1, len(ladder_in(setting).prompts))
    draws = np.random.default_rng(seed).random(len(arrivals_s)).tolist()
    levels = np.zeros(len(arrivals_s), dtype=int)
    finished = np.full(len(arrivals_s), np.inf)
    counts = [0] * kinds
    tick = TICK_S

    def follow(plan: Plan, now_s: float) -> LevelRouting:
        routing = _routing(plan, setting)
        fleet.follow(plan, routing, now_s)
        return routing

    routing = follow(policy.first_plan(), 0.0)
    for i, now in enumerate(arrivals_s.tolist()):
        while now >= tick:
            seen = Observation(
                now_s=tick,
                arrivals=sum(counts),
                classes=dict(enumerate(counts)),
                replicas=(setting.replicas,),
                backlog_s=fleet.backlog_s(tick),
            )
            plan = policy.observe(seen)
            if plan is not None:
                routing = follow(plan, tick)
            counts = [0] * kinds
            tick += TICK_S
        kind = int(classes[i])
        counts[kind] += 1
        level = fleet.places[routing.levels[routing.pick(kind, draws[i])].name]
        levels[i], finished[i] = fleet.serve(level, now)
    return LevelOutcome(policy.name, setting, arrivals_s, finished, np.asarray(classes), levels)
