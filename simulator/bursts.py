"""Selection of the requests of a trace that arrive in bursts."""

from __future__ import annotations

import numpy as np

#: Length of the windows that count as burst or calm, seconds.
WINDOW_S = 4.0


def in_bursts(arrivals_s: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns a mask of the requests that arrive in bursts, and the total length of the bursts in seconds.

    A window is a burst when its number of requests is at least the mean of the 10 % and 90 % quantiles of all windows.
    """
    window = (arrivals_s // WINDOW_S).astype(int)
    counts = np.bincount(window, minlength=1)
    bursts = counts >= (np.quantile(counts, 0.1) + np.quantile(counts, 0.9)) / 2
    return bursts[window], WINDOW_S * max(1, int(bursts.sum()))
