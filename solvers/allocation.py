"""Allocation of approximation levels to GPUs and prompts: AccuScale's problem (Agarwal et al., Middleware 2025) and its
extension to classes of prompts.

The published problem gives every GPU g a level x_g and a load y_g:

    maximise  Σ y_g q[x_g]    with  Σ y_g = λ,  0 ≤ y_g ≤ rate[x_g]

Prompts are aligned with its solution afterwards (``solvers/alignment.py``). Where the quality by predicted class is
known, the program below decides both at once: class i has the share h_i of the prompts and the qualities q_ik. The
published problem is the case of one class. GPUs of one type are interchangeable, so the program counts them: n_tk
(integer) is the number of GPUs of type t at level k, and s_ik is the share of the demand that consists of prompts of
class i served at level k.

    maximise  Σ q_ik s_ik
    GPUs      Σ_k n_tk ≤ N_t
    capacity  λ Σ_i s_ik ≤ Σ_t rate_tk n_tk
    prompts   Σ_k s_ik = h_i

The size of the program does not depend on the number of GPUs. Demand beyond the capacity never reaches the program:
every GPU then runs its fastest level and the rest of the demand is shed.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from solvers.alignment import shares_of
from solvers.backends import backend, installed
from solvers.milp import MixedProgram
from solvers.solution import Status
from weir.errors import PlanError

log = logging.getLogger(__name__)

#: Factor by which a load may exceed the capacity; covers the tolerance of every solver.
SLACK = 1 + 1e-5


@dataclass(frozen=True, slots=True)
class LevelGpus:
    """All GPUs of one type.

    Attributes:
        rate_rps: images per second that a plan may count on from one GPU, by level; not falling along the ladder. 0
            means that this type cannot serve the level in time.
    """

    name: str
    count: int
    rate_rps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PromptClass:
    """Prompts that the planner does not distinguish: all prompts, or those with the same predicted level.

    Attributes:
        share: share of all requests.
        quality: mean quality of their images, by level; any scale, the same for all classes.
    """

    share: float
    quality: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LevelProblem:
    """One instance of the level allocation problem.

    Attributes:
        gpus: the hardware, one entry per type.
        classes: classes of prompts; their mean quality does not rise along the ladder.
        demand_rps: λ, requests per second to plan for.
    """

    gpus: tuple[LevelGpus, ...]
    classes: tuple[PromptClass, ...]
    demand_rps: float

    @classmethod
    def of(cls, gpus: tuple[LevelGpus, ...], quality: tuple[float, ...], demand_rps: float) -> LevelProblem:
        """Returns the published problem, in which all prompts are one class."""
        return cls(gpus, (PromptClass(1.0, quality),), demand_rps)

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise PlanError(message)

        need(
            math.isfinite(self.demand_rps) and self.demand_rps >= 0,
            f"demand_rps is {self.demand_rps}; it must be finite and at least 0",
        )
        need(len(self.classes) > 0, "classes is empty; use one class with share 1 when prompts are not distinguished")
        levels = len(self.classes[0].quality)
        need(levels > 0, "quality is empty; a ladder needs at least one level")
        for i, each in enumerate(self.classes):
            need(
                len(each.quality) == levels, f"classes[{i}]: quality has {len(each.quality)} levels instead of {levels}"
            )
            need(all(map(math.isfinite, each.quality)), f"classes[{i}]: quality is {each.quality}; it must be finite")
        mean = self.quality
        need(
            all(better >= faster - 1e-9 for better, faster in pairwise(mean)),
            f"quality is {mean}; levels are out of order: it must not rise along the ladder",
        )
        need(sum(g.count for g in self.gpus) > 0, "gpus is empty; a plan needs at least one GPU")
        for gpu in self.gpus:
            rates = gpu.rate_rps
            need(gpu.count >= 0, f"gpus: {gpu.name}: count is {gpu.count}; it must be at least 0")
            need(
                len(rates) == levels,
                f"gpus: {gpu.name}: {len(rates)} rates for {levels} levels; give one rate per level",
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
    def shares(self) -> np.ndarray:
        """h_i, the shares of the classes; they add up to one."""
        return shares_of("the shares of classes", [each.share for each in self.classes])

    @property
    def quality(self) -> tuple[float, ...]:
        """Mean quality over all prompts, by level."""
        return tuple((self.shares @ self.qualities).tolist())

    @property
    def qualities(self) -> np.ndarray:
        """q_ik, quality by class and level; [classes, levels]."""
        return np.array([each.quality for each in self.classes])

    @property
    def rates_rps(self) -> np.ndarray:
        """Images per second of one GPU by type and level; [types, levels]."""
        return np.array([gpu.rate_rps for gpu in self.gpus])

    @property
    def capacity_rps(self) -> float:
        """Images per second of all GPUs at the fastest level."""
        return sum(g.count * g.rate_rps[-1] for g in self.gpus)


@dataclass(frozen=True, slots=True)
class LevelLoad:
    """``count`` GPUs of one type (index into ``LevelProblem.gpus``) at one level, with the load of each of them."""

    gpu: int
    level: int
    count: float
    load_rps: float


@dataclass(frozen=True, slots=True)
class LevelAllocation:
    """The solution of one :class:`LevelProblem`. Every GPU has a level; an idle GPU has the best level of its type.

    Attributes:
        loads: ordered by type, and within a type from the best level to the fastest.
        target: f_k, share of the served requests at each level; the target of the alignment.
        shift: probability of every level, by class; with a single class this is the target.
        quality: mean quality of the served requests; without demand, the quality that a request would get.
        backend: name of the solver backend that found the solution, or ``none``.
        status: how good the solution is known to be.
        seconds: wall time, including the formulation and the checks.
    """

    loads: tuple[LevelLoad, ...]
    target: tuple[float, ...]
    shift: tuple[tuple[float, ...], ...]
    quality: float
    served_rps: float
    shed_rps: float
    backend: str
    status: Status
    seconds: float

    def levels(self) -> tuple[int, ...]:
        """Returns the level of every GPU, by rank: types in order, in each from the best level to the fastest. Only
        valid when the counts are whole."""
        return tuple(load.level for load in self.loads for _ in range(int(load.count)))


def allocate(problem: LevelProblem, solver: str = "auto", time_limit_s: float = 2.0) -> LevelAllocation:
    """Returns the best allocation with one level per GPU.

    A solver that is late, fails or returns an invalid solution raises nothing: when no backend returns a usable
    solution, every GPU gets its fastest level and ``status`` is ``LIGHTEST``. The time limit applies to each backend.

    Raises:
        ConfigError: ``solver`` names a backend that does not exist or is not installed.
    """
    return _solved(problem, solver, time_limit_s, whole=True)


def share_levels(problem: LevelProblem, solver: str = "auto", time_limit_s: float = 2.0) -> LevelAllocation:
    """Returns the best allocation when every GPU can serve every level at any time, as with levels of one resident
    model.

    This is the linear relaxation of :func:`allocate`: the counts of ``loads`` are shares of GPU time and need not be
    whole.

    Raises:
        ConfigError: as :func:`allocate`.
    """
    return _solved(problem, solver, time_limit_s, whole=False)


def _solved(problem: LevelProblem, solver: str, time_limit_s: float, *, whole: bool) -> LevelAllocation:
    began = time.perf_counter()
    if problem.demand_rps == 0:
        best = np.outer(problem.shares, np.eye(len(problem.quality))[0])
        counts = _idle_to_best(problem, np.zeros(problem.rates_rps.shape, dtype=int), np.zeros(len(problem.quality)))
        return _allocation(problem, counts, best, "none", Status.OPTIMAL, began)
    if problem.demand_rps >= problem.capacity_rps:
        return _all_fastest(problem, "none", Status.OPTIMAL, began)
    program = formulate_levels(problem)
    if not whole:
        program.integer = [False] * len(program.integer)
    for name in installed() if solver == "auto" else [solver]:
        chosen = backend(name)
        try:
            answer = chosen.solve(program, time_limit_s)
        except Exception as error:  # a third-party solver may raise anything; that must not end the control loop
            log.warning("solver %s failed: %s", name, error)
            continue
        if answer.x is None:
            log.warning("solver %s found no solution: %s", name, answer.reason)
            continue
        decoded = _decode(problem, answer.x, whole)
        if decoded is None:
            log.warning("solver %s returned an invalid allocation", name)
            continue
        return _allocation(problem, *decoded, name, Status.OPTIMAL if answer.proven else Status.FEASIBLE, began)
    return _all_fastest(problem, "none", Status.LIGHTEST, began)


def formulate_levels(problem: LevelProblem) -> MixedProgram:
    """Builds the program. Its columns are n_tk, types in order, followed by s_ik, classes in order."""
    quality = problem.qualities
    scaled = (quality - quality.min()) / ((quality.max() - quality.min()) or 1.0)
    levels = range(quality.shape[1])
    program = MixedProgram()
    n = [[program.column(0, gpu.count, integer=True) for _ in levels] for gpu in problem.gpus]
    s = [[program.column(float(q), 1, integer=False) for q in row] for row in scaled]
    for row, gpu in zip(n, problem.gpus, strict=True):
        program.row([(column, 1.0) for column in row], upper=gpu.count)
    for k in levels:
        rates = [(row[k], gpu.rate_rps[k]) for row, gpu in zip(n, problem.gpus, strict=True)]
        program.row([*rates, *((row[k], -problem.demand_rps) for row in s)], lower=0)
    for row, share in zip(s, problem.shares, strict=True):
        program.row([(column, 1.0) for column in row], lower=float(share), upper=float(share))
    return program


def _decode(problem: LevelProblem, x: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Converts a solver's vector to GPU counts [types, levels] and shares [classes, levels], rounding within the
    solver's tolerance. Returns None when the vector is not a valid allocation of the problem."""
    levels = len(problem.classes[0].quality)
    gpus, classes = len(problem.gpus) * levels, len(problem.classes) * levels
    if x.size < gpus + classes or not np.isfinite(x).all():
        return None
    counts = np.rint(x[:gpus]).astype(int) if whole else np.maximum(x[:gpus], 0.0)
    if (counts < 0).any() or (np.abs(x[:gpus] - counts) > 1e-3).any():
        return None
    counts = counts.reshape(-1, levels)
    if (counts.sum(axis=1) > SLACK * np.array([gpu.count for gpu in problem.gpus])).any():
        return None
    capacity = (counts * problem.rates_rps).sum(axis=0)
    shares = np.where(capacity > 0, np.maximum(x[gpus : gpus + classes].reshape(-1, levels), 0.0), 0.0)
    served, required = shares.sum(axis=1), problem.shares
    if (np.abs(served - required) > SLACK - 1).any():
        return None
    shares *= np.divide(required, served, out=np.zeros_like(required), where=served > 0)[:, None]
    load_rps = shares.sum(axis=0) * problem.demand_rps
    if (load_rps > capacity * SLACK + SLACK - 1).any():
        return None
    return (_idle_to_best(problem, counts, load_rps) if whole else counts), shares


