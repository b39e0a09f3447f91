"""AccuScale's allocation: a level and a load for every GPU, for the best mean quality (Agarwal et al., 2025).

    maximise  Σ y_g q[x_g]    with  Σ y_g = λ,  0 ≤ y_g ≤ rate[x_g]

over the level x_g and the load y_g of every GPU g. GPUs of one type are alike, so the program counts them: n_tk
(integer, GPUs of type t at level k) and s_tk (the share of the demand that they serve).

    maximise  Σ q_k s_tk
    GPUs      Σ_k n_tk ≤ N_t
    capacity  λ s_tk ≤ rate_tk n_tk
    demand    Σ s_tk = 1

Its size does not depend on the number of GPUs. Demand beyond the capacity is shed before: the fastest levels serve all
that can be served.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from solvers.backends import backend, installed
from solvers.milp import MixedProgram
from solvers.solution import Status
from weir.errors import PlanError

log = logging.getLogger(__name__)

#: How much more than its capacity an allocation may be given: within the tolerance of every solver.
SLACK = 1 + 1e-6


@dataclass(frozen=True, slots=True)
class LevelGpus:
    """All GPUs of one type.

    Attributes:
        rate_rps: images per second that a plan may count on from one GPU, by level; it does not fall along the ladder.
            0: this type cannot serve the level in time.
    """

    name: str
    count: int
    rate_rps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LevelProblem:
    """One instance.

    Attributes:
        quality: mean quality of the images of each level, not rising along the ladder; any scale.
        demand_rps: λ, requests per second to plan for.
    """

    gpus: tuple[LevelGpus, ...]
    quality: tuple[float, ...]
    demand_rps: float

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise PlanError(message)

        need(
            math.isfinite(self.demand_rps) and self.demand_rps >= 0,
            f"demand_rps is {self.demand_rps}; it must be finite and at least 0",
        )
        need(len(self.quality) > 0, "quality is empty; a ladder needs at least one level")
        need(all(map(math.isfinite, self.quality)), f"quality is {self.quality}; every entry must be finite")
        need(
            all(better >= faster for better, faster in pairwise(self.quality)),
            f"quality is {self.quality}; levels are out of order: it must not rise along the ladder",
        )
        need(sum(g.count for g in self.gpus) > 0, "gpus is empty; a plan needs at least one GPU")
        for gpu in self.gpus:
            rates = gpu.rate_rps
            need(gpu.count >= 0, f"gpus: {gpu.name}: count is {gpu.count}; it must be at least 0")
            need(
                len(rates) == len(self.quality),
                f"gpus: {gpu.name}: {len(rates)} rates for {len(self.quality)} levels; give one for each level",
            )
            need(
                all(math.isfinite(r) and r >= 0 for r in rates),
                f"gpus: {gpu.name}: rate_rps is {rates}; every rate must be finite and at least 0",
            )
            need(
                all(slower <= faster for slower, faster in pairwise(rates)),
                f"gpus: {gpu.name}: rate_rps is {rates}; levels are out of order: rates must not fall along the ladder",
            )

    @property
    def capacity_rps(self) -> float:
        """What all GPUs serve at the fastest level."""
        return sum(g.count * g.rate_rps[-1] for g in self.gpus)

    @property
    def served_rps(self) -> float:
        """The demand, as far as there is capacity for it."""
        return min(self.demand_rps, self.capacity_rps)


@dataclass(frozen=True, slots=True)
class LevelLoad:
    """``count`` GPUs of one type (index into ``LevelProblem.gpus``) at a level, and the load of each of them."""

    gpu: int
    level: int
    count: int
    load_rps: float


@dataclass(frozen=True, slots=True)
class LevelAllocation:
    """The answer to one :class:`LevelProblem`. Every GPU has a level; one that is not needed stands by at its best.

    Attributes:
        loads: by type, and from the best level to the fastest.
        target: f_k, share of the served requests at each level; what prompts are aligned with.
        quality: mean of the served requests; of level 0 when there are none.
        backend, status, seconds: who answered, how sure it is, and wall time with building and checking.
    """

    loads: tuple[LevelLoad, ...]
    target: tuple[float, ...]
    quality: float
    served_rps: float
    shed_rps: float
    backend: str
    status: Status
    seconds: float

    def levels(self) -> tuple[int, ...]:
        """The level of every GPU, by rank: types in order, in each from the best level to the fastest."""
        return tuple(load.level for load in self.loads for _ in range(load.count))


def allocate(problem: LevelProblem, solver: str = "auto", time_limit_s: float = 2.0) -> LevelAllocation:
    """The best allocation. It never raises for an answer that is late, missing or wrong: when no backend has a usable
    one, every GPU goes to its fastest level, and ``status`` says so. The limit holds for each backend.

    Raises:
        ConfigError: ``solver`` names a backend that does not exist or cannot be used here.
    """
    began = time.perf_counter()
    if problem.demand_rps >= problem.capacity_rps:  # also where there is no capacity at all
        return _allocation(problem, _all_fastest(problem), "none", Status.OPTIMAL, began)
    program = formulate_levels(problem)
    for name in installed() if solver == "auto" else [solver]:
        chosen = backend(name)
        try:
            answer = chosen.solve(program, time_limit_s)
        except Exception as error:  # a solver is foreign code: whatever it raises must not end the control loop
            log.warning("solver %s failed: %s", name, error)
            continue
        if answer.x is None:
            log.warning("solver %s gave no solution: %s", name, answer.reason)
            continue
        counts = _counts(problem, answer.x)
        if counts is None:
            log.warning("solver %s answered nonsense", name)
            continue
        status = Status.OPTIMAL if answer.proven else Status.FEASIBLE
        return _allocation(problem, counts, name, status, began)
    return _allocation(problem, _all_fastest(problem), "none", Status.LIGHTEST, began)


def formulate_levels(problem: LevelProblem) -> MixedProgram:
    """Builds the program; its first columns are n_tk, types in order."""
    levels = range(len(problem.quality))
    lowest, span = problem.quality[-1], problem.quality[0] - problem.quality[-1] or 1.0
    program = MixedProgram()
    n = [[program.column(0, gpu.count, integer=True) for _ in levels] for gpu in problem.gpus]
    s = [[program.column((q - lowest) / span, 1, integer=False) for q in problem.quality] for _ in problem.gpus]
    for t, gpu in enumerate(problem.gpus):
        program.row([(column, 1.0) for column in n[t]], upper=gpu.count)
        for k, rate in enumerate(gpu.rate_rps):
            program.row([(n[t][k], rate), (s[t][k], -problem.demand_rps)], lower=0)
    program.row([(column, 1.0) for row in s for column in row], lower=1, upper=1)
    return program


def enumerate_levels(problem: LevelProblem) -> float:
    """The best mean quality by trying every count of GPUs at every level: the oracle for small instances."""
    if problem.demand_rps >= problem.capacity_rps:
        return _allocation(problem, _all_fastest(problem), "enumerate", Status.OPTIMAL, 0.0).quality
    splits = [np.array(list(_splits(gpu.count, len(problem.quality)))) for gpu in problem.gpus]
    capacity = np.zeros((1, len(problem.quality)))
    for gpu, split in zip(problem.gpus, splits, strict=True):
        rates = split * np.array(gpu.rate_rps)
        capacity = (capacity[:, None] + rates[None]).reshape(-1, len(problem.quality))
    enough = capacity[capacity.sum(axis=1) * SLACK >= problem.demand_rps]
    return float((_fill(enough, problem.demand_rps) @ np.array(problem.quality)).max())


def _splits(count: int, levels: int) -> Iterator[tuple[int, ...]]:
    """Every way to give all ``count`` GPUs a level."""
    for bars in itertools.combinations(range(count + levels - 1), levels - 1):
        yield tuple(b - a - 1 for a, b in pairwise((-1, *bars, count + levels - 1)))


def _fill(capacity_rps: np.ndarray, served_rps: float) -> np.ndarray:
    """Shares of the load by level when the best levels are filled first; [..., levels], each row adds up to one."""
    if served_rps <= 0:
        return np.broadcast_to(np.eye(capacity_rps.shape[-1])[0], capacity_rps.shape)
    filled = np.minimum(np.cumsum(capacity_rps, axis=-1), served_rps)
    shares = np.diff(filled, axis=-1, prepend=0.0) / served_rps
    return shares / shares.sum(axis=-1, keepdims=True)


def _all_fastest(problem: LevelProblem) -> np.ndarray:
    """Every GPU at the best of the levels at which it is fastest; [types, levels]."""
    counts = np.zeros((len(problem.gpus), len(problem.quality)), dtype=int)
    for t, gpu in enumerate(problem.gpus):
        counts[t, gpu.rate_rps.index(gpu.rate_rps[-1])] = gpu.count
    return counts


def _counts(problem: LevelProblem, x: np.ndarray) -> np.ndarray | None:
    """GPUs by type and level of a solver's vector, or None when it is not an allocation of these GPUs."""
    shape = (len(problem.gpus), len(problem.quality))
    n = x[: math.prod(shape)]
    if n.size != math.prod(shape) or not np.isfinite(n).all() or (np.abs(n - np.rint(n)) > 1e-3).any():
        return None
    counts = np.rint(n).astype(int).reshape(shape)
    spare = np.array([gpu.count for gpu in problem.gpus]) - counts.sum(axis=1)
    rates = np.array([gpu.rate_rps for gpu in problem.gpus])
    if (counts < 0).any() or (spare < 0).any() or (counts * rates).sum() * SLACK < problem.demand_rps:
        return None
    return counts


