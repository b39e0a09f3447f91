"""What prompts want against what the load allows: from two histograms over levels to a matrix of shifts. Pure.

A classifier predicts a level for every prompt, with shares h. The allocation wants levels with shares f. A shift matrix
P says with which probability a prompt of predicted level i is served at level j; it meets the allocation when h P = f.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from weir.errors import ConfigError, PlanError

#: How far shares may be from adding up to one before they count as wrong; below, they are scaled.
TOLERANCE = 1e-6


def align(predicted: Sequence[float], target: Sequence[float], aligner: str = "monotone") -> np.ndarray:
    """The shift matrix P from the predicted shares h to the target shares f; [levels, levels], rows add up to one.

    Raises:
        PlanError: h or f is empty, has an entry that is negative or no number, does not add up to one, or their
            lengths differ.
        ConfigError: there is no aligner of that name.
    """
    if aligner not in ALIGNERS:
        raise ConfigError(f"there is no aligner {aligner!r}; choose one of {', '.join(ALIGNERS)}")
    h, f = shares_of("predicted", predicted), shares_of("target", target)
    if len(h) != len(f):
        raise PlanError(f"predicted has {len(h)} levels and target has {len(f)}; both need one share for each level")
    return ALIGNERS[aligner](h, f)


def monotone(h: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The monotone (quantile) coupling: prompts in the order of their predicted level fill the target levels in order.

    Exact for every h and f, and of all exact shifts the one of least cost for any cost that is convex in the number of
    levels moved (Villani, Topics in Optimal Transportation, theorem 2.18). A level that no prompt was predicted for has
    a row too, for the first prompt that will be: the target level at its quantile.
    """
    ends_h, ends_f = np.cumsum(h), np.cumsum(f)
    # Not ends − h: where one level ends and the next begins has to be the same number, or dust remains between them.
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

    From the fastest level down, a surplus moves one level towards better images, and a deficit is filled, to two
    decimals, from the nearest better level that has any. It misses the target whenever a surplus moves further than one
    level, for a prompt is shifted once. Where the published code divides by an empty level or leaves the ladder, this
    one goes on to the next level.
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


#: Adding one is a function of h and f, both exact shares, and an entry here.
ALIGNERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"monotone": monotone, "oda": oda}


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the sum of absolute differences of two histograms, 0…1: the share of prompts at a wrong level."""
    return float(np.abs(p - q).sum() / 2)


def shares_of(name: str, values: Sequence[float]) -> np.ndarray:
    """A histogram, scaled so that it adds up to exactly one.

    Raises:
        PlanError: it is empty, has an entry that is negative or no number, or is further than :data:`TOLERANCE` from
            one; the message begins with ``name``.
    """
    shares = np.asarray(values, dtype=float)
    if shares.ndim != 1 or len(shares) == 0:
        raise PlanError(f"{name} must be a list with one share for each level")
    if not (np.isfinite(shares).all() and (shares >= 0).all()):
        raise PlanError(f"{name} is {shares.tolist()}; every share must be a number of at least 0")
    if abs(shares.sum() - 1) > TOLERANCE:
        raise PlanError(f"{name} adds up to {shares.sum():g}; shares have to add up to 1")
    return shares / shares.sum()
