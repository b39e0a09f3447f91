"""Weir's policy for ladders against Argus' and PAC on arrivals that it was not tuned on: several seeds, two traces.

    python -m benchmarks.level_seeds [--seeds 5] [--first 0] [--gpus 8]

Arrivals are drawn anew from the demand of ``traces/bursty.csv`` and ``traces/normal.csv``, which is scaled so that the
busiest half minute asks for about what all GPUs serve at the fastest level. Means over the seeds, with the least and
the most; over the bursts of each trace, and over the whole of it. The bursts of Normal are its busier windows of
4 s, many of them busy by chance; those of Bursty are bursts. Per request: quality, a late answer counting as nothing.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from baselines.comparison.level_compare import LADDERS, LevelReport, compare_level_files
from benchmarks.joint import ROOT

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
            compared = compare_level_files(
                LADDERS / "argus-sdxl.json",
                ROOT / "traces" / f"{trace}.csv",
                POLICIES,
                gpus=chosen.gpus,
                seed=seed,
                rate=rate,
                redraw=seed,
            )
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
    main()
