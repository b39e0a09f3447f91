"""Measures a family on held-out prompts, for ``weir evaluate`` and the model card.

Every variant generates every prompt with one seed. The measures are the checker, the family's CLIP, and the Fréchet
distance to real renders of the same captions. The figures of one run can be compared with one another only.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from quality.checker import AttributeChecker
from quality.clip import ClipScorer
from quality.frechet import frechet_distance
from quality.resume import Approximations
from quality.resume import figures as approximation_figures
from quality.suite import family_suite, own_measures
from training.scenes import Scene, caption, render, resample, sample_scene
from training.vae import to_tensor
from weir.config import FamilyConfig
from weir.core import ImageRequest, Overrides
from weir.errors import ConfigError
from weir.files import written_whole
from workers.models.family import Family

Progress = Callable[[str, int, int], None]
STEPS = (2, 5, 10, 25, 50)
SHARES = tuple(i / 10 for i in range(11))
_BATCH = 16


@dataclass(frozen=True)
class Judged:
    """Images of one variant with their scores; arrays are [N]."""

    pixels: np.ndarray
    exact: np.ndarray
    attributes: np.ndarray
    clip: np.ndarray
    features: np.ndarray
    confidence: np.ndarray
    good_enough: np.ndarray

    def figures(self, counts: np.ndarray, real: np.ndarray) -> dict[str, float]:
        """One row of the model card: Fréchet distance, CLIP score, attributes, and exact images by object count."""
        row = {
            "frechet": frechet_distance(self.features, real),
            "clip": float(self.clip.mean()),
            "attributes": float(self.attributes.mean()),
            "exact": float(self.exact.mean()),
        }
        for n in sorted(set(counts.tolist())):
            row[f"attributes_{n}"] = float(self.attributes[counts == n].mean())
            row[f"exact_{n}"] = float(self.exact[counts == n].mean())
        return row


def held_out(count: int, seed: int = 1_000_003) -> list[Scene]:
    """``count`` scenes that are in no training set, evenly of one to four objects, with different captions."""
    rng = np.random.default_rng(seed)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = sample_scene(rng, 1 + len(scenes) % 4)
        scenes.setdefault(caption(scene), scene)
    return list(scenes.values())


class Evaluation:
    """A family with its judges. The family needs a folder ``checker/`` beside its discriminator."""

    def __init__(self, family: FamilyConfig, scenes: Sequence[Scene], progress: Progress | None = None):
        checker, clip = own_measures(family)
        self.family = family
        self.engine = Family.load(family, threads=1)
        self.checker = AttributeChecker.load(checker)
        self.scorer = ClipScorer.load(clip)
        self.prompts = [caption(s) for s in scenes]
        self.counts = np.array([len(s.objects) for s in scenes])
        self.progress = progress
        rng = np.random.default_rng(7)
        self.real = self.judge(np.stack([render(resample(s, rng)) for s in scenes]))
        self.floor = self.judge(np.stack([render(resample(s, rng)) for s in scenes]))

    def judge(self, pixels: np.ndarray, confidence: np.ndarray = np.array([])) -> Judged:
        """Scores images of all prompts."""
        images = to_tensor(pixels)
        verdicts = self.checker.check(images, self.prompts)
        return Judged(
            pixels=pixels,
            exact=np.array([v is not None and v.exact for v in verdicts]),
            attributes=np.array([v.attributes if v else 0.0 for v in verdicts]),
            clip=self.scorer.score(images, self.prompts).numpy(),
            features=self.checker.features(images).numpy(),
            confidence=confidence,
            good_enough=np.array([v is not None and v.good_enough for v in verdicts]),
        )

    def generate(self, variant: str, steps: int | None = None) -> Judged:
        """Generates and scores all prompts with one variant; the seed of prompt i is i."""
        return self.judge(*generated(self.engine, self.family, self.prompts, variant, steps, self.progress))


def generated(
    engine: Family,
    family: FamilyConfig,
    prompts: Sequence[str],
    variant: str,
    steps: int | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Generates all prompts with one variant; the seed of prompt i is i.

    Returns:
        Pixels, uint8 [N, H, W, 3], and the confidences, [N]; NaN where nothing judged the image.

    Raises:
        ConfigError: an image cannot be generated.
    """
    pixels, confidences, size = [], [], family.size
    for first in range(0, len(prompts), _BATCH):
        requests = [
            ImageRequest(f"evaluate-{i}", prompt, i, size, float("inf"), overrides=Overrides(steps=steps), judge=True)
            for i, prompt in enumerate(prompts[first : first + _BATCH], first)
        ]
        for one in engine.generate(variant, requests):
            if one.error is not None:
                raise ConfigError(f"family {family.name}: {one.error[1]}")
            pixels.append(np.asarray(Image.open(io.BytesIO(one.image)).convert("RGB")))
            confidences.append(np.nan if one.confidence is None else one.confidence)
        if progress is not None:
            progress(f"{variant} {steps or ''}".strip(), len(pixels), len(prompts))
    return np.stack(pixels), np.array(confidences)


