"""Fits a level head, and measures the value of its predictions on held-out prompts.

The head is a ridge regression of the quality that a prompt's image loses at the fastest rung; cross-validation chooses
the weight of the ridge. The cuts are placed so that each level is predicted as often as it occurs: a planner needs a
correct histogram, and predicting the most likely level would call nearly all prompts easy. (An ordinal logistic
regression on the levels ranked prompts worse.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.evaluate import SHARES, quality_by_share
from training.level_pairs import LevelPairs
from weir.errors import ConfigError
from weir.prompt_levels import LevelAbout, LevelHead, LevelRecord

#: Parts of the cross-validation: the level of each prompt is predicted by a head that was fitted on the other parts.
FOLDS = 5
#: Candidate weights of the ridge.
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
#: A head needs at least this many prompts.
LEAST = 50


@dataclass(frozen=True)
class LevelReport:
    """Quality of predicted levels on held-out prompts.

    Attributes:
        majority: accuracy of always predicting the most frequent level.
        heavy_share: shares of prompts that the heavy variant generates, for the next three attributes.
        predicted, agnostic, oracle: mean quality when the prompts for the heavy variant are those with the largest
            predicted gain, random ones, and those with the largest actual gain.
        gained: predicted − agnostic, mean over the shares.
    """

    prompts: int
    rungs: tuple[str, ...]
    accuracy: float
    majority: float
    mean_level_error: float
    confusion: tuple[tuple[int, ...], ...]
    heavy_share: tuple[float, ...]
    predicted: tuple[float, ...]
    agnostic: tuple[float, ...]
    oracle: tuple[float, ...]
    gained: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fit_levels(
    pairs: LevelPairs, vectors: np.ndarray, encoder: str, family: str, *, alpha: float, seed: int = 0
) -> tuple[LevelHead, LevelReport]:
    """Fits a head on all pairs, and reports on it by cross-validation.

    Args:
        vectors: embeddings of the prompts of ``pairs``, [N, D].

    Raises:
        ConfigError: there are too few pairs, or every prompt has the same level.
    """
    labels = pairs.labels(alpha)
    levels = len(pairs.rungs)
    if len(labels) < LEAST:
        raise ConfigError(f"a level head needs at least {LEAST} prompts; there are {len(labels)}")
    if len(set(labels.tolist())) < 2:
        raise ConfigError(
            f"every prompt has the level {pairs.rungs[labels[0]]}; choose another --alpha or other --steps"
        )
    parts = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    lost = pairs.quality[:, 0] - pairs.quality[:, -1]
    held_out = {ridge: _held_out(vectors, lost, parts, ridge) for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda r: float(((held_out[r] + lost) ** 2).mean()))
    scores = held_out[ridge]
    predicted = np.searchsorted(_matching_cuts(scores, labels, levels), scores, side="left")
    report = _report(pairs, labels, predicted, scores)
    weights, _ = _fit(vectors, lost, ridge)
    about = LevelAbout(
        encoder=encoder,
        family=family,
        rungs=pairs.rungs,
        alpha=alpha,
        prompts=len(labels),
        records=tuple(_record(pairs, predicted == level) for level in range(levels)),
        quality=_curve(pairs, np.ones(len(labels), bool)),
        accuracy=report.accuracy,
        mean_level_error=report.mean_level_error,
        confusion=report.confusion,
    )
    return LevelHead(weights, _matching_cuts(vectors @ weights, labels, levels), about), report


def _fit(vectors: np.ndarray, lost: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weights [D] and a constant that predict −``lost``: the larger the value, the easier the prompt."""
    mean, middle = vectors.mean(axis=0), lost.mean()
    centred = vectors - mean
    slope = np.linalg.solve(centred.T @ centred + ridge * np.eye(len(mean)), centred.T @ (lost - middle))
    return -slope, float(slope @ mean - middle)


def _held_out(vectors: np.ndarray, lost: np.ndarray, parts: np.ndarray, ridge: float) -> np.ndarray:
    """Score of every prompt, by a regression that was fitted without it."""
    scores = np.zeros(len(lost))
    for part in range(FOLDS):
        inside = parts == part
        weights, constant = _fit(vectors[~inside], lost[~inside], ridge)
        scores[inside] = vectors[inside] @ weights + constant
    return scores


def _matching_cuts(scores: np.ndarray, labels: np.ndarray, levels: int) -> np.ndarray:
    """Cuts with which each level has as many scores as labels."""
    below = np.cumsum(np.bincount(labels, minlength=levels))[:-1] / len(labels)
    return np.quantile(scores, below)


def _report(pairs: LevelPairs, labels: np.ndarray, predicted: np.ndarray, scores: np.ndarray) -> LevelReport:
    heavy, light = pairs.quality[:, 0], pairs.quality[:, -1]
    levels = len(pairs.rungs)
    confusion = np.zeros((levels, levels), int)
    np.add.at(confusion, (labels, predicted), 1)
    by_light = {
        "predicted": quality_by_share(light, heavy, np.argsort(-scores, kind="stable")),
        "oracle": quality_by_share(light, heavy, np.argsort(heavy - light, kind="stable")),
    }
    agnostic = [float(share * light.mean() + (1 - share) * heavy.mean()) for share in SHARES]

    def by_heavy(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(round(v, 4) for v in reversed(values))

    return LevelReport(
        prompts=len(labels),
        rungs=pairs.rungs,
        accuracy=float((labels == predicted).mean()),
        majority=float(np.bincount(labels).max() / len(labels)),
        mean_level_error=float(np.abs(labels - predicted).mean()),
        confusion=tuple(map(tuple, confusion.tolist())),
        heavy_share=by_heavy([1 - share for share in SHARES]),
        predicted=by_heavy(by_light["predicted"]),
        agnostic=by_heavy(agnostic),
        oracle=by_heavy(by_light["oracle"]),
        gained=float(np.mean(np.array(by_light["predicted"]) - agnostic)),
    )


def _record(pairs: LevelPairs, inside: np.ndarray) -> LevelRecord:
    """Record of the prompts of one level; of all prompts, with the share 0, if the level has none."""
    chosen = inside if inside.any() else np.ones(len(inside), bool)
    confidences = tuple(round(float(c), 4) for c in np.sort(pairs.confidence[chosen]))
    return LevelRecord(share=float(inside.mean()), confidences=confidences, quality=_curve(pairs, chosen))


def _curve(pairs: LevelPairs, inside: np.ndarray) -> tuple[float, ...]:
    order = np.argsort(-pairs.confidence[inside], kind="stable")
    curve = quality_by_share(pairs.quality[inside, -1], pairs.quality[inside, 0], order)
    return tuple(round(value, 4) for value in curve)
