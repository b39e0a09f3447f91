"""What a policy is: plans from observations, and the rules by which requests are sent, dropped and answered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import ClassVar

from controller.observation import Observation
from controller.setting import Setting
from weir.core import LatencyProfile, Plan, Role


class ReplicaChoice(StrEnum):
    """Which replica of the role gets a request."""

    EARLIEST_FINISH = "earliest-finish"  #: the one that would have its image ready first
    RANDOM = "random"  #: any, whatever its load


class Policy(ABC):
    """Decides for one cluster. Deterministic: it sees no clock and no randomness but what it is handed.

    ``first_plan``, or ``resume`` in its place, is called once before the first request; ``observe`` once a second from
    then on. The rules below are read when a request is sent, and may change with a plan.

    Attributes:
        name: in the registry.
        replica_choice: see :class:`ReplicaChoice`.
        heavy_entry: share of requests that go to the heavy variant at once, drawn at random; the others start light.
        drop_after_s: a queued request that cannot be ready this many seconds after its admission is dropped when its
            batch starts; None keeps all.
        light_fallback: a deferred request is answered with its light image when the heavy one would be late.
        margin_s: a heavy image counts as late when it would be ready less than this before the deadline.
        dispatch_again: the queue of a replica that changes its role goes to others of the old role; otherwise the
            replica works it off in its new role, as DiffServe does.
    """

    name: ClassVar[str]
    replica_choice: ClassVar[ReplicaChoice] = ReplicaChoice.EARLIEST_FINISH
    light_fallback: ClassVar[bool] = False
    dispatch_again: ClassVar[bool] = True

    def __init__(self, setting: Setting):
        self.setting = setting
        self.heavy_entry = 0.0
        self.drop_after_s: float | None = setting.slo_s
        self.margin_s = 0.0
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


def best_batch(profile: LatencyProfile, limit_s: float) -> int:
    """The batch size with the most images per second of those that take at most ``limit_s``; the least if none does."""
    fitting = [b for b, s in zip(profile.batch_sizes, profile.latency_s, strict=True) if s <= limit_s]
    return max(fitting, key=lambda b: b / profile.at(b), default=profile.batch_sizes[0])


def one_role(policy: Policy, role: Role, batch_size: int) -> Plan:
    """All replicas in one role."""
    light = policy.setting.replicas if role is Role.LIGHT else 0
    return Plan.split(
        policy.next_version(),
        light,
        policy.setting.replicas - light,
        light_batch=batch_size,
        heavy_batch=batch_size,
        threshold=0.0,
    )
