"""What a controller observes of the requests, counted as they pass."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from load_balancer.dispatch.finish_time import ImageId
from weir.cascade import Action, Answer, Event, Judged, LookupAnswered, Progress, TellCache

#: Confidences, batches and fetches kept for the next look. A controller that looks every second misses none below this
#: rate.
MOST_CONFIDENCES = 1000
MOST_BATCHES = 1000
MOST_FETCHES = 1000
#: An image counts as lost when it is not answered within this many SLOs.
EXPIRY = 2.0
#: Class of a prompt that no class was predicted for.
UNKNOWN_CLASS = -1


class ObservationCounters:
    """Counts since the start; they never go back, so that a reader that missed a look has lost nothing.

    The load balancer and the simulator call :meth:`follow` for every step of every image.

    Args:
        expiry_s: an image that is not answered this long after its admission counts as lost.
    """

    def __init__(self, expiry_s: float):
        self.arrivals = 0
        self.judged = 0
        self.deferred = 0
        self.verdicts = 0
        self.batches = 0
        self.looked_up = 0
        self.fetched = 0
        self.reused: Counter[float] = Counter()
        self.found: Counter[float] = Counter()
        self.missed: Counter[int] = Counter()
        self.classes: Counter[int] = Counter()
        self.late_answers = 0
        self.late_deferred = 0
        self._expiry_s = expiry_s
        self._confidences: deque[float] = deque(maxlen=MOST_CONFIDENCES)
        self._judged_classes: deque[int] = deque(maxlen=MOST_CONFIDENCES)
        self._by_variant: deque[tuple[str, float]] = deque(maxlen=MOST_CONFIDENCES)
        self._batches: deque[tuple[str, int, float]] = deque(maxlen=MOST_BATCHES)
        self._fetches: deque[float] = deque(maxlen=MOST_FETCHES)
        self._open: dict[ImageId, float] = {}  # by image, in order of admission: when
        self._open_deferred: set[ImageId] = set()

    def arrived(self, images: int) -> None:
        """Images were asked for, whether or not they are admitted."""
        self.arrivals += images

    def admitted(self, image: ImageId, now: float) -> None:
        """The image is in flight from now on, until it is answered or expires: one that failed expires too."""
        self._open[image] = now

    def follow(self, image: ImageId, progress: Progress, event: Event, actions: Iterable[Action], now: float) -> None:
        """Counts one step of an image.

        Args:
            progress: after the event.
            actions: that followed from it.
        """
        if isinstance(event, LookupAnswered):
            self._looked_up(progress, event)
        for action in actions:
            if isinstance(action, Judged):
                self._judge(image, progress, action)
            elif isinstance(action, TellCache):
                self._reuse(progress, action)
            elif isinstance(action, Answer):
                self._answered(image, now)

    def batch(self, variant: str, size: int, seconds: float) -> None:
        """A worker ran a batch that takes this long with the variant's own number of steps."""
        self.batches += 1
        self._batches.append((variant, size, seconds))

    def fetch(self, seconds: float) -> None:
        """A worker waited this long for a state to resume from."""
        self.fetched += 1
        self._fetches.append(seconds)

    def since(self, judged: int, batches: int, now: float, *, fetched: int = 0, verdicts: int = 0) -> dict[str, Any]:
        """Everything that was counted, JSON-ready.

        ``confidences`` (of the first variant of the chain), ``confidences_by_variant`` (of all), ``batches`` (variant,
        size, seconds) and ``fetches`` (seconds) are those after the counts ``judged``, ``verdicts``, ``batches`` and
        ``fetched``: all that are kept if these were never reached. ``levels`` are the prompt classes of
        ``confidences``.
        """
        self._expire(now)
        by_variant: dict[str, list[float]] = {}
        for variant, confidence in _newest(self._by_variant, self.verdicts, verdicts):
            by_variant.setdefault(variant, []).append(confidence)
        return {
            "arrivals": self.arrivals,
            "judged": self.judged,
            "deferred": self.deferred,
            "confidences": _newest(self._confidences, self.judged, judged),
            "verdicts": self.verdicts,
            "confidences_by_variant": by_variant,
            "batches_run": self.batches,
            "batches": _newest(self._batches, self.batches, batches),
            "in_flight": len(self._open),
            "deferred_in_flight": len(self._open_deferred),
            "late_answers": self.late_answers,
            "late_deferred": self.late_deferred,
            "looked_up": self.looked_up,
            "fetched": self.fetched,
            "fetches": _newest(self._fetches, self.fetched, fetched),
            "found": {str(saved): count for saved, count in sorted(self.found.items())},
            "missed": {str(number): count for number, count in sorted(self.missed.items())},
            "classes": {str(number): count for number, count in sorted(self.classes.items())},
            "levels": _newest(self._judged_classes, self.judged, judged),
            "reused": {str(saved): count for saved, count in sorted(self.reused.items())},
        }

    def _looked_up(self, progress: Progress, event: LookupAnswered) -> None:
        saved, prompt_class = event.lookup.saved(_whole_run(progress)), event.lookup.prompt_class
        if saved:
            self.found[round(saved, 3)] += 1
        elif prompt_class is not None:
            self.missed[prompt_class] += 1
        self.classes[UNKNOWN_CLASS if prompt_class is None else prompt_class] += 1

    def _judge(self, image: ImageId, progress: Progress, verdict: Judged) -> None:
        """No confidence counts as 0."""
        confidence = verdict.confidence or 0.0
        self.verdicts += 1
        self._by_variant.append((verdict.variant, confidence))
        if verdict.variant == progress.task.plan.first:
            self.judged += 1
            self.deferred += verdict.deferred
            self._confidences.append(confidence)
            prompt_class = progress.lookup.prompt_class
            self._judged_classes.append(UNKNOWN_CLASS if prompt_class is None else prompt_class)
        if verdict.deferred and image in self._open:
            self._open_deferred.add(image)

    def _reuse(self, progress: Progress, told: TellCache) -> None:
        """What the resumed image that the cache is told of saved; nothing if it ran from noise after all."""
        self.looked_up += 1
        if told.image is None:
            return
        image = progress.images[told.image]
        if image.run.resume is not None and image.resumed_at:
            steps = _whole_run(progress)
            left = (steps - image.run.resume.step) // image.run.resume.stride
            self.reused[round((steps - left) / steps, 3)] += 1

    def _answered(self, image: ImageId, now: float) -> None:
        self._expire(now)
        self._open_deferred.discard(image)
        if self._open.pop(image, None) is None:
            self.late_answers += 1

    def _expire(self, now: float) -> None:
        while self._open:
            image, admitted_at = next(iter(self._open.items()))
            if now - admitted_at <= self._expiry_s:
                return
            del self._open[image]
            if image in self._open_deferred:
                self._open_deferred.discard(image)
                self.late_deferred += 1


def _whole_run(progress: Progress) -> int:
    """Denoising steps of a run of the last variant from noise, as its states are counted."""
    return progress.task.steps or progress.settings.steps[progress.task.plan.last]


def _newest(kept: deque[Any], count: int, told: int) -> list[Any]:
    new = count - told if told <= count else count
    return list(kept)[max(0, len(kept) - new) :]
