"""Who judges a family's images: the discriminator that was trained for it, or the score of its CLIP in its place."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch

from quality.clip import ClipScorer
from weir.config import CLIP_SCORE, FamilyConfig
from workers.discriminator import Discriminator


class ImageJudge(Protocol):
    """Confidence 0…1 that images fit their prompts: at once, or later from what was seen of them.

    Attributes:
        version: of the weights: what one version has seen, no other can read.
    """

    version: str

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]: ...

    def see(self, images: torch.Tensor) -> torch.Tensor: ...

    def weigh(self, seen: np.ndarray, prompt: str) -> np.ndarray: ...


class ClipConfidence:
    """CLIP score as a confidence, for a family that nobody has trained a discriminator for.

    The cosine c of image and prompt counts as (1 + c) / 2. It orders images, which is all that a plan needs: thresholds
    are taken from the confidences that were seen. It is no probability of anything, and knows less than a discriminator
    that was trained on the light variant's images.
    """

    def __init__(self, scorer: ClipScorer):
        self._scorer = scorer
        digest = hashlib.blake2b(digest_size=6)
        for weight in (scorer.model.visual_projection.weight, scorer.model.text_projection.weight):
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        self.version = digest.hexdigest()

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


def load_judge(family: FamilyConfig, device: str = "cpu") -> ImageJudge | None:
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
