"""The allocation problem as a mixed-integer linear program, in a form that every backend reads.

Columns: n_o (integer, GPUs with option o), z_m (binary, which latency mode), a_vb (binary, batch size b of variant v,
only when a variant may use one), y_p (binary, which operating point: ``solvers/operating_points.py``), s_p (share of
the demand that is shed, at the points that defer least), r_g (role changes).

    maximise  Σ Q_p y_p − Σ (κ + Q_p) s_p − ρ Σ r_g − c Σ n_o
    GPUs      Σ_{o of g} n_o ≤ N_g
    variant v Σ_{o of v} rate_o n_o ≥ λ (Σ_p W_vp y_p − Σ_p W_vp s_p)
    latency   n_o ≤ N_g Σ_{m with o} z_m,  Σ z_m = 1
    one batch n_o ≤ N_g a_vb,  Σ_b a_vb ≤ 1
    shedding  0 ≤ s_p ≤ y_p;  Σ y_p = 1
    changes   r_g ≥ Σ_{v of S} (n_v,g − running v) for every set S of variants

The greatest of these sums is that of the variants that grow, so r_g counts the replicas that change their role.

Shedding is the last resort, so it needs a column only at points that defer least: at all others the whole demand is
served. No GPU and s = 1 is always feasible.

Before that, points that cannot be the best leave the program: those that another beats in every work and in quality.
On the measured, U-shaped quality curves this removes every threshold beyond the optimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from solvers.operating_points import Curve, OperatingPoint, candidates, curves
from solvers.options import Option, modes, options
from solvers.problem import GpuType, Problem
from solvers.solution import Allocation

INFINITY = float("inf")


@dataclass
class MixedProgram:
    """maximise ``objective · x`` with ``row_lower ≤ A x ≤ row_upper`` and ``0 ≤ x ≤ upper``; A by rows, sparse."""

    objective: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def column(self, objective: float, upper: float, *, integer: bool) -> int:
        self.objective.append(objective)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.objective) - 1

    def row(self, terms: list[tuple[int, float]], lower: float = -INFINITY, upper: float = INFINITY) -> None:
        self.columns += [c for c, _ in terms]
        self.values += [v for _, v in terms]
        self.starts.append(len(self.columns))
        self.row_lower.append(lower)
        self.row_upper.append(upper)


def shed_penalty(problem: Problem) -> float:
    """κ: shedding everything costs far more than all that quality, role changes and GPUs can weigh together."""
    gpus = sum(g.count for g in problem.gpus)
    return 1000.0 * (1 + gpus * (problem.role_change_cost + problem.gpu_cost))


@dataclass(frozen=True)
class Formulation:
    """The program of one problem, and the way back from its columns."""

    problem: Problem
    program: MixedProgram
    options: tuple[Option, ...]
    curves: list[Curve]

    def decode(self, x: np.ndarray) -> tuple[tuple[Allocation, ...], OperatingPoint, float]:
        """The allocations, the operating point and the served share of a solution vector.

        Only the GPU counts are taken from ``x``. The point and the served share are evaluated again from them, among
        all points, so a solver's tolerances never give a plan more than its GPUs can carry.
        """
        counts = np.rint(x[: len(self.options)]).astype(int)
        point, served = best_point(self.problem, self.options, counts, self.curves)
        allocations = tuple(
            Allocation(o.gpu, o.variant, o.batch_size, int(n))
            for o, n in zip(self.options, counts, strict=True)
            if n > 0
        )
        return allocations, point, served


def best_point(
    problem: Problem, choices: tuple[Option, ...], counts: np.ndarray, found: list[Curve]
) -> tuple[OperatingPoint, float]:
    """The best point that these GPUs carry, and the share of the demand served there (below 1 when none does)."""
    rates = dict.fromkeys(problem.variants, 0.0)
    for option, n in zip(choices, counts, strict=True):
        rates[option.variant] += option.rate_rps * n
    has = np.array(list(rates.values())) * (1 + 1e-9)
    best: tuple[float, OperatingPoint, float] | None = None
    for curve in found:
        fits = (problem.demand_rps * curve.works <= has[:, None]).all(axis=0)
        if fits.any():
            top = curve.quality[fits].max()
            j = int(np.flatnonzero(fits & (curve.quality == top))[0])  # of equal ones, the one that defers least
            if best is None or top > best[0]:
                best = (float(top), curve.point(j), 1.0)
    if best is not None:
        return best[1], best[2]
    for curve in found:
        point = curve.point(curve.useful()[0])
        needs = [problem.demand_rps * work for work in point.works]
        served = min([1.0] + [rate / need / (1 + 1e-9) for need, rate in zip(needs, has.tolist(), strict=True) if need])
        worth = point.quality * served - shed_penalty(problem) * (1 - served)
        if best is None or worth > best[0]:
            best = (worth, point, served)
    assert best is not None  # there is always a curve
    return best[1], best[2]


def formulate(problem: Problem) -> Formulation:
    """Builds the program. Its size depends on types, batch sizes and points, not on the number of GPUs."""
    choices = options(problem)
    found = curves(problem)
    points, least = candidates(found)
    program = MixedProgram()

    n = [program.column(-problem.gpu_cost, problem.gpus[o.gpu].count, integer=True) for o in choices]
    y = [program.column(point.quality, 1, integer=True) for point in points]
    penalty = shed_penalty(problem)
    shed = [program.column(-penalty - point.quality, 1, integer=False) for point in least]

    for index, gpu in enumerate(problem.gpus):
        program.row([(n[i], 1.0) for i, o in enumerate(choices) if o.gpu == index], upper=gpu.count)
    for stage, variant in enumerate(problem.variants):
        rates = [(n[i], o.rate_rps) for i, o in enumerate(choices) if o.variant == variant]
        need = [problem.demand_rps * point.works[stage] for point in points]
        less = [problem.demand_rps * point.works[stage] for point in least]
        everywhere = 0.0 if stage else min(need)  # Σ y_p = 1: what every point needs is a constant
        works = [(c, everywhere - w) for c, w in zip(y, need, strict=True) if stage or w > everywhere]
        program.row([*rates, *works, *zip(shed, less, strict=True)], lower=everywhere)
    program.row([(c, 1.0) for c in y], lower=1, upper=1)
    for point, column in zip(least, shed, strict=True):
        program.row([(y[points.index(point)], 1.0), (column, -1.0)], lower=0)

    sets = modes(problem, choices)
    if len(sets) > 1:
        z = [program.column(0, 1, integer=True) for _ in sets]
        program.row([(c, 1.0) for c in z], lower=1, upper=1)
        for i, option in enumerate(choices):
            allowing = [(c, -float(problem.gpus[option.gpu].count)) for c, s in zip(z, sets, strict=True) if i in s]
            if len(allowing) < len(sets):
                program.row([(n[i], 1.0), *allowing], upper=0)
    if problem.one_batch_size:
        for variant in problem.variants:
            sizes = sorted({o.batch_size for o in choices if o.variant == variant})
            a = {b: program.column(0, 1, integer=True) for b in sizes}
            program.row([(c, 1.0) for c in a.values()], upper=1)
            for i, option in enumerate(choices):
                if option.variant == variant:
                    big = -float(problem.gpus[option.gpu].count)
                    program.row([(n[i], 1.0), (a[option.batch_size], big)], upper=0)
    if problem.role_change_cost > 0:
        for index, gpu in enumerate(problem.gpus):
            if gpu.running is None:
                continue
            change = program.column(-problem.role_change_cost, gpu.count, integer=False)
            for grown, running in _grown(gpu, gpu.running):
                mine = [(n[i], 1.0) for i, o in enumerate(choices) if o.gpu == index and o.variant in grown]
                program.row([*mine, (change, -1.0)], upper=running)
    return Formulation(problem, program, choices, found)


def _grown(gpu: GpuType, running: Mapping[str, int]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Sets of variants, and the replicas that serve one of them now. All variants together cannot grow where they have
    all replicas."""
    idle = sum(running.get(variant, 0) for variant in gpu.variants) < gpu.count
    for size in range(1, len(gpu.variants) + idle):
        for grown in combinations(gpu.variants, size):
            yield grown, sum(running.get(variant, 0) for variant in grown)


def value(problem: Problem, allocations: tuple[Allocation, ...], point: OperatingPoint, served: float) -> float:
    """The objective of a decoded solution, evaluated exactly; what backends and the enumerator are compared by."""
    total = point.quality * served - shed_penalty(problem) * (1 - served)
    for index, gpu in enumerate(problem.gpus):
        count = dict.fromkeys(gpu.variants, 0)
        for a in allocations:
            if a.gpu == index:
                count[a.variant] += a.count
        total -= problem.gpu_cost * sum(count.values())
        if gpu.running is not None:
            changes = sum(max(0, n - gpu.running.get(variant, 0)) for variant, n in count.items())
            total -= problem.role_change_cost * changes
    return total
