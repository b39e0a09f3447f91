"""What a policy is: plans from observations. A plan carries the rules by which requests are sent and answered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from controller.observation import Observation
from controller.setting import Setting
from solvers.solution import Solution
from weir.core import LatencyProfile, Plan, ReplicaChoice, Role, Rules


@dataclass(slots=True)
class Account:
    """What a policy's last plan was made of, for those who watch it.

    Attributes:
        forecast_rps: demand it was made for, head-room included.
        solution: None where nothing had to be solved.
        solved: solutions so far, by status.
        latency_factors: measured over profiled batch times.
    """

    forecast_rps: float = 0.0
    solution: Solution | None = None
    solved: Counter[str] = field(default_factory=Counter)
    latency_factors: dict[Role, float] = field(default_factory=lambda: dict.fromkeys(Role, 1.0))

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
        pair: of several light variants before the heavy one, which is in use
            (``controller/policies/light_variants.py``).
    """

    name: ClassVar[str]
    pair: int = 0

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

    def split(self, light: int, heavy: int, *, light_batch: int, heavy_batch: int, threshold: float = 0.0) -> Plan:
        """The next plan, with so many replicas in each role."""
        return Plan.split(
            self.next_version(),
            light,
            heavy,
            light_batch=light_batch,
            heavy_batch=heavy_batch,
            threshold=threshold,
            rules=self.rules,
        )


#: DiffServe's drop bound: 1.5 times its client's constant of 15 s, whatever the deadline (``model.py``).
PUBLISHED_DROP_S = 22.5
#: How DiffServe's workers and clients go about requests: a random replica, which works its queue off in a new role.
PUBLISHED = Rules(
    replica_choice=ReplicaChoice.RANDOM, drop_after_s=PUBLISHED_DROP_S, light_fallback=False, dispatch_again=False
)


def best_batch(profile: LatencyProfile, limit_s: float) -> int:
    """The batch size with the most images per second of those that take at most ``limit_s``; the least if none does."""
    fitting = [b for b, s in zip(profile.batch_sizes, profile.latency_s, strict=True) if s <= limit_s]
    return max(fitting, key=lambda b: b / profile.at(b), default=profile.batch_sizes[0])


def one_role(policy: Policy, role: Role, batch_size: int) -> Plan:
    """All replicas in one role."""
    light = policy.setting.replicas if role is Role.LIGHT else 0
    return policy.split(light, policy.setting.replicas - light, light_batch=batch_size, heavy_batch=batch_size)
