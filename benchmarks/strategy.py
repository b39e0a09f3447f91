"""Measures the gain of the strategy switch when the cache fails in the middle of a run.

    python -m benchmarks.strategy [--gpus 16] [--copies 2] [--trace normal] [--seeds 4]

The setting is that of ``benchmarks/joint.py``. In the middle third of the trace either no state arrives in time (*slow
store*: lookups still find states, workers wait 20 ms and generate whole images), or lookups find nothing (*no hits*).
The policy *believes* plans with the lookups and never switches, as earlier versions of Weir did. *counts* plans with
the share of successful fetches. *switches* does that as well, and lets hits begin light while fetching does not save
time. The figures are means over the seeds; the times of the switches are those of the first seed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.joint import ROOT, quality, setting, workload
from controller.cache_forecast import CacheForecast
from controller.observation import Observation
from controller.policies.weir import Weir
from controller.setting import Setting
from controller.strategy import SwitchRules
from simulator.conditions import Conditions
from simulator.engine import simulate
from weir.approximation_levels import Strategy
from weir.plan import Plan

#: A switch that never trips.
NEVER = SwitchRules(fetch_limit=1e9, fetch_back=1e8, trip_s=1e6)
FETCH_S, SLOW_S = 0.002, 5.0


class _Believing(CacheForecast):
    @property
    def arriving(self) -> float:
        return 1.0


class Believes(Weir):
    """Weir's policy that assumes that every fetch succeeds."""

    def __init__(self, setting: Setting):
        super().__init__(setting, switch=NEVER)
        self._hits = _Believing()


@dataclass
class Watched:
    """The switches of a policy: (second, strategy)."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--trace", default="normal")
    parser.add_argument("--seeds", type=int, default=4)
    chosen = parser.parse_args()
    full, stats, head = setting(chosen.gpus)
    works = [
        workload(ROOT / "traces" / f"{chosen.trace}.csv", chosen.copies, head, seed) for seed in range(chosen.seeds)
    ]
    last = float(works[0].arrivals.times_s[-1])
    begin, end = last / 3, 2 * last / 3
    table = Table(title=f"{chosen.trace}, {chosen.gpus} GPUs; the cache fails from {begin:.0f} to {end:.0f} s")
    for column in ("fault", "policy", "late %", "quality", "late % in the fault", "light % in it", "switches"):
        table.add_column(column, justify="left" if column in ("fault", "policy", "switches") else "right")
    policies: dict[str, Callable[[], Weir]] = {
        "believes": lambda: Believes(full),
        "counts": lambda: Weir(full, switch=NEVER),
        "switches": lambda: Weir(full),
    }
    for fault, (name, make) in itertools.product(("slow store", "no hits"), policies.items()):
        rows, switches = [], []
        for work in works:
            fails = (work.arrivals.times_s >= begin) & (work.arrivals.times_s < end)
            slow = fault == "slow store"
            policy = make()
            seen = watched(policy)
            found = work if slow else replace(work, saved=np.where(fails, 0.0, work.saved))
            outcome = simulate(
                policy,
                found.requests(cached=True, predicted=True),
                conditions=Conditions(
                    fetches=[(0.0, FETCH_S), (begin, SLOW_S), (end, FETCH_S)] if slow else [(0.0, FETCH_S)]
                ),
            )
            late, light = outcome.violated, outcome.light
            rows.append((late.mean(), quality(outcome, work, stats), late[fails].mean(), light[fails].mean()))
            switches.append(", ".join(f"{it.value} at {at:.0f} s" for at, it in seen.switches[1:]) or "–")
        late_share, value, in_fault, light_share = np.mean(rows, axis=0)
        cells = (f"{100 * late_share:.2f}", f"{value:.4f}", f"{100 * in_fault:.2f}", f"{100 * light_share:.0f}")
        table.add_row(fault, name, *cells, switches[0])
    Console(width=120).print(table)


if __name__ == "__main__":
    command(main)
