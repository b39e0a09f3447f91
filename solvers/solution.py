"""What a solver answers, and how it becomes a plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from solvers.operating_points import OperatingPoint
from solvers.problem import Problem
from weir.core import Assignment, Plan, Role


class Status(StrEnum):
    OPTIMAL = "optimal"  #: proven best
    FEASIBLE = "feasible"  #: the best found when the time limit struck
    RELAXED = "relaxed"  #: best on a coarser grid, after the full problem gave no answer in time
    LIGHTEST = "lightest"  #: no backend answered; everything light, nothing deferred


@dataclass(frozen=True, slots=True)
class Allocation:
    """``count`` GPUs of one type in one role at one batch size."""

    gpu: int
    role: Role
    batch_size: int
    count: int


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer to one :class:`~solvers.problem.Problem`.

    Attributes:
        threshold, deferral: t_j and F_j of the chosen grid point.
        point: that, and which hits and which groups of prompts go to the heavy variant at once.
        allocations: GPUs that are needed; fewer than there are when some are spare.
        served_rps, shed_rps: they add up to the demand.
        objective: scaled quality − cost of changes − cost of GPUs − penalty for shedding; comparable among backends.
        backend, status, seconds: who answered, how sure it is, and wall time with building and checking.
    """

    threshold: float
    deferral: float
    allocations: tuple[Allocation, ...]
    served_rps: float
    shed_rps: float
    objective: float
    backend: str
    status: Status
    seconds: float
    point: OperatingPoint

    def count(self, role: Role, gpu: int | None = None) -> int:
        """GPUs needed in a role, of one type or of all."""
        return sum(a.count for a in self.allocations if a.role is role and gpu in (None, a.gpu))

    def batch_size(self, role: Role) -> int | None:
        """The largest batch size of a role; None when no GPU has it."""
        return max((a.batch_size for a in self.allocations if a.role is role), default=None)

    def to_plan(self, problem: Problem, version: int) -> Plan:
        """Gives every GPU a role. Ranks run through ``problem.gpus`` in order; in each type the light ones come first,
        so that a change of the split by one changes the role of one rank.

        Spare GPUs keep the role they have where the running split covers what is needed; otherwise they go, one by one,
        to the role with the least head-room. Demand that was shed becomes the limit of admission.
        """
        needed = {role: self._needed_rps(problem, role) for role in Role}
        capacity = dict.fromkeys(Role, 0.0)
        for a in self.allocations:
            seconds = problem.gpus[a.gpu].latency(a.role).at(a.batch_size)
            capacity[a.role] += a.count * a.batch_size / seconds
        ranks: list[Assignment] = []
        for index, gpu in enumerate(problem.gpus):
            light, heavy = self._spread(problem, index, needed, capacity)
            for role, count in ((Role.LIGHT, light), (Role.HEAVY, heavy)):
                sizes = [
                    a.batch_size
                    for a in sorted(self.allocations, key=lambda a: a.batch_size)
                    if a.gpu == index and a.role is role
                    for _ in range(a.count)
                ]
                spare = sizes[-1] if sizes else self.batch_size(role) or 1
                fits = [b for b in gpu.latency(role).batch_sizes if b <= spare]
                sizes += [max(fits, default=1)] * (count - len(sizes))
                ranks += [Assignment(role, b) for b in sizes[:count]]
        admitted = self.served_rps if self.shed_rps > 1e-9 * max(1.0, self.served_rps) else None
        return Plan(version, tuple(ranks), self.threshold, admitted)

    def _needed_rps(self, problem: Problem, role: Role) -> float:
        return self.point.needs(role is Role.LIGHT) * self.served_rps / problem.utilisation(role)

    def _spread(
        self, problem: Problem, index: int, needed: dict[Role, float], capacity: dict[Role, float]
    ) -> tuple[int, int]:
        gpu = problem.gpus[index]
        light, heavy = self.count(Role.LIGHT, index), self.count(Role.HEAVY, index)
        running = gpu.running_light
        if running is not None and light <= running and heavy <= gpu.count - running:
            return running, gpu.count - running
        for _ in range(gpu.count - light - heavy):
            # With nothing to defer the heavy stage has all the head-room; the spare GPU then speeds up the light one.
            role = min(Role, key=lambda r: (capacity[r] + 1e-9) / (needed[r] + 1e-12))
            profile = gpu.latency(role)
            size = self.batch_size(role) or profile.batch_sizes[0]
            capacity[role] += size / profile.at(size)
            light, heavy = light + (role is Role.LIGHT), heavy + (role is Role.HEAVY)
        return light, heavy
