"""What judges a family's images: the discriminators trained for it, or the score of its CLIP in their place."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

from quality.clip import ClipScorer
from weir.config import CLIP_SCORE, FamilyConfig
from workers.models.discriminator import Discriminator
from workers.models.weights_hash import weights_digest


class ClipConfidence:
    """CLIP score as a confidence, for a family that nobody has trained a discriminator for.

    The cosine c of image and prompt counts as (1 + c) / 2. It orders images, which is all that a plan needs: thresholds
    are taken from the confidences that were seen. It is no probability of anything, and knows less than a discriminator
    that was trained on the light variant's images.

    Attributes:
        version: of the weights: what one version has seen, no other can read.
    """

    def __init__(self, scorer: ClipScorer):
        self._scorer = scorer
        self.version = weights_digest(scorer.model)

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        """Of each image [B, 3, H, W] in −1…1 for its own prompt."""
        return ((1 + self._scorer.score(images, prompts)) / 2).clamp(0, 1).tolist()

    def see(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors float16 [B, D]: all that a verdict needs of the images, whatever the prompt."""
        return self._scorer.embed_images(images).half()

    def weigh(self, seen: np.ndarray, prompt: str) -> np.ndarray:
        """Confidence, float32 [N], in the images of which it has seen this, [N, D]."""
        cosines = seen.astype(np.float32) @ self._scorer.embed_text([prompt])[0].numpy()
        return np.clip((1 + cosines) / 2, 0, 1)


Judge: TypeAlias = Discriminator | ClipConfidence


def family_judges(family: FamilyConfig, device: str = "cpu") -> dict[str, Judge | None]:
    """The judge of each variant's images, None where the family names none; one that serves several is one object.

    Nothing follows the last variant; where somebody asks for a verdict on its images, the first one's judge gives it.

    Raises:
        ConfigError: one cannot be loaded.
    """
    loaded: dict[str | None, Judge | None] = {None: None}
    for variant in family.variants.values():
        if variant.discriminator not in loaded:
            loaded[variant.discriminator] = _load(family, str(variant.discriminator), device)
    judges = {key: loaded[variant.discriminator] for key, variant in family.variants.items()}
    return {**judges, family.keys[-1]: loaded[family.discriminator]}


def family_judge(family: FamilyConfig, device: str = "cpu") -> Judge | None:
    """The first variant's judge, which also judges images of the last one; None where the family names none.

    Raises:
        ConfigError: it cannot be loaded.
    """
    return None if family.discriminator is None else _load(family, family.discriminator, device)


def _load(family: FamilyConfig, discriminator: str, device: str) -> Judge:
    if discriminator == CLIP_SCORE:
        assert family.clip is not None  # the family was checked
        return ClipConfidence(ClipScorer.load(family.clip, device, revision=family.clip_revision))
    return Discriminator.load(discriminator, device)
