"""Formulation of the allocation problem as a mixed-integer linear program, in a form that every backend reads.

Columns: n_o (integer, GPUs with option o), z_m (binary, the latency mode), a_vb (binary, batch size b of variant v,
present only when a variant may use a single batch size), y_p (binary, the operating point, see
``solvers/operating_points.py``), s_p (share of the demand that is shed, at the points that defer least), r_g (role
changes).

    maximise  Σ Q_p y_p − Σ (κ + Q_p) s_p − ρ Σ r_g − c Σ n_o
    GPUs      Σ_{o of g} n_o ≤ N_g
    variant v Σ_{o of v} rate_o n_o ≥ λ (Σ_p W_vp y_p − Σ_p W_vp s_p)
    latency   n_o ≤ N_g Σ_{m with o} z_m,  Σ z_m = 1
    one batch n_o ≤ N_g a_vb,  Σ_b a_vb ≤ 1
    shedding  0 ≤ s_p ≤ y_p;  Σ y_p = 1
    changes   r_g ≥ Σ_{v of S} (n_v,g − running v) for every set S of variants

The largest of these sums belongs to the set of all variants that grow, so r_g counts the replicas that change their
role.

Shedding is the last resort, so only the points that defer least have a column for it: at all others the whole demand is
served. No GPU and s = 1 is always feasible.

Dominated points, which another point beats in every work and in quality, are removed before the program is built. On
the measured, U-shaped quality curves this removes every threshold beyond the optimum.
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
    """A mixed-integer program: maximise ``objective · x`` subject to ``row_lower ≤ A x ≤ row_upper`` and
    ``0 ≤ x ≤ upper``. A is sparse and stored by rows."""

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
    """Returns κ, the penalty of shedding the whole demand. It is far above the sum of all other terms of the
    objective."""
    gpus = sum(g.count for g in problem.gpus)
    return 1000.0 * (1 + gpus * (problem.role_change_cost + problem.gpu_cost))


@dataclass(frozen=True)
class Formulation:
    """The program of one problem, with the decoding of its solution vectors."""

    problem: Problem
    program: MixedProgram
    options: tuple[Option, ...]
    curves: list[Curve]

    def decode(self, x: np.ndarray) -> tuple[tuple[Allocation, ...], OperatingPoint, float]:
        """Converts a solution vector to allocations, operating point and served share.

        Only the GPU counts are taken from ``x``. The point and the served share are computed from these counts, among
        all points, so a solver's tolerances never lead to a plan that exceeds the capacity of its GPUs.
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
    """Returns the best point for which the capacity of these GPUs suffices, and the share of the demand that it serves:
    1, or less when the capacity suffices for no point."""
    rates = dict.fromkeys(problem.variants, 0.0)
    for option, n in zip(choices, counts, strict=True):
        rates[option.variant] += option.rate_rps * n
    capacity = np.array(list(rates.values())) * (1 + 1e-9)
    best: tuple[float, OperatingPoint, float] | None = None
    for curve in found:
        fits = (problem.demand_rps * curve.works <= capacity[:, None]).all(axis=0)
        if fits.any():
            top = curve.quality[fits].max()
            j = int(np.flatnonzero(fits & (curve.quality == top))[0])  # among equals, the one that defers least
            if best is None or top > best[0]:
                best = (float(top), curve.point(j), 1.0)
    if best is not None:
        return best[1], best[2]
    for curve in found:
        point = curve.point(curve.useful()[0])
        needs = [problem.demand_rps * work for work in point.works]
        usable = zip(needs, capacity.tolist(), strict=True)
        served = min([1.0] + [rate / need / (1 + 1e-9) for need, rate in usable if need])
        objective = point.quality * served - shed_penalty(problem) * (1 - served)
        if best is None or objective > best[0]:
            best = (objective, point, served)
    assert best is not None  # there is at least one curve
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
        everywhere = 0.0 if stage else min(need)  # Σ y_p = 1: the work that every point needs is a constant
        works = [(c, everywhere - w) for c, w in zip(y, need, strict=True) if stage or w > everywhere]
        program.row([*rates, *works, *zip(shed, less, strict=True)], lower=everywhere)
    program.row([(c, 1.0) for c in y], lower=1, upper=1)
    for point, column in zip(least, shed, strict=True):
        program.row([(y[points.index(point)], 1.0), (column, -1.0)], lower=0)

    _add_latency(program, problem, choices, n)
    if problem.one_batch_size:
        _add_one_batch_size(program, problem, choices, n)
    if problem.role_change_cost > 0:
        _add_role_changes(program, problem, choices, n)
    return Formulation(problem, program, choices, found)


def _add_latency(program: MixedProgram, problem: Problem, choices: tuple[Option, ...], n: list[int]) -> None:
    """Adds the latency modes z_m and the rows that allow an option only in its modes."""
    sets = modes(problem, choices)
    if len(sets) <= 1:
        return
    z = [program.column(0, 1, integer=True) for _ in sets]
    program.row([(c, 1.0) for c in z], lower=1, upper=1)
    for i, option in enumerate(choices):
        allowing = [(c, -float(problem.gpus[option.gpu].count)) for c, s in zip(z, sets, strict=True) if i in s]
        if len(allowing) < len(sets):
            program.row([(n[i], 1.0), *allowing], upper=0)


def _add_one_batch_size(program: MixedProgram, problem: Problem, choices: tuple[Option, ...], n: list[int]) -> None:
    """Adds the columns a_vb and the rows that allow each variant at most one batch size."""
    for variant in problem.variants:
        sizes = sorted({o.batch_size for o in choices if o.variant == variant})
        a = {b: program.column(0, 1, integer=True) for b in sizes}
        program.row([(c, 1.0) for c in a.values()], upper=1)
        for i, option in enumerate(choices):
            if option.variant == variant:
                big = -float(problem.gpus[option.gpu].count)
                program.row([(n[i], 1.0), (a[option.batch_size], big)], upper=0)


def _add_role_changes(program: MixedProgram, problem: Problem, choices: tuple[Option, ...], n: list[int]) -> None:
    """Adds the columns r_g and the rows that count the replicas whose role changes."""
    for index, gpu in enumerate(problem.gpus):
        if gpu.running is None:
            continue
        change = program.column(-problem.role_change_cost, gpu.count, integer=False)
        for grown, running in _grown(gpu, gpu.running):
            mine = [(n[i], 1.0) for i, o in enumerate(choices) if o.gpu == index and o.variant in grown]
            program.row([*mine, (change, -1.0)], upper=running)


def _grown(gpu: GpuType, running: Mapping[str, int]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields sets of variants with the number of replicas that serve one of them now. The set of all variants is left
    out when they already have all replicas, because it cannot grow."""
    idle = sum(running.get(variant, 0) for variant in gpu.variants) < gpu.count
    for size in range(1, len(gpu.variants) + idle):
        for grown in combinations(gpu.variants, size):
            yield grown, sum(running.get(variant, 0) for variant in grown)


def value(problem: Problem, allocations: tuple[Allocation, ...], point: OperatingPoint, served: float) -> float:
    """Returns the exact objective of a decoded solution, by which backends and the enumerator are compared."""
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