def _allocation(problem: LevelProblem, counts: np.ndarray, name: str, status: Status, began: float) -> LevelAllocation:
    """The loads that go with these counts. Only the counts are a solver's: the loads are evaluated again from them, so
    its tolerances never give a GPU more than it can carry."""
    rates = np.array([gpu.rate_rps for gpu in problem.gpus])
    counts = _idle_to_best(problem, counts, rates)
    capacity = counts * rates
    served = min(problem.demand_rps, float(capacity.sum()))
    target = _fill(capacity.sum(axis=0), served)
    of_level = np.divide(target * served, capacity.sum(axis=0), out=np.zeros(len(target)), where=capacity.sum(0) > 0)
    loads = tuple(
        LevelLoad(t, k, int(counts[t, k]), float(of_level[k] * rates[t, k]))
        for t, k in itertools.product(*map(range, counts.shape))
        if counts[t, k]
    )
    return LevelAllocation(
        loads=loads,
        target=tuple(target.tolist()),
        quality=float(target @ np.array(problem.quality)),
        served_rps=served,
        shed_rps=problem.demand_rps - served,
        backend=name,
        status=status,
        seconds=time.perf_counter() - began,
    )


def _idle_to_best(problem: LevelProblem, counts: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Gives GPUs that no request needs the best level that their type can serve, so that they help at once."""
    counts = counts.copy()
    capacity = (counts * rates).sum(axis=0)
    served = min(problem.demand_rps, float(capacity.sum()))
    unused_rps = capacity - _fill(capacity, served) * served
    for t, gpu in enumerate(problem.gpus):
        best = next((k for k, rate in enumerate(gpu.rate_rps) if rate > 0), len(gpu.rate_rps) - 1)
        counts[t, best] += gpu.count - counts[t].sum()
        for k in range(best + 1, len(problem.quality)):
            idle = min(counts[t, k], math.floor(max(0.0, unused_rps[k]) / rates[t, k]))
            unused_rps[k] -= idle * rates[t, k]
            counts[t, [best, k]] += np.array([idle, -idle])
    return counts
