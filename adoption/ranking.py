"""How well a confidence chooses the images that stay light. Plain NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from quality.folds import FOLDS, folds_of

#: Light shares of all curves.
SHARES = tuple(i / 20 for i in range(21))
#: Light share at which candidates of equal gain are compared.
HALF = 0.5
#: Least change of the log odds over a standard deviation: with less, all confidences would be alike.
_LEAST_SLOPE = 0.1
#: Standard deviation of a logit below which it says nothing.
_FLAT = 1e-6


@dataclass(frozen=True, slots=True)
class Pair:
    """Scores of a lighter variant and of the last one on the same prompts and seeds, [N] each; higher is better."""

    light: np.ndarray
    heavy: np.ndarray

    @property
    def as_good(self) -> np.ndarray:
        """Whether each light image has at least the score of the heavy one, [N]."""
        found: np.ndarray = self.light >= self.heavy - 1e-9
        return found

    @property
    def good(self) -> np.ndarray:
        """Whether each light image has at least the mean score of the heavy ones, [N]."""
        found: np.ndarray = self.light >= self.heavy.mean() - 1e-9
        return found

    def curve(self, confidence: np.ndarray) -> list[float]:
        """Mean score of the mix at each of ``SHARES``, when the images with the largest confidences stay light."""
        order = np.argsort(-confidence, kind="stable")
        gained = np.concatenate([[0.0], np.cumsum((self.light - self.heavy)[order])]) / len(order)
        return [float(self.heavy.mean() + gained[round(share * len(order))]) for share in SHARES]

    def random(self) -> list[float]:
        """The same for a random choice, in expectation."""
        return [float((1 - share) * self.heavy.mean() + share * self.light.mean()) for share in SHARES]

    def oracle(self) -> list[float]:
        """The same for a choice that knows both scores."""
        return self.curve(self.light - self.heavy)

    def some(self, prompts: np.ndarray) -> Pair:
        """The pair of some prompts."""
        return Pair(self.light[prompts], self.heavy[prompts])


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one discriminator on prompts that it was not trained on.

    Attributes:
        auc: area under the ROC curve for "as good as the heavy image"; None when all images have one label.
        auc_good: the same for "at least the mean score of the heavy images".
        curve: quality at each of :data:`SHARES`.
        gain: how much of the best possible choice's gain over a random one it has, on average over the light shares.
    """

    auc: float | None
    auc_good: float | None
    curve: tuple[float, ...]
    gain: float

    @classmethod
    def of(cls, pair: Pair, confidence: np.ndarray) -> Figures:
        curve, random, oracle = pair.curve(confidence), np.array(pair.random()), np.array(pair.oracle())
        possible = float((oracle - random).mean())
        gain = float((np.array(curve) - random).mean()) / possible if possible > 0 else 0.0
        return cls(_auc(pair.as_good, confidence), _auc(pair.good, confidence), tuple(curve), gain)

    def at(self, share: float) -> float:
        """Quality at a light share."""
        return float(np.interp(share, SHARES, self.curve))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Figures:
        return cls(given["auc"], given["auc_good"], tuple(given["curve"]), given["gain"])


def fit_scale(logits: np.ndarray, pair: Pair) -> tuple[tuple[float, ...], float]:
    """Weights of logits and a constant, with which σ is the probability that the light image is as good.

    Standardised logits have equal weights: weights that were fitted to the gain of 400 prompts did worse on others than
    equal ones (Dawes 1979 found the same of many tasks). So Platt's scaling has two parameters.

    Args:
        logits: of images that the network was not trained on, [N, K].
    """
    spread = logits.std(0)
    norm = np.where(spread > _FLAT, spread, np.inf)
    direction = 1 / norm
    slope, constant = _platt(logits @ direction, pair.as_good)
    return tuple(float(it) for it in slope * direction), constant


def held_out_confidence(logits: np.ndarray, pair: Pair) -> np.ndarray:
    """Confidence [N] of each image by a scale that was fitted on the others: of :data:`FOLDS` parts, the other ones."""
    folds, found = folds_of(len(logits)), np.zeros(len(logits))
    for fold in range(FOLDS):
        inside, rest = folds == fold, np.nonzero(folds != fold)[0]
        weights, constant = fit_scale(logits[rest], pair.some(rest))
        found[inside] = 1 / (1 + np.exp(-(logits[inside] @ np.array(weights) + constant)))
    return found


def _platt(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and constant of Platt's scaling, which never turns the order round."""
    spread = max(float(values.std()), _FLAT)
    if labels.all() or not labels.any():
        return 1 / spread, 2.0 if labels.all() else -2.0
    fitted = LogisticRegression().fit(values[:, None] / spread, labels)
    return max(_LEAST_SLOPE, float(fitted.coef_[0, 0])) / spread, float(fitted.intercept_[0])


def _auc(labels: np.ndarray, confidence: np.ndarray) -> float | None:
    return None if labels.all() or not labels.any() else float(roc_auc_score(labels, confidence))
