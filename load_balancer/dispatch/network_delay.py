"""How long a call is on its way: what it took from being sent to the reply beyond its time in the worker's hands."""

from __future__ import annotations

from collections import deque
from statistics import quantiles

#: Calls that count: a busy host shows within a second or two of traffic.
CALLS = 64


class NetworkDelay:
    """Seconds of one way, out or back alike: halves of what the last calls took on both.

    Attributes:
        usual_s: the median.
        slow_s: nine of ten calls are there by then.
    """

    def __init__(self) -> None:
        self._trips: deque[float] = deque(maxlen=CALLS)
        self.usual_s = self.slow_s = 0.0

    def observe(self, trip_s: float) -> None:
        """Takes in one call: seconds out and back."""
        self._trips.append(max(0.0, trip_s))
        if len(self._trips) > 1:
            tenths = quantiles(self._trips, n=10, method="inclusive")
            self.usual_s, self.slow_s = tenths[4] / 2, tenths[8] / 2
