"""Compares the allocation of levels with enumeration and a bound; measures solve times and alignment errors.

    python -m benchmarks.levels [--rounds 20] [--burst-minutes 15]

All parts use the published ladder. Enumeration: 8 GPUs with 60 to 400 requests a minute. Solve time: 1,000 GPUs with
loads between the capacities at level 0 and at the fastest level. The processor time includes CBC's subprocess; use it
on a machine with other load. The bound is the linear relaxation, in points of quality (level 0 has 100); with several
types of GPU or classes of prompts it is approached within a limit of 100 ms and seldom proven. Bursts: 50 and 388
requests a minute in turn on 8 GPUs, each for the given time, twice (the last two hours of the paper), with the figures
of the paper.
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
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from baselines.comparison.level_compare import compare_levels
from benchmarks import command
from controller.setting import Setting
from simulator.arrivals import poisson
from solvers.alignment import ALIGNERS, align, total_variation
from solvers.allocation import LevelGpus, LevelProblem, PromptClass, allocate, formulate_levels
from solvers.backends import installed
from solvers.enumerate_levels import enumerate_levels
from solvers.solution import Status
from weir.approximation_levels import Strategy, load_ladder

LADDER = load_ladder(Path(__file__).parents[1] / "deploy" / "ladders" / "argus-sdxl.json")
LEVELS = LADDER.of(Strategy.AC)
LIMIT_S = 0.1


def problem(counts: tuple[int, ...], load: float, classes: int = 1) -> LevelProblem:
    """Builds a problem with types of GPU that are each slower than the previous one, at a share of their capacity at
    the fastest level.

    With several classes, prompts of a class lose no quality up to their level and 5 points at each further level; these
    are invented numbers for timing.
    """
    rates = LADDER.rates_rps(LEVELS)
    gpus = tuple(LevelGpus(f"type{i}", n, tuple(r / (1 + 0.35 * i) for r in rates)) for i, n in enumerate(counts))
    found = LevelProblem.of(gpus, tuple(100 * level.quality for level in LEVELS), 0.0)
    if classes > 1:
        steps = [[max(0, k - i) for k in range(len(LEVELS))] for i in range(classes)]
        kinds = tuple(PromptClass(1 / classes, tuple(100.0 - 5 * step for step in row)) for row in steps)
        found = replace(found, classes=kinds)
    return replace(found, demand_rps=load * found.capacity_rps)


def bound(instance: LevelProblem) -> float:
    """Returns the mean quality of the linear relaxation, in which GPUs are divided among levels."""
    program, quality = formulate_levels(instance), instance.qualities
    rows = csr_matrix((program.values, program.columns, program.starts))
    relaxed = milp(
        -np.array(program.objective),
        bounds=Bounds(0, program.upper),
        constraints=LinearConstraint(rows, program.row_lower, program.row_upper),
    )
    return float(quality.min() - relaxed.fun * (quality.max() - quality.min()))


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
    for column in ("types", "classes", "limit", "backend", "proven", "median", "max", "CPU", "below, max"):
        table.add_column(column, justify="right")
    loads = np.random.default_rng(0).uniform(0.5, 1.0, rounds)
    for counts, classes, limit in (((1000,), 1, 10.0), ((400, 300, 300), 1, LIMIT_S), ((1000,), 6, LIMIT_S)):
        instances = [problem(counts, load, classes) for load in loads]
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
            figures = (f"{f:.0f}" for f in (statistics.median(wall), max(wall), statistics.median(cpu)))
            row = (str(len(counts)), str(classes), f"{limit:g} s", name, f"{proven}/{rounds}")
            table.add_row(*row, *figures, f"{max(below):.4f}")
    return table


def alignment_table() -> Table:
    """Builds the table of the total variation between served and target shares: the share of prompts at a wrong
    level."""
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
    """Returns the shares with one to five levels empty."""
    kept = shares.copy()
    kept[random.permutation(len(shares))[: random.integers(1, len(shares))]] = 0
    return kept / kept.sum()


#: Published answers in time per minute, quality in percent and violations in percent, all in bursts; read from plots.
PAPER = {
    "clipper-heavy": (181, 100.0, 54),
    "clipper-light": (327, 89.8, 16),
    "nirvana": (224, 96.7, 43),
    "proteus-levels": (310, 92.2, 21),
    "pac": (335, 92.5, 14),
    "argus": (370, 94.0, 5),
}


def burst_table(minutes: int) -> Table:
    table = Table(title=f"8 GPUs, bursts of {minutes} minutes at 388 requests/min, SLO 12.6 s")
    for column in ("policy", "per min", "paper", "quality", "paper", "violations, %", "paper"):
        table.add_column(column, justify="right")
    calm_and_burst = np.repeat([50 / 60, 388 / 60] * 2, 60 * minutes)
    found = compare_levels(Setting.of_ladder(LADDER, 8, 12.6), poisson(calm_and_burst, seed=0))
    for r in found.reports:
        throughput, quality, violations = map(str, PAPER.get(r.policy, ("", "", "")))
        figures = (f"{r.peak_throughput_per_min:.0f}", f"{r.peak_quality:.1f}", f"{100 * r.peak_violation_ratio:.1f}")
        table.add_row(r.policy, figures[0], throughput, figures[1], quality, figures[2], violations)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--burst-minutes", type=int, default=15)
    options = parser.parse_args()
    console = Console()
    for table in (enumeration_table, lambda: time_table(options.rounds), alignment_table):
        console.print(table())
    console.print(burst_table(options.burst_minutes))


if __name__ == "__main__":
    command(main)
