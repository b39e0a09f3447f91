"""Base class of the policies that assign approximation levels to GPUs and to classes of prompts.

The published policies follow their publications. The load estimators of AccuScale/Argus (Agarwal et al., Middleware
2025) and of its baselines are not published, so all of them use Weir's (``controller/demand.py``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from controller.demand import DemandForecast
from controller.observation import Observation
from controller.policy import Policy
from controller.setting import Setting
from solvers.allocation import LevelGpus, LevelProblem, PromptClass
from weir.approximation_levels import Ladder, Level, Strategy
from weir.errors import ConfigError
from weir.plan import Assignment, LevelRouting, Plan
from weir.plan import Level as PlannedLevel

#: Growth of the demand that triggers a plan before the period ends.
SURPRISE = 1.1
#: Seconds over which predicted classes are counted.
WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """The decision of a policy; levels are indices into :attr:`LevelPolicy.levels`.

    Attributes:
        levels: level of every GPU; empty when any GPU serves any level.
        shift: probability of every level, by class of prompts; a single row applies to every class.
        hurry: whether a request that would miss its deadline at its level is served at the best faster level that meets
            it.
    """

    levels: tuple[int, ...]
    shift: tuple[tuple[float, ...], ...]
    hurry: bool = False


class LevelPolicy(Policy):
    """Policy that plans on :attr:`Setting.ladder`. Its plans send no request through a cascade.

    Attributes:
        period_s: seconds between plans unless the demand or the number of GPUs changes.
        needs_states: whether the policy requires cached states.
        levels: the levels in use, from the best to the fastest.

    Raises:
        ConfigError: the setting has no ladder, or no cached states and the policy needs some.
    """

    period_s: ClassVar[float] = 5.0
    needs_states: ClassVar[bool] = True
    reuses = True

    def __init__(self, setting: Setting):
        super().__init__(setting)
        if setting.ladder is None:
            raise ConfigError(
                f"policy {self.name} needs the quality of each variant as a share of {setting.last}'s, and the profile "
                "has none; `weir calibrate --profile` measures it"
            )
        if self.needs_states and len(setting.ladder.of(Strategy.AC)) < 2:
            raise ConfigError(
                f"policy {self.name} needs stored states and the quality of images that resume from them: set "
                "cache.mode: read-write, and cache.selector to a profile of `weir cache profile`"
            )
        self.ladder = setting.ladder
        self.use(self.chosen_levels(self.ladder))
        self._forecast = DemandForecast()
        self._predicted: deque[Sequence[int]] = deque(maxlen=WINDOW_S)
        self._gpus = setting.replicas
        self._planned_rps = 0.0
        self._planned_at_s = 0.0
        self._seen_at_s = 0.0
        self._backlog_s = 0.0
        self._routing: LevelRouting | None = None

    def chosen_levels(self, ladder: Ladder) -> tuple[Level, ...]:
        """Returns the levels that the policy uses: by default those that resume from cached states."""
        return ladder.of(Strategy.AC)

    def use(self, levels: tuple[Level, ...]) -> None:
        """Replaces the levels in use."""
        self.levels = levels
        self._places = [self.ladder.levels.index(level) for level in levels]

    @abstractmethod
    def plan(self, demand_rps: float) -> LevelPlan:
        """Returns the plan for a demand."""

    def first_plan(self) -> Plan:
        return self._published(self.plan(0.0), 0.0)

    def observe(self, seen: Observation) -> Plan | None:
        gpus = sum(seen.replicas)
        if not gpus:
            return None  # no replica could follow a plan
        lost, self._gpus = gpus != self._gpus, gpus
        self._backlog_s = self._estimated_backlog_s(seen) if seen.backlog_s is None else seen.backlog_s
        self._forecast.observe(seen.arrivals, seen.now_s - self._seen_at_s)
        self._seen_at_s = seen.now_s
        self._predicted.append([seen.classes.get(kind, 0) for kind in range(self.classes)])
        demand = self._forecast.rate_rps()
        calm = demand <= SURPRISE * self._planned_rps and seen.now_s - self._planned_at_s < self.period_s
        if calm and not lost and not self.changed(seen):
            return None
        self._planned_at_s, self._planned_rps = seen.now_s, demand
        return self._published(self.plan(demand), demand)

    def changed(self, seen: Observation) -> bool:
        """Whether something other than the demand triggers a plan before the period ends; called once a second."""
        return False

    @property
    def classes(self) -> int:
        """Number of classes of prompts; 1 when prompts are not distinguished."""
        return max(1, len(self.ladder.prompts))

    def predicted_shares(self) -> np.ndarray:
        """Returns the shares h_i of the classes over the last minute; those of the ladder before the first request."""
        counts = np.sum(list(self._predicted), axis=0) if self._predicted else np.zeros(1)
        if counts.sum() == 0:
            counts = np.array([group.share for group in self.ladder.prompts] or [1.0])
        return counts / counts.sum()

    def agnostic(self, demand_rps: float) -> LevelProblem:
        """Returns the published allocation problem over :attr:`levels`, which does not distinguish prompts."""
        return LevelProblem.of(self._gpu_types(), tuple(level.quality for level in self.levels), demand_rps)

    def aware(self, demand_rps: float) -> LevelProblem:
        """Returns the allocation problem by class of prompts, or :meth:`agnostic` when the ladder has no classes."""
        groups = self.ladder.prompts
        if not groups:
            return self.agnostic(demand_rps)
        kinds = [tuple(group.quality[place] for place in self._places) for group in groups]
        classes = map(PromptClass, self.predicted_shares().tolist(), kinds)
        return LevelProblem(self._gpu_types(), tuple(classes), demand_rps)

    def _gpu_types(self) -> tuple[LevelGpus, ...]:
        return (LevelGpus("gpu", self._gpus, self.ladder.rates_rps(self.levels)),)

    def place(self, levels: Sequence[int], shift: Sequence[Sequence[float]] | np.ndarray) -> LevelPlan:
        """Builds a plan over :attr:`levels`."""
        return LevelPlan(tuple(levels), tuple(tuple(map(float, row)) for row in shift))

    def everything_at(self, level: int) -> LevelPlan:
        """Builds the plan with every GPU and every prompt at one of :attr:`levels`."""
        return self.place([level] * self._gpus, [np.eye(len(self.levels))[level]])

    # ------------------------------------------------------------------------------------------------- as a plan

    def routing(self, decided: LevelPlan) -> LevelRouting:
        """Converts a decision to levels, roles and probabilities. Levels that no GPU has get no requests."""
        held = bool(decided.levels)
        reachable = np.array([not held or k in decided.levels for k in range(len(self.levels))])
        # An aligner that misses its target may send prompts to levels that no GPU has.
        shares = np.where(reachable, decided.shift, 0.0)
        shares[shares.sum(axis=1) <= 0] = reachable
        shares /= shares.sum(axis=1, keepdims=True)
        if len(shares) < self.classes:
            shares = np.repeat(shares, self.classes, axis=0)
        levels = tuple(
            self.planned(level, self.role_of(level) if held else self.variant_of(level)) for level in self.levels
        )
        return LevelRouting(levels, tuple(map(tuple, shares.tolist())), decided.hurry)

    def planned(self, level: Level, role: str) -> PlannedLevel:
        """Converts a level of the ladder to a level of a plan."""
        return PlannedLevel(level.name, self.variant_of(level), role, skipped=level.skipped_steps)

    def variant_of(self, level: Level) -> str:
        """Returns the key of the variant that generates the images of a level."""
        return level.variant or self.setting.last

    def role_of(self, level: Level) -> str:
        """Returns the role of the GPUs that serve a level."""
        return level.name

    def _published(self, decided: LevelPlan, demand_rps: float) -> Plan:
        routing = self._routing = self.routing(decided)
        if decided.levels:
            held = [self.levels[k] for k in decided.levels]
            assignments = tuple(Assignment(self.role_of(level), _full_batch(level)) for level in held)
        else:
            assignments = (Assignment(self.setting.last, _full_batch(self.levels[0])),) * self._gpus
        self.account.forecast_rps = demand_rps
        variants = self.setting.variants
        return Plan(
            self.next_version(),
            assignments,
            (0.0,) * (len(variants) - 1),
            variants,
            rules=self.rules,
            routing=routing,
            reason=f"demand is {demand_rps:.1f}/s; {self._words(routing)}",
        )

    def _words(self, routing: LevelRouting) -> str:
        predicted = self.predicted_shares() if len(routing.shares) > 1 else np.ones(1)
        mean = predicted @ np.array(routing.shares)
        named = zip(routing.levels, mean.tolist(), strict=True)
        return ", ".join(f"{share:.0%} of the prompts at {level.name}" for level, share in named if share >= 0.005)

    def _estimated_backlog_s(self, seen: Observation) -> float:
        """Returns the time that all GPUs need for the queued images, each at the mean rate of the levels of its
        role."""
        if self._routing is None:
            return 0.0
        rates = {level.name: rate for level, rate in zip(self.levels, self.ladder.rates_rps(self.levels), strict=True)}
        shares = np.array(self._routing.shares).mean(axis=0).tolist()
        seconds = 0.0
        for role, queued in seen.queued.items():
            mine = [(n, rates[it.name]) for it, n in zip(self._routing.levels, shares, strict=True) if it.role == role]
            total = sum(share for share, _ in mine)
            if queued and total > 0:
                seconds += queued * sum(share / rate for share, rate in mine) / total
        return seconds / self._gpus


def _full_batch(level: Level) -> int:
    """Returns the batch size with the most images per second."""
    return max(level.batch_sizes, key=lambda size: size / level.latency.at(size))
