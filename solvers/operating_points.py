"""Operating points: what the cascade, the cache and predicted levels do together, and what that costs and gives.

A point is a threshold, the share of steps from which a cache hit goes to the heavy variant at once (hits that save less
begin light, and resume only if they are deferred), which groups of prompts go to the heavy variant at once, and how
long a heavy run from noise is. With h_K and w_K of the hits, H = Σ h_K, groups g with shares s_g of the misses, D the
hits and E the groups at once, w the work of a run from noise and d the quality that it loses against a whole one
(w = 1, d = 0):

    light work  A = Σ_{K∉D} h_K + (1 − H) Σ_{g∉E} s_g
    heavy work  B = a Σ_{K∈D} h_K w_K + F_j Σ_{K∉D} h_K w_K + (1 − H) w (Σ_{g∉E} s_g F_gj + a Σ_{g∈E} s_g)
    quality     Q = Σ_{K∈D} h_K q_K + Σ_{K∉D} h_K (Q_j + F_j (q_K − q))
                    + (1 − H) (Σ_{g∉E} s_g (Q_gj − F_gj d) + Σ_{g∈E} s_g (q_g − d))

where q is the quality of a whole heavy image, and a ≥ 1 what an image that begins heavy weighs: no light image stands
behind it when it would be late, so the plan counts on less of the heavy stage for it. A resumed image is worth a little
less than a whole one; where there is time, the cache may be left alone, as if there were no hits, and so are hits that
cost more than a run from noise. All three are shares of one request.

In a chain of three the grid is of pairs of thresholds, F_j is the share that both judges defer, and the middle variant
has the work (Σ_{K∉D} h_K + 1 − H) R_j, where R_j is the share that the first judge defers. Everything that a plan
decides about single requests is in the point, so that the program only has to choose one of them and the GPUs that
carry it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from solvers.problem import CacheHit, Problem, ShortRun

#: Points in the program. More than one curve of thresholds is thinned evenly to so many together; the threshold is
#: chosen among all of them afterwards, for the GPUs that were found.
MOST_POINTS = 240


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """One of them.

    Attributes:
        j: of the threshold grid.
        direct: share of steps saved from which a hit goes to the heavy variant at once.
        entry: groups of prompts from this index on, the hard ones, go to the heavy variant at once.
        reuse: False: hits run from noise like misses.
        steps: of heavy runs from noise; None: the variant's own.
        works: images of each variant of the chain for each request; for the last one full runs, of which those that
            begin there weigh more.
        quality: mean of a request, on the scale 0…1 of the quality curve.
    """

    j: int
    direct: float
    entry: int
    reuse: bool
    steps: int | None
    works: tuple[float, ...]
    quality: float

    @property
    def light_work(self) -> float:
        """The first variant's."""
        return self.works[0]

    @property
    def heavy_work(self) -> float:
        """The last variant's."""
        return self.works[-1]


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one way to treat hits, groups and runs from noise, by point of the grid; ``works`` is [stages, J],
    ``quality`` [J]."""

    direct: float
    entry: int
    reuse: bool
    steps: int | None
    works: np.ndarray
    quality: np.ndarray

    def point(self, j: int) -> OperatingPoint:
        works, quality = tuple(self.works[:, j].tolist()), float(self.quality[j])
        return OperatingPoint(j, self.direct, self.entry, self.reuse, self.steps, works, quality)

    def useful(self) -> list[int]:
        """Grid points that defer less than every other of at least their quality; the first of them defers least."""
        kept: list[int] = []
        quality, middle = self.quality.tolist(), self.works[1:-1]
        for j in np.lexsort((-self.quality, *self.works[1:])).tolist():
            if len(middle):
                beaten = (middle[:, kept] <= middle[:, [j]]).all(axis=0) & (self.quality[kept] >= quality[j])
                if not beaten.any():
                    kept.append(j)
            elif not kept or quality[j] > quality[kept[-1]]:
                kept.append(j)
        return kept


def curves(problem: Problem) -> list[Curve]:
    """Every way to treat hits, groups and runs from noise that the problem leaves open; the first of them sends all
    hits and no group to the heavy variant at once, and runs it whole."""
    low, high = min(problem.quality), max(problem.quality)
    span = high - low or 1.0
    deferral, quality = np.array(problem.deferral), (np.array(problem.quality) - low) / span
    heavy, alone = quality[-1], problem.unbacked_weight
    middle = [np.array(stage.reached) for stage in problem.middle]
    shares = np.array([group.share for group in problem.groups])
    deferrals = np.array([group.deferral for group in problem.groups])
    qualities = (np.array([group.quality for group in problem.groups]) - low) / span
    heavies = (np.array([group.heavy_quality for group in problem.groups]) - low) / span
    found = []
    for run, direct, hits in _ways(problem):
        work, loss, steps = (run.work, run.loss / span, run.steps) if run else (1.0, 0.0, None)
        reuse = bool(hits) or not problem.hits
        misses = 1 - sum(hit.share for hit in hits)
        now = [hit for hit in hits if 1 - hit.work >= direct - 1e-9]
        wait = [hit for hit in hits if 1 - hit.work < direct - 1e-9]
        waiting = sum(h.share for h in wait)
        hit_heavy = alone * sum(h.share * h.work for h in now) + deferral * sum(h.share * h.work for h in wait)
        hit_quality = sum(h.share * (h.quality - low) / span for h in now) + waiting * quality
        hit_quality = hit_quality + deferral * sum(h.share * ((h.quality - low) / span - heavy) for h in wait)
        if not problem.groups:
            begun_work = waiting + misses
            works = (begun_work, *(begun_work * reached for reached in middle), hit_heavy + misses * work * deferral)
            miss_quality = misses * (quality - deferral * loss)
            found.append(Curve(direct, 0, reuse, steps, _stacked(works, deferral), hit_quality + miss_quality))
            continue
        for entry in range(len(shares), -1, -1):
            begun, at_once = shares[:entry], shares[entry:]
            whole = begun @ deferrals[:entry] + at_once.sum()  # from noise, share of the misses
            weighed = whole + (alone - 1) * at_once.sum()
            miss_quality = misses * (begun @ qualities[:entry] + at_once @ heavies[entry:] - whole * loss)
            works = (waiting + misses * float(begun.sum()), hit_heavy + misses * work * weighed)
            found.append(Curve(direct, entry, reuse, steps, _stacked(works, deferral), hit_quality + miss_quality))
    return found


def _stacked(works: tuple[float | np.ndarray, ...], grid: np.ndarray) -> np.ndarray:
    """Work by stage and point of the grid, [stages, J]."""
    return np.stack([np.broadcast_to(np.asarray(work, float), grid.shape) for work in works])


def _ways(problem: Problem) -> Iterator[tuple[ShortRun | None, float, tuple[CacheHit, ...]]]:
    """(how long runs from noise are, from which share of steps hits go at once, which hits resume)."""
    for run in (None, *problem.short_runs):
        hits = tuple(hit for hit in problem.hits if run is None or hit.work <= run.work)
        if hits or not problem.hits:
            yield from ((run, direct, hits) for direct in dict.fromkeys(problem.direct_cuts))
        if problem.hits and (problem.may_run_whole or not hits):
            yield run, 0.0, ()


def candidates(found: list[Curve]) -> tuple[list[OperatingPoint], list[OperatingPoint]]:
    """The points for the program that no other beats in the work of every stage and in quality, from the least heavy
    work to the most; and those at which demand may be shed: of every curve, the one that defers least."""
    limit = MOST_POINTS // len(found) if len(found) > 1 else max(len(curve.quality) for curve in found)
    points, least = [], []
    for curve in found:
        useful = curve.useful()
        if len(useful) > limit:
            useful = [useful[round(i * (len(useful) - 1) / (limit - 1))] for i in range(limit)]
        points += [curve.point(j) for j in useful]
        least.append(curve.point(useful[0]))
    if len(found) > 1:
        table = np.array([(*p.works, -p.quality) for p in points])
        no_worse = np.all(table[:, None] <= table[None] + 1e-12, axis=2)
        better = no_worse & np.any(table[:, None] < table[None] - 1e-12, axis=2)
        twin = np.triu(no_worse & no_worse.T, 1)  # of equal points the first one stays
        beaten = (better | twin).any(axis=0)
        points = [p for p, out in zip(points, beaten.tolist(), strict=True) if not out]
        least = [p for p in least if p in points]
    return sorted(points, key=lambda p: p.heavy_work), least
