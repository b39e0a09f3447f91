"""How much later than predicted images are ready: what no book knows of a busy host, or of a device that got slower.

Half of the images are late by more. A higher quantile turns images away that would have come in time, and the batches
behind the promises then stay emptier than they could be.
"""

from __future__ import annotations

from collections import deque
from statistics import median

#: Seconds that an image counts for. Without new ones the past is forgiven: a stall cannot close the way for good.
WINDOW_S = 30.0
#: Fewer images than this prove nothing.
LEAST_IMAGES = 10


class Lateness:
    """The median of (ready − predicted) over a sliding window; never below 0."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()

    def observe(self, late_s: float, now: float) -> None:
        """Takes in one image; of one that was given up, how late it was by then."""
        self._late.append((now, late_s))
        self._forget(now)

    def seconds(self, now: float) -> float:
        """What to add to a prediction."""
        self._forget(now)
        if len(self._late) < LEAST_IMAGES:
            return 0.0
        return max(0.0, median(late for _, late in self._late))

    def _forget(self, now: float) -> None:
        while self._late and self._late[0][0] <= now - WINDOW_S:
            self._late.popleft()
