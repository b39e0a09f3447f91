"""Allocation of levels against enumeration and its bound, solve time by backend, and alignment's error by aligner.

    python -m benchmarks.levels [--rounds 20]

On the published ladder. Enumeration: 8 GPUs, 60 to 400 requests a minute. Solve time: 1,000 GPUs between the loads at
which level 0 and the fastest level are full; on a machine that does other work look at the processor time, which counts
CBC's subprocess too. The bound is the linear relaxation, in points of quality (level 0 has 100); with several types of
GPU it is approached within a limit of 100 ms and seldom proven.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import linprog

from solvers.alignment import ALIGNERS, align, total_variation
from solvers.allocation import LevelGpus, LevelProblem, allocate
from solvers.backends import installed
from solvers.enumerate_levels import enumerate_levels
from solvers.solution import Status
from weir.levels import Strategy, load_ladder

LADDER = load_ladder(Path(__file__).parents[1] / "deploy" / "ladders" / "argus-sdxl.json")
LEVELS = LADDER.of(Strategy.AC)
LIMIT_S = 0.1


def problem(counts: tuple[int, ...], load: float) -> LevelProblem:
    """Types of GPU, each slower than the one before, at a share of what they serve at the fastest level."""
    rates = LADDER.rates_rps(LEVELS)
    gpus = tuple(LevelGpus(f"type{i}", n, tuple(r / (1 + 0.35 * i) for r in rates)) for i, n in enumerate(counts))
    at_rest = LevelProblem.of(gpus, tuple(100 * level.quality for level in LEVELS), 0.0)
    return replace(at_rest, demand_rps=load * at_rest.capacity_rps)


def bound(instance: LevelProblem) -> float:
    """The mean quality that GPUs which could be divided among levels would reach."""
    quality, demand = np.array(instance.quality), instance.demand_rps
    levels, types = len(quality), len(instance.gpus)
    use = np.zeros((types, types * levels))
    for t, gpu in enumerate(instance.gpus):
        use[t, t * levels : (t + 1) * levels] = demand / np.array(gpu.rate_rps)
    result = linprog(
        -np.tile(quality, types),
        A_ub=use,
        b_ub=[gpu.count for gpu in instance.gpus],
        A_eq=np.ones((1, types * levels)),
        b_eq=[1],
    )
    return float(-result.fun)


def enumeration_table() -> Table:
    table = Table(title="8 GPUs, 60, 65 … 400 requests/min: largest difference from enumeration, points of quality")
    for column in ("backend", "instances", "difference"):
        table.add_column(column, justify="right")
    instances = [problem((8,), per_min / (8 * 60 * LADDER.rates_rps(LEVELS)[-1])) for per_min in range(60, 401, 5)]
    best = [enumerate_levels(instance) for instance in instances]
    for name in installed():
        found = [allocate(instance, name, time_limit_s=10).quality for instance in instances]
        table.add_row(name, str(len(best)), f"{max(abs(a - b) for a, b in zip(found, best, strict=True)):.1e}")
    return table


def time_table(rounds: int) -> Table:
    table = Table(title=f"1,000 GPUs, {rounds} demands: ms, and points of quality below the bound")
    for column in ("types", "limit", "backend", "proven", "wall median", "wall max", "CPU median", "below bound, max"):
        table.add_column(column, justify="right")
    loads = np.random.default_rng(0).uniform(0.5, 1.0, rounds)
    for counts, limit in (((1000,), 10.0), ((400, 300, 300), LIMIT_S)):
        instances = [problem(counts, load) for load in loads]
        bounds = [bound(instance) for instance in instances]
        for name in installed():
            allocate(instances[0], name)  # the first call loads the library
            wall, cpu, below, proven = [], [], [], 0
            for instance, most in zip(instances, bounds, strict=True):
                processor = sum(os.times()[:4])
                found = allocate(instance, name, time_limit_s=limit)
                cpu.append(1000 * (sum(os.times()[:4]) - processor))
                wall.append(1000 * found.seconds)
                below.append(most - found.quality)
                proven += found.status is Status.OPTIMAL
            figures = (f"{statistics.median(wall):.0f}", f"{max(wall):.0f}", f"{statistics.median(cpu):.0f}")
            table.add_row(str(len(counts)), f"{limit:g} s", name, f"{proven}/{rounds}", *figures, f"{max(below):.4f}")
    return table


def alignment_table() -> Table:
    """Total variation between what is served and the target: the share of prompts at a wrong level."""
    random = np.random.default_rng(0)
    pairs = [(h, f) for h, f in random.dirichlet(np.ones(6), (10_000, 2))]
    ordered = [(h, f) for h, f in pairs if (np.cumsum(f) <= np.cumsum(h)).all()]
    sets: dict[str, Iterable[tuple[np.ndarray, np.ndarray]]] = {
        "random": pairs,
        "of these all faster": ordered,
        "the same, turned round": [(f, h) for h, f in ordered],
        "reversed": [(h, h[::-1]) for h, _ in pairs],
        "one-hot": list(itertools.product(np.eye(6), np.eye(6))),
        "empty levels": [(_emptied(h, random), _emptied(f, random)) for h, f in pairs],
    }
    table = Table(title="alignment: total variation error")
    for column in ("pairs", "number", "aligner", "mean", "p90", "max"):
        table.add_column(column, justify="right")
    for name, chosen in sets.items():
        for aligner in ALIGNERS:
            errors = [total_variation(h @ align(h, f, aligner), f) for h, f in chosen]
            figures = (np.mean(errors), np.percentile(errors, 90), max(errors))
            table.add_row(name, str(len(errors)), aligner, *(f"{figure:.2g}" for figure in figures))
    return table


def _emptied(shares: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The same with one to five of its levels empty."""
    kept = shares.copy()
    kept[random.permutation(len(shares))[: random.integers(1, len(shares))]] = 0
    return kept / kept.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    console = Console()
    for table in (enumeration_table(), time_table(rounds), alignment_table()):
        console.print(table)


if __name__ == "__main__":
    main()
