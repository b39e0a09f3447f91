"""Predicts when a run would be ready, for the cascade and admission, from the dispatcher's queue models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import ImageId, Kind
from load_balancer.dispatch.lateness import Lateness
from weir.cascade import Run
from weir.core import ImageSize


class DispatchForecast:
    """A :class:`weir.cascade.Forecast` from the dispatcher's queue models.

    Runs in the role of the chain's first variant are predicted behind all images that are admitted for the role and not
    at a replica yet. Predictions of other runs are corrected by the lateness of such runs in the last seconds.

    Args:
        steps: denoising steps of each variant's own run, by key.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        steps: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.lateness = Lateness()
        self._dispatcher = dispatcher
        self._steps = steps
        self._clock = clock
        self._expected: dict[ImageId, str] = {}  # role by image
        self._kinds: dict[tuple[str, str, int | None, ImageSize | None], Kind] = {}  # kinds of runs from noise

    def now(self) -> float:
        return self._clock()

    def finish_at(self, run: Run) -> float | None:
        if run.role == self._dispatcher.open_role:
            return self.admission_finish_at(run, 1)
        now = self._clock()
        ready_at = self._dispatcher.finish_at(self.kind(run), now, low_priority=run.low_priority, avoid=run.avoid)
        return None if ready_at is None else ready_at + self.lateness.seconds(now)

    def admission_finish_at(self, run: Run, images: int) -> float | None:
        """Predicted finish time of the last of ``images`` new images, after those expected; None without a replica."""
        ahead = sum(role == run.role for role in self._expected.values()) if self._expected else 0
        return self._dispatcher.finish_at(
            self.kind(run),
            self._clock(),
            images + ahead,
            low_priority=run.low_priority,
            avoid=run.avoid,
        )

    def expect(self, images: Iterable[ImageId], role: str) -> None:
        """Records admitted images, and the role of their first run."""
        for image in images:
            self._expected[image] = role

    def forget(self, images: Iterable[ImageId]) -> None:
        """Removes images that are now at a replica, where the dispatcher counts them, or that ended before."""
        for image in images:
            self._expected.pop(image, None)

    def observe(self, run: Run, predicted: float) -> None:
        """Takes in the lateness of a run that is ready now or was given up; ``predicted`` is infinite if unknown."""
        # A run of low priority is late because others precede it, not because of an error of the queue models.
        if predicted < math.inf and not run.low_priority and run.role != self._dispatcher.open_role:
            now = self._clock()
            self.lateness.observe(now - predicted, now)

    def kind(self, run: Run) -> Kind:
        """The dispatcher's kind of a run."""
        own = self._steps[run.variant]
        if run.resume is not None or run.strength is not None:
            return Kind(run.role, run.variant, run.work(own), run.size)
        key = run.role, run.variant, run.steps, run.size
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(run.role, run.variant, run.work(own), run.size)
        return kind
