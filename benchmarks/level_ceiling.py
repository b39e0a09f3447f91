"""Measures how much of the light variant's loss depends on the prompt rather than on the seed.

    python -m benchmarks.level_ceiling [--prompts 500] [--seeds 7] [--work runs/level-ceiling.npz]

For every prompt it generates images with several seeds by the light variant and by a heavy run of ten steps, and rates
them by attributes. A ranking of the prompts then decides which of them are generated heavy. The gain over a random
choice at equal load is measured on the images of a seed that the ranking has not used, for each seed in turn. It takes
ten minutes of one core; an interrupted run continues.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.joint import ROOT
from cache.encoder import family_encoder
from quality.suite import family_suite
from training.evaluate import SHARES, held_out, quality_by_share
from training.level_head import FOLDS, RIDGES
from training.level_pairs import SEED
from training.scenes import Scene, caption
from weir.config import load_family
from weir.core import ImageRequest, Overrides
from workers.models.family import Family

FAMILY = ROOT / "deploy" / "families" / "weir-tiny.yaml"
HEAVY_STEPS = 10


def generated(scenes: list[Scene], seeds: int, work: Path) -> dict[str, np.ndarray]:
    """Returns ``heavy``, ``light`` and ``confidence``, [prompts, seeds] each; generates what ``work`` does not
    contain."""
    config = load_family(FAMILY)
    prompts = [caption(scene) for scene in scenes]
    found: dict[str, np.ndarray] = dict(np.load(work, allow_pickle=False)) if work.exists() else {}
    judge, engine = family_suite(config), Family.load(config, threads=1)
    for seed in range(seeds):
        for key, steps in (("light", None), ("heavy", HEAVY_STEPS)):
            if f"{key}-{seed}" in found:
                continue
            requests = [
                ImageRequest(f"{i}", p, 100_000 * seed + i, config.size, float("inf"), overrides=Overrides(steps))
                for i, p in enumerate(prompts)
            ]
            images = [one for i in range(0, len(requests), 32) for one in engine.generate(key, requests[i : i + 32])]
            pictures = [Image.open(io.BytesIO(image.image)).convert("RGB") for image in images]
            found[f"{key}-{seed}"] = judge.scores(prompts, pictures)["attributes"]
            if key == "light":
                found[f"confidence-{seed}"] = np.array([image.confidence for image in images])
            work.parent.mkdir(parents=True, exist_ok=True)
            np.savez(work, allow_pickle=False, **found)
    return {
        name: np.stack([found[f"{name}-{s}"] for s in range(seeds)], 1) for name in ("heavy", "light", "confidence")
    }


def counts(scenes: list[Scene]) -> np.ndarray:
    """Returns features of the prompt text: one-hot number of objects, number of words, and mention of a background."""
    rows = []
    for scene in scenes:
        text = caption(scene)
        objects = len(scene.objects)
        rows.append([*(objects == n for n in (1, 2, 3, 4)), len(text.split()), " background" in text])
    table = np.array(rows, float)
    return np.asarray((table - table.mean(0)) / (table.std(0) + 1e-9))


def gain(rank: np.ndarray, heavy: np.ndarray, light: np.ndarray) -> float:
    """Returns the gain in mean quality over a random choice, over all shares of light images in the order of
    ``rank``."""
    chosen = quality_by_share(light, heavy, np.argsort(rank, kind="stable"))
    return float(
        np.mean([q - (s * light.mean() + (1 - s) * heavy.mean()) for q, s in zip(chosen, SHARES, strict=True)])
    )


def predicted(features: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Predicts the loss of every prompt by a cross-validated ridge regression."""
    parts = np.random.default_rng(0).permutation(len(lost)) % FOLDS
    best: tuple[float, np.ndarray] | None = None
    for ridge in (*RIDGES, 10.0, 100.0, 1000.0):
        estimate = np.zeros(len(lost))
        for part in range(FOLDS):
            seen = parts != part
            mean, middle = features[seen].mean(0), lost[seen].mean()
            centred = features[seen] - mean
            slope = np.linalg.solve(
                centred.T @ centred + ridge * np.eye(centred.shape[1]), centred.T @ (lost[seen] - middle)
            )
            estimate[~seen] = (features[~seen] - mean) @ slope + middle
        if best is None or ((estimate - lost) ** 2).mean() < best[0]:
            best = float(((estimate - lost) ** 2).mean()), estimate
    assert best is not None
    return best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("runs/level-ceiling.npz"))
    chosen = parser.parse_args()
    scenes = held_out(chosen.prompts, SEED)
    images = generated(scenes, chosen.seeds, chosen.work)
    heavy, light = images["heavy"], images["light"]
    lost, chance, seeds = heavy - light, np.random.default_rng(0).random, range(chosen.seeds)
    within = float(lost.var(axis=1, ddof=1).mean())
    between = float(lost.mean(axis=1).var(ddof=1)) - within / chosen.seeds

    def mean(rank: Callable[[int], np.ndarray]) -> float:
        """Returns the mean gain over the seeds, each with its own ranking; ties are broken at random."""
        return float(np.mean([gain(rank(s) + 1e-6 * chance(len(scenes)), heavy[:, s], light[:, s]) for s in seeds]))

    def others(of: np.ndarray, seed: int) -> np.ndarray:
        return (of.sum(axis=1) - of[:, seed]) / (chosen.seeds - 1)

    vectors = family_encoder(load_family(FAMILY)).encode([caption(scene) for scene in scenes])
    rankings = {
        "by the very images": mean(lambda s: lost[:, s]),
        "by the discriminator, on the light image": mean(lambda s: -images["confidence"][:, s]),
        "by the images of one other seed": mean(lambda s: lost[:, s - 1]),
        f"by the images of {chosen.seeds - 1} other seeds": mean(lambda s: others(lost, s)),
    }
    for name, features in (("embedding", vectors), ("counts", counts(scenes))):
        one = [predicted(features, lost[:, s]) for s in seeds]
        rankings[f"by the {name}, fitted on one other seed"] = mean(lambda s, one=one: one[s - 1])
        rankings[f"by the {name}, fitted on {chosen.seeds - 1} other seeds"] = mean(
            lambda s, of=features: predicted(of, others(lost, s))
        )
    random = np.std([gain(chance(len(scenes)), heavy[:, s], light[:, s]) for s in seeds for _ in range(100)])
    table = Table(title=f"{len(scenes)} prompts, {chosen.seeds} seeds: gain at equal load")
    table.add_column("ranking of the prompts")
    table.add_column("attributes", justify="right")
    for name, value in rankings.items():
        table.add_row(name, f"{value:+.4f}")
    console = Console()
    console.print(table)
    keeps = light >= 0.95 * heavy - 1e-9
    same = np.mean([(keeps[:, s] == keeps[:, t]).mean() for s in seeds for t in range(s)])
    console.print(
        f"variance of the loss: {between:.4f} between prompts, {within:.4f} between the seeds of one prompt: "
        f"{between / (between + within):.1%} is the prompt's\n"
        f"two seeds of a prompt agree whether its light image keeps 95 %: {same:.1%}; always the more frequent answer: "
        f"{max(keeps.mean(), 1 - keeps.mean()):.1%}\n"
        f"standard deviation of a random ranking's gain on one seed: {random:.4f}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    command(main)
