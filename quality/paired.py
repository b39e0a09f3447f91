"""Paired quality ratio: compares approximations with whole runs of the same prompts. Thresholds are based on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """Mean quality of approximations, divided by the mean quality of the whole runs of the same prompts.

    Attributes:
        low, high: bounds of the 95 % confidence interval, by bootstrap over prompts.
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
    """Ratio of the means over pairs. The means are taken first, so that a whole run of quality 0 is no special case.

    Args:
        approximate, whole: quality by prompt, [N] each.
        draws: bootstrap samples.

    Raises:
        ValueError: there are no pairs, the lengths differ, or the whole runs have a mean quality of 0.
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
