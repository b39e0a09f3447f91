"""What is known of one replica, and when it would have one more image ready. The twin prices by the same rules.

There are two books, for there are two kinds of profile. One that measured steps belongs to workers whose images join
and leave at every step (:class:`SlotQueueModel`); one that measured whole batches to workers that draw them as one
(:class:`BatchQueueModel`).

Both know that a call is on its way for a while (:mod:`load_balancer.dispatch.network_delay`): an image cannot join
what begins before it arrives, and a reply that has not come yet may be on its way back.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from load_balancer.dispatch.network_delay import NetworkDelay
from load_balancer.dispatch.service_times import ServiceTimes
from weir.core import Role

#: Roles whose images are priced as if every place beside them were taken, whoever is there yet.
PRICED_FULL = frozenset({Role.HEAVY})


class Kind(NamedTuple):
    """Images of one kind can share a batch. ``work`` is the share of the variant's own number of steps."""

    role: Role
    work: float = 1.0


@dataclass(slots=True)
class ReplicaQueueModel(ABC):
    """What both books have in common: who was sent there, and the replica's duty.

    Attributes:
        queue: images sent and not answered, in order; of those in ``leaving`` one of the same batch has been answered.
        patient: images in the queue that let all others go first.
        foreign: images queued there by somebody else.
    """

    id: str
    rank: int
    role: Role
    batch_size: int
    times: ServiceTimes
    transit: NetworkDelay
    queue: dict[str, Kind] = field(default_factory=dict)
    sent_at: dict[str, float] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    patient: set[str] = field(default_factory=set)
    foreign: int = 0

    @property
    def outstanding(self) -> int:
        return len(self.queue) + len(self.leaving)

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Images in the queue that are not being drawn."""

    @abstractmethod
    def finish_at(self, kind: Kind, now: float, ahead: int = 0, *, patient: bool = False) -> float:
        """When one more image would be ready, with ``ahead`` images of its kind sent before it."""

    @abstractmethod
    def begun(self, request: str) -> bool:
        """Whether the image is being drawn, as far as the book knows; what it does not know counts as begun."""

    def assign(self, request: str, kind: Kind, now: float, *, patient: bool = False) -> None:
        """The image is on its way there."""
        behind = [] if patient else [name for name in self.queue if name in self.patient and not self.begun(name)]
        self.queue[request] = kind
        for name in behind:
            self.queue[name] = self.queue.pop(name)
        if patient:
            self.patient.add(request)
        self.sent_at[request] = now
        self._assigned(request, now)

    def replied(
        self,
        request: str,
        now: float,
        *,
        batch_size: int,
        compute_s: float,
        together: int,
        queue_s: float | None,
        queued: int | None,
    ) -> Kind | None:
        """Takes in a reply; see ``Dispatcher.finished``."""
        sent_at = self.sent_at.pop(request, None)
        if sent_at is not None and queue_s is not None:
            self.transit.observe(now - sent_at - queue_s - compute_s)
        if request in self.leaving:
            self.leaving.discard(request)
            return None
        kind = self.queue.get(request)
        if kind is None:
            return None
        self.times.observe(kind.role, batch_size, compute_s, kind.work, now=now)
        gone = [request, *self._beside(request, kind, together - 1, now)]
        for name in gone:
            del self.queue[name]
        self.patient.difference_update(gone)
        self.leaving |= set(gone[1:])
        self._left(gone, now, queued)
        if queued is not None:
            self.foreign = max(0, queued - len(self.queue))
        return kind

    def forget(self, request: str, now: float) -> None:
        """The image was cancelled or failed on the way; nobody waits for it any more."""
        self.sent_at.pop(request, None)
        self.patient.discard(request)
        if request in self.leaving:
            self.leaving.discard(request)
        elif request in self.queue:
            self._forgotten(request, now)

    def _before(self, patient: bool) -> list[Kind]:
        """The waiting images that one more would have to let go first."""
        return [
            kind for name, kind in self.queue.items() if not self.begun(name) and (patient or name not in self.patient)
        ]

    @abstractmethod
    def _assigned(self, request: str, now: float) -> None: ...

    @abstractmethod
    def _beside(self, request: str, kind: Kind, count: int, now: float) -> list[str]:
        """The images most likely to have left with this one."""

    @abstractmethod
    def _left(self, gone: list[str], now: float, queued: int | None) -> None: ...

    @abstractmethod
    def _forgotten(self, request: str, now: float) -> None: ...


@dataclass(slots=True)
class BatchQueueModel(ReplicaQueueModel):
    """Whole batches of one kind, in order:

        remaining time of the running batch + whole batches queued before it + the batch that it would be part of

    In the light role the batch it would be part of is taken as it is now, in the heavy role as full. Taken as it is
    now, a heavy batch looks cheapest where nobody waits, images spread over many small batches, and the stage loses
    half of its throughput just when it is needed; besides, those already accepted would grow late with every image that
    joins them. An idle replica begins at once, with this image alone.

    The first ``running`` entries of ``queue`` are in the batch being drawn, which ends at ``free_at``.
    """

    running: int = 0
    free_at: float = 0.0

    @property
    def waiting(self) -> int:
        return len(self.queue) - self.running

    def finish_at(self, kind: Kind, now: float, ahead: int = 0, *, patient: bool = False) -> float:
        arrives = start = now + self.transit.usual_s
        if self.running:
            # The reply of a batch that has ended is on its way for so long. One that is overdue by x beyond that is
            # expected to take x more: a stuck replica repels work the longer it hangs.
            start = self.free_at + 2 * max(0.0, now - self.free_at - self.transit.usual_s)
        waiting = Counter(self._before(patient) if self.patient else list(self.queue.values())[self.running :])
        waiting[kind] += ahead + self.foreign
        full = kind.role in PRICED_FULL and (self.running or waiting[kind])
        own = 0.0
        for other, count in waiting.items():
            whole, rest = divmod(count, self.batch_size)
            start += whole * self.times.seconds(other.role, self.batch_size, other.work)
            if other == kind:
                if rest and start < now + self.transit.slow_s:  # they may leave before it is there
                    start += self.times.seconds(kind.role, rest, kind.work)
                    rest = 0
                own = self.times.seconds(kind.role, self.batch_size if full else rest + 1, kind.work)
            elif rest:
                start += self.times.seconds(other.role, rest, other.work)
        return max(start, arrives) + own + self.transit.usual_s

    def begun(self, request: str) -> bool:
        return request not in self.queue or list(self.queue).index(request) < self.running

    def _assigned(self, request: str, now: float) -> None:
        if not self.running:
            self._start(now + self.transit.usual_s)

    def _beside(self, request: str, kind: Kind, count: int, now: float) -> list[str]:
        return [name for name, other in self.queue.items() if other == kind and name != request][: max(0, count)]

    def _left(self, gone: list[str], now: float, queued: int | None) -> None:
        self._start(now - self.transit.usual_s if queued else now, queued)

    def _forgotten(self, request: str, now: float) -> None:
        position = list(self.queue).index(request)
        del self.queue[request]
        if position < self.running:
            self.running -= 1
            if not self.running:
                self._start(now)

    def _start(self, at: float, there: int | None = None) -> None:
        """The head of the queue becomes the running batch: of those that were ``there``, for others are on their way.

        None, or nobody there: the batch begins with the first to arrive, whom the book takes to be all.
        """
        head = next(iter(self.queue.values()), None)
        most = min(self.batch_size, there or self.batch_size)
        self.running = 0
        for kind in self.queue.values():
            if kind != head or self.running == most:
                break
            self.running += 1
        if head is not None:
            self.free_at = at + self.times.seconds(head.role, self.running, head.work)


@dataclass(slots=True)
class SlotQueueModel(ReplicaQueueModel):
    """As many seats as the largest batch: an image takes one as soon as one is free, and leaves it when it is done.

        the time until a seat is free, those before it seated first + its own steps

    A heavy image's steps are priced with every seat taken: whoever joins later breaks no promise. A light one's are
    priced as it is now.

    Attributes:
        left: of the seated, the share of their run that is still to go at ``as_of``; below 0 when overdue.
    """

    left: dict[str, float] = field(default_factory=dict)
    as_of: float = 0.0

    @property
    def waiting(self) -> int:
        return len(self.queue) - len(self.left)

    def finish_at(self, kind: Kind, now: float, ahead: int = 0, *, patient: bool = False) -> float:
        arrives = now + self.transit.usual_s
        ahead += self.foreign
        self._advance(now)
        company = min(self.batch_size, len(self.queue) + ahead + 1)

        def run_s(it: Kind) -> float:
            return self.times.seconds(it.role, self.batch_size if it.role in PRICED_FULL else company, it.work)

        # One that is overdue by x is expected to take x more: a stuck replica repels work the longer it hangs.
        free = sorted(now + abs(left) * run_s(self.queue[name]) for name, left in self.left.items())
        free = free[max(0, len(free) - self.batch_size) :]
        free += [arrives] * (self.batch_size - len(free))
        heapq.heapify(free)
        for it in [*self._before(patient), *[kind] * ahead]:
            heapq.heapreplace(free, max(free[0], arrives) + run_s(it))
        return max(free[0], arrives) + run_s(kind) + self.transit.usual_s

    def begun(self, request: str) -> bool:
        return request not in self.queue or request in self.left

    def _assigned(self, request: str, now: float) -> None:
        self._advance(now)
        self._seat()

    def _beside(self, request: str, kind: Kind, count: int, now: float) -> list[str]:
        self._advance(now)
        others = [name for name in self.left if name != request and self.queue[name].role is kind.role]
        return sorted(others, key=self.left.__getitem__)[: max(0, count)]

    def _left(self, gone: list[str], now: float, queued: int | None) -> None:
        for name in gone:
            self.left.pop(name, None)
        self._seat()

    def _forgotten(self, request: str, now: float) -> None:
        self._advance(now)
        del self.queue[request]
        self.left.pop(request, None)
        self._seat()

    def _advance(self, now: float) -> None:
        """All seated images move on together, each by what its own steps cost in this company."""
        passed, self.as_of = max(0.0, now - self.as_of), max(now, self.as_of)
        for name in self.left:
            kind = self.queue[name]
            run_s = self.times.seconds(kind.role, len(self.left), kind.work)
            self.left[name] -= passed / run_s if run_s > 0 else 0.0

    def _seat(self) -> None:
        for name in self.queue:
            if len(self.left) >= self.batch_size:
                return
            self.left.setdefault(name, 1.0)
