"""Alignment of the levels that prompts tolerate with the levels that the load allows, as a shift matrix.

A classifier predicts a level for every prompt; the shares of the levels are h. The allocation serves the levels with
shares f. Entry P[i, j] of a shift matrix is the probability that a prompt of predicted level i is served at level j.
The matrix meets the allocation when h P = f.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from weir.errors import ConfigError, PlanError

#: Largest deviation of a sum of shares from 1 that is scaled away; a larger one is an error.
TOLERANCE = 1e-6


def align(predicted: Sequence[float], target: Sequence[float], aligner: str = "monotone") -> np.ndarray:
    """Returns the shift matrix P from the predicted shares h to the target shares f: [levels, levels], each row adds up
    to one.

    Raises:
        PlanError: h or f is empty, has an entry that is negative or not finite, or does not add up to one, or their
            lengths differ.
        ConfigError: no aligner has that name.
    """
    if aligner not in ALIGNERS:
        raise ConfigError(f"there is no aligner {aligner!r}; choose one of {', '.join(ALIGNERS)}")
    h, f = shares_of("predicted", predicted), shares_of("target", target)
    if len(h) != len(f):
        raise PlanError(f"predicted has {len(h)} levels and target has {len(f)}; both need one share for each level")
    return ALIGNERS[aligner](h, f)


def monotone(h: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The monotone (quantile) coupling: prompts in the order of their predicted level fill the target levels in order.

    It is exact for every h and f. Among all exact shifts it has the least cost, for any cost that is convex in the
    number of levels moved (Villani, Topics in Optimal Transportation, theorem 2.18). A level that was predicted for no
    prompt has a row as well: the target level at its quantile, which the first prompt of that level uses.
    """
    ends_h, ends_f = np.cumsum(h), np.cumsum(f)
    # Not ends − h: the end of one level and the start of the next must be the same number, or rounding leaves a gap.
    starts_h, starts_f = np.append(0.0, ends_h[:-1]), np.append(0.0, ends_f[:-1])
    mass = np.minimum(ends_h[:, None], ends_f) - np.maximum(starts_h[:, None], starts_f)
    mass = np.maximum(mass, 0.0)
    rows = mass.sum(axis=1)
    shift = np.zeros_like(mass)
    used = np.flatnonzero(f)
    for i in range(len(h)):
        if rows[i] > 0:
            shift[i] = mass[i] / rows[i]
        else:
            shift[i, used[min(np.searchsorted(ends_f[used], starts_h[i], side="right"), len(used) - 1)]] = 1.0
    return shift


def oda(h: np.ndarray, f: np.ndarray) -> np.ndarray:
    """AccuScale/Argus' Optimized Distribution Aligner as published (Agarwal et al., Middleware 2025), for comparison.

    Starting at the fastest level, a surplus moves one level towards better images, and a deficit is filled, to two
    decimals, from the nearest better level with prompts. The result misses the target when a surplus has to move
    further than one level, because each prompt is shifted once. Where the published code divides by an empty level or
    leaves the ladder, this implementation continues with the next level.
    """
    original, h = h, h.copy()
    shift = np.eye(len(h))
    for k in range(len(h) - 1, 0, -1):
        if h[k] > f[k]:
            moved = (h[k] - f[k]) / h[k]
            pulled = shift[k, k + 1 :].sum()
            shift[k, k - 1], shift[k, k] = moved * (1 - pulled), (1 - moved) * (1 - pulled)
            h[k - 1] += h[k] - f[k]
            h[k] = f[k]
        for j in range(k - 1, -1, -1):
            if round(f[k] - h[k], 2) <= 0:
                break
            if original[j] == 0:
                continue
            taken = min(h[j], f[k] - h[k])
            h[j] -= taken
            h[k] += taken
            shift[j, k], shift[j, j] = taken / original[j], h[j] / original[j]
    return shift


#: Aligners by name. An aligner is a function of h and f, both of which add up to exactly one.
ALIGNERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"monotone": monotone, "oda": oda}


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation distance of two histograms, 0…1: the share of prompts at the wrong level."""
    return float(np.abs(p - q).sum() / 2)


def shares_of(name: str, values: Sequence[float]) -> np.ndarray:
    """Validates a histogram and scales it so that it adds up to exactly one.

    Raises:
        PlanError: the histogram is empty, has an entry that is negative or not finite, or its sum differs from one by
            more than :data:`TOLERANCE`; the message begins with ``name``.
    """
    shares = np.asarray(values, dtype=float)
    if shares.ndim != 1 or len(shares) == 0:
        raise PlanError(f"{name} must be a list with one share per level")
    if not (np.isfinite(shares).all() and (shares >= 0).all()):
        raise PlanError(f"{name} is {shares.tolist()}; every share must be a number of at least 0")
    if abs(shares.sum() - 1) > TOLERANCE:
        raise PlanError(f"{name} adds up to {shares.sum():g}; shares have to add up to 1")
    return shares / shares.sum()
