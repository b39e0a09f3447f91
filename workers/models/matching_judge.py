"""A discriminator for any family: compares an image with its prompt.

It learns on images of the family and the scores of any measure (``training/learned_judge.py``), and needs no vocabulary
and no detector. What it knows of the prompt are the hidden states of a text encoder that the family has anyway. What it
sees of the image are features of the family's CLIP, which stays as it is, or the pixels, by a small convolutional
network that is trained with the rest.
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
from workers.models.weights_hash import weights_hash

#: Cells on a side of the grid to which the patches of a CLIP, or the cells of the convolutional network, are averaged.
GRID = 4


@dataclass(frozen=True, slots=True)
class MatchingShape:
    """Sizes of a :class:`MatchingNet`.

    Attributes:
        text: width of the embeddings of prompts.
        image: width of the features of images; 0: the network sees pixels itself.
        aligned: width of the CLIP's own embeddings, with which both begin; 0: there is no CLIP.
        side: side of the images whose pixels it sees.
    """

    text: int
    image: int
    aligned: int = 0
    side: int = 128
    width: int = 96


class MatchingNet(nn.Module):
    """Maps features [B, F] of images, or pixels [B, 3, H, W], and embeddings [B, T] of prompts to numbers, [B, K].

    The first one is the logit of the image being good, the second one of it being as good as the last variant's. With a
    CLIP there is a third one, the cosine of its own embeddings, which needs no training. The network compares these
    embeddings as they are, too, beside what it learns to compare.
    """

    def __init__(self, shape: MatchingShape, dropout: float = 0.25):
        super().__init__()
        self.shape = shape
        width, inside = shape.width, 4 * (shape.width + shape.aligned)
        if shape.image:
            self.eye: nn.Module = _projection(shape.image, width, dropout)
        else:
            self.eye = _Cells(width, dropout)
        self.reader = _projection(shape.text, width, dropout)
        self.verdict = nn.Sequential(
            nn.LayerNorm(inside),
            nn.Dropout(dropout),
            nn.Linear(inside, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, 2),
        )
        self.cosine = nn.Linear(1, 2)

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """Everything that is compared of images, [B, aligned + width]."""
        return (
            torch.cat([images[:, : self.shape.aligned], self.eye(images)], 1) if self.shape.image else self.eye(images)
        )

    def match(self, seen: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The numbers [B, K] of looked-at images and embeddings of prompts, [B, T]."""
        aligned = self.shape.aligned
        mine, theirs = seen[:, :aligned], text[:, :aligned]
        looked, wanted = seen[:, aligned:], self.reader(text)
        scale = max(1, aligned) ** 0.5  # of unit vectors, so that all inputs are about as large
        parts = [looked, wanted, looked * wanted, (looked - wanted).abs()]
        parts += [scale * mine, scale * theirs, scale**2 * mine * theirs, scale * (mine - theirs).abs()]
        cosine = (mine * theirs).sum(-1, keepdim=True)
        learned: torch.Tensor = self.verdict(torch.cat(parts, -1)) + self.cosine(5 * cosine)
        return torch.cat([learned, cosine], 1) if aligned else learned

    def forward(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.match(self.look(images), text)


def _projection(inside: int, width: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(inside), nn.Dropout(dropout), nn.Linear(inside, width))


class _Cells(nn.Module):
    """A small residual network: images [B, 3, S, S] to features [B, width]."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        sizes = (3, 24, 48, 64)
        self.body = nn.Sequential(*(Down(a, b) for a, b in pairwise(sizes)))
        self.whole = _projection(GRID * GRID * sizes[-1], width, dropout)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.whole(F.adaptive_avg_pool2d(self.body(images), GRID).flatten(1))
        return found


class Down(nn.Module):
    """Halves an image [B, C, H, W] and adds a residual block."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.SiLU())
        self.second = nn.Sequential(
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.SiLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return F.silu(x + self.second(x))


class MatchingJudge:
    """A trained :class:`MatchingNet` with the models of its family.

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
            scale, version = ConfidenceScale.from_dict(config["scale"]), config["models"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
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
        return self.net.look(self._input(images)).half().cpu()

    @torch.no_grad()
    def weigh(self, seen: np.ndarray, prompt: str) -> np.ndarray:
        """Confidence 0…1, float32 [N], for one prompt in images with the features ``seen``, [N, F]."""
        rows = torch.from_numpy(seen).to(self._device, torch.float32)
        text = self._models.read([prompt]).expand(len(rows), -1)
        found: np.ndarray = self._scale.confidence(self.net.match(rows, text)).cpu().numpy()
        return found

    @torch.no_grad()
    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        """Confidence 0…1 that each image, [B, 3, H, W] in −1…1, is as good as the last variant's."""
        text = self._models.read(prompts)
        found: list[float] = self._scale.confidence(self.net(self._input(images), text)).tolist()
        return found

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self._device, torch.float32)
        if self.net.shape.image == 0:
            return squares(images, self.net.shape.side)
        assert self._models.clip is not None  # the network was trained with it
        return features(self._models.clip, images)


def features(clip: ClipScorer, images: torch.Tensor) -> torch.Tensor:
    """Features of images by a CLIP, [B, F]: mean and maximum of its patches, and their means on a grid."""
    patches = clip.embed_patches(images)
    side = round(patches.shape[1] ** 0.5)
    grid = patches[:, : side * side].transpose(1, 2).unflatten(2, (side, side))
    cells = F.adaptive_avg_pool2d(grid, min(GRID, side)).flatten(1)
    return torch.cat([clip.embed_images(images).to(cells.device), patches.mean(1), patches.amax(1), cells], 1)


def squares(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images [B, 3, H, W] scaled to squares."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
