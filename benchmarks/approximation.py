"""Measures the quality of resumed runs by similarity and K, and of warm starts by K.

    python -m benchmarks.approximation --count 100 --out runs/approximation.json

It uses held-out prompts only, and takes the time of about 40 whole heavy runs per prompt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import command
from quality.clip import ClipScorer
from quality.resume import Approximations, Row, best_warm_start, figures
from quality.suite import family_suite
from training.evaluate import held_out
from training.scenes import caption
from weir.config import load_family
from workers.models.family import Family

#: The judge that decides which warm start is best.
JUDGE = "attributes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", type=Path, default=Path("deploy/families/weir-tiny.yaml"))
    parser.add_argument("--count", type=int, default=100, help="number of held-out prompts")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="light images with a lower confidence are deferred"
    )
    parser.add_argument("--parts", nargs="+", choices=["resume", "warm"], default=["resume", "warm"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = load_family(arguments.family)
    prompts = [caption(scene) for scene in held_out(arguments.count)]
    console = Console(width=140)
    with console.status("…") as status:
        measures = Approximations(
            Family.load(family, threads=1),
            family_suite(family),
            prompts,
            ClipScorer.load(str(family.clip)).embed_text(prompts).numpy(),
            family,
            lambda what, done, total: status.update(f"{what}: {done} of {total}"),
        )
        resumed = measures.resume() if "resume" in arguments.parts else []
        warm = measures.warm_start(arguments.threshold) if "warm" in arguments.parts else []
    for title, rows in (("resume at K", resumed), ("warm start at K", warm)):
        if rows:
            _show(console, title, rows)
    best = best_warm_start(warm, JUDGE)
    if warm:
        console.print(f"warm start: {f'from step {best}' if best else 'off: no step gains enough'}")
    if arguments.out:
        found = {"family": family.name, "threshold": arguments.threshold, "judge": JUDGE}
        found |= figures(len(prompts), resumed, warm, JUDGE)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def _show(console: Console, title: str, rows: list[Row]) -> None:
    judges = list(rows[0].ratio)
    columns = [f"{judge}{of}" for judge in judges for of in ("", ", from noise")]
    table = Table("K", "saved", "similarity", "n", *columns, "gains enough", title=title)
    for row in rows:
        cells = [r.text for judge in judges for r in (row.ratio[judge], row.baseline[judge])]
        alike = "" if row.similarity is None else "{:.2f}…{:.2f}".format(*row.similarity)
        count = row.ratio[judges[0]].count
        table.add_row(str(row.step), f"{row.saved:.0%}", alike, str(count), *cells, "yes" if row.worth(JUDGE) else "")
    console.print(table)


if __name__ == "__main__":
    command(main)
