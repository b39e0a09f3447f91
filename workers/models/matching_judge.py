"""A discriminator for any family: matches the words of a prompt with the parts of an image.

It learns on images of the family and the scores of any measure (``training/learned_judge.py``), and needs no vocabulary
and no detector. The words are the hidden states of a text encoder that the family has anyway. The parts are patches of
its CLIP's vision tower, which stays as it is, or the cells of a small convolutional network, which is trained with the
rest. Each word attends to the parts and to the other words; the verdict comes from the mean and the maximum over words.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from quality.clip import ClipScorer
from weir.config import FamilyConfig
from weir.errors import ConfigError
from workers.models.judge_files import read_judge
from workers.models.learned_parts import ConfidenceScale, FamilyModels
from workers.models.text_reader import Words
from workers.models.weights_hash import weights_hash

#: Largest number of cells on a side of the grid of parts. Finer patches are averaged: attention to 1,024 patches of a
#: large CLIP would cost more than the light image.
GRID = 8


@dataclass(frozen=True, slots=True)
class MatchingShape:
    """Sizes of a :class:`MatchingNet`.

    Attributes:
        words: width of the words.
        parts: width of the parts; 0: the network sees pixels itself.
        cells: number of parts.
        side: side of the images whose pixels it sees.
    """

    words: int
    parts: int
    cells: int
    side: int = 128
    width: int = 64
    heads: int = 4
    layers: int = 2


class _Layer(nn.Module):
    """Words attend to parts, then to words, then to themselves; residual, normalised first."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.to_parts = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.to_words = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.alone = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, words: torch.Tensor, unused: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](words)
        words = words + self.drop(self.to_parts(x, parts, parts, need_weights=False)[0])
        x = self.norms[1](words)
        words = words + self.drop(self.to_words(x, x, x, key_padding_mask=unused, need_weights=False)[0])
        return words + self.drop(self.alone(self.norms[2](words)))


class MatchingNet(nn.Module):
    """Maps parts [B, cells, parts], or images [B, 3, H, W] in −1…1, and words to two logits, [B, 2].

    The first one is of the image being good, the second one of it being as good as the last variant's.
    """

    def __init__(self, shape: MatchingShape, dropout: float = 0.1):
        super().__init__()
        self.shape = shape
        width = shape.width
        if shape.parts:
            self.eye: nn.Module = nn.Sequential(nn.LayerNorm(shape.parts), nn.Linear(shape.parts, width))
        else:
            self.eye = _Cells(width)
        self.place = nn.Parameter(0.02 * torch.randn(1, shape.cells, width))
        self.reader = nn.Sequential(nn.LayerNorm(shape.words), nn.Linear(shape.words, width))
        self.layers = nn.ModuleList(_Layer(width, shape.heads, dropout) for _ in range(shape.layers))
        self.verdict = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 2)
        )

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """Parts of images, [B, cells, width]."""
        return self.eye(images) + self.place

    def match(self, parts: torch.Tensor, words: Words) -> torch.Tensor:
        """Logits [B, 2] of looked-at parts, [B, cells, width]."""
        x, unused = self.reader(words.states), ~words.used
        for layer in self.layers:
            x = layer(x, unused, parts)
        weight = words.used.unsqueeze(-1).float()
        mean = (x * weight).sum(1) / weight.sum(1)
        most = x.masked_fill(unused.unsqueeze(-1), -1e4).amax(1)
        return self.verdict(torch.cat([mean, most], -1))

    def forward(self, images: torch.Tensor, words: Words) -> torch.Tensor:
        return self.match(self.look(images), words)


