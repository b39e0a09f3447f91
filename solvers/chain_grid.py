"""Grid of operating points for a chain of three variants: the shares that its two judges defer, and the resulting
quality.

The second judge sees only what the first one defers. A point is therefore the share u of all images that the first
judge defers, and the share s of those that the second judge defers as well. The loads follow from the shares alone: of
the requests that begin at the first variant, the second variant runs u and the third one u s. The thresholds that give
these shares depend on how the judges agree; they are looked up for every point in the deferral curve of each judge,
where the second one's curve covers the images that the first one defers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from solvers.problem import MiddleStage

#: Number of shares on the grid for each judge; the number of points is at most the product of both.
FIRST_SHARES, SECOND_SHARES = 17, 13


@dataclass(frozen=True, slots=True)
class ChainGrid:
    """Fields of a :class:`~solvers.problem.Problem` by grid point, ordered by the share that reaches the last
    variant."""

    thresholds: tuple[float, ...]
    deferral: tuple[float, ...]
    quality: tuple[float, ...]
    middle: MiddleStage

    def shares(self, j: int) -> tuple[float, float]:
        """Returns the share that each judge defers of the images it sees, at grid point ``j``."""
        reached = self.middle.reached[j]
        return reached, self.deferral[j] / reached if reached else 0.0


def chain_grid(
    first: Callable[[float], float],
    second: Callable[[float], float],
    quality: Callable[[float, float], float],
) -> ChainGrid:
    """Builds the grid.

    Args:
        first, second: map a share to the threshold at which the judge defers that share of the images it sees.
        quality: maps the shares of all requests that the first and the second variant answer to the quality of the
            mix; larger is better.
    """
    points = []
    for u in _shares(FIRST_SHARES):
        for s in _shares(SECOND_SHARES) if u else (0.0,):
            points.append((u * s, u, first(u), second(s), quality(1 - u, u * (1 - s))))
    points.sort(key=lambda point: point[:2])
    deferral, reached, first_thresholds, second_thresholds, qualities = zip(*points, strict=True)
    return ChainGrid(first_thresholds, deferral, qualities, MiddleStage(second_thresholds, reached))


def mixed(rewards: Sequence[Callable[[float], float]]) -> Callable[[float, float], float]:
    """Returns the quality of the answers of a chain of three as a function of the shares that its first two variants
    answer.

    It adds the losses of two measured curves, each for the mix of one variant with the last one:

    Q(a₁, a₂) = Q(0) − (q₁(0) − q₁(a₁)) − (q₂(a₁) − q₂(a₁ + a₂)) with Q(0) = q₁(0)

    Args:
        rewards: q₁ and q₂, by the share that the variant answers; larger is better.
    """
    first, second = rewards
    return lambda a, b: first(a) - (second(a) - second(min(1.0, a + b)))


def _shares(count: int) -> list[float]:
    return [i / (count - 1) for i in range(count)]
