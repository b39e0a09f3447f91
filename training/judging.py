"""Training examples of the discriminator: objects on light images, and which parts of a caption match them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tqdm import tqdm
from transformers import CLIPTokenizer

from quality.checker import AttributeChecker, DetectedObject, Requirements, Verdict, Vocabulary, judge, read_prompt
from training.clip import Encoders, embed_prompts, token_ids
from training.denoiser import Conditioning, trajectories
from training.scenes import BACKGROUNDS, COLOURS, MAX_OBJECTS, SHAPES, SIZES, TEXTURES
from training.vae import LATENT_CHANNELS

LIGHT_STEPS = 2
#: At most this many objects of an image are stored, as many as the checker detects.
MOST = 6
#: Label of a requirement that a caption does not state.
ASKS_NOTHING = -1


@dataclass(frozen=True)
class SeenImages:
    """Images of the light variant, and what the checker detected on them.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        objects: int16 [N, 6, 10], with the columns of :mod:`training.dataset`.
        backgrounds: int8 [N].
        scenes: [N], indices of the training scenes whose captions were used.
    """

    images: np.ndarray
    objects: np.ndarray
    backgrounds: np.ndarray
    scenes: np.ndarray

    def __len__(self) -> int:
        return len(self.scenes)


def found_objects(rows: np.ndarray) -> tuple[DetectedObject, ...]:
    """Converts rows of :data:`training.dataset.OBJECT_COLUMNS` to objects of the checker."""
    return tuple(
        DetectedObject(SHAPES[r[0]], COLOURS[r[1]], TEXTURES[r[2]], SIZES[r[3]], float(r[7]) / 1000, float(r[8]) / 1000)
        for r in rows
        if r[0] >= 0
    )


def object_rows(found: tuple[DetectedObject, ...]) -> np.ndarray:
    """The inverse of :func:`found_objects`, int16 [6, 10]; the radius is unknown and set to 0."""
    rows = np.full((MOST, 10), -1, np.int16)
    for row, f in zip(rows, found[:MOST], strict=False):
        centre = (min(999, max(0, round(f.x * 1000))), min(999, max(0, round(f.y * 1000))))
        names = (SHAPES.index(f.shape), COLOURS.index(f.colour), TEXTURES.index(f.texture), SIZES.index(f.size))
        row[:] = (*names, 1, 1, 1, *centre, 0)
    return rows


def mirrored(rows: np.ndarray) -> np.ndarray:
    """The objects of the mirrored image."""
    there = rows[..., 0] >= 0
    out = rows.copy()
    out[..., 7] = np.where(there, 999 - rows[..., 7], rows[..., 7])
    return out


@dataclass(frozen=True)
class Lesson:
    """A caption compared with the content of an image.

    Attributes:
        verdict: of the checker.
        wish: requirements of the caption, int64 [18]: shape, colour, texture, size of each of four objects, background,
            relation; the last class of each attribute stands for "not stated".
        holds: whether the image meets each requirement, int8 [19]: four shapes, four colours, four textures, four
            sizes, relation, background, number of objects; −1 where the caption states nothing.
    """

    verdict: Verdict
    wish: np.ndarray
    holds: np.ndarray


class Judge:
    """Compares captions with detected objects; every caption is parsed once."""

    def __init__(self, words: Vocabulary):
        self._words = words
        self._read: dict[str, tuple[Requirements, np.ndarray]] = {}

    def __call__(self, caption: str, rows: np.ndarray, background: int) -> Lesson:
        """Compares a caption with the objects and the background of an image.

        Raises:
            ValueError: the text is not a caption.
        """
        if caption not in self._read:
            requirements = read_prompt(caption, self._words)
            if requirements is None:
                raise ValueError(f"not a caption: {caption!r}")
            self._read[caption] = requirements, self._wish(requirements)
        requirements, wish = self._read[caption]
        verdict = judge(requirements, found_objects(rows), BACKGROUNDS[background])
        return Lesson(verdict, wish, self._holds(requirements, verdict))

    def _wish(self, requirements: Requirements) -> np.ndarray:
        def place(names: tuple[str, ...], name: str | None) -> int:
            return len(names) if name is None else names.index(name)

        words = self._words
        rows = [
            (
                place(words.shapes, w.shape),
                place(words.colours, w.colour),
                place(words.textures, w.texture),
                place(words.sizes, w.size),
            )
            for w in requirements.objects
        ]
        nothing = (len(words.shapes), len(words.colours), len(words.textures), len(words.sizes))
        rows += [nothing] * (MAX_OBJECTS - len(rows))
        rest = (place(words.backgrounds, requirements.background), place(words.relations, requirements.relation))
        return np.array([n for row in rows for n in row] + [*rest])

    @staticmethod
    def _holds(requirements: Requirements, verdict: Verdict) -> np.ndarray:
        table = np.full((4, MAX_OBJECTS), ASKS_NOTHING, np.int8)
        held = iter(verdict.held)
        for i, w in enumerate(requirements.objects):
            for kind, stated in enumerate((w.shape, w.colour, w.texture, w.size)):
                if stated is not None:
                    table[kind, i] = next(held)
        rest = [
            next(held) if stated else ASKS_NOTHING
            for stated in (requirements.relation, requirements.background, "number")
        ]
        return np.concatenate([table.ravel(), np.array(rest, np.int8)])


@dataclass(frozen=True)
class LightPipeline:
    """The light variant with the other parts that generate its images.

    Attributes:
        steps: denoising steps of an image.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: Encoders
    tokenizer: CLIPTokenizer
    steps: int = LIGHT_STEPS

    @torch.no_grad()
    def images(self, captions: list[str], generator: torch.Generator) -> torch.Tensor:
        """Generates an image for each caption, in −1…1, [B, 3, H, W]."""
        device, side = self.unet.device, self.unet.config.sample_size
        ids = token_ids(self.tokenizer, captions).to(device)
        prompts = Conditioning(*(part.float().to(device) for part in embed_prompts(self.encoders, ids)))
        noise = torch.randn((len(ids), LATENT_CHANNELS, side, side), generator=generator, device=device)
        x, _ = trajectories(self.unet, noise, prompts, steps=self.steps, guidance=1.0)
        return self.vae.decode(x / self.vae.config.scaling_factor).sample.clamp(-1, 1)


@torch.no_grad()
def detect_on_light_images(
    light: LightPipeline,
    checker: AttributeChecker,
    captions: list[str],
    path: Path,
    *,
    count: int,
    seed: int,
    batch: int = 32,
) -> SeenImages:
    """Generates light images for the last ``count`` training captions and detects their objects; stored at ``path``."""
    first = len(captions) - count
    if not path.exists():
        generator = torch.Generator(device=light.unet.device).manual_seed(seed)
        images, objects, backgrounds = [], [], []
        for i in tqdm(range(first, len(captions), batch), desc="light images", unit="batch"):
            decoded = light.images(captions[i : i + batch], generator)
            for found, background in checker.detect(decoded):
                objects.append(object_rows(found))
                backgrounds.append(BACKGROUNDS.index(background))
            images.append(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        np.savez(
            path,
            images=np.concatenate(images),
            objects=np.stack(objects),
            backgrounds=np.asarray(backgrounds, np.int8),
        )
    kept = np.load(path, allow_pickle=False)
    return SeenImages(kept["images"], kept["objects"], kept["backgrounds"], np.arange(first, len(captions)))