def quality_by_share(light: np.ndarray, heavy: np.ndarray, order: np.ndarray) -> list[float]:
    """Mean quality at each of ``SHARES``: the first share of ``order`` gets light images, the rest heavy images."""
    curve = []
    for share in SHARES:
        chosen = order[: round(share * len(order))]
        mixed = heavy.astype(float).copy()
        mixed[chosen] = light[chosen]
        curve.append(float(mixed.mean()))
    return curve


def by_confidence(confidences: np.ndarray) -> np.ndarray:
    """Order of the prompts by the discriminator's confidence, the highest first."""
    return np.argsort(-confidences, kind="stable")


def rounded(confidences: np.ndarray) -> list[float]:
    """Confidences in the order of the prompts, which is the same for every variant."""
    return [round(float(c), 4) for c in confidences]


def measured_approximations(run: Evaluation, count: int, progress: Progress | None = None) -> dict[str, object]:
    """Quality of resumed runs by K and similarity, and of warm starts by K (:mod:`quality.resume`).

    It is measured on the first ``count`` prompts, all of which are deferred.
    """
    family, prompts = run.family, run.prompts[:count]
    measures = Approximations(
        run.engine,
        family_suite(family),
        prompts,
        run.scorer.embed_text(prompts).numpy(),
        size=family.size,
        steps=family.heavy.steps,
        variants=(family.keys[0], family.keys[-1]),
        progress=progress,
    )
    return approximation_figures(len(prompts), measures.resume(), measures.warm_start(math.inf), "attributes")


def evaluate(
    family: FamilyConfig, out: Path, *, count: int = 400, approximations: int = 0, progress: Progress | None = None
) -> dict[str, object]:
    """Generates and scores all images, writes ``evaluation.json`` and ``images.npz`` to ``out``, returns the figures.

    Args:
        approximations: number of prompts for which resumed runs and warm starts are measured, too; each costs as much
            as 30 whole runs.
    """
    scenes = held_out(count)
    run = Evaluation(family, scenes, progress)
    first, *others, last = family.keys
    light = run.generate(first)
    middle = {key: run.generate(key) for key in others}
    by_steps = {n: run.generate(last, n) for n in STEPS}
    heavy = by_steps[STEPS[-1]]
    real = run.real.features

    rng = np.random.default_rng(11)
    random_order = np.mean(
        [quality_by_share(light.attributes, heavy.attributes, rng.permutation(count)) for _ in range(200)], axis=0
    )
    gain = light.attributes - heavy.attributes
    good = light.good_enough
    orders = {
        "discriminator": by_confidence(light.confidence),
        "clip": np.argsort(-light.clip, kind="stable"),
        "oracle": np.argsort(-gain, kind="stable"),
    }
    figures: dict[str, object] = {
        "family": family.name,
        "prompts": count,
        "rows": {
            "real": run.floor.figures(run.counts, real),
            f"light ({family.light.steps} steps)": light.figures(run.counts, real),
            **{f"{k} ({family.variants[k].steps} steps)": it.figures(run.counts, real) for k, it in middle.items()},
            **{f"heavy ({n} steps)": by_steps[n].figures(run.counts, real) for n in STEPS},
        },
        "light_at_least_as_good": float(((gain >= 0) & (light.clip >= heavy.clip)).mean()),
        "light_good_enough": float(good.mean()),
        "discriminator_auc": float(roc_auc_score(good, light.confidence)),
        "clip_auc": float(roc_auc_score(good, light.clip)),
        "light_share": list(SHARES),
        "quality": {
            **{name: quality_by_share(light.attributes, heavy.attributes, order) for name, order in orders.items()},
            "random": random_order.tolist(),
        },
        "heavy_by_steps": {str(n): float(by_steps[n].attributes.mean()) for n in STEPS},
        "confidences": rounded(light.confidence),
        "variants": {
            key: {
                "confidences": rounded(it.confidence),
                "quality": {
                    "discriminator": quality_by_share(it.attributes, heavy.attributes, by_confidence(it.confidence))
                },
            }
            for key, it in middle.items()
        }
        | {last: {"confidences": rounded(heavy.confidence)}},
    }
    if approximations:
        figures["approximation"] = measured_approximations(run, approximations, progress)
    out.mkdir(parents=True, exist_ok=True)
    kept = {key: it.pixels for key, it in middle.items()}
    kept |= {"light": light.pixels, "confidence": light.confidence, "light_exact": light.exact}
    kept |= {"heavy_exact": heavy.exact} | {f"heavy_{n}": by_steps[n].pixels for n in STEPS}
    with written_whole(out / "images.npz") as draft, draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **kept)
    with written_whole(out / "evaluation.json") as draft:
        draft.write_text(json.dumps(figures, indent=1) + "\n")
    return figures
