"""Is an approximation as good as the whole run, prompt by prompt? The ratio that thresholds are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """Mean quality of the approximations over that of the whole runs of the same prompts.

    Attributes:
        low, high: bounds of its 95 % confidence interval, by bootstrap over prompts.
        worse: share of prompts whose approximation is worse than their whole run.
    """

    ratio: float
    low: float
    high: float
    worse: float
    count: int

    @property
    def text(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratio(
    approximate: Sequence[float] | np.ndarray, whole: Sequence[float] | np.ndarray, *, draws: int = 2000, seed: int = 0
) -> PairedRatio:
    """The ratio of means over pairs. Means before the ratio: a single whole run of quality 0 must not decide.

    Raises:
        ValueError: no pairs, unequal lengths, or whole runs without any quality.
    """
    a, w = np.asarray(approximate, float), np.asarray(whole, float)
    if len(a) != len(w) or not len(a):
        raise ValueError(f"need pairs, got {len(a)} and {len(w)} values")
    if w.mean() <= 0:
        raise ValueError("the whole runs have no quality to compare with")
    picks = np.random.default_rng(seed).integers(len(a), size=(draws, len(a)))
    means = w[picks].mean(1)
    ratios = a[picks].mean(1)[means > 0] / means[means > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return PairedRatio(float(a.mean() / w.mean()), float(low), float(high), float((a < w - 1e-9).mean()), len(a))
