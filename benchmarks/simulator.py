"""Measures the speed of the simulator: processor seconds for requests on 1,000 GPUs under Weir's policy.

python -m benchmarks.simulator [--requests 1000000]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from rich.console import Console

from benchmarks import command
from controller.registry import make_policy
from simulator.arrivals import poisson
from simulator.confidences import sample_confidences
from simulator.engine import simulate
from simulator.families import family_setting
from simulator.report import report
from simulator.request_stream import RequestStream

RATE_RPS = 1200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    requests = parser.parse_args().requests
    setting = family_setting("diffserve-1", 1000)
    arrivals = poisson(np.full(max(1, round(requests / RATE_RPS)), RATE_RPS), seed=1)
    stream = RequestStream(arrivals, {setting.variants[0]: sample_confidences(setting.deferral, len(arrivals), seed=1)})
    began, processor = time.perf_counter(), time.process_time()
    outcome = simulate(make_policy("weir", setting), stream)
    wall, cpu = time.perf_counter() - began, time.process_time() - processor
    figures = report(outcome, setting.quality)
    Console().print(
        f"{len(arrivals):,} requests on 1,000 GPUs: {wall:.1f} s wall, {cpu:.1f} s processor, "
        f"violations {figures.violation_ratio:.3%}, GPU busy {figures.gpu_utilisation:.0%}"
    )


if __name__ == "__main__":
    command(main)
