"""Trains the discriminators of ``weir adopt`` for any family, from images and the scores that a measure gives them.

Images of a lighter variant are cheap beside those of the last one, and a comparison is cheaper than an image. So a
network learns on several images of every prompt, each beside its own prompt and beside others that are worded alike.
All its figures are of prompts that it has not seen: the prompts are dealt to folds, and each is judged by a network
that was trained on the other folds (:func:`out_of_fold`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from quality.folds import FOLDS, folds_of
from workers.models.convolutional_judge import ConvolutionalNet
from workers.models.matching_judge import MatchingNet, MatchingShape

#: Examples of a step.
_BATCH = 256
#: The same of a network that sees pixels, which costs far more.
_PIXEL_BATCH = 64
#: Share of a step's examples whose prompt is the image's own.
_OWN = 0.3
#: Steps at which the learning rate is largest, as a share of all.
_WARM_UP = 0.15


@dataclass(frozen=True)
class Lessons:
    """P comparisons of I images of one variant with N prompts.

    Attributes:
        image, prompt: indices of the image and of the prompt of each comparison, [P].
        score: of the comparison by the measure, [P]; higher is better.
        drawn_for: the prompt that each image was generated for, [I]. The first N images are those of the first round.
        best: score of the last variant's image for each prompt, [N].
    """

    image: np.ndarray
    prompt: np.ndarray
    score: np.ndarray
    drawn_for: np.ndarray
    best: np.ndarray

    @property
    def own(self) -> np.ndarray:
        """Whether each comparison is of an image with its own prompt, [P]."""
        return self.drawn_for[self.image] == self.prompt

    def targets(self) -> np.ndarray:
        """What the two logits learn, 0…1, [P, 2]: whether the image is good, and as good as the last variant's.

        Good is above the mean of the last variant. A soft target has more to say than a bit, and keeps confidences
        spread out.
        """
        own = self.score[self.own]
        spread = max(float(own.std()), 1e-6)
        good = _sigmoid(4 * (self.score - self.best.mean()) / spread)
        gain = self.score - self.best[self.prompt]
        as_good = 0.5 * (gain >= -1e-9) + 0.5 * _sigmoid(4 * gain / spread)
        return np.stack([good, as_good], 1).astype(np.float32)

    def among(self, inside: np.ndarray) -> np.ndarray:
        """Indices of the comparisons in which both prompts are among those with ``inside``, [N]."""
        return np.nonzero(inside[self.prompt] & inside[self.drawn_for[self.image]])[0]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast a network learns."""

    steps: int = 600
    rate: float = 2e-3
    decay: float = 0.05
    device: str = "cpu"
    seed: int = 0


Net = TypeVar("Net", bound=nn.Module)
#: Trains a network on the prompts with ``inside``, [N], with a seed.
Fit = Callable[[np.ndarray, int], nn.Module]


def out_of_fold(count: int, fit: Fit, logits: Callable[[nn.Module, np.ndarray], np.ndarray]) -> np.ndarray:
    """Logits [N, K] of the first image of every prompt, by networks that were trained without its prompt.

    Args:
        logits: of the images of these prompts by a network.
    """
    folds, parts = folds_of(count), []
    for fold in range(FOLDS):
        held_out = np.nonzero(folds == fold)[0]
        parts.append((held_out, logits(fit(folds != fold, fold), held_out)))
    found = np.zeros((count, parts[0][1].shape[1]))
    for held_out, rows in parts:
        found[held_out] = rows
    return found


