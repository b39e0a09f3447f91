"""One plan over cascade, cache and predicted levels against each of the three alone, in the twin.

    python -m benchmarks.joint [--gpus 16] [--copies 2] [--traces normal,bursty] [--json FILE]

Service times and the deadline are SDXL's on A100s behind cascade 3's light model. What the discriminator says and how
good images are is the embedded family's, as the shipped level head records it by predicted level. Half of all requests
find a state, a tenth of them each saving 10 to 50 % of the steps: an assumption. A resumed image is worth what the
family's cache profile measured, as a share of a whole run's. Copies of the trace lie half a second apart. Answers that
resumed are counted apart from the discriminator's curves, which understates the others a little.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cache.worth import resumed_share
from controller.policies import make_policy
from controller.policies.weir import Weir
from controller.setting import LevelStats, QualityCurve, Setting
from simulator.arrivals import Arrivals, read_arrivals
from simulator.engine import simulate
from simulator.families import family_setting
from simulator.outcome import UNANSWERED, Outcome
from solvers.problem import Problem
from weir.profiles import deferral_of
from weir.prompt_levels import LevelHead

ROOT = Path(__file__).parents[1]
HEAD = ROOT / "models" / "weir-tiny" / "levels" / "head.safetensors"
#: Shares of requests by share of steps saved; the others miss.
HITS = {0.1: 0.1, 0.2: 0.1, 0.3: 0.1, 0.4: 0.1, 0.5: 0.1}
RESUMED = resumed_share(ROOT / "deploy" / "profiles" / "weir-tiny-cache.json")


class LevelsOnly(Weir):
    """The light or the heavy variant by predicted level alone: no light image is ever deferred."""

    def _problem(self, demand_rps: float, counts: tuple[int, ...]) -> Problem:
        whole = super()._problem(demand_rps, counts)
        groups = tuple(replace(g, deferral=(0.0,), quality=g.quality[:1]) for g in whole.groups)
        return replace(whole, thresholds=(0.0,), deferral=(0.0,), quality=whole.quality[:1], groups=groups)


@dataclass(frozen=True)
class Workload:
    """Requests with what becomes of them: predicted level, confidence of the light image, share of steps saved."""

    arrivals: Arrivals
    levels: np.ndarray
    confidences: np.ndarray
    saved: np.ndarray


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
    """Mean over the answers."""
    answered, resumed = outcome.paths != UNANSWERED, outcome.resumed
    total = 0.0
    for level, each in enumerate(stats):
        mine = work.levels == level
        rest = mine & answered & ~resumed
        total += RESUMED * each.quality.at(0) * float((mine & resumed).sum())
        total += each.quality.at(float(outcome.light[rest].mean()) if rest.any() else 0.0) * float(rest.sum())
    return total / max(1, int(answered.sum()))


def setting(gpus: int) -> tuple[Setting, tuple[LevelStats, ...], LevelHead]:
    """The setting with predicted levels, what is known of each of them, and the head that predicts them."""
    head = LevelHead.load(HEAD)
    stats = tuple(
        LevelStats(r.share, deferral_of(r.confidences), QualityCurve(r.quality, smaller_is_better=False))
        for r in head.about.records
    )
    every = [confidence for record in head.about.records for confidence in record.confidences]
    told = replace(
        family_setting("sdxl-a100", gpus),
        deferral=deferral_of(every),
        quality=QualityCurve(head.about.quality, smaller_is_better=False),
        resumed=RESUMED,
        levels=stats,
    )
    return told, stats, head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--traces", default="normal,bursty")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    told, stats, head = setting(chosen.gpus)
    bare = replace(told, levels=())
    rows = []
    for trace in chosen.traces.split(","):
        work = workload(ROOT / "traces" / f"{trace}.csv", chosen.copies, head)
        for name, policy, cached, predicted in (
            ("cascade only", Weir(bare), False, False),
            ("cache only", make_policy("all-heavy", bare), True, False),
            ("levels only", LevelsOnly(told), False, True),
            ("cascade and cache", Weir(bare), True, False),
            ("one plan", Weir(told), True, True),
        ):
            outcome = simulate(
                policy,
                work.arrivals,
                work.confidences,
                saved=work.saved if cached else None,
                levels=work.levels if predicted else None,
            )
            answered = outcome.paths != UNANSWERED
            rows.append(
                {
                    "trace": trace,
                    "plan": name,
                    "violation_ratio": float(outcome.violated.mean()),
                    "goodput_rps": float((~outcome.violated).sum() / work.arrivals.times_s[-1]),
                    "quality": quality(outcome, work, stats),
                    "light_share": float(outcome.light.sum() / max(1, answered.sum())),
                    "resumed_share": float(outcome.resumed.sum() / max(1, answered.sum())),
                }
            )
    table = Table(title=f"SDXL's times on {chosen.gpus} GPUs, the embedded family's qualities")
    for column in ("trace", "plan", "late %", "good/s", "quality", "light %", "resumed %"):
        table.add_column(column, justify="left" if column in ("trace", "plan") else "right")
    for row in rows:
        late, good, value, *shares = (
            float(row[key]) for key in ("violation_ratio", "goodput_rps", "quality", "light_share", "resumed_share")
        )
        cells = (f"{100 * late:.2f}", f"{good:.2f}", f"{value:.4f}", *(f"{100 * share:.0f}" for share in shares))
        table.add_row(str(row["trace"]), str(row["plan"]), *cells)
    Console().print(table)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
