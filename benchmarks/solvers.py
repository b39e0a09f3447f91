"""Median solve time of the joint program by backend.

    python -m benchmarks.solvers [--rounds 20]

Two sizes: 16 GPUs of one type, and 1,000 GPUs of three types, with 200 thresholds both; each round draws another demand
between 0.2 and 4 requests/s for each GPU. The time is that of ``solvers.solve.solve``: building, solving, checking. On
a machine that does other work look at the processor time, which counts CBC's subprocess too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from solvers.backends import installed
from solvers.problem import GpuType, Problem
from solvers.published import CASCADES
from solvers.solve import solve
from weir.core import LatencyProfile


def problem(gpus: int, types: int, load: float) -> Problem:
    """Cascade 1 on ``types`` types of GPU, each slower than the one before, at a share of the heavy capacity."""
    cascade = CASCADES["diffserve-1"]

    def slower(profile: LatencyProfile, factor: float) -> LatencyProfile:
        return LatencyProfile(profile.batch_sizes, tuple(factor * s for s in profile.latency_s))

    kinds = tuple(
        GpuType(
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
    for column in ("GPUs", "types", "backend", "wall median", "wall max", "CPU median"):
        table.add_column(column, justify="right")
    for gpus, types in ((16, 1), (1000, 3)):
        instances = [problem(gpus, types, load) for load in loads]
        for name in installed():
            solve(instances[0], name)  # the first call loads the library
            wall, cpu = [], []
            for instance in instances:
                began, processor = time.perf_counter(), sum(os.times()[:4])
                solve(instance, name, time_limit_s=10)
                wall.append(1000 * (time.perf_counter() - began))
                cpu.append(1000 * (sum(os.times()[:4]) - processor))
            figures = (statistics.median(wall), max(wall), statistics.median(cpu))
            table.add_row(str(gpus), str(types), name, *(f"{f:.1f}" for f in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
