"""Trains and compares the discriminators of each lighter variant, and keeps the one that chooses best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adoption.context import Context
from adoption.images import DrawnImages, Round
from adoption.ranking import HALF, Figures, Pair, fit_scale
from adoption.scores import array_in, scores_of
from quality.suite import tensors
from training.learned_judge import Convolutional, Lessons, Matching, Recipe, out_of_fold
from weir.config import CLIP_SCORE
from workers.models.convolutional_judge import ConvolutionalJudge, ConvolutionalNet
from workers.models.judge_files import write_judge
from workers.models.judges import Judge, family_judge
from workers.models.learned_parts import ConfidenceScale, FamilyModels
from workers.models.matching_judge import MatchingJudge, MatchingNet, MatchingShape, features

#: Images that are looked at together.
_BATCH = 32
#: Side of the images whose pixels a network sees, at most.
_SIDE = 128
#: Nearest prompts among which the others of an image are drawn.
_NEAR = 32
#: Shares of the prompts on which the learning curve is measured.
_LESS = (0.25, 0.5)
#: A discriminator of the family's own is kept unless a new one gains more by this much.
_CLEARLY = 0.02

#: Names of the candidates.
OWN, CLIP, MATCHING, PIXELS, CONVOLUTIONAL = "own", "CLIP score", "matching", "matching pixels", "convolutional"


@dataclass(frozen=True)
class Candidate:
    """A discriminator with its confidences in the first round's images, none of which it was trained on.

    Attributes:
        scale: of its logits; None where there are none.
        train: makes the network to serve, trained on all prompts; None for what is not trained.
        config: further fields of its configuration.
        ms: milliseconds for one image of a batch.
    """

    name: str
    confidence: np.ndarray
    ms: float
    scale: ConfidenceScale | None = None
    train: Callable[[], nn.Module] | None = None
    config: Mapping[str, Any] | None = None
    kind: str = ""


def discriminators(context: Context) -> dict[str, Any]:
    """The chosen discriminator of every lighter variant, with the figures of all candidates."""
    return {key: Lighter(context, key).result() for key in context.lighter}


class Lighter:
    """One lighter variant, its images and its scores."""

    def __init__(self, context: Context, key: str):
        self.context, self.key, self.count = context, key, len(context.prompts)
        self.folder = context.results.folder("discriminators")
        self.rounds = [round_ for round_ in context.rounds if round_.variant == key]
        first = context.scores(self.rounds[0])
        self.pair = Pair(first, context.scores(Round(context.last)))
        self.models = FamilyModels.load(context.family, context.device)
        self.recipe = Recipe(steps=context.choices.steps, device=context.device)

    def result(self) -> dict[str, Any]:
        """Figures of all candidates; the chosen one is written to the stage's folder."""
        candidates = self.candidates()
        figures = {it.name: Figures.of(self.pair, it.confidence) for it in candidates}
        free = self.context.choices.trained_only
        chosen = chosen_of({name: it for name, it in figures.items() if not (free and name == OWN)})
        best = next(it for it in candidates if it.name == chosen)
        reference = self.save(best, figures[chosen])
        return {
            "chosen": chosen,
            "discriminator": reference,
            "confidences": [round(float(c), 5) for c in best.confidence],
            "ms": best.ms,
            "candidates": {it.name: {**figures[it.name].to_dict(), "ms": it.ms} for it in candidates},
            "random": self.pair.random(),
            "oracle": self.pair.oracle(),
            "learning": self.learning_curve(best.name),
        }

    def candidates(self) -> list[Candidate]:
        """All candidates, each trained and measured."""
        found = list(self._known())
        found.append(self._matching(PIXELS if self.models.clip is None else MATCHING))
        return [*found, self._convolutional()]

    # ------------------------------------------------------------------------------------ not trained here

    def _known(self) -> list[Candidate]:
        """The CLIP score, and the discriminator that the family file names."""
        family, found = self.context.family, []
        variant = family.variants[self.key]
        if self.models.clip is not None:
            found.append(self._judged(CLIP, self._with(CLIP_SCORE)))
        if variant.discriminator not in (None, CLIP_SCORE):
            found.append(self._judged(OWN, self._with(str(variant.discriminator))))
        return found

    def _with(self, discriminator: str) -> Judge:
        variants = {**self.context.family.variants}
        first = self.context.family.keys[0]
        variants[first] = variants[first].model_copy(update={"discriminator": discriminator})
        judge = family_judge(self.context.family.model_copy(update={"variants": variants}), self.context.device)
        assert judge is not None
        return judge

    def _judged(self, name: str, judge: Judge) -> Candidate:
        """A candidate that needs no training."""
        images, prompts = self.context.images(self.rounds[0]), self.context.prompts

        def confidences() -> np.ndarray:
            found: list[float] = []
            for part in self._parts_of(images, name):
                found += judge.confidence(tensors(images.read(part)), [prompts[i] for i in part])
            return np.array(found)

        confidence = array_in(self._file(name, "confidences"), confidences)
        return Candidate(name, confidence, self._ms(judge))

    # --------------------------------------------------------------------------------------- trained here

    def _matching(self, name: str) -> Candidate:
        shape, seen = self._matching_inputs(name)
        training = Matching(self.lessons, seen, self.text, shape, self.recipe)
        scale, confidence = self._out_of_fold(name, training)
        net = MatchingNet(shape)
        judge = MatchingJudge(net, self.models, scale, self.context.device)
        config = {"shape": {field: getattr(shape, field) for field in shape.__slots__}, "models": self.models.version}
        train = self._on_all(training)
        return Candidate(name, confidence, self._ms(judge), scale, train, config, MatchingJudge.kind)

    def _convolutional(self) -> Candidate:
        light, heavy = self._pixels(self.rounds), self._pixels([Round(self.context.last)])
        training = Convolutional(light, heavy, self.count, self.recipe)
        scale, confidence = self._out_of_fold(CONVOLUTIONAL, training)
        side = light.shape[-1]
        judge = ConvolutionalJudge(ConvolutionalNet(side), scale, self.context.device)
        train = self._on_all(training)
        return Candidate(
            CONVOLUTIONAL, confidence, self._ms(judge), scale, train, {"side": side}, ConvolutionalJudge.kind
        )

    def _out_of_fold(self, name: str, training: Matching | Convolutional) -> tuple[ConfidenceScale, np.ndarray]:
        """The scale of a network's logits, and its confidences in images that it was not trained on."""
        self.context.report(f"{self.key}: {name}: training", 0, 0)
        logits = array_in(self._file(name, "logits"), lambda: out_of_fold(self.count, training.fit, training.logits))
        scale = ConfidenceScale(*fit_scale(logits, self.pair))
        return scale, scale.confidence(torch.from_numpy(logits)).numpy()

    def _on_all(self, training: Matching | Convolutional) -> Callable[[], nn.Module]:
        return lambda: training.fit(np.ones(self.count, bool), len(self.rounds))

    def _matching_inputs(self, name: str) -> tuple[MatchingShape, torch.Tensor]:
        if name == PIXELS:
            pixels = self._pixels(self.rounds)
            return MatchingShape(self.text.shape[1], 0, side=pixels.shape[-1]), pixels
        seen = torch.cat([self._features(round_) for round_ in self.rounds])
        return MatchingShape(self.text.shape[1], seen.shape[1], self.models.aligned), seen

    @cached_property
    def text(self) -> torch.Tensor:
        """Embeddings of all prompts, [N, T]."""
        prompts = self.context.prompts
        return torch.cat([self.models.read(prompts[i : i + _BATCH]).cpu() for i in range(0, self.count, _BATCH)])

    def _features(self, round_: Round) -> torch.Tensor:
        """Features of a round's images by the family's CLIP, float16 [N, F]."""
        images, clip = self.context.images(round_), self.models.clip
        assert clip is not None  # the candidate is left out otherwise

        def looked_at() -> np.ndarray:
            parts = [features(clip, tensors(images.read(part))) for part in self._parts_of(images, "features")]
            found: np.ndarray = torch.cat(parts).half().cpu().numpy()
            return found

        return torch.from_numpy(array_in(self.folder / f"features-{round_.name}.npy", looked_at))

    def _pixels(self, rounds: list[Round]) -> torch.Tensor:
        """Small squares of the images of some rounds, uint8 [I, 3, S, S]."""
        family_size = self.context.family.size
        side = min(_SIDE, family_size.width, family_size.height)
        found = []
        for round_ in rounds:
            images = self.context.images(round_)
            for part in self._parts_of(images, "pixels"):
                small = [np.asarray(it.resize((side, side))) for it in images.read(part)]
                found.append(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2))
        return torch.cat(found)

    def _parts_of(self, images: DrawnImages, what: str) -> list[range]:
        parts = []
        for i in range(0, images.count, _BATCH):
            parts.append(range(i, min(i + _BATCH, images.count)))
        self.context.report(f"{self.key}: {what}", 0, 0)
        return parts

    # -------------------------------------------------------------------------------------------- lessons

    @cached_property
    def lessons(self) -> Lessons:
        """Every image with its own prompt, and with some others that are worded alike."""
        context, prompts = self.context, self.context.prompts
        own = np.concatenate([context.scores(round_) for round_ in self.rounds])
        image = np.arange(len(own))
        drawn_for = image % self.count
        others, scores = self._others(), []
        for number, round_ in enumerate(self.rounds):
            pairs = [(i, prompts[j]) for i, j in others[number]]
            file = self.folder / f"pairs-{round_.name}.npy"
            scores.append(scores_of(context.judge, context.images(round_), pairs, file, self._scoring(round_)))
        more = [np.array([i + n * self.count for i, _ in rows], int) for n, rows in enumerate(others)]
        asked = [np.array([j for _, j in rows], int) for rows in others]
        return Lessons(
            np.concatenate([image, *more]),
            np.concatenate([drawn_for, *asked]),
            np.concatenate([own, *scores]),
            drawn_for,
            self.pair.heavy,
        )

    def _scoring(self, round_: Round) -> Callable[[int, int], None]:
        return lambda done, total: self.context.report(f"comparisons: {round_.name}", done, total)

    def _others(self) -> list[list[tuple[int, int]]]:
        """For every round, pairs of an image and another prompt that is worded alike."""
        centred = self.text - self.text.mean(0)
        unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-6)
        alike = unit @ unit.T
        alike.fill_diagonal_(-2)
        near = alike.topk(min(_NEAR, self.count - 1)).indices.numpy()
        rng, wanted = np.random.default_rng(0), min(self.context.choices.pairs, near.shape[1])
        return [
            [(i, int(j)) for i in range(self.count) for j in rng.choice(near[i], wanted, replace=False)]
            for _ in self.rounds
        ]

    # --------------------------------------------------------------------------------------------- result

    def learning_curve(self, name: str) -> list[dict[str, float]]:
        """Area under the curve and gain of the chosen discriminator when it is trained on fewer prompts.

        They are measured on the last fifth of the prompts, and on all others for the whole.
        """
        if name not in (MATCHING, PIXELS):
            return []
        shape, seen = self._matching_inputs(name)
        training = Matching(self.lessons, seen, self.text, shape, self.recipe)
        held_out = np.arange(self.count - self.count // 5, self.count)
        pair, rows = self.pair.some(held_out), []
        for share in (*_LESS, 1.0):
            inside = np.zeros(self.count, bool)
            inside[: round(share * held_out[0])] = True
            file = self.folder / f"less-{self.key}-{int(inside.sum())}.npy"
            logits = array_in(file, lambda inside=inside: training.logits(training.fit(inside, 77), held_out))  # type: ignore[misc]
            scale = ConfidenceScale(*fit_scale(logits, pair))
            figures = Figures.of(pair, scale.confidence(torch.from_numpy(logits)).numpy())
            rows.append({"prompts": int(inside.sum()), "auc": figures.auc or 0.5, "gain": figures.gain})
        return rows

    def save(self, it: Candidate, figures: Figures) -> str:
        """Writes a trained discriminator; returns what a family file names it by."""
        if it.name == CLIP:
            return CLIP_SCORE
        if it.train is None or it.scale is None:
            return str(self.context.family.variants[self.key].discriminator)
        folder = self.folder / self.key
        card = {
            "trained for": f"{self.context.family.name}/{self.key}",
            "measure": self.context.choices.measure_name,
            "prompts": self.count,
            "images": self.count * len(self.rounds),
            "ms per image": it.ms,
            **figures.to_dict(),
        }
        config = {"kind": it.kind, **(it.config or {}), "scale": it.scale.to_dict()}
        write_judge(folder, config, it.train().state_dict(), card)
        return str(folder)

    def _ms(self, judge: Judge) -> float:
        """Median milliseconds for one image of a batch."""
        size, prompts = self.context.family.size, self.context.prompts
        batch = min(8, self.count)
        images, taken = torch.zeros(batch, 3, size.height, size.width), []
        for _ in range(4):
            started = time.perf_counter()
            judge.confidence(images, prompts[:batch])
            taken.append(time.perf_counter() - started)
        return 1000 * float(np.median(taken[1:])) / batch

    def _file(self, name: str, what: str) -> Path:
        return self.folder / f"{what}-{self.key}-{name.replace(' ', '-')}.npy"


def chosen_of(figures: Mapping[str, Figures]) -> str:
    """The candidate that gains most over all light shares. The family's own one stays unless another is clearly
    better."""
    best = max(figures, key=lambda name: (figures[name].gain, figures[name].at(HALF)))
    if OWN in figures and figures[best].gain < figures[OWN].gain + _CLEARLY:
        return OWN
    return best
