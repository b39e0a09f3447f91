"""Compares the exact simulator with the fast one: every policy, cache and redraw setting on every kind of demand.

    python -m benchmarks.simulation_agreement [--data DIR] [--seconds 60] [--policies weir,diffserve] [--json FILE]
    python -m benchmarks.simulation_agreement --caches off --redraws off --demands overload --gpus 16

The exact simulator (``simulator/exact.py``) runs the load balancer itself on virtual time, and the fast one
(``simulator/engine.py``) runs its decisions on a heap of events. Both get the same requests, with the same confidence
of every image and the same random numbers of the plans. Times are those of DiffServe's first cascade, or of a profile
file.

DIR is a folder with files of DiffServe's artifact (not part of this project): ``trace_4to32qps.txt`` and
``dist_sdturbo.txt``. Without it, a synthetic trace of the same demand and confidences from the published curve are
used. Demands scale with the number of GPUs (the base is 16), except for the spike from 5 to 400 requests a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from baselines.published import CASCADES
from benchmarks import command, diffserve_file
from controller.batch_size import best_batch
from controller.registry import make_policy, names
from controller.service_ladder import StoredStates
from controller.setting import Setting
from simulator.arrivals import Arrivals, poisson, read_arrivals, resampled
from simulator.conditions import Conditions
from simulator.confidences import read_scores, recorded, sample_confidences
from simulator.engine import simulate
from simulator.exact import simulate_exactly
from simulator.outcome import Outcome
from simulator.request_stream import RequestStream
from weir.config import RedrawConfig
from weir.core import CacheLookup, Resume
from weir.errors import ConfigError
from weir.profiles import Profile, load_profile

CACHES = ("off", "on", "judged")
REDRAWS = ("off", "on")
DEMANDS = ("steady", "4 to 32", "bursty", "spike", "overload")
GPUS = (16, 64)
SLO_S = 5.0
#: Requests per second and 16 GPUs.
STEADY_RPS = 24.0
#: Largest accepted differences in points: late or unanswered requests, and answers with a light image.
MOST_LATE, MOST_LIGHT = 0.3, 2.0

#: Share of the requests that find a state at each K, and relative quality of an image that resumes there.
HITS = {0: 0.4, 5: 0.2, 10: 0.2, 15: 0.1, 25: 0.1}
WORTH = {5: 0.995, 10: 0.99, 15: 0.97, 20: 0.95, 25: 0.92}
#: A cache by confidence resumes late, skips steps and judges resumed images.
JUDGED_HIT, JUDGED_K, JUDGED_STRIDE, JUDGED_FROM = 0.7, 25, 5, 0.9
REDRAW = RedrawConfig(below=0.6, most=2)


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the table."""

    policy: str
    cache: str
    redraw: str
    demand: str
    gpus: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one run, in percent of its requests (``light``: of its answers)."""

    late: float
    unanswered: float
    light: float
    at_deadline: float
    seconds: float

    @classmethod
    def of(cls, outcome: Outcome, seconds: float) -> Figures:
        """Summarises a run that took ``seconds`` of wall time."""
        answers = max(1, int(outcome.answered.sum()))
        return cls(
            late=100 * float(outcome.violated.mean()),
            unanswered=100 * float((~outcome.answered).mean()),
            light=100 * float(outcome.light.sum()) / answers,
            at_deadline=100 * float(outcome.at_deadline.mean()),
            seconds=seconds,
        )


def service(profile: Path | None, gpus: int, cached: bool) -> tuple[Setting, Profile]:
    """Returns the setting of a case and the profile of its replicas. Qualities are those of the embedded family,
    because DiffServe measured a distance, which is not defined for a single level."""
    measured = load_profile("deploy/profiles/weir-tiny-cpu.json")
    if profile is None:
        cascade, levels = CASCADES["diffserve-1"], np.linspace(0.0005, 0.9995, 1000)
        light = {
            "name": "light",
            "steps": 1,
            "batch_sizes": cascade.light.batch_sizes,
            "latency_s": [s + cascade.discriminator_s for s in cascade.light.latency_s],
            "confidences": np.interp(levels, cascade.deferral.shares, cascade.deferral.thresholds).tolist(),
            "quality": measured.quality.model_dump() if measured.quality else None,
        }
        sizes, seconds = cascade.heavy.batch_sizes, cascade.heavy.latency_s
        heavy = {"name": "heavy", "steps": 50, "batch_sizes": sizes, "latency_s": seconds}
        found = Profile.model_validate(
            {"family": "diffserve-1", "device": "a100", "variants": {"light": light, "heavy": heavy}}
        )
    else:
        found = load_profile(profile)
    states = StoredStates(WORTH, HITS) if cached else None
    resumed = float(np.average([WORTH[k] for k in HITS if k], weights=[share for k, share in HITS.items() if k]))
    return Setting.of(found, gpus, SLO_S, resumed=resumed, states=states), found


def arrivals_of(demand: str, setting: Setting, data: Path | None, seconds: int | None) -> Arrivals:
    """Returns the arrivals of a kind of demand."""
    scale = setting.replicas / GPUS[0]
    length = seconds or 120
    if demand == "steady":
        found = poisson(np.full(length, STEADY_RPS * scale), 1)
    elif demand == "4 to 32":
        if data is not None:
            found = resampled(
                read_arrivals(diffserve_file(data, "trace_4to32qps.txt")), scale, None if scale == 1 else 2
            )
        else:
            phase = np.linspace(0, 2 * np.pi, 350)
            found = poisson(scale * (18 - 14 * np.cos(phase)), 2)
    elif demand == "bursty":
        trace = read_arrivals("traces/bursty.csv")
        mean = len(trace) / float(trace.times_s[-1])
        found = resampled(trace, STEADY_RPS * scale / mean, 3)
    elif demand == "spike":
        found = poisson(np.concatenate([np.full(30, 5.0), np.full(10, 400.0), np.full(40, 5.0)]), 4)
    else:
        gpu = setting.gpus[0]
        light = gpu.latency(setting.variants[0])
        batch = best_batch(light, SLO_S)
        found = poisson(np.full(min(length, 60), 2 * setting.replicas * batch / light.at(batch)), 5)
    if seconds is not None and demand not in ("spike", "overload"):
        found = busiest(found, seconds)
    return unrounded(found)


def unrounded(arrivals: Arrivals) -> Arrivals:
    """Returns the arrivals with a random part of a millisecond added to each.

    Traces and profiles are in whole milliseconds, so an arrival often falls on the very instant at which a batch ends.
    Which of the two comes first is undefined, and under a full load all that follows depends on it.
    """
    parts = np.random.default_rng(8).random(len(arrivals)) * 1e-3
    order = np.argsort(arrivals.times_s + parts, kind="stable")
    return Arrivals((arrivals.times_s + parts)[order], arrivals.prompts[order])


def busiest(arrivals: Arrivals, seconds: int) -> Arrivals:
    """Returns the busiest part of a trace; it begins at a whole second."""
    counts = np.bincount(arrivals.times_s.astype(int))
    begin = int(np.convolve(counts, np.ones(seconds), mode="valid").argmax()) if len(counts) > seconds else 0
    kept = (arrivals.times_s >= begin) & (arrivals.times_s < begin + seconds)
    return Arrivals(arrivals.times_s[kept] - begin, arrivals.prompts[kept])


def stream(case: Case, setting: Setting, arrivals: Arrivals, data: Path | None) -> RequestStream:
    """Returns the requests of a case with their confidences and cache lookups."""
    count, rng = len(arrivals), np.random.default_rng(6)
    if data is not None:
        light = recorded(read_scores(diffserve_file(data, "dist_sdturbo.txt")), arrivals.prompts)
    else:
        light = sample_confidences(setting.deferral, count, 7)
    draws, heavy, redrawn = rng.random(count), rng.beta(3, 1, count), rng.beta(3, 1, (REDRAW.most, count))
    resumed, lots = rng.beta(9, 1, count), rng.random(count)
    lookups: list[CacheLookup] = []
    stored = tuple((k, f"state:{k}") for k in WORTH)
    for lot in lots.tolist():
        if case.cache == "judged":
            hit = lot < JUDGED_HIT
            resume = Resume(f"state:{JUDGED_K}", JUDGED_K, JUDGED_STRIDE, JUDGED_FROM) if hit else None
            lookups.append(CacheLookup("p", 0.5, "entry", resume, stored, prompt_class=0))
        elif case.cache == "on":
            place = int(np.searchsorted(np.cumsum(list(HITS.values())), lot, side="right"))
            k = list(HITS)[min(place, len(HITS) - 1)]
            lookups.append(
                CacheLookup("p", 0.5, "entry", Resume(f"state:{k}", k) if k else None, stored, prompt_class=place)
            )
    confidences = {variant: light for variant in setting.variants[:-1]} | {setting.last: heavy}
    return RequestStream(arrivals, confidences, redrawn, resumed, lookups, draws)


def run(case: Case, profile: Path | None, data: Path | None, seconds: int | None) -> dict[str, Any]:
    """Runs a case in both simulators. Returns JSON-ready figures, or ``error`` when the service lacks a measurement."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    setting, measured = service(profile, case.gpus, case.cache != "off")
    requests = stream(case, setting, arrivals_of(case.demand, setting, data, seconds), data)
    redraw = REDRAW if case.redraw == "on" else RedrawConfig()
    found: dict[str, Any] = {**asdict(case), "requests": len(requests)}
    try:
        for name, simulator in (("fast", simulate), ("exact", simulate_exactly)):
            begun = time.perf_counter()
            outcome = simulator(make_policy(case.policy, setting), requests, measured, Conditions(redraw=redraw))
            found[name] = asdict(Figures.of(outcome, time.perf_counter() - begun))
    except ConfigError as error:
        return {**found, "error": error.message}
    return found


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Returns the requested cases."""
    return [
        Case(policy, cache, redraw, demand, gpus)
        for gpus, demand, policy, cache, redraw in itertools.product(
            arguments.gpus, arguments.demands, arguments.policies, arguments.caches, arguments.redraws
        )
    ]


def differences(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the largest difference of each figure, in points, with its case."""
    found: dict[str, dict[str, Any]] = {}
    for figure in ("late", "unanswered", "light", "at_deadline"):
        compared = [row for row in rows if "error" not in row]
        worst = max(compared, key=lambda row: abs(row["fast"][figure] - row["exact"][figure]), default=None)
        if worst is not None:
            points = abs(worst["fast"][figure] - worst["exact"][figure])
            found[figure] = {"points": points, "in": {key: worst[key] for key in Case.__slots__}}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda known: lambda text: [_known(it, known) for it in text.split(",")]  # noqa: E731
    parser.add_argument("--policies", type=lambda text: text.split(","), default=list(names()))
    parser.add_argument("--caches", type=listed(CACHES), default=list(CACHES), help=", ".join(CACHES))
    parser.add_argument("--redraws", type=listed(REDRAWS), default=list(REDRAWS), help=", ".join(REDRAWS))
    parser.add_argument("--demands", type=listed(DEMANDS), default=list(DEMANDS), help=", ".join(DEMANDS))
    parser.add_argument("--gpus", type=lambda text: [int(it) for it in text.split(",")], default=list(GPUS))
    parser.add_argument("--profile", type=Path, help="times of these replicas instead of DiffServe's first cascade's")
    parser.add_argument("--data", type=Path, help="folder with files of DiffServe's artifact")
    parser.add_argument("--seconds", type=int, help="the busiest part of each trace; spike and overload are short")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    console = Console(width=150)
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        futures = [
            pool.submit(run, case, arguments.profile, arguments.data, arguments.seconds) for case in cases(arguments)
        ]
        for future in futures:
            rows.append(future.result())
            console.print(_line(rows[-1]), highlight=False, soft_wrap=True)
            if arguments.json:
                arguments.json.write_text(json.dumps({"rows": rows, "largest": differences(rows)}, indent=1) + "\n")
    largest = differences(rows)
    table = Table("figure", "largest difference, points", "goal", "where", title=f"{len(rows)} cases, exact − fast")
    for figure, worst in largest.items():
        goal = {"late": MOST_LATE, "light": MOST_LIGHT}.get(figure)
        where = ", ".join(f"{key} {value}" for key, value in worst["in"].items())
        table.add_row(figure, f"{worst['points']:.2f}", "" if goal is None else f"{goal:g}", where)
    console.print(table)
    reached = all(largest[name]["points"] <= goal for name, goal in (("late", MOST_LATE), ("light", MOST_LIGHT)))
    sys.exit(0 if reached else 1)


def _known(name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return name


def _line(row: dict[str, Any]) -> str:
    case = f"{row['gpus']:>3} GPUs  {row['demand']:<9} {row['policy']:<20} "
    case += f"cache {row['cache']:<7} redraw {row['redraw']:<4}"
    if "error" in row:
        return f"{case} not run: {row['error']}"
    fast, exact = row["fast"], row["exact"]
    parts = [
        f"{name} {fast[figure]:6.2f} {exact[figure]:6.2f}"
        for name, figure in (("late", "late"), ("none", "unanswered"), ("light", "light"), ("deadline", "at_deadline"))
    ]
    return f"{case} {'  '.join(parts)}  {fast['seconds']:.0f} s {exact['seconds']:.0f} s"


if __name__ == "__main__":
    command(main)
