"""A cache that fails in the middle of a run: what the strategy switch gains against believing its lookups.

    python -m benchmarks.strategy [--gpus 16] [--copies 2] [--trace normal] [--plot FILE.svg]

The setting is that of ``benchmarks/joint.py``. From a third of the trace to two thirds of it either no state comes in
time (*slow store*: lookups go on promising them, workers wait their 20 ms and draw whole images), or lookups find
nothing (*no hits*). *Believes* plans with what lookups promise and never switches, as Weir did before; *counts* plans
with the share of states that came; *switches* does, and lets hits begin light while fetching does not pay.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.joint import ROOT, Workload, quality, setting, workload
from controller.hits import LiveHits
from controller.observation import Observation
from controller.policies.weir import Weir
from controller.setting import Setting
from controller.strategy import SwitchRules
from simulator.engine import simulate
from simulator.outcome import Outcome
from weir.core import Plan
from weir.levels import Strategy

#: A switch that never trips.
NEVER = SwitchRules(fetch_limit=1e9, fetch_back=1e8, trip_s=1e6)
FETCH_S, SLOW_S = 0.002, 5.0


class _Believing(LiveHits):
    @property
    def arriving(self) -> float:
        return 1.0


class Believes(Weir):
    """Plans with what lookups promise."""

    def __init__(self, setting: Setting):
        super().__init__(setting, switch=NEVER)
        self._hits = _Believing()


@dataclass
class Watched:
    """When a policy switched: (second, strategy)."""

    switches: list[tuple[float, Strategy]]


def watched(policy: Weir) -> Watched:
    found = Watched([(0.0, policy.strategy)])
    observe = policy.observe

    def noting(seen: Observation) -> Plan | None:
        plan = observe(seen)
        if policy.strategy is not found.switches[-1][1]:
            found.switches.append((seen.now_s, policy.strategy))
        return plan

    policy.observe = noting  # type: ignore[method-assign]
    return found


def inside(work: Workload, outcome: Outcome, window: np.ndarray, field: str) -> float:
    return float(getattr(outcome, field)[window].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--trace", default="normal")
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    told, stats, head = setting(chosen.gpus)
    work = workload(ROOT / "traces" / f"{chosen.trace}.csv", chosen.copies, head)
    times = work.arrivals.times_s
    begin, end = times[-1] / 3, 2 * times[-1] / 3
    fails = (times >= begin) & (times < end)
    table = Table(title=f"{chosen.trace}, {chosen.gpus} GPUs; the cache fails from {begin:.0f} to {end:.0f} s")
    for column in ("fault", "policy", "late %", "quality", "late % in the fault", "light % in it", "switches"):
        table.add_column(column, justify="left" if column in ("fault", "policy", "switches") else "right")
    shown: dict[str, Outcome] = {}
    for fault in ("slow store", "no hits"):
        fetches = [(0.0, FETCH_S)]
        saved = work.saved
        if fault == "slow store":
            fetches += [(begin, SLOW_S), (end, FETCH_S)]
        else:
            saved = np.where(fails, 0.0, saved)
        for name, policy in (
            ("believes", Believes(told)),
            ("counts", Weir(told, switch=NEVER)),
            ("switches", Weir(told)),
        ):
            seen = watched(policy)
            outcome = simulate(
                policy, work.arrivals, work.confidences, saved=saved, levels=work.levels, fetches=fetches
            )
            if fault == "slow store":
                shown[name] = outcome
            table.add_row(
                fault,
                name,
                f"{100 * outcome.violated.mean():.2f}",
                f"{quality(outcome, work, stats):.4f}",
                f"{100 * inside(work, outcome, fails, 'violated'):.2f}",
                f"{100 * inside(work, outcome, fails, 'light'):.0f}",
                ", ".join(f"{strategy.value} at {at:.0f} s" for at, strategy in seen.switches[1:]) or "–",
            )
    Console(width=120).print(table)
    if chosen.plot is not None:
        draw(chosen.plot, times, shown, (begin, end))


def draw(path: Path, times: np.ndarray, shown: dict[str, Outcome], fault: tuple[float, float]) -> None:
    """Violations and light answers over time, the fault in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    late, light = figure.subplots(2, 1, sharex=True)
    width = 10.0
    window = (times // width).astype(int)
    counts = np.bincount(window)
    middles = (np.arange(len(counts)) + 0.5) * width
    for axes, field, label in ((late, "violated", "late, %"), (light, "light", "light answers, %")):
        axes.axvspan(*fault, color="0.92", lw=0)
        for name, outcome in shown.items():
            share = 100 * np.bincount(window, getattr(outcome, field), len(counts)) / np.maximum(1, counts)
            axes.plot(middles, share, label=name, lw=2 if name == "switches" else 1.2)
        axes.set(ylabel=label, ylim=(0, None), xlim=(0, math.ceil(times[-1])))
    light.set(xlabel="s")
    late.legend(frameon=False, title="the store is slow in the grey part")
    figure.savefig(path)


if __name__ == "__main__":
    main()
