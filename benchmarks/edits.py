"""Recolours an object of a picture with the embedded family: what the prompt gets, and what else changes.

    python -m benchmarks.edits [--pictures 48] [--gallery docs/images/edit-gallery.png] [--out edits.json]

The pictures are rendered scenes, and each prompt describes its scene with another colour of one object. The whole
picture is edited at several strengths, and also under a mask around the object. *Attributes* of the prompt are measured
by the family's checker; *elsewhere* is the mean difference of a pixel outside the mask, 0…255. The gallery has a row of
some pictures each: the picture, its edits by the heavy variant by strength, the mask, and those under the mask.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import command
from quality.suite import Suite, family_suite
from testing.pictures import png
from training.scenes import COLOURS, Scene, caption, render, sample_scene
from weir.assets import FAMILY
from weir.config import load_family
from weir.core import Edit, ImageRequest
from workers.models.family import Family

STRENGTHS = (0.25, 0.5, 0.75, 0.9, 1.0)
#: Of the gallery.
SHOWN = (0.5, 0.75, 1.0)
#: The mask reaches this far beyond the object, whose shadow changes with it.
MARGIN = 1.5
BATCH = 8
#: Rows of the gallery, how many times its images are enlarged, and pixels between them.
ROWS, SCALE, GAP = 4, 2, 4


@dataclass(frozen=True)
class Task:
    """One picture, what is to become of it, and a mask around what changes."""

    picture: Image.Image
    prompt: str
    mask: Image.Image

    def edit(self, how: How) -> Edit:
        return Edit(png(self.picture), png(self.mask) if how.masked else None, how.strength)


class How(NamedTuple):
    """How the pictures are edited."""

    strength: float
    masked: bool


def task(rng: np.random.Generator, size: int) -> Task:
    scene: Scene = sample_scene(rng)
    first, *others = scene.objects
    colour = str(rng.choice([it for it in COLOURS if it != first.colour]))
    mask = Image.new("L", (size, size), 0)
    radius = MARGIN * first.radius * size
    x, y = first.x * size, first.y * size
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    wanted = replace(scene, objects=(replace(first, colour=colour, says_colour=True), *others))
    return Task(Image.fromarray(render(scene, size)), caption(wanted), mask)


def edited(engine: Family, variant: str, tasks: Sequence[Task], how: How) -> Iterator[Image.Image]:
    """The edits of all pictures, each from a seed of its own."""
    for start in range(0, len(tasks), BATCH):
        requests = [
            ImageRequest(str(i), it.prompt, i, engine.config.size, float("inf"), edit=it.edit(how))
            for i, it in enumerate(tasks[start : start + BATCH], start)
        ]
        for output in engine.generate(variant, requests):
            assert output.error is None, output.error
            yield Image.open(io.BytesIO(output.image))


def figures(suite: Suite, tasks: Sequence[Task], images: Sequence[Image.Image]) -> dict[str, float]:
    scores = suite.scores([it.prompt for it in tasks], images)["attributes"]
    elsewhere = [
        np.abs(np.asarray(image, float) - np.asarray(it.picture, float))[np.asarray(it.mask) == 0].mean()
        for it, image in zip(tasks, images, strict=True)
    ]
    return {"attributes": round(float(np.mean(scores)), 3), "elsewhere": round(float(np.mean(elsewhere)), 2)}


def gallery(tasks: Sequence[Task], edits: dict[How, list[Image.Image]], path: Path) -> None:
    """Writes a picture with a row for each task."""
    side = tasks[0].picture.width * SCALE
    sheet = Image.new("RGB", ((len(edits) + 2) * (side + GAP) - GAP, len(tasks) * (side + GAP) - GAP), "white")
    for row, it in enumerate(tasks):
        whole, masked = (
            [images[row] for how, images in edits.items() if how.masked is is_masked] for is_masked in (False, True)
        )
        for column, image in enumerate([it.picture, *whole, it.mask, *masked]):
            enlarged = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (column * (side + GAP), row * (side + GAP)))
    sheet.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gallery", type=Path, help="also write a picture of some edits by the heavy variant here")
    parser.add_argument("--out", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    config = load_family(FAMILY)
    engine, suite, rng = Family.load(config, threads=1), family_suite(config), np.random.default_rng(arguments.seed)
    tasks = [task(rng, config.size.width) for _ in range(arguments.pictures)]
    plain = figures(suite, tasks, [it.picture for it in tasks])
    rows: list[dict[str, Any]] = [{"variant": "none", "strength": 0.0, "masked": False, **plain}]
    edits: dict[tuple[str, How], list[Image.Image]] = {}
    runs = [(key, How(strength, masked)) for key in config.keys for masked in (False, True) for strength in STRENGTHS]
    for variant, how in track(runs, "editing", console=console):
        images = edits[variant, how] = list(edited(engine, variant, tasks, how))
        rows.append({"variant": variant, **how._asdict(), **figures(suite, tasks, images)})
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    if arguments.gallery:
        last = config.keys[-1]
        heavy = {how: it[:ROWS] for (key, how), it in edits.items() if key == last and how.strength in SHOWN}
        gallery(tasks[:ROWS], heavy, arguments.gallery)
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
