"""The allocation problem as a mixed-integer linear program, in a form that every backend reads.

Columns: n_o (integer, GPUs with option o), z_m (binary, which latency mode), a_rb (binary, batch size b of role r, only
when a role may use one), y_j (binary, which threshold), s (share of the demand that is shed), r_g (role changes).

    maximise  Σ Q_j y_j − (κ + Q_0) s − ρ Σ r_g − c Σ n_o
    GPUs      Σ_{o of g} n_o ≤ N_g
    light     Σ_{light o} rate_o n_o ≥ λ (1 − H) (1 − s)
    heavy     Σ_{heavy o} rate_o n_o ≥ λ (Σ_j W_j y_j − W_0 s),   W_j = Σ_K h_K w_K + (1 − H) F_j
    latency   n_o ≤ N_g Σ_{m with o} z_m,  Σ z_m = 1
    one batch n_o ≤ N_g a_rb,  Σ_b a_rb ≤ 1
    shedding  0 ≤ s ≤ y_0;  Σ y_j = 1
    changes   r_g ≥ n_light,g − running light,  r_g ≥ n_heavy,g − running heavy

Threshold 0 is the one that defers least. Shedding is the last resort, so it needs a column at that threshold alone: at
all others the whole demand is served. No GPU and s = 1 is always feasible.

Before that, thresholds that cannot be the best leave the grid: those that defer no less than another of at least equal
quality. On the measured, U-shaped quality curves this removes everything beyond the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from solvers.options import Option, modes, options
from solvers.problem import Problem
from solvers.solution import Allocation
from weir.core import Role

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


def useful_thresholds(problem: Problem) -> list[int]:
    """Grid points that defer less than every other of at least their quality; the first of them defers least."""
    kept: list[int] = []
    order = sorted(range(len(problem.deferral)), key=lambda j: (problem.deferral[j], -problem.quality[j]))
    for j in order:
        if not kept or problem.quality[j] > problem.quality[kept[-1]]:
            kept.append(j)
    return kept


@dataclass(frozen=True)
class Formulation:
    """The program of one problem, and the way back from its columns."""

    problem: Problem
    program: MixedProgram
    options: tuple[Option, ...]
    thresholds: list[int]

    def decode(self, x: np.ndarray) -> tuple[tuple[Allocation, ...], int, float]:
        """The allocations, the grid point and the served share of a solution vector.

        Only the GPU counts are taken from ``x``. The threshold and the served share are evaluated again from them,
        so a solver's tolerances never give a plan more than its GPUs can carry.
        """
        counts = np.rint(x[: len(self.options)]).astype(int)
        allocations = tuple(
            Allocation(o.gpu, o.role, o.batch_size, int(n)) for o, n in zip(self.options, counts, strict=True) if n > 0
        )
        j, served = best_threshold(self.problem, self.options, counts, self.thresholds)
        return allocations, j, served


def best_threshold(
    problem: Problem, choices: tuple[Option, ...], counts: np.ndarray, thresholds: list[int]
) -> tuple[int, float]:
    """The best grid point that these GPUs carry, and the share of the demand served there (below 1 when none does)."""
    rate = {role: sum(o.rate_rps * n for o, n in zip(choices, counts, strict=True) if o.role is role) for role in Role}
    slack = 1 + 1e-9
    light_need = problem.demand_rps * (1 - problem.hit_share)
    if light_need <= rate[Role.LIGHT] * slack:
        for j in reversed(thresholds):
            if problem.demand_rps * problem.heavy_work(j) <= rate[Role.HEAVY] * slack:
                return j, 1.0
    lightest = thresholds[0]
    heavy_need = problem.demand_rps * problem.heavy_work(lightest)
    served = min(
        [1.0]
        + ([rate[Role.LIGHT] / light_need] if light_need > 0 else [])
        + ([rate[Role.HEAVY] / heavy_need] if heavy_need > 0 else [])
    )
    return lightest, served


def formulate(problem: Problem) -> Formulation:
    """Builds the program. Its size depends on types, batch sizes and thresholds, not on the number of GPUs."""
    choices = options(problem)
    thresholds = useful_thresholds(problem)
    quality = problem.scaled_quality()
    program = MixedProgram()

    n = [program.column(-problem.gpu_cost, problem.gpus[o.gpu].count, integer=True) for o in choices]
    y = [program.column(quality[j], 1, integer=True) for j in thresholds]
    shed = program.column(-shed_penalty(problem) - quality[thresholds[0]], 1, integer=False)

    for index, gpu in enumerate(problem.gpus):
        program.row([(n[i], 1.0) for i, o in enumerate(choices) if o.gpu == index], upper=gpu.count)
    by_role = {role: [(n[i], o.rate_rps) for i, o in enumerate(choices) if o.role is role] for role in Role}
    light_need = problem.demand_rps * (1 - problem.hit_share)
    program.row([*by_role[Role.LIGHT], (shed, light_need)], lower=light_need)
    work = [problem.demand_rps * problem.heavy_work(j) for j in thresholds]
    program.row([*by_role[Role.HEAVY], *((c, -w) for c, w in zip(y, work, strict=True)), (shed, work[0])], lower=0)
    program.row([(c, 1.0) for c in y], lower=1, upper=1)
    program.row([(y[0], 1.0), (shed, -1.0)], lower=0)

    sets = modes(problem, choices)
    if len(sets) > 1:
        z = [program.column(0, 1, integer=True) for _ in sets]
        program.row([(c, 1.0) for c in z], lower=1, upper=1)
        for i, option in enumerate(choices):
            allowing = [(c, -float(problem.gpus[option.gpu].count)) for c, s in zip(z, sets, strict=True) if i in s]
            if len(allowing) < len(sets):
                program.row([(n[i], 1.0), *allowing], upper=0)
    if problem.one_batch_size:
        for role in Role:
            sizes = sorted({o.batch_size for o in choices if o.role is role})
            a = {b: program.column(0, 1, integer=True) for b in sizes}
            program.row([(c, 1.0) for c in a.values()], upper=1)
            for i, option in enumerate(choices):
                if option.role is role:
                    big = -float(problem.gpus[option.gpu].count)
                    program.row([(n[i], 1.0), (a[option.batch_size], big)], upper=0)
    if problem.role_change_cost > 0:
        for index, gpu in enumerate(problem.gpus):
            if gpu.running_light is None:
                continue
            change = program.column(-problem.role_change_cost, gpu.count, integer=False)
            running = {Role.LIGHT: gpu.running_light, Role.HEAVY: gpu.count - gpu.running_light}
            for role in Role:
                mine = [(n[i], 1.0) for i, o in enumerate(choices) if o.gpu == index and o.role is role]
                program.row([*mine, (change, -1.0)], upper=running[role])
    return Formulation(problem, program, choices, thresholds)


def value(problem: Problem, allocations: tuple[Allocation, ...], j: int, served: float) -> float:
    """The objective of a decoded solution, evaluated exactly; what backends and the enumerator are compared by."""
    total = problem.scaled_quality()[j] * served - shed_penalty(problem) * (1 - served)
    for index, gpu in enumerate(problem.gpus):
        count = {role: sum(a.count for a in allocations if a.gpu == index and a.role is role) for role in Role}
        total -= problem.gpu_cost * sum(count.values())
        if gpu.running_light is not None:
            more_light = count[Role.LIGHT] - gpu.running_light
            more_heavy = count[Role.HEAVY] - (gpu.count - gpu.running_light)
            total -= problem.role_change_cost * max(0, more_light, more_heavy)
    return total
