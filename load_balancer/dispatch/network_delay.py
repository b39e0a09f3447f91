"""Measures the network delay of calls: the time from sending to the reply, less the time at the worker."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

#: Number of recent calls that count: a busy host shows within a second or two of traffic.
CALLS = 64
#: Delays are rounded to microseconds; smaller ones are rounding errors.
_DIGITS = 6
#: Rounded to 0.
_NOTHING_S = 0.4e-6


class NetworkDelay:
    """Delay in one direction, seconds: half of the round-trip delay of the last calls.

    Attributes:
        usual_s: the median.
        slow_s: the 0.9 quantile.
        swing_s: the largest minus the smallest ``usual_s`` since :meth:`settle`.
    """

    def __init__(self) -> None:
        self._trips: deque[float] = deque()
        self._sorted: list[float] = []
        self.usual_s = self.slow_s = self.swing_s = 0.0
        self._least_s = self._most_s = 0.0

    def observe(self, trip_s: float) -> None:
        """Takes in the round-trip delay of one call, seconds."""
        trip_s = round(trip_s, _DIGITS) if trip_s > _NOTHING_S else 0.0
        self._trips.append(trip_s)
        if len(self._trips) > CALLS:
            oldest_s = self._trips.popleft()
            if oldest_s == trip_s:
                return
            del self._sorted[bisect_left(self._sorted, oldest_s)]
        insort(self._sorted, trip_s)
        if len(self._trips) > 1:
            self.usual_s, self.slow_s = self._tenths(5) / 2, self._tenths(9) / 2
            if not self._least_s <= self.usual_s <= self._most_s:
                self._least_s, self._most_s = min(self._least_s, self.usual_s), max(self._most_s, self.usual_s)
                self.swing_s = self._most_s - self._least_s

    def settle(self) -> None:
        """Resets :attr:`swing_s` to count from the present delay."""
        self._least_s = self._most_s = self.usual_s
        self.swing_s = 0.0

    def _tenths(self, tenths: int) -> float:
        """The quantile ``tenths`` / 10, interpolated linearly."""
        place, rest = divmod(tenths * (len(self._sorted) - 1), 10)
        low = self._sorted[place]
        return low + (self._sorted[place + 1] - low) * rest / 10 if rest else low
