"""Counts what a controller observes of the requests."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from load_balancer.dispatch.finish_time import ImageId
from weir.cascade import Action, Answer, Event, Judged, LookupAnswered, Progress, TellCache

#: Number of confidences, batches and fetches that are kept. A controller that reads them every second misses none below
#: this rate.
MOST_CONFIDENCES = 1000
MOST_BATCHES = 1000
MOST_FETCHES = 1000
#: An image counts as lost if it is not answered within this many SLOs.
EXPIRY = 2.0
#: Class of prompts without a predicted class.
UNKNOWN_CLASS = -1


class ObservationCounters:
    """Counts since the start. They never decrease, so that a reader that misses a second loses nothing.

    The load balancer and the simulator call :meth:`follow` for every step of every image.

    Args:
        expiry_s: an image that is not answered this many seconds after its admission counts as lost.
    """

    def __init__(self, expiry_s: float):
        self.arrivals = 0
        self.demand = 0.0
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
        self._open: dict[ImageId, float] = {}  # time of admission by image, in order
        self._open_deferred: set[ImageId] = set()

    def arrived(self, images: int, price: float = 1.0) -> None:
        """Counts requested images, whether or not they are admitted.

        Args:
            price: of each, see :meth:`weir.profiles.Profile.price`. To the controller, a larger image is several.
        """
        self.arrivals += images
        self.demand += images * price

    def admitted(self, image: ImageId, now: float) -> None:
        """Counts an image as in flight, until it is answered or expires; a failed image expires too."""
        self._open[image] = now

    def follow(self, image: ImageId, progress: Progress, event: Event, actions: Iterable[Action], now: float) -> None:
        """Counts one step of an image.

        Args:
            progress: state after the event.
            actions: actions that followed from the event.
        """
        if type(event) is LookupAnswered:
            self._looked_up(progress, event)
        for action in actions:
            if type(action) is Judged:
                self._judge(image, progress, action)
            elif type(action) is TellCache:
                self._count_reuse(progress, action)
            elif type(action) is Answer:
                self._answered(image, now)

    def batch(self, variant: str, size: int, seconds: float) -> None:
        """Records the time of a batch, scaled to the variant's own number of steps."""
        self.batches += 1
        self._batches.append((variant, size, seconds))

    def fetch(self, seconds: float) -> None:
        """Records the time that a worker waited for a state to resume from."""
        self.fetched += 1
        self._fetches.append(seconds)

    def since(self, judged: int, batches: int, now: float, *, fetched: int = 0, verdicts: int = 0) -> dict[str, Any]:
        """All counts, as JSON.

        ``confidences`` (of the first variant of the chain), ``confidences_by_variant`` (of all), ``batches`` (variant,
        size, seconds) and ``fetches`` (seconds) have the samples after the counts ``judged``, ``verdicts``,
        ``batches`` and ``fetched``, or all samples that are kept if a count is above the present one. ``levels`` has
        the prompt classes of ``confidences``. ``arrivals`` are in images of the family's own size.
        """
        self._expire(now)
        by_variant: dict[str, list[float]] = {}
        for variant, confidence in _newest(self._by_variant, self.verdicts, verdicts):
            by_variant.setdefault(variant, []).append(confidence)
        return {
            "arrivals": round(self.demand),
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
        """Counts a verdict; a missing confidence counts as 0."""
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

    def _count_reuse(self, progress: Progress, report: TellCache) -> None:
        """Counts the steps that a resumed image saved; none if it ran from noise after all."""
        self.looked_up += 1
        if report.image is None:
            return
        image = progress.images[report.image]
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
    """Denoising steps of a run of the last variant from noise, on the scale of K."""
    return progress.task.steps or progress.settings.steps[progress.task.plan.last]


def _newest(kept: deque[Any], count: int, known: int) -> list[Any]:
    new = count - known if known <= count else count
    return list(kept)[max(0, len(kept) - new) :]
