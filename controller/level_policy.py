"""What serves a ladder of approximation levels: the setting, the plan, and what a policy is.

Policies are as published as far as they were published. The load estimators of AccuScale/Argus (Agarwal et al.,
Middleware 2025) and of its baselines were not, so all of them share ours (``controller/demand.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from controller.demand import DemandForecast
from solvers.allocation import LevelGpus, LevelProblem, PromptClass
from weir.approximation_levels import Ladder, Level, Strategy
from weir.errors import ConfigError

#: The growth of demand that asks for a plan before its time.
SURPRISE = 1.1
#: Seconds over which predicted levels are counted.
WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class LevelSetting:
    """One ladder on GPUs of one type, with a deadline."""

    ladder: Ladder
    gpus: int
    slo_s: float

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"gpus is {self.gpus}; it must be at least 1")
        if not 0 < self.slo_s < 3600:
            raise ConfigError(f"slo is {self.slo_s}; it must lie in 0…3600 s")

    @property
    def classes(self) -> int:
        """Classes of prompts; 1 when the ladder does not tell prompts apart."""
        return max(1, len(self.ladder.prompts))


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """What holds until the next plan. Levels are indices into the ladder's file.

    Attributes:
        levels: of every GPU; empty when any GPU serves any level.
        shift: by class of prompts, the probability of every level.
        hurry: a request that would miss its deadline at its level is served at the best faster one that meets it.
    """

    levels: tuple[int, ...]
    shift: tuple[tuple[float, ...], ...]
    hurry: bool = False


class LevelPolicy(ABC):
    """Decides for one setting. Deterministic: it sees no clock and no randomness but what it is handed.

    ``plan(0)`` is called once before the first request, ``observe`` once a second from then on.

    Attributes:
        name: in the registry.
        period_s: seconds between plans when nothing surprising happens.
        levels: those it uses, from the best to the fastest.
    """

    name: ClassVar[str]
    period_s: ClassVar[float] = 5.0

    def __init__(self, setting: LevelSetting):
        self.setting = setting
        self.levels = self.chosen_levels(setting.ladder)
        self._places = [setting.ladder.levels.index(level) for level in self.levels]
        self._forecast = DemandForecast()
        self._predicted: deque[Sequence[int]] = deque(maxlen=WINDOW_S)
        self._planned_rps = 0.0
        self._planned_at_s = 0.0
        self._seen_at_s = 0.0
        self._backlog_s = 0.0

    def chosen_levels(self, ladder: Ladder) -> tuple[Level, ...]:
        """Cached states, unless a policy says otherwise."""
        return ladder.of(Strategy.AC)

    @abstractmethod
    def plan(self, demand_rps: float) -> LevelPlan:
        """The plan for a demand."""

    def observe(self, now_s: float, arrivals: Sequence[int], backlog_s: float = 0.0) -> LevelPlan | None:
        """Takes in what happened since the last time; a plan when there is a new one.

        Args:
            arrivals: requests that came in, by class of prompts.
            backlog_s: work that waits or runs, as seconds of every GPU.
        """
        self._backlog_s = backlog_s
        self._forecast.observe(sum(arrivals), now_s - self._seen_at_s)
        self._seen_at_s = now_s
        self._predicted.append(arrivals)
        demand = self._forecast.rate_rps()
        if demand <= SURPRISE * self._planned_rps and now_s - self._planned_at_s < self.period_s:
            return None
        self._planned_at_s, self._planned_rps = now_s, demand
        return self.plan(demand)

    def predicted_shares(self) -> np.ndarray:
        """h_i over the last minute; the ladder's own before the first request."""
        counts = np.sum(list(self._predicted), axis=0) if self._predicted else np.zeros(1)
        if counts.sum() == 0:
            counts = np.array([group.share for group in self.setting.ladder.prompts] or [1.0])
        return counts / counts.sum()

    def agnostic(self, demand_rps: float) -> LevelProblem:
        """The published allocation problem over :attr:`levels`."""
        return LevelProblem.of(self._gpus(), tuple(level.quality for level in self.levels), demand_rps)

    def aware(self, demand_rps: float) -> LevelProblem:
        """The same with prompts told apart, where the ladder says what each class of them is like."""
        groups = self.setting.ladder.prompts
        if not groups:
            return self.agnostic(demand_rps)
        kinds = [tuple(group.quality[place] for place in self._places) for group in groups]
        classes = map(PromptClass, self.predicted_shares().tolist(), kinds)
        return LevelProblem(self._gpus(), tuple(classes), demand_rps)

    def _gpus(self) -> tuple[LevelGpus, ...]:
        return (LevelGpus("gpu", self.setting.gpus, self.setting.ladder.rates_rps(self.levels)),)

    def place(self, levels: Sequence[int], shift: Sequence[Sequence[float]] | np.ndarray) -> LevelPlan:
        """A plan over :attr:`levels` as one over the ladder's file; one row of ``shift`` holds for every class."""
        spread = np.zeros((self.setting.classes, len(self.setting.ladder.levels)))
        spread[:, self._places] = shift
        return LevelPlan(tuple(self._places[k] for k in levels), tuple(map(tuple, spread.tolist())))

    def everything_at(self, level: int) -> LevelPlan:
        """Every GPU and every prompt at one of :attr:`levels`."""
        row = np.eye(len(self.levels))[level]
        return self.place([level] * self.setting.gpus, [row])
