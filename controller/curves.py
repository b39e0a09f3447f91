"""Current deferral curve F(t): the profiled curve, corrected by the confidences of recent images."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from weir.core import DeferralCurve
from weir.profiles import deferral_of

#: Number of confidences in the window; at 10 requests/s it covers a minute and a half.
WINDOW = 1000
#: Number of images that the profile weighs: it dominates the first seconds and is a tenth of a full window.
PRIOR_WEIGHT = 100
#: Number of thresholds of the resulting curve.
GRID = 200
#: Least number of prompts from which the curve of a judge behind another judge is estimated.
LEAST_SEEN = 20


class LiveDeferral:
    """F(t) from single-image confidences in a sliding window, blended with the profiled curve.

    The thresholds of the resulting curve lie at equal steps of the share. Confidences are dense near 0 and 1, where
    equal steps of the threshold would skip half of all requests.
    """

    def __init__(self, profile: DeferralCurve):
        self.rebase(profile)
        self._window: deque[float] = deque(maxlen=WINDOW)

    def rebase(self, profile: DeferralCurve) -> None:
        """Replaces the profiled curve and keeps the window."""
        known = dict(zip(profile.thresholds, profile.shares, strict=True)) | {0.0: 0.0, 1.0: 1.0}
        self._thresholds = np.array(sorted(known))
        self._shares = np.maximum.accumulate([known[t] for t in sorted(known)])

    def observe(self, confidences: Iterable[float]) -> None:
        """Adds the confidences of images, newest last. Values outside 0…1 are ignored."""
        self._window.extend(c for c in confidences if 0 <= c <= 1)

    def curve(self) -> DeferralCurve:
        """Returns the blended curve on about :data:`GRID` thresholds, from one that defers nothing to one that defers
        everything."""
        thresholds, shares = self._blend()
        levels = np.linspace(0, 1, GRID + 1)
        # The largest threshold whose share does not exceed the level: a curve with a jump stays below it.
        picks = np.unique(np.searchsorted(shares, levels, side="right") - 1)
        return DeferralCurve(tuple(thresholds[picks].tolist()), tuple(shares[picks].tolist()))

    def at(self, thresholds: Sequence[float]) -> tuple[float, ...]:
        """Returns F(t) at ascending thresholds."""
        known, shares = self._blend()
        return tuple(np.maximum.accumulate(np.interp(thresholds, known, shares)).tolist())

    def threshold_for(self, share: float) -> float:
        """Returns the threshold that defers a share, interpolated linearly between the observed confidences; 0 and 1 at
        the ends."""
        if share <= 0:
            return 0.0
        if share >= 1:
            return 1.0
        thresholds, shares = self._blend()
        return float(np.interp(share, shares, thresholds))

    def _blend(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns ascending thresholds and the share of confidences below each of them."""
        window = np.sort(np.array(self._window))
        # A confidence is deferred by any threshold above it, so the step of the curve lies just above it.
        above = np.nextafter(window, 2.0)
        thresholds = np.unique(np.concatenate((self._thresholds, window, above[above <= 1])))
        prior = np.interp(thresholds, self._thresholds, self._shares)
        if not len(window):
            return thresholds, prior
        live = np.searchsorted(window, thresholds, side="left") / len(window)
        live[-1] = 1.0  # the threshold 1 defers everything, a confidence of 1 included
        weight = len(window) / (len(window) + PRIOR_WEIGHT)
        return thresholds, weight * live + (1 - weight) * prior


def deferral_behind(
    threshold: float, first: Sequence[float], second: Sequence[float], otherwise: DeferralCurve
) -> DeferralCurve:
    """Returns F(t) of a judge that sees only the images that the judge before it defers, estimated from the profile.

    Args:
        threshold: threshold of the judge before it.
        first, second: confidences of both judges, prompt by prompt. When they belong to different prompts, the judges
            count as independent.
        otherwise: F(t) of the second judge for all prompts; the result when the judges count as independent or too few
            prompts are deferred.
    """
    if not first or len(first) != len(second):
        return otherwise
    seen = [b for a, b in zip(first, second, strict=True) if a < threshold or threshold >= 1]
    return deferral_of(seen) if len(seen) >= LEAST_SEEN else otherwise
