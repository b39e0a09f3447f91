"""The grid of a chain of three: which shares of the requests its two judges defer, and what the mix is worth.

Judges see one after the other, so a point is the share of all that the first one defers, and the share of these that
the second one defers as well. Loads follow from shares alone: of what begins at the first variant, the second one runs
u and the third one u s. Which thresholds give these shares depends on how the judges agree, and is looked up for every
point from the second judge's curve in what the first one defers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from solvers.problem import MiddleStage

#: Shares of either judge on the grid; the product of both is the number of points before any is left out.
FIRST_SHARES, SECOND_SHARES = 17, 13


@dataclass(frozen=True, slots=True)
class ChainGrid:
    """Fields of a :class:`~solvers.problem.Problem`, by point, ordered by what reaches the last variant."""

    thresholds: tuple[float, ...]
    deferral: tuple[float, ...]
    quality: tuple[float, ...]
    middle: MiddleStage

    def shares(self, j: int) -> tuple[float, float]:
        """The share that each judge defers of the images it sees, at a point."""
        reached = self.middle.reached[j]
        return reached, self.deferral[j] / reached if reached else 0.0


def chain_grid(
    first: Callable[[float], float],
    second: Callable[[float], float],
    quality: Callable[[float, float], float],
) -> ChainGrid:
    """The grid.

    Args:
        first, second: the threshold at which each judge defers a share of what it sees.
        quality: of the mix, by the shares of all that the first and the second variant answer; larger is better.
    """
    points = []
    for u in _shares(FIRST_SHARES):
        for s in _shares(SECOND_SHARES) if u else (0.0,):
            points.append((u * s, u, first(u), second(s), quality(1 - u, u * (1 - s))))
    points.sort(key=lambda point: point[:2])
    deferral, reached, ahead, behind, worth = zip(*points, strict=True)
    return ChainGrid(ahead, deferral, worth, MiddleStage(behind, reached))


def mixed(rewards: Sequence[Callable[[float], float]]) -> Callable[[float, float], float]:
    """Quality of the answers of a chain of three from two measured curves: what each mix of one variant with the last
    one loses is added, in the order of the chain.

    Q(a₁, a₂) = Q(0) − (q₁(0) − q₁(a₁)) − (q₂(a₁) − q₂(a₁ + a₂)) with Q(0) = q₁(0)

    Args:
        rewards: q₁ and q₂, by the share that the variant answers; larger is better.
    """
    first, second = rewards
    return lambda a, b: first(a) - (second(a) - second(min(1.0, a + b)))


def _shares(count: int) -> list[float]:
    return [i / (count - 1) for i in range(count)]
