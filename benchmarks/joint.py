"""Compares one plan over cascade, cache and predicted levels with each of the three alone, in the simulator.

    python -m benchmarks.joint [--gpus 16] [--copies 2] [--seeds 1] [--traces normal,bursty] [--json FILE]
    python -m benchmarks.joint --service deploy/configs/weir-tiny.yaml --gpus 4 --rate 3

With a service all inputs come from its files: times, confidences and qualities of mixes from its profile, similarities
from the prompts of the trace, and the quality of resumed images from its cache profile. The levels are the K of its
cache and the light variant, and quality is in percent of a whole heavy image. Its level classifier is off, as in the
shipped file.

Without a service, times and the deadline are those of SDXL on A100s with cascade 3's light model. Confidences and
qualities are those of the embedded family, recorded by predicted level in the shipped level head. It is assumed that
half
of the requests find a state: 10 % of the requests for each saving of 10, 20, 30, 40 and 50 % of the steps. A resumed
    image
has the quality in the family's cache profile, as a share of a whole run's. Copies of the trace are half a second apart.
Resumed answers are counted separately from the curves of the discriminator, which slightly underestimates the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from baselines.comparison.systems import compare_systems, run_policy
from benchmarks import command
from cache.policy.resume_quality import resumed_share
from controller.policies.weir import Weir
from controller.registry import make_policy
from controller.setting import LevelStats, QualityCurve, Setting
from simulator.arrivals import Arrivals, read_arrivals
from simulator.device import STEPS
from simulator.engine import simulate
from simulator.families import family_setting
from simulator.outcome import Outcome
from simulator.request_stream import RequestStream
from simulator.workload import service_workload
from solvers.problem import Problem
from traces.loader import load_trace
from weir.core import CacheLookup, Resume
from weir.profiles import deferral_of
from weir.prompt_levels import LevelHead

ROOT = Path(__file__).parents[1]
HEAD = ROOT / "models" / "weir-tiny" / "levels" / "head.safetensors"
#: Shares of the requests by share of saved steps; the others miss.
HITS = {0.1: 0.1, 0.2: 0.1, 0.3: 0.1, 0.4: 0.1, 0.5: 0.1}
RESUMED = resumed_share(ROOT / "deploy" / "profiles" / "weir-tiny-cache.json")


class LevelsOnly(Weir):
    """Policy that selects the light or the heavy variant by predicted level alone and never defers a light image."""

    def problem(self, demand_rps: float, counts: tuple[int, ...]) -> Problem:
        whole = super().problem(demand_rps, counts)
        groups = tuple(replace(g, deferral=(0.0,), quality=g.quality[:1]) for g in whole.groups)
        return replace(whole, thresholds=(0.0,), deferral=(0.0,), quality=whole.quality[:1], groups=groups)


@dataclass(frozen=True)
class Workload:
    """Requests with their predicted levels, confidences of light images and shares of saved steps."""

    arrivals: Arrivals
    levels: np.ndarray
    confidences: np.ndarray
    saved: np.ndarray

    def requests(self, *, cached: bool, predicted: bool) -> RequestStream:
        """Returns the requests of a service with or without a cache, and with or without a classifier of prompts."""
        lookups = [
            CacheLookup(
                resume=Resume("state", round(share * STEPS)) if cached and share else None,
                prompt_class=level if predicted else None,
            )
            for share, level in zip(self.saved.tolist(), self.levels.tolist(), strict=True)
        ]
        return RequestStream(self.arrivals, {"light": self.confidences}, lookups=lookups if cached or predicted else ())


def workload(trace: Path, copies: int, head: LevelHead, seed: int = 0) -> Workload:
    read = read_arrivals(trace)
    times = np.concatenate([read.times_s + 0.5 * copy for copy in range(copies)])
    arrivals = Arrivals.of(times, np.tile(read.prompts, copies))
    rng, n, records = np.random.default_rng(seed), len(times), head.about.records
    shares = np.array([record.share for record in records])
    levels = rng.choice(len(records), n, p=shares / shares.sum())
    confidences = np.array([rng.choice(records[level].confidences) for level in levels])
    saved = rng.choice([0.0, *HITS], n, p=[1 - sum(HITS.values()), *HITS.values()])
    return Workload(arrivals, levels, confidences, saved)


def quality(outcome: Outcome, work: Workload, stats: tuple[LevelStats, ...]) -> float:
    """Returns the mean quality of the answers."""
    answered, resumed = outcome.answered, outcome.resumed
    total = 0.0
    for level, each in enumerate(stats):
        mine = work.levels == level
        rest = mine & answered & ~resumed
        total += RESUMED * each.quality.at(0) * float((mine & resumed).sum())
        total += each.quality.at(float(outcome.light[rest].mean()) if rest.any() else 0.0) * float(rest.sum())
    return total / max(1, int(answered.sum()))


def setting(gpus: int) -> tuple[Setting, tuple[LevelStats, ...], LevelHead]:
    """Returns the setting with predicted levels, the statistics of each level, and the head that predicts them."""
    head = LevelHead.load(HEAD)
    stats = tuple(
        LevelStats(r.share, deferral_of(r.confidences), QualityCurve(r.quality, smaller_is_better=False))
        for r in head.about.records
    )
    every = [confidence for record in head.about.records for confidence in record.confidences]
    found = replace(
        family_setting("sdxl-a100", gpus),
        deferral=deferral_of(every),
        quality=QualityCurve(head.about.quality, smaller_is_better=False),
        resumed=RESUMED,
        levels=stats,
    )
    return found, stats, head


def emulated_rows(trace: str, gpus: int, copies: int, seed: int) -> list[dict[str, object]]:
    """Runs all plans with SDXL's times and the embedded family's qualities."""
    full, stats, head = setting(gpus)
    bare, work = replace(full, levels=()), workload(ROOT / "traces" / f"{trace}.csv", copies, head, seed)
    rows: list[dict[str, object]] = []
    for name, policy, cached, predicted in (
        ("cascade only", Weir(bare), False, False),
        ("cache only", make_policy("all-heavy", bare), True, False),
        ("levels only", LevelsOnly(full), False, True),
        ("cascade and cache", Weir(bare), True, False),
        ("one plan", Weir(full), True, True),
    ):
        outcome = simulate(policy, work.requests(cached=cached, predicted=predicted))
        in_time = ~outcome.violated
        rows.append(_row(trace, name, in_time, work.arrivals.times_s[-1], quality(outcome, work, stats)))
    return rows


def service_rows(trace: str, service: Path, gpus: int, rate: float, seed: int) -> list[dict[str, object]]:
    """Runs all plans on a service."""
    work = service_workload(service, load_trace(ROOT / "traces" / f"{trace}.csv"), gpus=gpus, rate=rate, seed=seed)
    whole_runs = replace(work.setting, short_runs=())
    runs = (
        run_policy(work, Weir(whole_runs), "cascade only", seed, cached=False),
        run_policy(work, make_policy("nirvana", work.setting), "cache only", seed),
        replace(compare_systems(work, ("weir-levels",), seed=seed).runs[0], policy="levels only"),
        run_policy(work, Weir(whole_runs), "cascade and cache", seed),
        run_policy(work, Weir(work.setting), "one plan", seed),
    )
    times_s = work.arrivals.times_s
    return [_row(trace, run.policy, run.in_time, times_s[-1], float(np.nanmean(run.qualities))) for run in runs]


def _row(trace: str, plan: str, in_time: np.ndarray, seconds: float, quality: float) -> dict[str, object]:
    return {
        "trace": trace,
        "plan": plan,
        "violation_ratio": float(1 - in_time.mean()),
        "goodput_rps": float(in_time.sum() / seconds),
        "quality": quality,
        "quality_in_time": quality * float(in_time.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--traces", default="normal,bursty")
    parser.add_argument("--service", type=Path)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: list[dict[str, object]] = []
    for trace, seed in itertools.product(chosen.traces.split(","), range(chosen.seeds)):
        if chosen.service is None:
            found = emulated_rows(trace, chosen.gpus, chosen.copies, seed)
        else:
            found = service_rows(trace, chosen.service, chosen.gpus, chosen.rate, seed)
        rows += [{"seed": seed, **row} for row in found]
    what = chosen.service.stem if chosen.service else "SDXL's times, the embedded family's qualities"
    table = Table(title=f"{what}, {chosen.gpus} GPUs", caption="quality: of answers; per request: late ones count 0")
    for column in ("trace", "seed", "plan", "late %", "good/s", "quality", "per request"):
        table.add_column(column, justify="left" if column in ("trace", "plan") else "right")
    for row in rows:
        late, good, value, each = (
            float(str(row[key])) for key in ("violation_ratio", "goodput_rps", "quality", "quality_in_time")
        )
        cells = (f"{100 * late:.2f}", f"{good:.2f}", f"{value:.4f}", f"{each:.4f}")
        table.add_row(str(row["trace"]), str(row["seed"]), str(row["plan"]), *cells)
    Console().print(table)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
