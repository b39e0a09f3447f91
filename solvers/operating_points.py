"""Operating points: work and quality of the combinations of cascade, cache and predicted levels.

A point fixes a threshold, the share of saved steps from which a cache hit starts at the heavy variant (hits that save
less begin light, and resume only if they are deferred), the groups of prompts that start at the heavy variant, and the
length of heavy runs from noise. Let h_K and w_K be share and work of the hits, H = Σ h_K, s_g the share of group g
among the misses, D the hits and E the groups that start at the heavy variant, w the work of a run from noise and d its
loss of quality against a whole run (w = 1, d = 0):

    light work  A = Σ_{K∉D} h_K + (1 − H) Σ_{g∉E} s_g
    heavy work  B = a Σ_{K∈D} h_K w_K + F_j Σ_{K∉D} h_K w_K + (1 − H) w (Σ_{g∉E} s_g F_gj + a Σ_{g∈E} s_g)
    quality     Q = Σ_{K∈D} h_K q_K + Σ_{K∉D} h_K (Q_j + F_j (q_K − q))
                    + (1 − H) (Σ_{g∉E} s_g (Q_gj − F_gj d) + Σ_{g∈E} s_g (q_g − d))

where q is the quality of a whole heavy image, and a ≥ 1 is the weight of an image that starts at the heavy variant: no
light image can replace it when it would be late, so the plan counts on a smaller share of the heavy stage for it. A
resumed image has a slightly lower quality than a whole one. Where there is time, a point may ignore the cache as if
there were no hits; hits that cost more than a run from noise are ignored as well. A, B and Q are per request.

In a chain of three the grid consists of pairs of thresholds, F_j is the share that both judges defer, and the middle
variant has the work (Σ_{K∉D} h_K + 1 − H) R_j, where R_j is the share that the first judge defers. The point contains
every decision about single requests, so the program only chooses one point and the GPUs for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from solvers.problem import CacheHit, Problem, ShortRun

#: Largest number of points in the program. Several curves are thinned evenly to this number in total; the threshold is
#: chosen among all points afterwards, for the GPU counts of the solution.
MOST_POINTS = 240


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """One operating point.

    Attributes:
        j: index in the threshold grid.
        direct: share of saved steps from which a hit starts at the heavy variant.
        entry: index of the first group of prompts that starts at the heavy variant; harder groups follow it.
        reuse: whether hits resume; False runs them from noise like misses.
        steps: length of heavy runs from noise; None means the variant's own.
        works: images per request, by variant of the chain; for the last variant in whole runs, where runs that start
            there have a larger weight.
        quality: mean quality per request, on the scale 0…1 of the quality curve.
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
        """Work of the first variant."""
        return self.works[0]

    @property
    def heavy_work(self) -> float:
        """Work of the last variant."""
        return self.works[-1]


@dataclass(frozen=True, slots=True)
class Curve:
    """Operating points along the threshold grid for one treatment of hits, groups and runs from noise.

    ``works`` is [stages, J], ``quality`` is [J].
    """

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
        """Returns the grid points that defer less than every other point of at least the same quality, in ascending
        order of deferral."""
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
    """Returns one curve for every treatment of hits, groups and runs from noise that the problem allows. In the first
    one all hits and no group start at the heavy variant, and runs are whole."""
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
    """Stacks the works of the stages along the grid, [stages, J]."""
    return np.stack([np.broadcast_to(np.asarray(work, float), grid.shape) for work in works])


def _ways(problem: Problem) -> Iterator[tuple[ShortRun | None, float, tuple[CacheHit, ...]]]:
    """Yields (length of runs from noise, share of saved steps from which hits start at the heavy variant, hits that
    resume)."""
    for run in (None, *problem.short_runs):
        hits = tuple(hit for hit in problem.hits if run is None or hit.work <= run.work)
        if hits or not problem.hits:
            yield from ((run, direct, hits) for direct in dict.fromkeys(problem.direct_cuts))
        if problem.hits and (problem.may_run_whole or not hits):
            yield run, 0.0, ()


def candidates(found: list[Curve]) -> tuple[list[OperatingPoint], list[OperatingPoint]]:
    """Selects the points of the program.

    Returns:
        The points that no other point dominates in work and quality, in ascending order of heavy work; and the points
        at which demand may be shed, which are the least deferring one of every curve.
    """
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
        duplicate = np.triu(no_worse & no_worse.T, 1)  # of equal points the first one is kept
        beaten = (better | duplicate).any(axis=0)
        points = [p for p, out in zip(points, beaten.tolist(), strict=True) if not out]
        least = [p for p in least if p in points]
    return sorted(points, key=lambda p: p.heavy_work), least
