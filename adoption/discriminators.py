"""Trains and compares the discriminators of each lighter variant, and keeps the one that chooses best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adoption.context import Context
from adoption.images import Round
from adoption.judge_inputs import Inputs
from adoption.ranking import HALF, Figures, fit_scale, held_out_confidence
from adoption.scores import array_in
from quality.folds import FOLDS
from quality.suite import tensors
from training.learned_judge import Convolutional, Matching, Recipe, out_of_fold
from weir.config import CLIP_SCORE
from workers.models.convolutional_judge import ConvolutionalJudge, ConvolutionalNet
from workers.models.judge_files import write_judge
from workers.models.judges import Judge, named_judge
from workers.models.learned_parts import ConfidenceScale, FamilyModels
from workers.models.matching_judge import MatchingJudge, MatchingNet, MatchingShape

#: Shares of the prompts on which the learning curve is measured.
_LESS = (0.25, 0.5)
#: A discriminator of the family's own is kept unless a new one gains more by this much.
_CLEARLY = 0.02

#: Seeds of the network that is trained on all prompts, and of those of the learning curve. Folds have theirs by number.
_SEED_OF_ALL, _SEED_OF_LESS = FOLDS, FOLDS + 1

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
        self.rounds = context.rounds_of(key)
        self.pair = context.pair(key)
        self.models = FamilyModels.load(context.family, context.device)
        self.inputs = Inputs(context, key, self.models)
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
            found.append(self._judged(CLIP, named_judge(family, CLIP_SCORE, self.context.device)))
        if variant.discriminator not in (None, CLIP_SCORE):
            found.append(self._judged(OWN, named_judge(family, str(variant.discriminator), self.context.device)))
        return found

    def _judged(self, name: str, judge: Judge) -> Candidate:
        """A candidate that needs no training."""
        images, prompts = self.context.images(self.rounds[0]), self.context.prompts

        def confidences() -> np.ndarray:
            found: list[float] = []
            for part in images.parts():
                found += judge.confidence(tensors(images.read(part)), [prompts[i] for i in part])
            return np.array(found)

        confidence = array_in(self._file(name, "confidences"), confidences)
        return Candidate(name, confidence, self._ms(judge))

    # --------------------------------------------------------------------------------------- trained here

    def _matching(self, name: str) -> Candidate:
        shape, seen = self._seen_by(name)
        training = Matching(self.inputs.lessons, seen, self.inputs.text, shape, self.recipe)
        scale, confidence = self._out_of_fold(name, training)
        net = MatchingNet(shape)
        judge = MatchingJudge(net, self.models, scale, self.context.device)
        config = {"shape": {field: getattr(shape, field) for field in shape.__slots__}, "models": self.models.version}
        train = self._on_all(training)
        return Candidate(name, confidence, self._ms(judge), scale, train, config, MatchingJudge.kind)

    def _convolutional(self) -> Candidate:
        light, heavy = self.inputs.pixels(self.rounds), self.inputs.pixels([Round(self.context.last)])
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
        return ConfidenceScale(*fit_scale(logits, self.pair)), held_out_confidence(logits, self.pair)

    def _on_all(self, training: Matching | Convolutional) -> Callable[[], nn.Module]:
        return lambda: training.fit(np.ones(self.count, bool), _SEED_OF_ALL)

    def _seen_by(self, name: str) -> tuple[MatchingShape, torch.Tensor]:
        """The shape of a matching network, and what it sees of all images."""
        text = self.inputs.text.shape[1]
        if name == PIXELS:
            pixels = self.inputs.pixels(self.rounds)
            return MatchingShape(text, 0, side=pixels.shape[-1]), pixels
        seen = torch.cat([self.inputs.features(round_) for round_ in self.rounds])
        return MatchingShape(text, seen.shape[1], self.models.aligned), seen

    # --------------------------------------------------------------------------------------------- result

    def learning_curve(self, name: str) -> list[dict[str, float | None]]:
        """Area under the curve and gain of the chosen discriminator when it is trained on fewer prompts.

        All are measured on the last fifth of the prompts, on which none of these networks is trained.
        """
        if name not in (MATCHING, PIXELS):
            return []
        shape, seen = self._seen_by(name)
        training = Matching(self.inputs.lessons, seen, self.inputs.text, shape, self.recipe)
        held_out = np.arange(self.count - self.count // 5, self.count)
        pair, rows = self.pair.some(held_out), []
        for share in (*_LESS, 1.0):
            inside = np.zeros(self.count, bool)
            inside[: round(share * held_out[0])] = True
            file = self.folder / f"less-{self.key}-{int(inside.sum())}.npy"
            fitted = partial(training.fit, inside, _SEED_OF_LESS)
            logits = array_in(file, lambda fitted=fitted: training.logits(fitted(), held_out))  # type: ignore[misc]
            figures = Figures.of(pair, held_out_confidence(logits, pair))
            rows.append({"prompts": int(inside.sum()), "auc": figures.auc, "gain": figures.gain})
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
