"""The judges of a family's images: trained discriminators, or the score of its CLIP in their place."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from quality.clip import ClipScorer
from weir.config import CLIP_SCORE, FamilyConfig
from weir.errors import ConfigError
from weir.own_code import is_own, made
from workers.models.convolutional_judge import ConvolutionalJudge
from workers.models.discriminator import Discriminator
from workers.models.judge_files import judge_kind
from workers.models.matching_judge import MatchingJudge
from workers.models.weights_hash import weights_hash

#: Discriminators that ``weir adopt`` trains, by the kind in their configuration.
LEARNED: dict[str, type[MatchingJudge] | type[ConvolutionalJudge]] = {
    it.kind: it for it in (MatchingJudge, ConvolutionalJudge)
}


class ClipConfidence:
    """CLIP score as a confidence, for a family without a trained discriminator.

    The confidence is (1 + c) / 2 for the cosine c of image and prompt. It ranks images, which is all that a plan needs,
    because thresholds come from observed confidences. It is not a probability, and is less accurate than a
    discriminator trained on the light variant's images.

    Attributes:
        version: hash of the weights; features stored by one version are useless to another.
    """

    def __init__(self, scorer: ClipScorer):
        self._scorer = scorer
        self.version = weights_hash(scorer.model)

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        """Confidence 0…1 in each image [B, 3, H, W] in −1…1 for its own prompt."""
        return ((1 + self._scorer.score(images, prompts)) / 2).clamp(0, 1).tolist()

    def see(self, images: torch.Tensor) -> torch.Tensor:
        """Features of the images, float16 [B, D], from which they can be judged for any prompt."""
        return self._scorer.embed_images(images).half()

    def weigh(self, seen: np.ndarray, prompt: str) -> np.ndarray:
        """Confidence, float32 [N], for one prompt in images with the features ``seen``, [N, D]."""
        cosines = seen.astype(np.float32) @ self._scorer.embed_text([prompt])[0].numpy()
        return np.clip((1 + cosines) / 2, 0, 1)


class Judge(Protocol):
    """What a cascade needs of a judge. One for a cache by confidence also has ``version``, ``see`` and ``weigh``, as
    :class:`ClipConfidence` has."""

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        """Confidence 0…1 that each image, [B, 3, H, W] in −1…1, is good enough for its prompt."""
        ...


def family_judges(family: FamilyConfig, device: str = "cpu") -> dict[str, Judge | None]:
    """The judge of each variant, or None; a judge of several variants is one object.

    Images of the last variant are judged by the first variant's judge, if a request asks for it.

    Raises:
        ConfigError: a judge cannot be loaded.
    """
    loaded: dict[str | None, Judge | None] = {None: None}
    for variant in family.variants.values():
        if variant.discriminator not in loaded:
            loaded[variant.discriminator] = named_judge(family, str(variant.discriminator), device)
    judges = {key: loaded[variant.discriminator] for key, variant in family.variants.items()}
    return {**judges, family.keys[-1]: loaded[family.discriminator]}


def family_judge(family: FamilyConfig, device: str = "cpu") -> Judge | None:
    """The first variant's judge, which also judges images of the last variant; None if the family names none.

    Raises:
        ConfigError: the judge cannot be loaded.
    """
    return None if family.discriminator is None else named_judge(family, family.discriminator, device)


def named_judge(family: FamilyConfig, discriminator: str, device: str = "cpu") -> Judge:
    """The judge that a family file names: a folder, ``clip``, or ``module:name`` of one's own.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if discriminator == CLIP_SCORE:
        assert family.clip is not None  # checked by FamilyConfig
        return ClipConfidence(ClipScorer.load(family.clip, device, revision=family.clip_revision))
    if is_own(discriminator):
        judge: Judge = made(discriminator, "discriminator", device, has=("confidence",))
        return judge
    kind = judge_kind(discriminator)
    if kind is None:
        return Discriminator.load(discriminator, device)
    return learned_kind(kind, discriminator).load(discriminator, family, device)


def learned_kind(kind: str, folder: str) -> type[MatchingJudge] | type[ConvolutionalJudge]:
    """The class of a discriminator of ``weir adopt``.

    Raises:
        ConfigError: there is no such kind; the message names ``folder``.
    """
    if kind not in LEARNED:
        raise ConfigError(f"{folder}: its kind is {kind}; this version of Weir knows {', '.join(LEARNED)}")
    return LEARNED[kind]
