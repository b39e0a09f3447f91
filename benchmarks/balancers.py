"""Compares several load balancers with one, in the exact simulator: late requests and light images.

    python -m benchmarks.balancers [--data DIR] [--balancers 1,2,4,8] [--gpus 16,64] [--seconds 60]

Every load balancer models the queues of all replicas, from what it sends itself and from what the others tell it some
milliseconds later (``load_balancer/dispatch/peers.py``). With "reports only" they tell each other nothing: each knows
the images of the others from the replicas' reports of their queue lengths, once a second. Each request goes to a load
balancer at random. The policy is ``weir``; times, demands and DIR are those of ``benchmarks.simulation_agreement``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.simulation_agreement import DEMANDS, Case, Figures, arrivals_of, service, stream
from controller.registry import make_policy
from simulator.conditions import Conditions
from simulator.exact import simulate_exactly


class Cell(NamedTuple):
    """One run; ``told_ms`` is None where load balancers tell each other nothing."""

    demand: str
    gpus: int
    balancers: int
    told_ms: float | None


def run(cell: Cell, data: Path | None, seconds: int) -> dict[str, Any]:
    """Runs one cell; returns its figures."""
    setting, profile = service(None, cell.gpus, False)
    case = Case("weir", "off", "off", cell.demand, cell.gpus)
    requests = stream(case, setting, arrivals_of(cell.demand, setting, data, seconds), data)
    told_s = None if cell.told_ms is None else cell.told_ms / 1000
    begun = time.perf_counter()
    conditions = Conditions(balancers=cell.balancers, told_s=told_s)
    outcome = simulate_exactly(make_policy("weir", setting), requests, profile, conditions)
    return {**cell._asdict(), "requests": len(requests), **asdict(Figures.of(outcome, time.perf_counter() - begun))}


def cells(given: argparse.Namespace) -> list[Cell]:
    """The runs: one load balancer once, and several with every way to tell."""
    found = []
    for demand, gpus, balancers in itertools.product(given.demands, given.gpus, given.balancers):
        ways = given.told_ms if balancers > 1 else [0.0]
        found += [Cell(demand, gpus, balancers, told_ms) for told_ms in ways]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(it) for it in text.split(",")]  # noqa: E731
    delays = lambda text: [None if it == "none" else float(it) for it in text.split(",")]  # noqa: E731
    parser.add_argument("--balancers", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--gpus", type=numbers, default=[16, 64])
    parser.add_argument(
        "--demands", type=lambda text: text.split(","), default=["4 to 32", "bursty"], help=str(DEMANDS)
    )
    parser.add_argument("--told-ms", type=delays, default=[None, 20.0, 100.0, 500.0], help="numbers, or none")
    parser.add_argument("--seconds", type=int, default=60, help="the busiest part of each trace")
    parser.add_argument("--data", type=Path, help="folder with files of DiffServe's artifact")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="file for all figures")
    given = parser.parse_args()
    table = Table("demand", "GPUs", "balancers", "told after", "requests", "late %", "light %", "at deadline %", "s")
    rows = []
    with ProcessPoolExecutor(given.jobs) as pool:
        for future in [pool.submit(run, cell, given.data, given.seconds) for cell in cells(given)]:
            row = future.result()
            rows.append(row)
            told = "reports only" if row["told_ms"] is None else f"{row['told_ms']:g} ms"
            told = "" if row["balancers"] == 1 else told
            shares = (f"{row[name]:.2f}" for name in ("late", "light", "at_deadline"))
            counts = (str(row[name]) for name in ("gpus", "balancers"))
            table.add_row(row["demand"], *counts, told, str(row["requests"]), *shares, f"{row['seconds']:.0f}")
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1) + "\n")
    Console(width=110).print(table)


if __name__ == "__main__":
    command(main)
