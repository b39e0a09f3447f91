"""Measures a family on prompts of its users, for ``weir evaluate --prompts``.

Families of ``weir train`` are measured by their attribute checker (``training/evaluate.py``). Other families have none,
so a published model scores their images, or a measure of the user's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quality.suite import Judge, scored
from training.card import plot_by_share
from training.evaluate import SHARES, Progress, by_confidence, generated, quality_by_share, rounded
from weir.config import FamilyConfig
from weir.errors import ConfigError
from weir.files import written_whole
from workers.models.family import Family


def evaluate_prompts(
    family: FamilyConfig,
    prompts: Sequence[str],
    judge: Judge,
    measure: str,
    out: Path,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Generates every prompt with every variant, scores the images, and writes the figures and a plot to ``out``.

    Args:
        judge: scores single images, higher is better; all scores of the last variant must have a mean above 0, because
            the quality of a mix is stated as a share of it.
        measure: name of the judge, for the file and the plot.

    Raises:
        ConfigError: a variant has no discriminator, an image cannot be generated, or the mean score of the last variant
            is not above 0.
    """
    if blind := [key for key in family.keys[:-1] if family.variants[key].discriminator is None]:
        raise ConfigError(
            f"family {family.name}: {blind[0]} has no discriminator, so nothing decides which of its images stay; name "
            "one in the family file: a folder, clip, or module:name of your own"
        )
    engine = Family.load(family, threads=1)
    scores: dict[str, np.ndarray] = {}
    confidences: dict[str, np.ndarray] = {}
    for key in family.keys:
        pixels, confidences[key] = generated(engine, family, prompts, key, None, progress)
        scores[key] = scored(judge, prompts, [Image.fromarray(it) for it in pixels])
    last = family.keys[-1]
    if scores[last].mean() <= 0:
        raise ConfigError(
            f"{measure}: the mean score of {last} is {scores[last].mean():.3g}; quality is stated as a share of it, so "
            "use a measure whose scores are above 0"
        )
    mix = _mix(scores[family.keys[0]], scores[last], confidences[family.keys[0]])
    figures = {
        "family": family.name,
        "prompts": len(prompts),
        "measure": measure,
        "scores": {key: float(it.mean()) for key, it in scores.items()},
        "light_share": list(SHARES),
        **mix,
        "variants": {key: _mix(scores[key], scores[last], confidences[key]) for key in family.keys[1:-1]}
        | {last: {"confidences": rounded(confidences[last])}},
        "heavy_by_steps": {str(family.heavy.steps): float(scores[last].mean())},
    }
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / "evaluation.json") as draft:
        draft.write_text(json.dumps(figures, indent=1) + "\n")
    plot_by_share(out / "quality_by_share.png", SHARES, mix["quality"], measure)
    return figures


def _mix(lighter: np.ndarray, last: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """Quality of mixes of a lighter variant with the last one, when images stay light in order of confidence, of the
    true gain, or at random."""
    orders = {
        "discriminator": by_confidence(confidence),
        "oracle": np.argsort(last - lighter, kind="stable"),
    }
    quality = {name: quality_by_share(lighter, last, order) for name, order in orders.items()}
    shares = np.array(SHARES)
    quality["random"] = ((1 - shares) * last.mean() + shares * lighter.mean()).tolist()
    return {"confidences": rounded(confidence), "quality": quality}
