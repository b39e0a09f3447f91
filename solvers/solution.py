"""What a solver answers, and how it becomes a plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from solvers.operating_points import OperatingPoint
from solvers.problem import Problem
from weir.plan import Assignment, Plan


class Status(StrEnum):
    OPTIMAL = "optimal"  #: proven best
    FEASIBLE = "feasible"  #: the best found when the time limit struck
    RELAXED = "relaxed"  #: best on a coarser grid, after the full problem gave no answer in time
    LIGHTEST = "lightest"  #: no backend answered; everything light, nothing deferred


@dataclass(frozen=True, slots=True)
class Allocation:
    """``count`` GPUs of one type that serve one variant at one batch size."""

    gpu: int
    variant: str
    batch_size: int
    count: int


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer to one :class:`~solvers.problem.Problem`.

    Attributes:
        thresholds, deferral: of the chosen grid point: t_j, one for each judge, and F_j.
        point: that, and which hits and which groups of prompts go to the heavy variant at once.
        allocations: GPUs that are needed; fewer than there are when some are spare.
        served_rps, shed_rps: they add up to the demand.
        objective: scaled quality − cost of changes − cost of GPUs − penalty for shedding; comparable among backends.
        backend, status, seconds: who answered, how sure it is, and wall time with building and checking.
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
        """The first judge's."""
        return self.thresholds[0]

    def count(self, variant: str, gpu: int | None = None) -> int:
        """GPUs needed for a variant, of one type or of all."""
        return sum(a.count for a in self.allocations if a.variant == variant and gpu in (None, a.gpu))

    def batch_size(self, variant: str) -> int | None:
        """The largest batch size of a variant; None when no GPU serves it."""
        return max((a.batch_size for a in self.allocations if a.variant == variant), default=None)

    def to_plan(self, problem: Problem, version: int) -> Plan:
        """Gives every GPU a role. Ranks run through ``problem.gpus`` in order; in each type those of the first variant
        come first, so that a change of the split by one changes the role of one rank.

        Spare GPUs keep the role they have where the running split covers what is needed; otherwise they go, one by one,
        to the role with the least head-room. Demand that was shed becomes the limit of admission.
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
        """Images per second of each variant; of the last one whole runs."""
        return {v: work * self.served_rps for v, work in zip(problem.variants, self.point.works, strict=True)}

    def _needed_rps(self, problem: Problem, variant: str) -> float:
        return self.needed(problem)[variant] / problem.utilisation(variant)

    def _spread(
        self, problem: Problem, index: int, needed: dict[str, float], capacity: dict[str, float]
    ) -> dict[str, int]:
        """GPUs of one type by variant, all of them."""
        gpu = problem.gpus[index]
        counts = {variant: self.count(variant, index) for variant in problem.variants}
        if gpu.running is not None:
            running = {variant: gpu.running.get(variant, 0) for variant in problem.variants}
            if sum(running.values()) == gpu.count and all(counts[v] <= running[v] for v in counts):
                return running
        for _ in range(gpu.count - sum(counts.values())):
            # With nothing to defer the last stage has all the head-room; the spare GPU then speeds up the first one.
            variant = min(counts, key=lambda v: (capacity[v] + 1e-9) / (needed[v] + 1e-12))
            profile = gpu.latency(variant)
            size = self.batch_size(variant) or profile.batch_sizes[0]
            capacity[variant] += size / profile.at(size)
            counts[variant] += 1
        return counts
