"""Trend of a figure over a long run: flat or growing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

#: Least number of samples for a trend.
LEAST_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Allowance:
    """Allowed growth of a figure in the second half of a run: the larger of ``share`` of its value and ``step``."""

    share: float
    step: float


@dataclass(frozen=True, slots=True)
class Trend:
    """The trend of a figure.

    Attributes:
        first, last: medians of the first and the last quarter.
        growth: growth over the second half of the run, by the Theil-Sen slope.
        per_hour: the slope per hour.
        growing: whether the growth exceeds the allowance and the 95 % interval of the slope is above 0.
    """

    first: float
    last: float
    growth: float
    per_hour: float
    growing: bool


def trend(times_s: Sequence[float], values: Sequence[float], allowed: Allowance) -> Trend:
    """Estimates the trend of the second half of a run by the median of the pairwise slopes, which is robust to single
    spikes. The first half may fill caches, pools and buffers. A figure that stops growing is flat; a leak does not
    stop.

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
