"""Scores the images of a replay: by the family's attribute checker where it can read the prompts, else by its CLIP."""

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
    """What the scorer measures, and the scorer; None when the family brings neither a checker nor a CLIP.

    The checker gives the share of what the prompt asks that the image shows, 0…1. It is taken when it can read every
    one of ``prompts``.
    """
    folder = checker_folder(family)
    if folder is not None:
        checker = AttributeChecker.load(folder)
        if all(read_prompt(p, checker.words) for p in prompts):

            def attributes(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
                verdicts = [v for pixels, texts in _batches(prompts, images) for v in checker.check(pixels, texts)]
                return [0.0 if v is None else v.attributes for v in verdicts]

            return "share of what was asked that the images show", attributes
    if family.clip is not None:
        clip = ClipScorer.load(family.clip, revision=family.clip_revision)

        def score(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
            return [s for pixels, texts in _batches(prompts, images) for s in clip.score(pixels, texts).tolist()]

        return "CLIP score", score
    return None
