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
        family,
        progress,
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
    run = Evaluation(family, held_out(count), progress)
    first, *others, last = family.keys
    found = _Images(
        light=run.generate(first),
        middle={key: run.generate(key) for key in others},
        by_steps={n: run.generate(last, n) for n in STEPS},
    )
    figures: dict[str, object] = {
        "family": family.name,
        "prompts": count,
        "rows": found.rows(run),
        **found.deferral(),
        "heavy_by_steps": {str(n): float(images.attributes.mean()) for n, images in found.by_steps.items()},
        "confidences": rounded(found.light.confidence),
        "variants": found.variants() | {last: {"confidences": rounded(found.heavy.confidence)}},
    }
    if approximations:
        figures["approximation"] = measured_approximations(run, approximations, progress)
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / "images.npz") as draft, draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **found.arrays())
    with written_whole(out / "evaluation.json") as draft:
        draft.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


@dataclass(frozen=True)
class _Images:
    """The images of an evaluation.

    Attributes:
        middle: by key of the variant between the first and the last.
        by_steps: of the last variant, by number of steps.
    """

    light: Judged
    middle: dict[str, Judged]
    by_steps: dict[int, Judged]

    @property
    def heavy(self) -> Judged:
        return self.by_steps[STEPS[-1]]

    def rows(self, run: Evaluation) -> dict[str, dict[str, float]]:
        """The rows of the model card by name."""
        family = run.family
        named = {
            "real": run.floor,
            f"light ({family.light.steps} steps)": self.light,
            **{f"{key} ({family.variants[key].steps} steps)": images for key, images in self.middle.items()},
            **{f"heavy ({n} steps)": images for n, images in self.by_steps.items()},
        }
        return {name: images.figures(run.counts, run.real.features) for name, images in named.items()}

    def deferral(self) -> dict[str, object]:
        """How well the light images that should be deferred are known, and the quality that each order gives."""
        light, heavy = self.light, self.heavy
        gain, rng = light.attributes - heavy.attributes, np.random.default_rng(11)
        orders = {
            "discriminator": by_confidence(light.confidence),
            "clip": np.argsort(-light.clip, kind="stable"),
            "oracle": np.argsort(-gain, kind="stable"),
        }
        at_random = [
            quality_by_share(light.attributes, heavy.attributes, rng.permutation(len(gain))) for _ in range(200)
        ]
        return {
            "light_at_least_as_good": float(((gain >= 0) & (light.clip >= heavy.clip)).mean()),
            "light_good_enough": float(light.good_enough.mean()),
            "discriminator_auc": float(roc_auc_score(light.good_enough, light.confidence)),
            "clip_auc": float(roc_auc_score(light.good_enough, light.clip)),
            "light_share": list(SHARES),
            "quality": {
                **{name: quality_by_share(light.attributes, heavy.attributes, it) for name, it in orders.items()},
                "random": np.mean(at_random, axis=0).tolist(),
            },
        }

    def variants(self) -> dict[str, dict[str, object]]:
        """Confidences and quality of the variants between the first and the last."""
        found: dict[str, dict[str, object]] = {}
        for key, images in self.middle.items():
            order = by_confidence(images.confidence)
            quality = quality_by_share(images.attributes, self.heavy.attributes, order)
            found[key] = {"confidences": rounded(images.confidence), "quality": {"discriminator": quality}}
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays to keep, by name."""
        kept = {key: images.pixels for key, images in self.middle.items()}
        kept |= {"light": self.light.pixels, "confidence": self.light.confidence, "light_exact": self.light.exact}
        return kept | {"heavy_exact": self.heavy.exact} | {f"heavy_{n}": it.pixels for n, it in self.by_steps.items()}
