"""Levels for GPUs and for prompts: AccuScale's allocation (Agarwal et al., Middleware 2025), and more in one program.

The published problem gives every GPU g a level x_g and a load y_g:

    maximise  Σ y_g q[x_g]    with  Σ y_g = λ,  0 ≤ y_g ≤ rate[x_g]

Prompts are aligned with its answer afterwards (``solvers/alignment.py``). Where the quality is known by what was
predicted for a prompt, both are decided at once here: prompts come in classes i with shares h_i and qualities q_ik. The
published problem is the case of one class. GPUs of one type are alike, so the program counts them: n_tk (integer, GPUs
of type t at level k) and s_ik (share of the demand: prompts of class i that are served at level k).

    maximise  Σ q_ik s_ik
    GPUs      Σ_k n_tk ≤ N_t
    capacity  λ Σ_i s_ik ≤ Σ_t rate_tk n_tk
    prompts   Σ_k s_ik = h_i

Its size does not depend on the number of GPUs. Demand beyond the capacity is shed before: the fastest levels serve all
that can be served.
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

#: How much more than its capacity a GPU may be given: within the tolerance of every solver.
SLACK = 1 + 1e-5


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
class PromptClass:
    """Prompts that are alike to the planner: all of them, or those for which the same level was predicted.

    Attributes:
        share: of all requests.
        quality: mean quality of their images, by level; any scale, the same for all classes.
    """

    share: float
    quality: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LevelProblem:
    """One instance.

    Attributes:
        classes: of prompts; over all of them the quality does not rise along the ladder.
        demand_rps: λ, requests per second to plan for.
    """

    gpus: tuple[LevelGpus, ...]
    classes: tuple[PromptClass, ...]
    demand_rps: float

    @classmethod
    def of(cls, gpus: tuple[LevelGpus, ...], quality: tuple[float, ...], demand_rps: float) -> LevelProblem:
        """The published problem, which does not tell prompts apart."""
        return cls(gpus, (PromptClass(1.0, quality),), demand_rps)

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise PlanError(message)

        need(
            math.isfinite(self.demand_rps) and self.demand_rps >= 0,
            f"demand_rps is {self.demand_rps}; it must be finite and at least 0",
        )
        need(len(self.classes) > 0, "classes is empty; give one with share 1 when prompts are not told apart")
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
                f"gpus: {gpu.name}: {len(rates)} rates for {levels} levels; give one for each level",
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
        """h_i, adding up to one."""
        return shares_of("the shares of classes", [each.share for each in self.classes])

    @property
    def quality(self) -> tuple[float, ...]:
        """Mean over all prompts, by level."""
        return tuple((self.shares @ self.qualities).tolist())

    @property
    def qualities(self) -> np.ndarray:
        """q_ik; [classes, levels]."""
        return np.array([each.quality for each in self.classes])

    @property
    def rates_rps(self) -> np.ndarray:
        """[types, levels]."""
        return np.array([gpu.rate_rps for gpu in self.gpus])

    @property
    def capacity_rps(self) -> float:
        """What all GPUs serve at the fastest level."""
        return sum(g.count * g.rate_rps[-1] for g in self.gpus)


@dataclass(frozen=True, slots=True)
class LevelLoad:
    """``count`` GPUs of one type (index into ``LevelProblem.gpus``) at a level, and the load of each of them."""

    gpu: int
    level: int
    count: float
    load_rps: float


@dataclass(frozen=True, slots=True)
class LevelAllocation:
    """The answer to one :class:`LevelProblem`. Every GPU has a level; one that is not needed stands by at its best.

    Attributes:
        loads: by type, and from the best level to the fastest.
        target: f_k, share of the served requests at each level; what prompts are aligned with.
        shift: for each class, the probability of every level; for one class this is the target.
        quality: mean of the served requests; without any, of the level that one would get.
        backend, status, seconds: who answered, how sure it is, and wall time with building and checking.
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
        """The level of every GPU, by rank: types in order, in each from the best level to the fastest; for whole
        GPUs only."""
        return tuple(load.level for load in self.loads for _ in range(int(load.count)))


def allocate(problem: LevelProblem, solver: str = "auto", time_limit_s: float = 2.0) -> LevelAllocation:
    """The best allocation. It never raises for an answer that is late, missing or wrong: when no backend has a usable
    one, every GPU goes to its fastest level, and ``status`` says so. The limit holds for each backend.

    Raises:
        ConfigError: ``solver`` names a backend that does not exist or cannot be used here.
    """
    return _solved(problem, solver, time_limit_s, whole=True)


def share_levels(problem: LevelProblem, solver: str = "auto", time_limit_s: float = 2.0) -> LevelAllocation:
    """The same where every GPU serves every level at any time, as the levels of one resident model allow: the counts
    of ``loads`` are shares of GPU time and need not be whole. It is the linear relaxation.

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
        except Exception as error:  # a solver is foreign code: whatever it raises must not end the control loop
            log.warning("solver %s failed: %s", name, error)
            continue
        if answer.x is None:
            log.warning("solver %s gave no solution: %s", name, answer.reason)
            continue
        decoded = _decode(problem, answer.x, whole)
        if decoded is None:
            log.warning("solver %s answered nonsense", name)
            continue
        return _allocation(problem, *decoded, name, Status.OPTIMAL if answer.proven else Status.FEASIBLE, began)
    return _all_fastest(problem, "none", Status.LIGHTEST, began)


def formulate_levels(problem: LevelProblem) -> MixedProgram:
    """Builds the program. Its first columns are n_tk, types in order, and then come s_ik, classes in order."""
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
    """GPUs by type and level and shares by class and level of a solver's vector, without what its tolerances left
    behind; or None when they are not an allocation of these GPUs to these prompts."""
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
    served, wanted = shares.sum(axis=1), problem.shares
    if (np.abs(served - wanted) > SLACK - 1).any():
        return None
    shares *= np.divide(wanted, served, out=np.zeros_like(wanted), where=served > 0)[:, None]
    load_rps = shares.sum(axis=0) * problem.demand_rps
    if (load_rps > capacity * SLACK + SLACK - 1).any():
        return None
    return (_idle_to_best(problem, counts, load_rps) if whole else counts), shares


def _all_fastest(problem: LevelProblem, name: str, status: Status, began: float) -> LevelAllocation:
    """Every GPU at the best of the levels at which it is fastest, with the same mix of levels for every class."""
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
    """The answer from GPUs by type and level and shares by class and level."""
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
    """Gives GPUs that no request needs the best level that their type can serve, so that they help at once."""
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
