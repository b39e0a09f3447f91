"""Measures which level each prompt tolerates: generates the same prompts at every rung of a ladder, and judges them.

All images of a prompt have the same seed, so that rungs are compared image by image. The pairs are stored in one file,
from which a stopped run continues.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from quality.resume import Judges
from training.evaluate import held_out
from training.scenes import caption
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageSize, Overrides
from weir.errors import ConfigError
from weir.files import written_whole
from workers.models.family import Family

#: Prompts that are generated and stored at a time.
_BATCH = 32
#: Seed of the prompts. It differs from that of ``weir evaluate``, on whose prompts no head must be fitted.
SEED = 2_000_003

#: Called with the number of finished prompts and the number of all prompts.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Rung:
    """A variant and its number of steps; 0 stands for the variant's own number."""

    variant: str
    steps: int = 0

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.steps}" if self.steps else self.variant


@dataclass(frozen=True)
class LevelPairs:
    """Quality of N prompts at L rungs.

    Attributes:
        quality: score of each prompt's image at each rung, from the best to the fastest, [N, L].
        confidence: of the discriminator in the image of the light variant, [N].
    """

    prompts: list[str]
    rungs: tuple[str, ...]
    quality: np.ndarray
    confidence: np.ndarray

    def labels(self, alpha: float) -> np.ndarray:
        """For each prompt, the fastest rung whose image keeps the share ``alpha`` of the best rung's quality, [N]."""
        keeps = self.quality >= alpha * self.quality[:, :1] - 1e-9
        return keeps.shape[1] - 1 - np.argmax(keeps[:, ::-1], axis=1)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as draft, draft.open("wb") as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                prompts=np.array(self.prompts),
                rungs=np.array(self.rungs),
                quality=self.quality.astype(np.float32),
                confidence=self.confidence.astype(np.float32),
            )

    @classmethod
    def load(cls, path: Path) -> LevelPairs:
        """Reads what :meth:`save` wrote.

        Raises:
            ConfigError: the file has another format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                prompts, rungs = file["prompts"].tolist(), tuple(file["rungs"].tolist())
                quality, confidence = file["quality"].astype(float), file["confidence"].astype(float)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path}: not a file of level pairs ({error}); remove it and run again") from None
        if quality.shape != (len(prompts), len(rungs)) or confidence.shape != (len(prompts),):
            raise ConfigError(f"{path}: not a file of level pairs (its parts do not fit); remove it and run again")
        return cls(prompts, rungs, quality, confidence)

    def first(self, count: int) -> LevelPairs:
        """The first ``count`` prompts."""
        return LevelPairs(self.prompts[:count], self.rungs, self.quality[:count], self.confidence[:count])


def ladder_of(family: FamilyConfig, steps: Sequence[int]) -> tuple[Rung, ...]:
    """The heavy variant with its own number of steps and with each of ``steps``, then the light variant.

    Raises:
        ConfigError: ``steps`` do not descend from below the heavy variant's own number.
    """
    own = [family.heavy.steps, *steps]
    if any(fewer >= more for more, fewer in pairwise(own)) or min(own) < 1:
        raise ConfigError(f"--steps is {','.join(map(str, steps))}; give numbers that descend from below {own[0]} to 1")
    return (*(Rung(family.keys[-1], n) for n in own), Rung(family.keys[0]))


def held_out_prompts(count: int, seed: int = SEED) -> list[str]:
    """``count`` prompts that are in no training set; equal seeds give equal prompts."""
    return [caption(scene) for scene in held_out(count, seed)]


def draw_pairs(
    family: FamilyConfig,
    judges: Judges,
    judge: str,
    rungs: Sequence[Rung],
    prompts: list[str],
    file: Path,
    progress: Progress | None = None,
) -> LevelPairs:
    """Generates and judges the prompts at every rung, and continues from those in ``file``.

    Raises:
        ConfigError: the family cannot generate an image, or the file holds other prompts or rungs.
    """
    count = len(prompts)
    names = tuple(rung.name for rung in rungs)
    pairs = LevelPairs([], names, np.zeros((0, len(names))), np.zeros(0))
    if file.exists():
        pairs = LevelPairs.load(file)
        if pairs.rungs != names or pairs.prompts[:count] != prompts[: len(pairs.prompts)]:
            raise ConfigError(f"{file}: holds other prompts or rungs ({', '.join(pairs.rungs)}); name another --work")
    if len(pairs.prompts) >= count:
        return pairs.first(count)
    engine = Family.load(family, threads=1)
    while len(pairs.prompts) < count:
        first = len(pairs.prompts)
        batch = prompts[first : first + _BATCH]
        generated = [_generate(engine, family.size, rung, batch, first) for rung in rungs]
        scores = [judges.scores(batch, [image for image, _ in images])[judge] for images in generated]
        pairs = LevelPairs(
            pairs.prompts + batch,
            names,
            np.concatenate([pairs.quality, np.stack(scores, axis=1)]),
            np.concatenate([pairs.confidence, [confidence for _, confidence in generated[-1]]]),
        )
        pairs.save(file)
        if progress is not None:
            progress(len(pairs.prompts), count)
    return pairs


def _generate(
    engine: Family, size: ImageSize, rung: Rung, prompts: Sequence[str], first: int
) -> list[tuple[Image.Image, float]]:
    """Images and confidences; 0 without a discriminator."""
    requests = [
        ImageRequest(f"level-{i}", prompt, i, size, float("inf"), overrides=Overrides(steps=rung.steps or None))
        for i, prompt in enumerate(prompts, first)
    ]
    images = []
    for one in engine.generate(rung.variant, requests):
        if one.error is not None:
            raise ConfigError(f"{rung.name}: the family cannot generate an image: {one.error[1]}")
        images.append((Image.open(io.BytesIO(one.image)).convert("RGB"), one.confidence or 0.0))
    return images
