"""Brute-force optimum of the level allocation: the reference that the program and every backend are tested against.

The work grows polynomially with the number of GPUs, so it is only for small instances.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog

from solvers.allocation import LevelProblem


def enumerate_levels(problem: LevelProblem) -> float:
    """Returns the best mean quality of the served requests over every assignment of levels to GPUs."""
    served = min(problem.demand_rps, problem.capacity_rps)
    if served <= 0:
        return problem.quality[0]
    capacity = np.zeros((1, len(problem.quality)))
    for gpu in problem.gpus:
        rates = np.array(list(_splits(gpu.count, len(gpu.rate_rps)))) * np.array(gpu.rate_rps)
        capacity = (capacity[:, None] + rates[None]).reshape(-1, len(problem.quality))
    enough = np.unique(capacity[capacity.sum(axis=1) >= served * (1 - 1e-9)], axis=0)
    if len(problem.classes) == 1:
        return float((_best_first(enough, served) @ np.array(problem.quality)).max())
    return max(_transport(problem, row / served) for row in enough)


def _splits(count: int, levels: int) -> Iterator[tuple[int, ...]]:
    """Yields every distribution of ``count`` GPUs over the levels."""
    for bars in itertools.combinations(range(count + levels - 1), levels - 1):
        yield tuple(b - a - 1 for a, b in pairwise((-1, *bars, count + levels - 1)))


def _best_first(capacity_rps: np.ndarray, served_rps: float) -> np.ndarray:
    """Returns the shares of the load by level when the best levels are filled first; [..., levels], each row adds up to
    one."""
    filled = np.minimum(np.cumsum(capacity_rps, axis=-1), served_rps)
    shares = np.diff(filled, axis=-1, prepend=0.0)
    return shares / shares.sum(axis=-1, keepdims=True)


def _transport(problem: LevelProblem, capacity: np.ndarray) -> float:
    """Returns the best mean quality when each level has the capacity for a share of the requests (a transport
    problem)."""
    quality, h = problem.qualities, problem.shares
    classes, levels = quality.shape
    result = linprog(
        -quality.ravel(),
        A_ub=np.tile(np.eye(levels), classes),
        b_ub=capacity * (1 + 1e-9),
        A_eq=np.repeat(np.eye(classes), levels, axis=1),
        b_eq=h,
    )
    return float(-result.fun)