class Matching:
    """Trains :class:`MatchingNet`.

    Args:
        seen: of all images: features, float16 [I, F], or pixels, uint8 [I, 3, S, S].
        text: embeddings of all prompts, [N, T].
    """

    def __init__(self, lessons: Lessons, seen: torch.Tensor, text: torch.Tensor, shape: MatchingShape, recipe: Recipe):
        self._lessons, self._seen, self._text, self._shape, self._recipe = lessons, seen, text, shape, recipe
        self._targets = torch.from_numpy(lessons.targets())

    def fit(self, inside: np.ndarray, seed: int) -> MatchingNet:
        lessons, recipe = self._lessons, self._recipe
        chosen = lessons.among(inside)
        own, others = chosen[lessons.own[chosen]], chosen[~lessons.own[chosen]]
        torch.manual_seed(recipe.seed + seed)
        net = MatchingNet(self._shape).to(recipe.device)

        def loss(rng: np.random.Generator) -> torch.Tensor:
            batch = _BATCH if self._shape.image else _PIXEL_BATCH
            count = round(_OWN * batch) if len(others) else batch
            parts = [rng.choice(own, count), *([rng.choice(others, batch - count)] if len(others) else [])]
            rows = np.concatenate(parts)
            logits = self._forward(net, lessons.image[rows], lessons.prompt[rows])
            return F.binary_cross_entropy_with_logits(logits[:, :2], self._targets[rows].to(recipe.device))

        return _trained(net, loss, recipe, seed)

    @torch.no_grad()
    def logits(self, net: nn.Module, prompts: np.ndarray) -> np.ndarray:
        """Logits [B, K] of the first round's images of these prompts."""
        parts = [prompts[i : i + _BATCH] for i in range(0, len(prompts), _BATCH)]
        return np.concatenate([self._forward(net, part, part).cpu().numpy() for part in parts])

    def _forward(self, net: nn.Module, images: np.ndarray, prompts: np.ndarray) -> torch.Tensor:
        device = self._recipe.device
        found: torch.Tensor = net(as_input(self._seen[images].to(device)), self._text[prompts].to(device))
        return found


class Convolutional:
    """Trains :class:`ConvolutionalNet` to tell images of the last variant from those of a lighter one.

    Args:
        light, heavy: pixels of both, uint8 [I, 3, S, S] and [J, 3, S, S]. Image i belongs to prompt i mod N.
        count: number of prompts, N.
    """

    def __init__(self, light: torch.Tensor, heavy: torch.Tensor, count: int, recipe: Recipe):
        self._light, self._heavy, self._count, self._recipe = light, heavy, count, recipe

    def fit(self, inside: np.ndarray, seed: int) -> ConvolutionalNet:
        recipe, half = self._recipe, _PIXEL_BATCH // 2
        lights, heavies = (np.nonzero(inside[np.arange(len(it)) % self._count])[0] for it in (self._light, self._heavy))
        torch.manual_seed(recipe.seed + seed)
        net = ConvolutionalNet(self._light.shape[-1]).to(recipe.device)
        labels = torch.cat([torch.zeros(half), torch.ones(half)]).to(recipe.device)

        def loss(rng: np.random.Generator) -> torch.Tensor:
            pixels = torch.cat([self._light[rng.choice(lights, half)], self._heavy[rng.choice(heavies, half)]])
            images = as_input(pixels.to(recipe.device))
            flipped = torch.from_numpy(rng.random(len(images)) < 0.5).to(recipe.device)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
            return F.binary_cross_entropy_with_logits(net(images)[:, 0], labels)

        return _trained(net, loss, recipe, seed)

    @torch.no_grad()
    def logits(self, net: nn.Module, prompts: np.ndarray) -> np.ndarray:
        """Logits [B, K] of the first round's images of these prompts."""
        parts = [prompts[i : i + _BATCH] for i in range(0, len(prompts), _BATCH)]
        device = self._recipe.device
        return np.concatenate([net(as_input(self._light[part].to(device))).cpu().numpy() for part in parts])


def as_input(parts: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 as floats in −1…1; features as float32."""
    return parts.float() / 127.5 - 1 if parts.dtype == torch.uint8 else parts.float()


def _trained(net: Net, loss: Callable[[np.random.Generator], torch.Tensor], recipe: Recipe, seed: int) -> Net:
    """Trains with AdamW and one cycle of the learning rate; returns the network in eval mode."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps, pct_start=_WARM_UP)
    rng = np.random.default_rng((recipe.seed, seed))
    net.train()
    for _ in range(recipe.steps):
        value = loss(rng)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        cycle.step()
    return net.eval()


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
