"""Base class of policies, which make plans from observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

from controller.observation import Observation
from controller.setting import Setting
from solvers.solution import Solution
from weir.plan import Assignment, Plan, ReplicaChoice, Rules


@dataclass(slots=True)
class Account:
    """Inputs and solution of a policy's last plan, for metrics and reports.

    Attributes:
        forecast_rps: demand that the plan was made for, head-room included.
        solution: solution of the allocation problem; None when nothing had to be solved.
        solved: number of solutions by status.
        latency_factors: measured over profiled batch times, by variant; empty when they are not measured.
    """

    forecast_rps: float = 0.0
    solution: Solution | None = None
    solved: Counter[str] = field(default_factory=Counter)
    latency_factors: dict[str, float] = field(default_factory=dict)

    def solves(self, forecast_rps: float, solution: Solution) -> None:
        """Records one solution."""
        self.forecast_rps, self.solution = forecast_rps, solution
        self.solved[solution.status.value] += 1


class Policy(ABC):
    """Makes plans for one cluster. A policy is deterministic: it has no clock and no randomness of its own.

    The controller calls ``first_plan``, or ``resume`` instead, once before the first request, and ``observe`` once a
    second afterwards.

    Attributes:
        name: name in the registry.
        rules: rules of its plans. By default requests are dispatched as by Weir, an image that cannot be ready by the
            deadline is dropped, and a deferred light image is not kept as an answer, as in the published systems.
        account: inputs and solution of its last plan.
        reuses: whether its plans use the states of a cache.
    """

    name: ClassVar[str]
    reuses: ClassVar[bool] = False

    def __init__(self, setting: Setting):
        self.setting = setting
        self.rules = Rules(drop_after_s=setting.slo_s, light_fallback=False)
        self.account = Account()
        self._version = 0

    @abstractmethod
    def first_plan(self) -> Plan:
        """Returns the plan to start with."""

    def resume(self, running: Plan) -> None:
        """Continues from the plan in force, which an earlier instance of this policy made; replaces ``first_plan``."""
        self._version = running.version

    def observe(self, seen: Observation) -> Plan | None:
        """Adds the observation of one second. Returns a plan when there is a new one; a static policy always returns
        None."""
        return None

    def next_version(self) -> int:
        self._version += 1
        return self._version

    def split(
        self,
        light: int,
        heavy: int,
        *,
        light_batch: int,
        heavy_batch: int,
        threshold: float = 0.0,
        reason: str = "",
    ) -> Plan:
        """Builds the next plan, with ``light`` replicas of the first variant and ``heavy`` replicas of the last one."""
        plan = Plan.split(
            self.next_version(),
            light,
            heavy,
            light_batch=light_batch,
            heavy_batch=heavy_batch,
            threshold=threshold,
            chain=(self.setting.variants[0], self.setting.last),
            rules=self.rules,
        )
        return replace(plan, reason=reason)

    def one_variant(self, variant: str, batch_size: int, *, reason: str = "") -> Plan:
        """Builds the next plan, with every replica in the role of one variant."""
        first, last = self.setting.variants[0], self.setting.last
        assignments = (Assignment(variant, batch_size),) * self.setting.replicas
        return Plan(self.next_version(), assignments, (0.0,), (first, last), rules=self.rules, reason=reason)


#: DiffServe's drop bound: 1.5 times its client's constant of 15 s, whatever the deadline (``model.py``).
PUBLISHED_DROP_S = 22.5
#: Rules of DiffServe's clients and workers: a random replica, which finishes its queue in a new role.
PUBLISHED = Rules(
    replica_choice=ReplicaChoice.RANDOM, drop_after_s=PUBLISHED_DROP_S, light_fallback=False, dispatch_again=False
)
