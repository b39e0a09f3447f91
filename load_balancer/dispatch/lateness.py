"""Measures how much later than predicted images are ready, for effects that no queue model has, such as a busy host.

The measure is the median. A higher quantile would refuse images that would have been in time, and leave batches
emptier than they could be.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

#: Length of the window, seconds. Old images expire, so that one stall cannot refuse images for good.
WINDOW_S = 30.0
#: With fewer images than this the measure is 0.
LEAST_IMAGES = 10


class Lateness:
    """The median of (ready − predicted) over a sliding window; never below 0."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def observe(self, late_s: float, now: float) -> None:
        """Takes in the lateness of one image; for an image that was given up, its lateness at that time."""
        self._late.append((now, late_s))
        insort(self._sorted, late_s)
        self._forget(now)

    def seconds(self, now: float) -> float:
        """Seconds to add to a prediction."""
        self._forget(now)
        ordered, count = self._sorted, len(self._sorted)
        if count < LEAST_IMAGES:
            return 0.0
        return max(0.0, (ordered[(count - 1) // 2] + ordered[count // 2]) / 2)

    def _forget(self, now: float) -> None:
        late = self._late
        while late and late[0][0] <= now - WINDOW_S:
            del self._sorted[bisect_left(self._sorted, late.popleft()[1])]
