"""How much later than predicted images are ready: what no model of a queue knows of a busy host or a slower device.

Half of the images are late by more. A higher quantile turns images away that would have come in time, and the batches
behind the promises then stay emptier than they could be.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

#: Seconds that an image counts for. Without new ones the past is forgiven: a stall cannot close the way for good.
WINDOW_S = 30.0
#: Fewer images than this prove nothing.
LEAST_IMAGES = 10


class Lateness:
    """The median of (ready − predicted) over a sliding window; never below 0."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def observe(self, late_s: float, now: float) -> None:
        """Takes in one image; of one that was given up, how late it was by then."""
        self._late.append((now, late_s))
        insort(self._sorted, late_s)
        self._forget(now)

    def seconds(self, now: float) -> float:
        """What to add to a prediction."""
        self._forget(now)
        ordered, count = self._sorted, len(self._sorted)
        if count < LEAST_IMAGES:
            return 0.0
        return max(0.0, (ordered[(count - 1) // 2] + ordered[count // 2]) / 2)

    def _forget(self, now: float) -> None:
        late = self._late
        while late and late[0][0] <= now - WINDOW_S:
            del self._sorted[bisect_left(self._sorted, late.popleft()[1])]
