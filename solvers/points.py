"""Operating points: what the cascade, the cache and predicted levels do together, and what that costs and gives.

A point is a threshold, the share of steps from which a cache hit goes to the heavy variant at once (hits that save less
begin light, and resume only if they are deferred), and which groups of prompts go to the heavy variant at once. With
h_K and w_K of the hits, H = Σ h_K, groups g with shares s_g of the misses, D the hits and E the groups at once:

    light work  A = Σ_{K∉D} h_K + (1 − H) Σ_{g∉E} s_g
    heavy work  B = Σ_{K∈D} h_K w_K + F_j Σ_{K∉D} h_K w_K + (1 − H) (Σ_{g∉E} s_g F_gj + Σ_{g∈E} s_g)
    quality     Q = Σ_{K∈D} h_K q_K + Σ_{K∉D} h_K (Q_j + F_j (q_K − q)) + (1 − H) (Σ_{g∉E} s_g Q_gj + Σ_{g∈E} s_g q_g)

where q is the quality of a heavy image. A resumed image is worth a little less than a whole one; where there is time,
the cache may be left alone, as if there were no hits. All three are shares of one request. Everything that a plan
decides about single requests is in the point, so that the program only has to choose one of them and the GPUs that
carry it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.problem import Problem

#: Points in the program. More than one curve of thresholds is thinned evenly to so many together; the threshold is
#: chosen among all of them afterwards, for the GPUs that were found.
MOST_POINTS = 240


@dataclass(frozen=True, slots=True)
class Point:
    """One of them.

    Attributes:
        j: of the threshold grid.
        direct: share of steps saved from which a hit goes to the heavy variant at once.
        entry: groups of prompts from this index on, the hard ones, go to the heavy variant at once.
        reuse: False: hits are drawn from noise like misses.
        light_work, heavy_work: light images and full heavy runs for each request.
        quality: mean of a request, on the scale 0…1 of the quality curve.
    """

    j: int
    direct: float
    entry: int
    reuse: bool
    light_work: float
    heavy_work: float
    quality: float

    def needs(self, light: bool) -> float:
        return self.light_work if light else self.heavy_work


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one way to treat hits and groups, by threshold; arrays [J]."""

    direct: float
    entry: int
    reuse: bool
    light_work: float
    heavy_work: np.ndarray
    quality: np.ndarray

    def point(self, j: int) -> Point:
        heavy_work, quality = float(self.heavy_work[j]), float(self.quality[j])
        return Point(j, self.direct, self.entry, self.reuse, self.light_work, heavy_work, quality)

    def useful(self) -> list[int]:
        """Grid points that defer less than every other of at least their quality; the first of them defers least."""
        kept: list[int] = []
        quality = self.quality.tolist()
        for j in np.lexsort((-self.quality, self.heavy_work)).tolist():
            if not kept or quality[j] > quality[kept[-1]]:
                kept.append(j)
        return kept


def curves(problem: Problem) -> list[Curve]:
    """Every way to treat hits and groups that the problem leaves open, all hits and no group at once first."""
    low, high = min(problem.quality), max(problem.quality)
    span = high - low or 1.0
    deferral, quality = np.array(problem.deferral), (np.array(problem.quality) - low) / span
    heavy = quality[-1]
    shares = np.array([group.share for group in problem.groups])
    deferrals = np.array([group.deferral for group in problem.groups])
    qualities = (np.array([group.quality for group in problem.groups]) - low) / span
    heavies = (np.array([group.heavy_quality for group in problem.groups]) - low) / span
    found = []
    ways = [(direct, problem.hits, True) for direct in dict.fromkeys(problem.direct_cuts)]
    if problem.may_draw_whole and problem.hits:
        ways.append((0.0, (), False))
    for direct, hits, reuse in ways:
        misses = 1 - sum(hit.share for hit in hits)
        now = [hit for hit in hits if 1 - hit.work >= direct - 1e-9]
        wait = [hit for hit in hits if 1 - hit.work < direct - 1e-9]
        waiting = sum(h.share for h in wait)
        hit_heavy = sum(h.share * h.work for h in now) + deferral * sum(h.share * h.work for h in wait)
        hit_quality = sum(h.share * (h.quality - low) / span for h in now) + waiting * quality
        hit_quality = hit_quality + deferral * sum(h.share * ((h.quality - low) / span - heavy) for h in wait)
        if not problem.groups:
            light_work, heavy_work = waiting + misses, hit_heavy + misses * deferral
            found.append(Curve(direct, 0, reuse, light_work, heavy_work, hit_quality + misses * quality))
            continue
        for entry in range(len(shares), -1, -1):
            begun, at_once = shares[:entry], shares[entry:]
            found.append(
                Curve(
                    direct,
                    entry,
                    reuse,
                    waiting + misses * float(begun.sum()),
                    hit_heavy + misses * (begun @ deferrals[:entry] + at_once.sum()),
                    hit_quality + misses * (begun @ qualities[:entry] + at_once @ heavies[entry:]),
                )
            )
    return found


def candidates(found: list[Curve]) -> tuple[list[Point], list[Point]]:
    """The points for the program that no other beats in all of light work, heavy work and quality, from the least heavy
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
        table = np.array([(p.light_work, p.heavy_work, -p.quality) for p in points])
        no_worse = np.all(table[:, None] <= table[None] + 1e-12, axis=2)
        better = no_worse & np.any(table[:, None] < table[None] - 1e-12, axis=2)
        twin = np.triu(no_worse & no_worse.T, 1)  # of equal points the first one stays
        beaten = (better | twin).any(axis=0)
        points = [p for p, out in zip(points, beaten.tolist(), strict=True) if not out]
        least = [p for p in least if p in points]
    return sorted(points, key=lambda p: p.heavy_work), least
