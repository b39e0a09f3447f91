"""The solution of an allocation problem, and its conversion to a plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from solvers.operating_points import OperatingPoint
from solvers.problem import Problem
from weir.plan import Assignment, Plan


class Status(StrEnum):
    """How good a solution is known to be."""

    OPTIMAL = "optimal"  #: proven optimal
    FEASIBLE = "feasible"  #: the best solution found within the time limit
    RELAXED = "relaxed"  #: optimal on a coarser grid, after the full problem was not solved in time
    LIGHTEST = "lightest"  #: no backend found a solution; everything is light and nothing is deferred


@dataclass(frozen=True, slots=True)
class Allocation:
    """``count`` GPUs of one type that serve one variant at one batch size."""

    gpu: int
    variant: str
    batch_size: int
    count: int


@dataclass(frozen=True, slots=True)
class Solution:
    """The solution of one :class:`~solvers.problem.Problem`.

    Attributes:
        thresholds, deferral: t_j, one for each judge, and F_j of the chosen grid point.
        point: the chosen operating point.
        allocations: the GPUs that are needed; spare GPUs are not in it.
        served_rps, shed_rps: requests per second that are served and shed; they add up to the demand.
        objective: scaled quality − cost of changes − cost of GPUs − penalty for shedding; comparable between backends.
        backend: name of the solver backend, or ``none``.
        status: how good the solution is known to be.
        seconds: wall time, including the formulation and the checks.
    """

    thresholds: tuple[float, ...]
    deferral: float
    allocations: tuple[Allocation, ...]
    served_rps: float
    shed_rps: float
    objective: float
    backend: str
    status: Status
    seconds: float
    point: OperatingPoint

    @property
    def threshold(self) -> float:
        """Threshold of the first judge."""
        return self.thresholds[0]

    def count(self, variant: str, gpu: int | None = None) -> int:
        """Returns the number of GPUs needed for a variant, of one type or of all types."""
        return sum(a.count for a in self.allocations if a.variant == variant and gpu in (None, a.gpu))

    def batch_size(self, variant: str) -> int | None:
        """Returns the largest batch size of a variant; None when no GPU serves it."""
        return max((a.batch_size for a in self.allocations if a.variant == variant), default=None)

    def to_plan(self, problem: Problem, version: int) -> Plan:
        """Builds the plan, in which every GPU has a role.

        Ranks run through ``problem.gpus`` in order. Within a type the ranks of the first variant come first, so a
        change of the split by one changes the role of one rank. Spare GPUs keep their role where the running split
        suffices; otherwise they go, one by one, to the role with the least head-room. When demand is shed, the served
        rate becomes the admission limit.
        """
        needed = {variant: self._needed_rps(problem, variant) for variant in problem.variants}
        capacity = dict.fromkeys(problem.variants, 0.0)
        for a in self.allocations:
            seconds = problem.gpus[a.gpu].latency(a.variant).at(a.batch_size)
            capacity[a.variant] += a.count * a.batch_size / seconds
        ranks: list[Assignment] = []
        for index, gpu in enumerate(problem.gpus):
            for variant, count in self._spread(problem, index, needed, capacity).items():
                sizes = [
                    a.batch_size
                    for a in sorted(self.allocations, key=lambda a: a.batch_size)
                    if a.gpu == index and a.variant == variant
                    for _ in range(a.count)
                ]
                spare = sizes[-1] if sizes else self.batch_size(variant) or 1
                fits = [b for b in gpu.latency(variant).batch_sizes if b <= spare]
                sizes += [max(fits, default=1)] * (count - len(sizes))
                ranks += [Assignment(variant, b) for b in sizes[:count]]
        admitted = self.served_rps if self.shed_rps > 1e-9 * max(1.0, self.served_rps) else None
        return Plan(version, tuple(ranks), self.thresholds, problem.variants, admitted)

    def needed(self, problem: Problem) -> dict[str, float]:
        """Returns the needed images per second of each variant; for the last variant in whole runs."""
        return {v: work * self.served_rps for v, work in zip(problem.variants, self.point.works, strict=True)}

    def _needed_rps(self, problem: Problem, variant: str) -> float:
        return self.needed(problem)[variant] / problem.utilisation(variant)

    def _spread(
        self, problem: Problem, index: int, needed: dict[str, float], capacity: dict[str, float]
    ) -> dict[str, int]:
        """Distributes all GPUs of one type over the variants."""
        gpu = problem.gpus[index]
        counts = {variant: self.count(variant, index) for variant in problem.variants}
        if gpu.running is not None:
            running = {variant: gpu.running.get(variant, 0) for variant in problem.variants}
            if sum(running.values()) == gpu.count and all(counts[v] <= running[v] for v in counts):
                return running
        for _ in range(gpu.count - sum(counts.values())):
            # When nothing is deferred, the last stage has all the head-room and the spare GPU goes to the first stage.
            variant = min(counts, key=lambda v: (capacity[v] + 1e-9) / (needed[v] + 1e-12))
            profile = gpu.latency(variant)
            size = self.batch_size(variant) or profile.batch_sizes[0]
            capacity[variant] += size / profile.at(size)
            counts[variant] += 1
        return counts
