"""Scores the images of a replay with the family's attribute checker if it can read the prompts, else with its CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from quality.checker import AttributeChecker, read_prompt
from quality.clip import ClipScorer
from quality.suite import checker_folder
from weir.config import FamilyConfig

#: ``scorer(prompts, images)``: one finite number for each image, higher is better.
Scorer = Callable[[Sequence[str], Sequence[Image.Image]], list[float]]
_BATCH = 32


def _batches(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[tuple[torch.Tensor, list[str]]]:
    """Float images [B, 3, H, W] in −1…1 with their prompts."""
    parts = []
    for i in range(0, len(images), _BATCH):
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in images[i : i + _BATCH]])
        parts.append((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, list(prompts[i : i + _BATCH])))
    return parts


def family_scorer(family: FamilyConfig, prompts: Sequence[str]) -> tuple[str, Scorer] | None:
    """The name of the measure and its scorer; None when the family has neither a checker nor a CLIP.

    The checker returns the share of the prompt's requirements that the image meets, 0…1. It is used when it can read
    all of ``prompts``.
    """
    folder = checker_folder(family)
    if folder is not None:
        checker = AttributeChecker.load(folder)
        if all(read_prompt(p, checker.words) for p in prompts):

            def attributes(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
                verdicts = [v for pixels, texts in _batches(prompts, images) for v in checker.check(pixels, texts)]
                return [0.0 if v is None else v.attributes for v in verdicts]

            return "share of the attributes of the prompt that the images show", attributes
    if family.clip is not None:
        clip = ClipScorer.load(family.clip, revision=family.clip_revision)

        def score(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
            return [s for pixels, texts in _batches(prompts, images) for s in clip.score(pixels, texts).tolist()]

        return "CLIP score", score
    return None
