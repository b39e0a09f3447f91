"""How much later than predicted images are ready: what no book knows of hops, wake-ups and a busy host."""

from __future__ import annotations

import math
from collections import deque

#: Seconds that an image counts for. Without new ones the past is forgiven: a stall cannot close the way for good.
WINDOW_S = 30.0
#: This share of the images is to be ready when it is said.
SHARE = 0.9
#: Fewer images than this prove nothing.
LEAST_IMAGES = 10


class Lateness:
    """A high quantile of (ready − predicted) over a sliding window; never below 0."""

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
        ordered = sorted(late for _, late in self._late)
        return max(0.0, ordered[math.ceil(SHARE * len(ordered)) - 1])

    def _forget(self, now: float) -> None:
        while self._late and self._late[0][0] <= now - WINDOW_S:
            self._late.popleft()
