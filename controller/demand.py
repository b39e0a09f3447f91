"""How many requests per second to plan for: an honest arrival rate that follows a burst within seconds."""

from __future__ import annotations

import math
from collections import deque

#: Windows, seconds. The longest gives the estimate as long as no shorter one contradicts it.
WINDOWS_S = (1, 2, 4, 8, 16)
#: Width of a window's interval, in standard deviations of a Poisson count.
Z = 2.0


class DemandForecast:
    """Arrival rate from counts.

    The rate over the longest window is steady but late. Each shorter window has an interval of rates that could have
    given its count (Poisson, ± :data:`Z` standard deviations); a steady rate outside of it moves to its edge.
    A tenfold jump shows after one second, noise alone moves nothing.
    """

    def __init__(self) -> None:
        self._counts: deque[tuple[float, float]] = deque()  # (seconds, arrivals), the newest last
        self._seconds = 0.0

    def observe(self, arrivals: float, seconds: float) -> None:
        """Takes in the arrivals of the last ``seconds``. Counts that make no sense are left out."""
        if not (math.isfinite(arrivals) and arrivals >= 0 and math.isfinite(seconds) and seconds > 0):
            return
        self._counts.append((seconds, arrivals))
        self._seconds += seconds
        while self._seconds - self._counts[0][0] >= WINDOWS_S[-1]:
            self._seconds -= self._counts.popleft()[0]

    def rate_rps(self) -> float:
        """Requests per second; 0 when nothing was observed."""
        if not self._counts:
            return 0.0
        estimate = self._window(WINDOWS_S[-1])[0]
        for window in reversed(WINDOWS_S[:-1]):
            rate, seconds = self._window(window)
            # The variance of a count of nothing is taken as that of one request: silence does not prove rate 0.
            spread = Z * math.sqrt(max(rate * seconds, 1.0)) / seconds
            estimate = min(max(estimate, rate - spread), rate + spread)
        return estimate

    def _window(self, window_s: float) -> tuple[float, float]:
        """Rate over the newest observations that fill the window, and the seconds they span."""
        total, seconds = 0.0, 0.0
        for span, count in reversed(self._counts):
            total, seconds = total + count, seconds + span
            if seconds >= window_s:
                break
        return total / seconds, seconds
