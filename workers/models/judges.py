"""Who judges a family's images: the discriminator that was trained for it, or the score of its CLIP in its place."""

from __future__ import annotations

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


def family_judge(family: FamilyConfig, device: str = "cpu") -> Discriminator | ClipConfidence | None:
    """The family's judge; None where it names none.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if family.discriminator is None:
        return None
    if family.discriminator == CLIP_SCORE:
        assert family.clip is not None  # the family file says so
        return ClipConfidence(ClipScorer.load(family.clip, device, revision=family.clip_revision))
    return Discriminator.load(family.discriminator, device)
