"""Simulates DiffServe's experiments: violations and windowed FID of every policy, with the fluid bound.

    python -m benchmarks.policies --data DIR [--policies weir,diffserve] [--json FILE] [--dominance]

DIR is a folder with files of DiffServe's artifact (not part of this project): ``trace_1to8qps.txt``,
``trace_4to32qps.txt``, ``fixed_20qps.txt``, ``dist_sdturbo.txt``, ``dist_sdxs.txt`` and
``stable_diffusion_runtimes_{sdturbo,sdxs,sdxlltn}.csv``. First the tables in ``baselines.published`` are compared with
these files. Then the recorded traces run on 16 GPUs, followed by resampled arrivals: Poisson at the rate of the trace
and at 1.25 times this rate, and a steady rate, steps and spikes of the same mean. The only tuned number of Weir's
policy, the heavy utilisation, was chosen on the recorded traces and on other steps and spikes. ``--dominance`` lists
the policies and arrivals that are at least as good as Weir's on both axes and better on one; the exit code is 1 when
there are any.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from baselines.comparison.compare import compare
from baselines.published import CASCADES
from benchmarks import command, diffserve_file
from controller.registry import names
from simulator.arrivals import Arrivals, poisson, read_arrivals, spikes, steps
from simulator.confidences import read_scores, recorded
from simulator.families import family_setting
from simulator.report import Report
from simulator.request_stream import RequestStream

#: File of scores by family; the artifact uses the scores of cascade 2 for cascade 3.
SCORES = {"diffserve-1": "dist_sdturbo.txt", "diffserve-2": "dist_sdxs.txt", "diffserve-3": "dist_sdxs.txt"}
RUNTIMES = {"diffserve-1": "sdturbo", "diffserve-2": "sdxs", "diffserve-3": "sdxlltn"}
RECORDED = [
    ("diffserve-1", "trace_1to8qps"),
    ("diffserve-1", "trace_4to32qps"),
    ("diffserve-2", "trace_4to32qps"),
    ("diffserve-3", "trace_1to8qps"),
    ("diffserve-1", "fixed_20qps"),
    ("diffserve-2", "fixed_20qps"),
]


def check_tables(data: Path, console: Console) -> None:
    """Prints the deviations of the embedded tables from the files of the artifact."""
    for name, runtimes in RUNTIMES.items():
        cascade = CASCADES[name]
        worst = 0.0
        with diffserve_file(data, f"stable_diffusion_runtimes_{runtimes}.csv").open() as file:
            for row in csv.DictReader(file):
                if row["Accel"] != "onnxruntime_cpu" or float(row["avg_runtime"]) >= 100_000:
                    continue
                profile = cascade.light if row["Model"] == "sdturbo" else cascade.heavy
                worst = max(worst, abs(profile.at(int(row["batchsize"])) - float(row["avg_runtime"]) / 1000))
        confidences = np.sort(read_scores(diffserve_file(data, SCORES[name])))
        thresholds = np.array(cascade.deferral.thresholds)
        shares = np.searchsorted(confidences, thresholds, side="left") / len(confidences)
        deferral = np.abs(shares - np.array(cascade.deferral.shares)).max()
        console.print(f"{name}: latencies off by at most {worst:g} s, deferral by at most {deferral:.1e}")


def poisson_like(arrivals: Arrivals, factor: float, seed: int) -> Arrivals:
    """Samples Poisson arrivals at ``factor`` times the rate of a recording, smoothed over windows of 10 s."""
    seconds = int(arrivals.times_s[-1]) + 1
    counts = np.bincount(arrivals.times_s.astype(int), minlength=seconds)
    return poisson(factor * np.convolve(counts, np.ones(10) / 10, mode="same"), seed)


def with_same_mean(arrivals: Arrivals, seed: int) -> dict[str, Arrivals]:
    """Samples Poisson arrivals with the mean rate of a recording: steady, in steps between 0.4 and 1.6 times the mean,
    and with spikes of 3 times the base rate."""
    seconds = int(arrivals.times_s[-1]) + 1
    mean = len(arrivals) / seconds
    base = mean / (0.8 + 3 * 0.2)
    return {
        "steady": poisson(np.full(seconds, mean), seed),
        "steps": steps(0.4 * mean, 1.6 * mean, seconds, 40, seed),
        "spikes": spikes(base, 3 * base, seconds, 40, 8, seed),
    }


def dominating(reports: Sequence[Report]) -> list[str]:
    """Returns the policies that are at least as good as Weir's on both axes, FID and violations, and better on one."""
    ours = next(r for r in reports if r.policy == "weir")

    def axes(r: Report) -> tuple[float, float]:
        return r.violation_ratio, np.inf if r.windowed_quality is None else r.windowed_quality

    return [
        r.policy
        for r in reports
        if axes(r) != axes(ours) and all(theirs <= own for theirs, own in zip(axes(r), axes(ours), strict=True))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policies", default=",".join(names(levels=False)))
    parser.add_argument("--seed", type=int, default=0, help="of the resampled arrivals")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--dominance", action="store_true", help="list the policies that are better than weir on both axes"
    )
    arguments = parser.parse_args()
    console = Console(width=140)
    check_tables(arguments.data, console)

    runs: list[tuple[str, str, Arrivals]] = []
    for family, trace in RECORDED:
        runs.append((family, trace, read_arrivals(diffserve_file(arguments.data, f"{trace}.txt"))))
    for seed, (family, trace, arrivals) in enumerate(runs[:4], start=arguments.seed):
        for factor in (1.0, 1.25):
            runs.append((family, f"{trace} Poisson × {factor:g}", poisson_like(arrivals, factor, seed)))
        runs += [(family, f"{trace} {kind}", sampled) for kind, sampled in with_same_mean(arrivals, 10 + seed).items()]

    rows, better = [], []
    for family, trace, arrivals in runs:
        confidences = recorded(read_scores(diffserve_file(arguments.data, SCORES[family])), arrivals.prompts)
        found = compare(
            family_setting(family, 16), RequestStream(arrivals, {"light": confidences}), arguments.policies.split(",")
        )
        console.print(f"\n{family}, {trace}")
        found.print(console)
        if arguments.dominance:
            better += [f"{policy} on {family}, {trace}" for policy in dominating(found.reports)]
        rows += [{"family": family, "trace": trace, "bound": found.bound, **r.to_dict()} for r in found.reports]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))
    if arguments.dominance:
        what = "; ".join(better) or "none"
        console.print(f"\nat least as good as weir on both axes and better on one, over {len(runs)} runs: {what}")
        raise SystemExit(bool(better))


if __name__ == "__main__":
    command(main)
