"""What an image of a size that was not measured costs: by its pixels, from the sizes that were."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise


def cost_at(pixels: int, measured: Iterable[tuple[int, float]]) -> float:
    """Seconds that something takes at a number of pixels.

    Between measured sizes it is linear in the pixels. Beyond them it lies on the line through the two nearest, but an
    image is never cheaper by the pixel than one of the nearest measured size: convolutions take time by the pixel,
    attention more, and a small image leaves a device idle.

    Args:
        measured: (pixels, seconds) of at least one size; of sizes with equally many pixels the slowest counts.
    """
    slowest: dict[int, float] = {}
    for count, seconds in measured:
        slowest[count] = max(seconds, slowest.get(count, 0.0))
    points = sorted(slowest.items())
    for (p0, s0), (p1, s1) in pairwise(points):
        if p0 <= pixels <= p1:
            return s0 + (s1 - s0) * (pixels - p0) / (p1 - p0)
    nearest, line = (points[0], points[:2]) if pixels < points[0][0] else (points[-1], points[-2:])
    by_pixel = nearest[1] * pixels / nearest[0]
    if len(line) < 2:
        return by_pixel
    (p0, s0), (p1, s1) = line
    return max(by_pixel, s0 + (s1 - s0) * (pixels - p0) / (p1 - p0))