class _Cells(nn.Module):
    """A small residual network: images [B, 3, S, S] to a grid of cells, [B, GRID², width]."""

    def __init__(self, width: int):
        super().__init__()
        sizes = [3, 24, 48, width]
        self.body = nn.Sequential(*(Down(a, b) for a, b in pairwise(sizes)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = F.adaptive_avg_pool2d(self.body(images), GRID)
        return cells.flatten(2).transpose(1, 2)


class Down(nn.Module):
    """Halves an image and adds a residual block."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.SiLU())
        self.second = nn.Sequential(
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside), nn.SiLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return F.silu(x + self.second(x))


def patches(clip: ClipScorer, images: torch.Tensor) -> torch.Tensor:
    """Patches of a CLIP's vision tower, [B, cells, D], averaged to at most ``GRID`` on a side."""
    found = clip.embed_patches(images)
    side = round(found.shape[1] ** 0.5)
    if side <= GRID or side * side != found.shape[1]:
        return found
    grid = found.transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(grid, GRID).flatten(2).transpose(1, 2)


def squares(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images [B, 3, H, W] scaled to squares."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


class MatchingJudge:
    """A trained :class:`MatchingNet` with its text reader and, unless it sees pixels itself, its CLIP.

    Attributes:
        version: hash of the weights; features stored by one version are useless to another.
    """

    kind = "matching"

    def __init__(self, net: MatchingNet, models: FamilyModels, scale: ConfidenceScale, device: str = "cpu"):
        self.net = net.eval().to(device)
        self._models, self._scale, self._device = models, scale, device
        self.version = weights_hash(self.net)

    @classmethod
    def load(cls, folder: Path | str, family: FamilyConfig, device: str = "cpu") -> MatchingJudge:
        """Loads a folder that ``weir adopt`` wrote.

        Raises:
            ConfigError: a file is missing or damaged, or the family has another CLIP or text encoder than the one that
                the network was trained with.
        """
        folder = Path(folder)
        config, weights = read_judge(folder)
        try:
            net = MatchingNet(MatchingShape(**config["shape"]))
            net.load_state_dict(weights)
            scale, version = ConfidenceScale(**config["scale"]), config["models"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise ConfigError(f"{folder}: not a discriminator ({error}); train one with `weir adopt`") from None
        models = FamilyModels.load(family, device)
        if models.version != version:
            raise ConfigError(
                f"{folder}: was trained with another CLIP or text encoder than that of family {family.name}; "
                "train it again with `weir adopt`"
            )
        return cls(net, models, scale, device)

    @torch.no_grad()
    def see(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images [B, 3, H, W] in −1…1, float16 [B, F], from which they can be judged for any prompt."""
        looked = self.net.look(self._parts(images))
        return looked.flatten(1).half().cpu()

    @torch.no_grad()
    def weigh(self, seen: np.ndarray, prompt: str) -> np.ndarray:
        """Confidence 0…1, float32 [N], for one prompt in images with the features ``seen``, [N, F]."""
        words, shape = self._models.reader.read([prompt]), self.net.shape
        parts = torch.from_numpy(seen).to(self._device, torch.float32).unflatten(1, (shape.cells, shape.width))
        every = Words(*(it.expand(len(parts), *it.shape[1:]) for it in words))
        return self._scale.confidence(self.net.match(parts, every)).cpu().numpy()

    @torch.no_grad()
    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        """Confidence 0…1 that each image, [B, 3, H, W] in −1…1, is as good as the last variant's."""
        parts = self._parts(images)
        found: list[float] = self._scale.confidence(self.net(parts, self._models.reader.read(prompts))).tolist()
        return found

    def _parts(self, images: torch.Tensor) -> torch.Tensor:
        return seen_parts(images.to(self._device, torch.float32), self.net.shape, self._models)


def seen_parts(images: torch.Tensor, shape: MatchingShape, models: FamilyModels) -> torch.Tensor:
    """What a network looks at in images [B, 3, H, W] in −1…1: patches of the CLIP, or small squares of pixels."""
    if shape.parts == 0:
        return squares(images, shape.side)
    assert models.clip is not None  # the network was trained with it
    return patches(models.clip, images)
