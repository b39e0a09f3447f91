"""What the discriminators of a lighter variant learn from: features of images, embeddings of prompts, and scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from adoption.context import Context
from adoption.images import BATCH, Round
from adoption.scores import array_in, scores_of
from quality.suite import tensors
from training.learned_judge import Lessons
from workers.models.learned_parts import FamilyModels
from workers.models.matching_judge import features

#: Side of the images whose pixels a network sees, at most.
_SIDE = 128
#: Nearest prompts among which the others of an image are drawn.
_NEAR = 32


class Inputs:
    """Inputs of one lighter variant; what took long to compute is kept in files of the stage."""

    def __init__(self, context: Context, key: str, models: FamilyModels):
        self._context, self._models = context, models
        self._rounds, self._count = context.rounds_of(key), len(context.prompts)
        self._folder = context.results.folder("discriminators")

    @cached_property
    def text(self) -> torch.Tensor:
        """Embeddings of all prompts, [N, T]."""
        prompts, count = self._context.prompts, self._count
        return torch.cat([self._models.read(prompts[i : i + BATCH]).cpu() for i in range(0, count, BATCH)])

    def features(self, round_: Round) -> torch.Tensor:
        """Features of a round's images by the family's CLIP, float16 [N, F]."""
        images, clip = self._context.images(round_), self._models.clip
        assert clip is not None  # the candidate is left out otherwise

        def looked_at() -> np.ndarray:
            parts = [features(clip, tensors(images.read(part))) for part in images.parts()]
            found: np.ndarray = torch.cat(parts).half().cpu().numpy()
            return found

        return torch.from_numpy(array_in(self._folder / f"features-{round_.name}.npy", looked_at))

    def pixels(self, rounds: list[Round]) -> torch.Tensor:
        """Small squares of the images of some rounds, uint8 [I, 3, S, S]."""
        family_size = self._context.family.size
        side = min(_SIDE, family_size.width, family_size.height)
        found = []
        for round_ in rounds:
            images = self._context.images(round_)
            for part in images.parts():
                small = [np.asarray(it.resize((side, side))) for it in images.read(part)]
                found.append(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2))
        return torch.cat(found)

    @cached_property
    def lessons(self) -> Lessons:
        """Every image with its own prompt, and with some others that are worded alike."""
        context, prompts = self._context, self._context.prompts
        own = np.concatenate([context.scores(round_) for round_ in self._rounds])
        image = np.arange(len(own))
        drawn_for = image % self._count
        others, scores = self._others(), []
        for number, round_ in enumerate(self._rounds):
            pairs = [(i, prompts[j]) for i, j in others[number]]
            file = self._folder / f"pairs-{round_.name}.npy"
            scores.append(scores_of(context.judge, context.images(round_), pairs, file, self._scoring(round_)))
        more = [np.array([i + n * self._count for i, _ in rows], int) for n, rows in enumerate(others)]
        asked = [np.array([j for _, j in rows], int) for rows in others]
        return Lessons(
            np.concatenate([image, *more]),
            np.concatenate([drawn_for, *asked]),
            np.concatenate([own, *scores]),
            drawn_for,
            context.scores(Round(context.last)),
        )

    def _scoring(self, round_: Round) -> Callable[[int, int], None]:
        return lambda done, total: self._context.report(f"comparisons: {round_.name}", done, total)

    def _others(self) -> list[list[tuple[int, int]]]:
        """For every round, pairs of an image and another prompt that is worded alike."""
        centred = self.text - self.text.mean(0)
        unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-6)
        alike = unit @ unit.T
        alike.fill_diagonal_(-2)
        near = alike.topk(min(_NEAR, self._count - 1)).indices.numpy()
        rng, wanted = np.random.default_rng(0), min(self._context.choices.pairs, near.shape[1])
        return [
            [(i, int(j)) for i in range(self._count) for j in rng.choice(near[i], wanted, replace=False)]
            for _ in self._rounds
        ]
