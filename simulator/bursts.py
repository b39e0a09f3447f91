"""Which requests of a trace came in its bursts."""

from __future__ import annotations

import numpy as np

#: Seconds of the windows by which bursts are told from calm.
WINDOW_S = 4.0


def in_bursts(arrivals_s: np.ndarray) -> tuple[np.ndarray, float]:
    """By request whether it came in a burst, and the seconds that bursts lasted: the windows in which at least as many
    requests arrive as midway between the calmest and the busiest tenth of them."""
    window = (arrivals_s // WINDOW_S).astype(int)
    counts = np.bincount(window, minlength=1)
    bursts = counts >= (np.quantile(counts, 0.1) + np.quantile(counts, 0.9)) / 2
    return bursts[window], WINDOW_S * max(1, int(bursts.sum()))
