"""Measures the solve time of the joint program by backend.

    python -m benchmarks.solvers [--rounds 20]

There are two sizes with 200 thresholds each: 16 GPUs of one type, and 1,000 GPUs of three types. Each size is solved
for the cascade alone, and with a cache (half of the requests hit at five levels) and three groups of prompts by
predicted level. Each round has a random demand between 0.2 and 4 requests/s per GPU. The time is that of
``solvers.solve.solve``, including formulation and checks. The processor time includes CBC's subprocess; use it on a
machine with other load.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from baselines.published import CASCADES
from benchmarks import command
from solvers.backends import installed
from solvers.problem import CacheHit, GpuType, Problem, PromptGroup
from solvers.solve import solve
from weir.core import LatencyProfile

#: Shares of requests by share of the heavy steps that their state saves.
HITS = {0.1: 0.2, 0.2: 0.1, 0.3: 0.1, 0.4: 0.05, 0.5: 0.05}
#: Exponents of the deferral curves of the groups: F_g = F^exponent.
GROUPS = (1.6, 1.0, 0.55)


def joint(plain: Problem) -> Problem:
    """Adds a cache and predicted levels to a problem."""
    deferral = np.array(plain.deferral)
    curves = [tuple((deferral**exponent).tolist()) for exponent in GROUPS]
    return replace(
        plain,
        hits=tuple(CacheHit(share, 1 - saved, 0.97) for saved, share in HITS.items()),
        direct_cuts=(0.0, *list(HITS)[1:], 1.0),
        groups=tuple(PromptGroup(1 / len(curves), curve, curve, 1.0) for curve in curves),
    )


def problem(gpus: int, types: int, load: float) -> Problem:
    """Builds the problem of cascade 1 on ``types`` types of GPU, each slower than the previous one; ``load`` is the
    demand per GPU in requests/s."""
    cascade = CASCADES["diffserve-1"]

    def slower(profile: LatencyProfile, factor: float) -> LatencyProfile:
        return LatencyProfile(profile.batch_sizes, tuple(factor * s for s in profile.latency_s))

    kinds = tuple(
        GpuType.pair(
            f"type{i}",
            gpus // types + (i < gpus % types),
            slower(cascade.light, 1 + 0.3 * i),
            slower(cascade.heavy, 1 + 0.35 * i),
            running_light=gpus // types // 5,
        )
        for i in range(types)
    )
    grid = np.linspace(0, 1, 201)
    shares = np.maximum.accumulate([cascade.deferral.at(t) for t in grid])
    return Problem(
        gpus=kinds,
        demand_rps=load * gpus,
        slo_s=cascade.slo_s,
        thresholds=tuple(grid.tolist()),
        deferral=tuple(shares.tolist()),
        quality=tuple(shares.tolist()),
        light_utilisation=0.8,
        fixed_s=0.02,
        light_residual=0.5,
        role_change_cost=2e-3,
        gpu_cost=1e-5,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    loads = np.random.default_rng(0).uniform(0.2, 4.0, rounds)
    table = Table(title=f"solve time, ms, {rounds} demands")
    for column in ("GPUs", "types", "program", "backend", "wall median", "wall max", "CPU median"):
        table.add_column(column, justify="right")
    for (gpus, types), kind in itertools.product(((16, 1), (1000, 3)), ("cascade", "joint")):
        instances = [problem(gpus, types, load) for load in loads]
        if kind == "joint":
            instances = [joint(instance) for instance in instances]
        for name in installed():
            solve(instances[0], name)  # the first call loads the library
            wall, cpu = [], []
            for instance in instances:
                began, processor = time.perf_counter(), sum(os.times()[:4])
                solve(instance, name, time_limit_s=10)
                wall.append(1000 * (time.perf_counter() - began))
                cpu.append(1000 * (sum(os.times()[:4]) - processor))
            figures = (statistics.median(wall), max(wall), statistics.median(cpu))
            table.add_row(str(gpus), str(types), kind, name, *(f"{f:.1f}" for f in figures))
    Console().print(table)


if __name__ == "__main__":
    command(main)
