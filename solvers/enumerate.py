"""Brute-force optimum of the allocation problem: the reference that the formulation and every backend are tested
against.

It shares with the program only the definition of the problem, of its operating points and of its objective. Deadlines
are checked for every combination of options of the stages, and points one by one, without modes or pruning. The work
grows with the product of all GPU counts, so it is only for small instances.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from solvers.milp import value
from solvers.operating_points import OperatingPoint, curves
from solvers.options import Option, options
from solvers.problem import Problem
from solvers.solution import Allocation, Solution, Status


def enumerate_optimum(problem: Problem) -> Solution:
    """Returns the best solution among all allocations and operating points."""
    began = time.perf_counter()
    choices = options(problem)
    points = [curve.point(j) for curve in curves(problem) for j in range(len(problem.thresholds))]
    best: tuple[float, tuple[Allocation, ...], OperatingPoint, float] | None = None
    for allocations, rate in _allocations(problem, choices):
        for point in points:
            needs = {v: problem.demand_rps * work for v, work in zip(problem.variants, point.works, strict=True)}
            served = min([1.0] + [rate[v] * (1 + 1e-9) / need for v, need in needs.items() if need > 0])
            if served < 1 and _deferred(problem, point.j) > _deferred(problem, 0):
                continue
            found = value(problem, allocations, point, served)
            if best is None or found > best[0]:
                best = (found, allocations, point, served)
    assert best is not None  # the empty allocation is always among them
    objective, allocations, point, served = best
    return Solution(
        thresholds=problem.thresholds_at(point.j),
        deferral=problem.deferral[point.j],
        allocations=allocations,
        served_rps=served * problem.demand_rps,
        shed_rps=(1 - served) * problem.demand_rps,
        objective=objective,
        backend="enumerate",
        status=Status.OPTIMAL,
        seconds=time.perf_counter() - began,
        point=point,
    )


def _deferred(problem: Problem, j: int) -> tuple[float, ...]:
    """Share of the misses that a grid point sends to each stage after the first, the last stage first."""
    return (problem.deferral[j], *(stage.reached[j] for stage in reversed(problem.middle)))


def _allocations(
    problem: Problem, choices: tuple[Option, ...]
) -> Iterator[tuple[tuple[Allocation, ...], dict[str, float]]]:
    """Yields every allocation that fits the GPUs and the deadline, with its rate by variant."""
    per_gpu = [
        list(_splits(gpu.count, [o for o in choices if o.gpu == index])) for index, gpu in enumerate(problem.gpus)
    ]
    for parts in itertools.product(*per_gpu):
        used = [(o, n) for part in parts for o, n in part]
        stages = [[o for o, _ in used if o.variant == variant] for variant in problem.variants]
        together = itertools.product(*(stage for stage in stages if stage))
        if any(sum(o.stage_s for o in each) + problem.fixed_s > problem.slo_s for each in together if len(each) > 1):
            continue
        if problem.one_batch_size and any(len({o.batch_size for o in stage}) > 1 for stage in stages):
            continue
        rate = {v: sum(o.rate_rps * n for o, n in used if o.variant == v) for v in problem.variants}
        yield tuple(Allocation(o.gpu, o.variant, o.batch_size, n) for o, n in used), rate


def _splits(count: int, choices: list[Option]) -> Iterator[list[tuple[Option, int]]]:
    """Yields every distribution of at most ``count`` GPUs over the options."""
    if not choices:
        yield []
        return
    first, *rest = choices
    for n in range(count + 1):
        for tail in _splits(count - n, rest):
            yield [(first, n), *tail] if n else tail