def _all_fastest(problem: LevelProblem, name: str, status: Status, began: float) -> LevelAllocation:
    """Allocation with every GPU at the best of its fastest levels, and the same mix of levels for every class."""
    counts = np.zeros((len(problem.gpus), len(problem.quality)), dtype=int)
    for t, gpu in enumerate(problem.gpus):
        counts[t, gpu.rate_rps.index(gpu.rate_rps[-1])] = gpu.count
    capacity = (counts * problem.rates_rps).sum(axis=0)
    mix = capacity / capacity.sum() if capacity.sum() > 0 else counts.sum(axis=0) / counts.sum()
    counts = _idle_to_best(problem, counts, mix * min(problem.demand_rps, problem.capacity_rps))
    return _allocation(problem, counts, np.outer(problem.shares, mix), name, status, began)


def _allocation(
    problem: LevelProblem, counts: np.ndarray, shares: np.ndarray, name: str, status: Status, began: float
) -> LevelAllocation:
    """Builds the allocation from GPU counts [types, levels] and shares [classes, levels]."""
    rates, target = problem.rates_rps, shares.sum(axis=0)
    served = min(problem.demand_rps, problem.capacity_rps)
    capacity = (counts * rates).sum(axis=0)
    use = np.divide(target * served, capacity, out=np.zeros_like(target), where=capacity > 0)
    loads = tuple(
        LevelLoad(t, k, counts[t, k].item(), float(use[k] * rates[t, k]))
        for t, k in itertools.product(*map(range, counts.shape))
        if counts[t, k]
    )
    shift = [row / row.sum() if row.sum() > 0 else target for row in shares]
    return LevelAllocation(
        loads=loads,
        target=tuple(target.tolist()),
        shift=tuple(tuple(row.tolist()) for row in shift),
        quality=float((shares * problem.qualities).sum()),
        served_rps=served,
        shed_rps=problem.demand_rps - served,
        backend=name,
        status=status,
        seconds=time.perf_counter() - began,
    )


def _idle_to_best(problem: LevelProblem, counts: np.ndarray, load_rps: np.ndarray) -> np.ndarray:
    """Moves idle GPUs to the best level that their type can serve, so that they improve quality when used."""
    counts = counts.copy()
    unused_rps = (counts * problem.rates_rps).sum(axis=0) - load_rps
    for t, gpu in enumerate(problem.gpus):
        best = next((k for k, rate in enumerate(gpu.rate_rps) if rate > 0), len(gpu.rate_rps) - 1)
        counts[t, best] += gpu.count - counts[t].sum()
        for k in range(best + 1, len(gpu.rate_rps)):
            rate = gpu.rate_rps[k]
            idle = max(0, min(counts[t, k], math.floor(unused_rps[k] / rate + SLACK - 1)))
            unused_rps[k] -= idle * rate
            counts[t, [best, k]] += np.array([idle, -idle])
    return counts
