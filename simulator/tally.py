"""What the twin counts of its requests for the controller, as the load balancer does."""

from __future__ import annotations

from collections import Counter

from controller.observation import Batch, Observation
from weir.core import Role

#: A request older than this many deadlines counts as lost in what the controller sees.
EXPIRY = 2.0


class Tally:
    """Counts since the last look, and the requests in flight that are not too old.

    Args:
        arrived: seconds, by request, ascending.
    """

    def __init__(self, arrived: list[float], slo_s: float):
        self._arrived = arrived
        self._expiry_s = EXPIRY * slo_s
        self._oldest = self._arrivals = self._answered = self._expired = 0
        self._deferred_in_flight = self._late_answers = self._late_deferred = 0
        self._forget()

    def _forget(self) -> None:
        self.confidences: list[float] = []
        self.levels: list[int] = []
        self.batches: list[Batch] = []
        self.fetches: list[float] = []
        self.found: Counter[float] = Counter()
        self.reused: Counter[float] = Counter()
        self.missed: Counter[int] = Counter()
        self.deferred = 0

    def judged(self, confidence: float, level: int) -> None:
        """A light image is there."""
        self.confidences.append(confidence)
        self.levels.append(level)

    def deferred_first(self, i: int) -> None:
        """A request was deferred that never was before."""
        self._deferred_in_flight += i >= self._oldest

    def answered(self, i: int, was_deferred: bool) -> None:
        if i >= self._oldest:
            self._answered += 1
            self._deferred_in_flight -= was_deferred
        else:
            self._late_answers += 1

    def expire(self, now: float, arrived: int, finished: list[float], deferred: list[bool]) -> None:
        """Requests that grew too old are no longer in flight."""
        while self._oldest < arrived and self._arrived[self._oldest] < now - self._expiry_s:
            i = self._oldest
            self._oldest += 1
            if finished[i] == float("inf"):
                self._expired += 1
                self._late_deferred += deferred[i]
                self._deferred_in_flight -= deferred[i]

    def look(self, now: float, arrived: int, replicas: tuple[int, ...], queued: dict[Role, int]) -> Observation:
        """What happened since the last look; counting begins anew."""
        seen = Observation(
            now_s=now,
            arrivals=arrived - self._arrivals,
            confidences=tuple(self.confidences),
            deferred=self.deferred,
            batches=tuple(self.batches),
            replicas=replicas,
            queued=queued,
            in_flight=arrived - self._answered - self._expired,
            deferred_in_flight=self._deferred_in_flight,
            late_answers=self._late_answers,
            late_deferred=self._late_deferred,
            reused=dict(self.reused),
            fetches=tuple(self.fetches),
            found=dict(self.found),
            missed=dict(self.missed),
            levels=tuple(self.levels),
        )
        self._arrivals = arrived
        self._forget()
        return seen
