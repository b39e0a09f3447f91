"""Compares two published light models with the same heavy one, and the best pair at every demand.

    python -m benchmarks.light_variants [--gpus 16]

Variants and measurements are DiffServe's: SD-Turbo and SDXS with SD 1.5; the FID of both mixes was measured on the same
prompts. Each row is an optimal plan under the published model, without queueing or simulation.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from baselines.published import CASCADES
from benchmarks import command
from controller.batch_size import best_batch
from simulator.families import family_setting
from solvers.cascades import Variant, chains, choice, chosen_chain
from solvers.problem import Problem
from solvers.solve import solve

PAIRS = {"sd-turbo": "diffserve-1", "sdxs": "diffserve-2"}


def variants() -> list[Variant]:
    found = []
    for name, family in PAIRS.items():
        cascade = CASCADES[family]
        batch = best_batch(cascade.light, cascade.slo_s / 2)
        found.append(Variant(name, cascade.light.at(batch) / batch, -cascade.fid[-1]))
    heavy = CASCADES["diffserve-1"]
    batch = best_batch(heavy.heavy, heavy.slo_s)
    return [*found, Variant("sdv15", heavy.heavy.at(batch) / batch, -heavy.fid[0])]


def problem(family: str, gpus: int, demand_rps: float) -> Problem:
    setting = family_setting(family, gpus)
    assert setting.quality is not None
    curve = setting.deferral
    return Problem(
        gpus=setting.gpus,
        demand_rps=demand_rps,
        slo_s=setting.slo_s,
        thresholds=curve.thresholds,
        deferral=curve.shares,
        quality=tuple(setting.quality.reward(1 - f) for f in curve.shares),
        fixed_s=setting.discriminator_s,
        light_residual=0.5,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=16)
    chosen = parser.parse_args()
    console = Console()
    built = [" → ".join(v.name for v in chain) for chain in chains(variants())]
    console.print(f"pairs on the front of quality and cost: {', '.join(built)}", highlight=False)
    table = Table(title=f"FID (and share of the demand that is served) by demand, {chosen.gpus} GPUs")
    for column in ("requests/s", *(f"{name} → sdv15" for name in PAIRS), "chosen"):
        table.add_column(column, justify="right")
    for demand in (4, 8, 16, 24, 32, 64, 128, 256, 320, 512, 800):
        problems = [problem(family, chosen.gpus, float(demand)) for family in PAIRS.values()]
        found = [choice(i, it, solve(it)) for i, it in enumerate(problems)]
        best = chosen_chain(problems)
        cells = [f"{-it.quality:.2f} ({it.served:.0%})" for it in found]
        table.add_row(str(demand), *cells, list(PAIRS)[best.chain])
    console.print(table)


if __name__ == "__main__":
    command(main)
