"""Measures how good the embedded family's images are in each size, and by each sampler that requests may choose.

    python -m benchmarks.image_quality [--count 48] [--threads 1] [--out image_quality.json]

The prompts are scenes that the checker can read. Each row has the same prompts and seeds, and the means of what the
family's own measures say: the share of what a prompt asks for that its image shows (*attributes*), and the CLIP score.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import command
from quality.suite import Suite, family_suite
from training.scenes import caption, sample_scene
from weir.assets import FAMILY
from weir.config import load_family
from weir.core import ImageRequest, ImageSize, Overrides
from weir.samplers import Scheduler
from workers.models.family import Family

_BATCH = 8


@dataclass(frozen=True, slots=True)
class Way:
    """One way to generate the images of all prompts."""

    variant: str
    size: ImageSize
    sampler: Scheduler
    steps: int


def ways(family: Family) -> list[Way]:
    """Every variant in every listed size, and the last variant by every sampler with its own steps and fewer."""
    config = family.config
    own = [(key, it.scheduler, it.steps) for key, it in config.variants.items()]
    sized = [Way(key, size, sampler, steps) for size in config.allowed_sizes.listed for key, sampler, steps in own]
    last, (_, steps) = config.keys[-1], own[-1][1:]
    samplers = [
        Way(last, config.size, it, count) for it in config.allowed_samplers for count in (steps, steps * 2 // 5)
    ]
    return list(dict.fromkeys([*sized, *samplers]))


def images(family: Family, way: Way, prompts: Sequence[str]) -> list[Image.Image]:
    """The image of each prompt; the seed of prompt i is i."""
    chosen = Overrides() if way.variant != family.config.keys[-1] else Overrides(steps=way.steps, sampler=way.sampler)
    requests = [
        ImageRequest(str(i), prompt, i, way.size, float("inf"), overrides=chosen) for i, prompt in enumerate(prompts)
    ]
    batches = [requests[i : i + _BATCH] for i in range(0, len(requests), _BATCH)]
    outputs = [output for batch in batches for output in family.generate(way.variant, batch)]
    return [Image.open(io.BytesIO(output.image)) for output in outputs]


def measured(family: Family, suite: Suite, way: Way, prompts: Sequence[str]) -> dict[str, float]:
    """The means of the family's measures."""
    scores = suite.scores(prompts, images(family, way, prompts))
    return {name: float(np.nanmean(values)) for name, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=FAMILY, help="a family that ships with its own measures")
    parser.add_argument("--count", type=int, default=48, help="number of prompts")
    parser.add_argument("--threads", type=int, default=1, help="number of torch's threads")
    parser.add_argument("--out", type=Path, default=Path("image_quality.json"), help="results as JSON")
    args = parser.parse_args()
    config = load_family(args.family)
    family, suite = Family.load(config, threads=args.threads), family_suite(config)
    rng = np.random.default_rng(5)
    prompts = [caption(sample_scene(rng)) for _ in range(args.count)]
    console, rows = Console(width=100), []
    table = Table("variant", "size", "sampler", "steps", title=f"{args.count} prompts")
    for way in ways(family):
        row = {**asdict(way), "size": str(way.size), **measured(family, suite, way, prompts)}
        if not rows:
            for name in list(row)[len(table.columns) :]:
                table.add_column(name)
        rows.append(row)
        table.add_row(*(f"{it:.3f}" if isinstance(it, float) else str(it) for it in row.values()))
        console.print(f"{len(rows)}: {row}", highlight=False)
    console.print(table)
    args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    command(main)
