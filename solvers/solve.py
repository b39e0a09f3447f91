"""Solving of an allocation problem, with checks, a relaxed grid and a fallback for backends that fail."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np

from solvers.backends import Backend, backend, installed
from solvers.milp import Formulation, best_point, formulate, value
from solvers.operating_points import OperatingPoint
from solvers.options import Option
from solvers.problem import Problem
from solvers.solution import Allocation, Solution, Status

log = logging.getLogger(__name__)

#: Number of thresholds on the grid after the full problem was not solved in time.
RELAXED_GRID = 20


def solve(problem: Problem, solver: str = "auto", time_limit_s: float = 2.0) -> Solution:
    """Returns the best allocation for a problem. A backend that is late, fails or returns an invalid solution raises
    nothing.

    The attempts, in order: the named backend (``auto``: the fastest installed one) on the full problem; the same
    backend on a grid of :data:`RELAXED_GRID` thresholds; the next installed backend; and finally every GPU on the first
    variant. ``status`` reports which attempt succeeded. The time limit applies to each attempt.

    Raises:
        ConfigError: ``solver`` names a backend that does not exist or is not installed.
    """
    began = time.perf_counter()
    names = list(installed()) if solver == "auto" else [solver]
    full = formulate(problem)
    coarse: Formulation | None = None
    for name in names:
        chosen = backend(name)
        found = _attempt(chosen, full, time_limit_s, began)
        if found is not None:
            return found
        coarse = coarse or formulate(_relaxed(problem))
        found = _attempt(chosen, coarse, time_limit_s, began)
        if found is not None:
            return replace(found, status=Status.RELAXED)
    return _lightest(full, began)


def _attempt(chosen: Backend, form: Formulation, time_limit_s: float, began: float) -> Solution | None:
    try:
        answer = chosen.solve(form.program, time_limit_s)
    except Exception as error:  # a third-party solver may raise anything; that must not end the control loop
        log.warning("solver %s failed: %s", chosen.name, error)
        return None
    if answer.x is None:
        log.warning("solver %s found no solution: %s", chosen.name, answer.reason)
        return None
    violation = _violation(form, answer.x)
    if violation:
        log.warning("solver %s returned an invalid solution: %s", chosen.name, violation)
        return None
    allocations, point, served = form.decode(answer.x)
    status = Status.OPTIMAL if answer.proven else Status.FEASIBLE
    return _solution(form.problem, allocations, point, served, chosen.name, status, began)


def _violation(form: Formulation, x: np.ndarray) -> str:
    """Describes why a vector is not a valid allocation of GPUs; empty when it is valid."""
    if x.shape != (len(form.program.objective),) or not np.isfinite(x).all():
        return "the vector has the wrong length or is not finite"
    n = x[: len(form.options)]
    if (np.abs(n - np.rint(n)) > 1e-3).any() or (n < -1e-3).any():
        return "GPU counts are not whole numbers"
    for index, gpu in enumerate(form.problem.gpus):
        used = sum(round(c) for c, o in zip(n, form.options, strict=True) if o.gpu == index)
        if used > gpu.count:
            return f"it uses {used} GPUs of type {gpu.name}; the problem has {gpu.count}"
    used_options = [o for c, o in zip(n, form.options, strict=True) if round(c) > 0]
    slowest = dict.fromkeys(form.problem.variants, 0.0)
    for option in used_options:
        slowest[option.variant] = max(slowest[option.variant], option.stage_s)
    if used_options and sum(slowest.values()) + form.problem.fixed_s > form.problem.slo_s + 1e-9:
        return "the batch sizes of the stages do not meet the deadline together"
    return ""


def _relaxed(problem: Problem) -> Problem:
    last = len(problem.thresholds) - 1
    kept = sorted({round(i * last / (RELAXED_GRID - 1)) for i in range(RELAXED_GRID)})

    def thinned(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[j] for j in kept)

    return replace(
        problem,
        thresholds=thinned(problem.thresholds),
        deferral=thinned(problem.deferral),
        quality=thinned(problem.quality),
        groups=tuple(
            replace(group, deferral=thinned(group.deferral), quality=thinned(group.quality)) for group in problem.groups
        ),
        middle=tuple(
            replace(stage, thresholds=thinned(stage.thresholds), reached=thinned(stage.reached))
            for stage in problem.middle
        ),
    )


def _lightest(form: Formulation, began: float) -> Solution:
    """Fallback in which every GPU serves the first variant at its highest rate within the deadline."""
    first = form.problem.variants[0]
    best: dict[int, Option] = {}
    for option in form.options:
        if option.variant == first and option.rate_rps > getattr(best.get(option.gpu), "rate_rps", 0.0):
            best[option.gpu] = option
    counts = np.array([form.problem.gpus[o.gpu].count if best.get(o.gpu) is o else 0 for o in form.options], dtype=int)
    allocations = tuple(
        Allocation(o.gpu, o.variant, o.batch_size, int(n)) for o, n in zip(form.options, counts, strict=True) if n > 0
    )
    point, served = best_point(form.problem, form.options, counts, form.curves)
    return _solution(form.problem, allocations, point, served, "none", Status.LIGHTEST, began)


def _solution(
    problem: Problem,
    allocations: tuple[Allocation, ...],
    point: OperatingPoint,
    served: float,
    name: str,
    status: Status,
    began: float,
) -> Solution:
    return Solution(
        thresholds=problem.thresholds_at(point.j),
        deferral=problem.deferral[point.j],
        allocations=allocations,
        served_rps=served * problem.demand_rps,
        shed_rps=(1 - served) * problem.demand_rps,
        objective=value(problem, allocations, point, served),
        backend=name,
        status=status,
        seconds=time.perf_counter() - began,
        point=point,
    )
