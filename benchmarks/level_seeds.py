"""Compares Weir's policy for ladders with Argus and PAC on arrivals that it was not tuned on.

    python -m benchmarks.level_seeds [--seeds 5] [--first 0] [--gpus 8]

Arrivals are resampled from the demand of ``traces/bursty.csv`` and ``traces/normal.csv``, scaled so that the demand of
the busiest half minute is about the capacity of all GPUs at the fastest level. The figures are means over the seeds
with minimum and maximum, over the bursts of each trace and over the whole trace. The bursts of Normal are its busier
windows of 4 s, many of which are busy by chance. "Per request" is the quality with late answers counting as 0.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from baselines.comparison.level_compare import LADDERS, LevelReport, compare_level_files
from benchmarks import command
from benchmarks.joint import ROOT
from simulator.scenario import Scenario

POLICIES = ("weir-levels", "argus", "pac")
#: Factor on the demand of each trace.
TRACES = {"bursty": 1.0, "normal": 1.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--gpus", type=int, default=8)
    chosen = parser.parse_args()
    table = Table(title=f"published ladder, {chosen.gpus} GPUs, {chosen.seeds} seeds: mean (least … most)")
    for column in ("trace", "policy", "over", "in time/min", "quality, %", "late, %", "per request, %"):
        table.add_column(column, justify="left" if column in ("trace", "policy", "over") else "right")
    for trace, rate in TRACES.items():
        found: dict[str, list[LevelReport]] = {name: [] for name in POLICIES}
        for seed in range(chosen.first, chosen.first + chosen.seeds):
            path = ROOT / "traces" / f"{trace}.csv"
            scenario = Scenario(path, gpus=chosen.gpus, rate=rate, redraw=seed, seed=seed)
            compared = compare_level_files(LADDERS / "argus-sdxl.json", scenario, POLICIES)
            for report in compared.reports:
                found[report.policy].append(report)
        for name, reports in found.items():
            row = (f"{trace} × {rate:g}", name)
            table.add_row(
                *row,
                "bursts",
                _spread([r.peak_throughput_per_min for r in reports], ".1f"),
                _spread([r.peak_quality or float("nan") for r in reports], ".2f"),
                _spread([100 * r.peak_violation_ratio for r in reports], ".2f"),
                _spread([(r.peak_quality or 0.0) * (1 - r.peak_violation_ratio) for r in reports], ".2f"),
            )
            table.add_row(
                *row,
                "all",
                _spread([60 * r.goodput_rps for r in reports], ".1f"),
                _spread([r.quality or float("nan") for r in reports], ".2f"),
                _spread([100 * r.violation_ratio for r in reports], ".2f"),
                _spread([(r.quality or 0.0) * (1 - r.violation_ratio) for r in reports], ".2f"),
            )
    Console(width=140).print(table)


def _spread(values: list[float], form: str) -> str:
    return f"{np.mean(values):{form}} ({min(values):{form}} … {max(values):{form}})"


if __name__ == "__main__":
    command(main)
