"""What a policy is: plans from observations. A plan carries the rules by which requests are sent and answered."""

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
    """What a policy's last plan was made of, for those who watch it.

    Attributes:
        forecast_rps: demand it was made for, head-room included.
        solution: None where nothing had to be solved.
        solved: solutions so far, by status.
        latency_factors: measured over profiled batch times, by variant; none where it is not measured.
    """

    forecast_rps: float = 0.0
    solution: Solution | None = None
    solved: Counter[str] = field(default_factory=Counter)
    latency_factors: dict[str, float] = field(default_factory=dict)

    def solves(self, forecast_rps: float, solution: Solution) -> None:
        """Notes one solution."""
        self.forecast_rps, self.solution = forecast_rps, solution
        self.solved[solution.status.value] += 1


class Policy(ABC):
    """Decides for one cluster. Deterministic: it sees no clock and no randomness but what it is handed.

    ``first_plan``, or ``resume`` in its place, is called once before the first request; ``observe`` once a second from
    then on.

    Attributes:
        name: in the registry.
        rules: of its plans. Until a policy says otherwise: Weir's dispatch, what cannot be ready by the deadline is
            dropped, and a light image that was deferred is not kept as an answer, for no published system does.
        account: of its last plan.
        reuses: its plans have a use for the states of a cache.
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
        """The plan to start with."""

    def resume(self, running: Plan) -> None:
        """Goes on from a plan in force, which an earlier one of this policy made, in place of ``first_plan``."""
        self._version = running.version

    def observe(self, seen: Observation) -> Plan | None:
        """Takes in one second. Returns a plan when there is a new one; a policy without a controller never has."""
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
        """The next plan of the first and the last variant, with this many replicas each."""
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
        """The next plan with every replica in the role of one variant."""
        first, last = self.setting.variants[0], self.setting.last
        assignments = (Assignment(variant, batch_size),) * self.setting.replicas
        return Plan(self.next_version(), assignments, (0.0,), (first, last), rules=self.rules, reason=reason)


#: DiffServe's drop bound: 1.5 times its client's constant of 15 s, whatever the deadline (``model.py``).
PUBLISHED_DROP_S = 22.5
#: How DiffServe's workers and clients go about requests: a random replica, which works its queue off in a new role.
PUBLISHED = Rules(
    replica_choice=ReplicaChoice.RANDOM, drop_after_s=PUBLISHED_DROP_S, light_fallback=False, dispatch_again=False
)
