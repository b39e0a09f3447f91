"""What a controller wants to know of the requests, counted as they pass."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from weir.core import Role

#: Confidences, batches and fetches kept for the next look. A controller that looks every second misses none below this
#: rate.
MOST_CONFIDENCES = 1000
MOST_BATCHES = 1000
MOST_FETCHES = 1000
#: Of an image whose prompt nobody has predicted a level for.
UNKNOWN_LEVEL = -1


class ObservationCounters:
    """Counts since the start; they never go back, so that a reader that missed a look has lost nothing.

    Args:
        expiry_s: an image that is not answered this long after its admission counts as lost.
    """

    def __init__(self, expiry_s: float):
        self.arrivals = 0
        self.judged = 0
        self.deferred = 0
        self.batches = 0
        self.looked_up = 0
        self.fetched = 0
        self.reused: Counter[float] = Counter()
        self.found: Counter[float] = Counter()
        self.missed: Counter[int] = Counter()
        self.late_answers = 0
        self.late_deferred = 0
        self._expiry_s = expiry_s
        self._confidences: deque[float] = deque(maxlen=MOST_CONFIDENCES)
        self._levels: deque[int] = deque(maxlen=MOST_CONFIDENCES)
        self._level_of: dict[str, int] = {}  # by image that is open
        self._batches: deque[tuple[str, int, float]] = deque(maxlen=MOST_BATCHES)
        self._fetches: deque[float] = deque(maxlen=MOST_FETCHES)
        self._open: dict[str, tuple[float, bool]] = {}  # by image, in order of admission: when, and whether deferred

    def arrived(self, images: int) -> None:
        """Images asked for, whether or not they are let in."""
        self.arrivals += images

    def admitted(self, image: str, now: float) -> None:
        """The image is on its way from now on, until it is answered or expires: one that failed expires too."""
        self._open[image] = (now, False)

    def judge(self, image: str, confidence: float | None, deferred: bool) -> None:
        """The cascade's verdict on one light image; no confidence counts as 0."""
        self.judged += 1
        self.deferred += deferred
        self._confidences.append(confidence or 0.0)
        self._levels.append(self._level_of.get(image, UNKNOWN_LEVEL))
        if deferred and image in self._open:
            self._open[image] = (self._open[image][0], True)

    def lookup(self, image: str, saved: float, level: int | None) -> None:
        """The cache was asked for an image: a state that it has would save the share ``saved`` of the heavy steps; the
        level predicted for its prompt is None without a classifier."""
        if saved:
            self.found[round(saved, 3)] += 1
        elif level is not None:
            self.missed[level] += 1
        if level is not None and image in self._open:
            self._level_of[image] = level

    def reuse(self, saved: float) -> None:
        """The cache was asked for an image, and this saved the share ``saved`` of its heavy steps."""
        self.looked_up += 1
        if saved:
            self.reused[round(saved, 3)] += 1

    def answered(self, image: str, now: float) -> None:
        """The image is ready."""
        self._expire(now)
        self._level_of.pop(image, None)
        if self._open.pop(image, None) is None:
            self.late_answers += 1

    def batch(self, role: Role, size: int, seconds: float) -> None:
        """A worker ran a batch that takes so long with the variant's own number of steps."""
        self.batches += 1
        self._batches.append((role.value, size, seconds))

    def fetch(self, seconds: float) -> None:
        """A worker waited so long for a state to resume from."""
        self.fetched += 1
        self._fetches.append(seconds)

    def since(self, judged: int, batches: int, now: float, *, fetched: int = 0) -> dict[str, Any]:
        """JSON-ready; ``confidences``, ``batches`` (role, size, seconds) and ``fetches`` (seconds) are those after the
        first so many, all that are kept if so many never were."""
        self._expire(now)
        return {
            "arrivals": self.arrivals,
            "judged": self.judged,
            "deferred": self.deferred,
            "confidences": _newest(self._confidences, self.judged, judged),
            "batches_run": self.batches,
            "batches": _newest(self._batches, self.batches, batches),
            "in_flight": len(self._open),
            "deferred_in_flight": sum(deferred for _, deferred in self._open.values()),
            "late_answers": self.late_answers,
            "late_deferred": self.late_deferred,
            "looked_up": self.looked_up,
            "fetched": self.fetched,
            "fetches": _newest(self._fetches, self.fetched, fetched),
            "found": {str(saved): count for saved, count in sorted(self.found.items())},
            "missed": {str(level): count for level, count in sorted(self.missed.items())},
            "levels": _newest(self._levels, self.judged, judged),
            "reused": {str(saved): count for saved, count in sorted(self.reused.items())},
        }

    def _expire(self, now: float) -> None:
        while self._open:
            image, (admitted_at, deferred) = next(iter(self._open.items()))
            if now - admitted_at <= self._expiry_s:
                return
            del self._open[image]
            self._level_of.pop(image, None)
            self.late_deferred += deferred


def _newest(kept: deque[Any], count: int, told: int) -> list[Any]:
    new = count - told if told <= count else count
    return list(kept)[max(0, len(kept) - new) :]
