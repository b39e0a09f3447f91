"""Whether a figure of a long run stays where it is or grows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

#: Fewer samples say nothing.
LEAST_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a figure may grow in the second half of a run: as much as ``share`` of itself or ``step``, if more."""

    share: float
    step: float


@dataclass(frozen=True, slots=True)
class Trend:
    """Attributes:
    first, last: medians of the first and the last quarter.
    growth: over the second half of the run, by the Theil-Sen slope.
    growing: the growth is beyond what is allowed, and so sure that the slope's 95 % interval is above 0.
    """

    first: float
    last: float
    growth: float
    per_hour: float
    growing: bool


def trend(times_s: Sequence[float], values: Sequence[float], allowed: Allowance) -> Trend:
    """Judges the second half of a run by the median of its pairwise slopes, which single spikes do not move; the first
    half may fill caches, pools and buffers. What grows, slows down and stops is flat; a leak does not stop.

    Raises:
        ValueError: there are fewer than ``LEAST_SAMPLES`` samples.
    """
    if len(values) < LEAST_SAMPLES:
        raise ValueError(f"{len(values)} samples are too few; at least {LEAST_SAMPLES}")
    time, value = np.asarray(times_s, float), np.asarray(values, float)
    quarter, half = max(1, len(value) // 4), len(value) // 2
    slope, _, low, _ = theilslopes(value[half:], time[half:])
    growth = float(slope) * float(time[-1] - time[half])
    most = max(allowed.share * float(np.median(value[half:])), allowed.step)
    return Trend(
        first=float(np.median(value[:quarter])),
        last=float(np.median(value[-quarter:])),
        growth=growth,
        per_hour=3600 * float(slope),
        growing=growth > most and float(low) > 0,
    )
