"""Deals examples to the folds of a cross-validation."""

from __future__ import annotations

import numpy as np

#: Number of folds.
FOLDS = 5


def folds_of(count: int, seed: int = 5) -> np.ndarray:
    """The fold of each of ``count`` examples, [N]."""
    return np.random.default_rng(seed).permutation(count) % FOLDS
