"""What a controller wants to know of the requests, counted as they pass."""

from __future__ import annotations

from collections import deque
from typing import Any

#: Confidences kept for the next look. A controller that looks every second misses none below this rate.
MOST_CONFIDENCES = 1000


class Tally:
    """Counts since the start; they never go back, so that a reader that missed a look has lost nothing."""

    def __init__(self) -> None:
        self.arrivals = 0
        self.judged = 0
        self.deferred = 0
        self._confidences: deque[float] = deque(maxlen=MOST_CONFIDENCES)

    def arrived(self, images: int) -> None:
        """Images asked for, whether or not they are let in."""
        self.arrivals += images

    def judge(self, confidence: float | None, deferred: bool) -> None:
        """The cascade's verdict on one light image; no confidence counts as 0."""
        self.judged += 1
        self.deferred += deferred
        self._confidences.append(confidence or 0.0)

    def since(self, judged: int) -> dict[str, Any]:
        """JSON-ready; ``confidences`` are those after the first ``judged``, all that are kept if so many never were."""
        new = self.judged - judged if judged <= self.judged else self.judged
        kept = list(self._confidences)
        return {
            "arrivals": self.arrivals,
            "judged": self.judged,
            "deferred": self.deferred,
            "confidences": kept[max(0, len(kept) - new) :],
        }
