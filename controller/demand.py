"""Demand forecast: an estimate of the arrival rate that follows a burst within seconds."""

from __future__ import annotations

import math
from collections import deque

#: Lengths of the windows, seconds. The longest one determines the estimate unless a shorter one contradicts it.
WINDOWS_S = (1, 2, 4, 8, 16)
#: Width of a window's interval, in standard deviations of a Poisson count.
Z = 2.0


class DemandForecast:
    """Estimates the arrival rate from counts.

    The rate over the longest window is steady but slow to change. Each shorter window has an interval of rates that are
    consistent with its count (Poisson, ± :data:`Z` standard deviations); an estimate outside the interval is moved to
    its edge. The estimate follows a tenfold jump after one second and ignores noise.
    """

    def __init__(self) -> None:
        self._counts: deque[tuple[float, float]] = deque()  # (seconds, arrivals), the newest last
        self._seconds = 0.0

    def observe(self, arrivals: float, seconds: float) -> None:
        """Adds the number of arrivals of the last ``seconds``. Invalid values are ignored."""
        if not (math.isfinite(arrivals) and arrivals >= 0 and math.isfinite(seconds) and seconds > 0):
            return
        self._counts.append((seconds, arrivals))
        self._seconds += seconds
        while self._seconds - self._counts[0][0] >= WINDOWS_S[-1]:
            self._seconds -= self._counts.popleft()[0]

    def rate_rps(self) -> float:
        """Returns the estimate in requests per second; 0 before the first observation."""
        if not self._counts:
            return 0.0
        estimate = self._window(WINDOWS_S[-1])[0]
        for window in reversed(WINDOWS_S[:-1]):
            rate, seconds = self._window(window)
            # The variance of a zero count is taken as that of one request: no arrival does not prove rate 0.
            spread = Z * math.sqrt(max(rate * seconds, 1.0)) / seconds
            estimate = min(max(estimate, rate - spread), rate + spread)
        return estimate

    def _window(self, window_s: float) -> tuple[float, float]:
        """Returns the rate over the newest observations that fill the window, and the seconds that they span."""
        total, seconds = 0.0, 0.0
        for span, count in reversed(self._counts):
            total, seconds = total + count, seconds + span
            if seconds >= window_s:
                break
        return total / seconds, seconds
