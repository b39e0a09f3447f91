"""Compares a load of three sizes with the same load of plain squares: late answers and goodput on the bursty trace.

    python -m benchmarks.sizes [--rates 1 2 4 6] [--live] [--out sizes.json]

Both loads have the prompts and the demand of ``traces/bursty.csv``. In the mixed load the size of each image is drawn
from three, and there are fewer images, so that the work of both is the same by the prices of the profile
(:meth:`weir.profiles.Profile.price`). The simulator runs the embedded family's service under its policy, without a
cache; ``--live`` also replays both loads over HTTP against the emulated service of ``weir up``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import command, served
from controller.registry import make_policy
from controller.setting import Setting
from simulator.arrivals import trace_arrivals
from simulator.confidences import confidences_of
from simulator.engine import simulate
from simulator.request_stream import RequestStream
from testing.service_files import service_file
from traces.loader import load_trace
from traces.replay import ReplaySettings, replay
from traces.trace import Trace
from weir.config import load_service
from weir.core import ImageSize
from weir.plan import LIGHT
from weir.profiles import Profile, load_profile

CONFIG = Path("deploy/configs/weir-tiny.yaml")
#: Sizes of the mixed load, with their shares of the images.
MIX = {ImageSize(64, 64): 0.5, ImageSize(96, 64): 0.3, ImageSize(96, 96): 0.2}


def mixed(trace: Trace, seed: int) -> Trace:
    """The trace with a size for each request."""
    drawn = np.random.default_rng(seed).choice(len(MIX), size=len(trace), p=list(MIX.values()))
    return replace(trace, sizes=tuple(list(MIX)[i] for i in drawn))


def loads(trace: Trace, profile: Profile, rate: float, seed: int) -> dict[str, Trace]:
    """Both loads at a rate: the squares of the trace, and as much work in three sizes."""
    price = sum(share * profile.price(size) for size, share in MIX.items())
    return {"squares": trace.scale_rate(rate), "mixed": mixed(trace.scale_rate(rate / price), seed)}


class Answers(NamedTuple):
    """What became of the requests of a load, in their order.

    Attributes:
        light: whether the answer is an image of the light variant.
    """

    latencies_s: np.ndarray
    answered: np.ndarray
    light: np.ndarray


def figures(answers: Answers, load: Trace, profile: Profile, slo_s: float) -> dict[str, Any]:
    """Figures of one run. Late are answers behind their deadline and refused requests; ``goodput_squares_s`` counts an
    image that is in time by its price."""
    latencies_s, answered, light = answers
    in_time = answered & (latencies_s <= slo_s)
    sizes = load.sizes or (profile.size,) * len(load)
    prices = np.array([profile.price(size or ImageSize(64, 64)) for size in sizes])
    found = {
        "requests": len(in_time),
        "late": round(float(1 - in_time.mean()), 4),
        "goodput_rps": round(float(in_time.sum() / load.duration_s), 2),
        "goodput_squares_s": round(float(prices[in_time].sum() / load.duration_s), 2),
        "light": round(float(light[answered].mean()), 3) if answered.any() else None,
        "p95_s": round(float(np.percentile(latencies_s[answered], 95)), 2) if answered.any() else None,
    }
    if load.sizes:
        of = {size: np.array([it == size for it in sizes]) for size in MIX}
        found["late_by_size"] = {str(size): round(float(1 - in_time[its].mean()), 4) for size, its in of.items()}
    return found


def simulated(load: Trace, profile: Profile, replicas: int, slo_s: float) -> dict[str, Any]:
    """The run in the simulator."""
    arrivals, setting = trace_arrivals(load), Setting.of(profile, replicas, slo_s)
    requests = RequestStream(arrivals, confidences_of(setting, len(arrivals), 0))
    outcome = simulate(make_policy("weir", setting), requests, profile)
    return figures(Answers(outcome.latencies_s, outcome.answered, outcome.light), load, profile, slo_s)


def replayed(load: Trace, profile: Profile, slo_s: float, console: Console) -> dict[str, Any]:
    """The run over HTTP against emulated workers."""
    service, _ = load_service(CONFIG)
    with tempfile.TemporaryDirectory(prefix="weir-sizes-") as name:
        folder = Path(name)
        config = service_file(
            CONFIG,
            folder / "sizes.yaml",
            policy="weir",
            slo_s=slo_s,
            pool={"emulate": str(Path(str(service.profile)).resolve())},
            cache={"mode": "off"},
        )
        with served(config, folder / "state") as running:
            settings = ReplaySettings(slo_s, keep_images=False, timeout_s=4 * slo_s)
            done = replay(load, running.url, folder / "replay", settings, console=console)
    latencies_s, answered, light = np.full(len(load), np.inf), np.zeros(len(load), bool), np.zeros(len(load), bool)
    for it in done.outcomes:
        latencies_s[it.index], answered[it.index] = it.latency_s, it.answered
        light[it.index] = (it.path or "").startswith(LIGHT)
    return figures(Answers(latencies_s, answered, light), load, profile, slo_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0, 4.0, 6.0], help="factors on the demand")
    parser.add_argument("--live", action="store_true", help="also replay against the emulated service")
    parser.add_argument("--duration", type=float, default=180.0, help="seconds of the trace that --live replays")
    parser.add_argument("--seed", type=int, default=1, help="of the sizes")
    parser.add_argument("--out", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    console = Console(stderr=True, width=150)
    service, family = load_service(CONFIG)
    profile = load_profile(str(service.profile), family.keys, family.size)
    trace, rows = load_trace(Path("traces/bursty.csv")), []
    for rate in arguments.rates:
        for name, load in loads(trace, profile, rate, arguments.seed).items():
            found = simulated(load, profile, service.plan.size, service.slo_s)
            rows.append({"run": "simulated", "rate": rate, "load": name, **found})
            if arguments.live:
                found = replayed(load.clip(arguments.duration), profile, service.slo_s, console)
                rows.append({"run": "replayed", "rate": rate, "load": name, **found})
    columns = [*dict.fromkeys(key for row in rows for key in row)]
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    console.print(table)
    text = json.dumps(rows, indent=1)
    sys.stdout.write(text + "\n")
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    command(main)
