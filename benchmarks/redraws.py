"""Measures the gain of redrawing doubted heavy images: the best judged of several images against a single one.

    python -m benchmarks.redraws [--family deploy/families/weir-tiny.yaml] [--prompts 160]

For every held-out prompt it generates one light image, and ``--most`` + 1 heavy images from different noise for each
number of steps. The cascade is then computed from these images: light images below a threshold are deferred, heavy
images below a confidence are redrawn, and the best judged image is the answer. Quality is the share of the requested
attributes that the images show, by the family's attribute checker, which is independent of the discriminator.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import roc_auc_score

from benchmarks import command
from quality.suite import Suite, family_suite, tensors
from training.scenes import caption, sample_scene
from weir.config import load_family
from weir.core import ImageRequest, Overrides
from workers.models.family import Family

BATCH = 8


class Images(NamedTuple):
    """Quality and confidence of one image for each prompt."""

    quality: np.ndarray
    confidence: np.ndarray


def generated(
    engine: Family, suite: Suite, variant: str, prompts: list[str], seeds: list[int], steps: int | None
) -> Images:
    """Generates one image for each prompt."""
    judge = engine.judges["light"]
    assert judge is not None
    size, pictures = engine.config.size, []
    for start in track(range(0, len(prompts), BATCH), f"{variant} {steps or ''}"):
        requests = [
            ImageRequest(str(i), prompts[i], seeds[i], size, float("inf"), overrides=Overrides(steps))
            for i in range(start, min(start + BATCH, len(prompts)))
        ]
        pictures += [Image.open(io.BytesIO(d.image)).convert("RGB") for d in engine.generate(variant, requests)]
    confidence = judge.confidence(tensors(pictures), prompts)
    return Images(suite.scores(prompts, pictures)["attributes"], np.array(confidence))


def best(heavy: list[Images], below: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the quality of the best judged image of each prompt and the number of its images. At most ``most`` images
    follow the first one, while the best confidence is below ``below``."""
    quality, confidence = heavy[0].quality.copy(), heavy[0].confidence.copy()
    runs = np.ones(len(quality))
    for more in heavy[1 : most + 1]:
        again = confidence < below
        runs += again
        better = again & (more.confidence > confidence)
        quality[better], confidence[better] = more.quality[better], more.confidence[better]
    return quality, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", type=Path, default=Path("deploy/families/weir-tiny.yaml"))
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 10])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[1.01, 0.97, 0.4])
    parser.add_argument("--below", type=float, default=0.6)
    parser.add_argument("--most", type=int, default=2)
    parser.add_argument("--seed", type=int, default=990211)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    config = load_family(arguments.family)
    engine, suite = Family.load(config, threads=1), family_suite(config)
    rng = np.random.default_rng(arguments.seed)
    prompts = [caption(sample_scene(rng)) for _ in range(arguments.prompts)]
    seeds = rng.integers(0, 2**31, (arguments.most + 2, len(prompts))).tolist()
    light = generated(engine, suite, "light", prompts, seeds[0], None)
    more = [f"up to {n} more" for n in range(1, arguments.most + 1)]
    table = Table("steps", "threshold", "deferred", "one heavy", *more, "gain ± error", "runs")
    for steps in arguments.steps:
        heavy = [generated(engine, suite, "heavy", prompts, chosen, steps) for chosen in seeds[1:]]
        shown, believed = (np.concatenate(column) for column in zip(*heavy, strict=True))
        console.print(f"{steps} steps: ROC AUC of 'shows all' {roc_auc_score(shown > 0.999, believed):.3f}")
        for threshold in arguments.thresholds:
            deferred = light.confidence < threshold
            one = np.where(deferred, heavy[0].quality, light.quality)
            found = [best(heavy, arguments.below, n) for n in range(1, arguments.most + 1)]
            answers = [np.where(deferred, quality, light.quality) for quality, _ in found]
            gain, runs = answers[-1] - one, found[-1][1]
            table.add_row(
                str(steps),
                f"{threshold:g}",
                f"{deferred.mean():.0%}",
                f"{one.mean():.3f}",
                *(f"{a.mean():.3f}" for a in answers),
                f"{gain.mean():+.3f} ± {gain.std() / len(gain) ** 0.5:.3f}",
                f"{runs[deferred].mean():.2f}",
            )
    console.print(f"all light {light.quality.mean():.3f}", table)


if __name__ == "__main__":
    command(main)
