"""What is known of one replica's queue, and when the replica would have one more image ready.

There are two models, for there are two kinds of profile. One that measured steps belongs to workers whose images join
and leave at every step (:class:`SlotQueueModel`); one that measured whole batches to workers that run them as one
(:class:`BatchQueueModel`).

Both know that a call is on its way for a while (:mod:`load_balancer.dispatch.network_delay`): an image cannot join
what begins before it arrives, and a reply that has not come yet may be on its way back.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from load_balancer.dispatch.network_delay import NetworkDelay
from load_balancer.dispatch.service_times import ServiceTimes
from weir.plan import Plan

#: Unique among all images ever: the load balancer's are strings, the simulator's numbers.
ImageId = str | int


class Kind(NamedTuple):
    """Images of one kind can share a batch.

    Attributes:
        role: replicas that the image is sent to.
        variant: key of the variant that generates it.
        work: share of the variant's own number of steps.
    """

    role: str
    variant: str
    work: float = 1.0


def priced_open(plan: Plan) -> str:
    """The role whose images are priced by the batch as it is now; "": none.

    All others are priced as if every place beside them were taken, whoever is there yet.
    """
    return plan.first if plan.routing is None else ""


@dataclass(slots=True)
class ReplicaQueueModel(ABC):
    """What both models have in common: the images that were sent there, and the replica's assignment.

    Attributes:
        open_role: see :func:`priced_open`.
        queue: images sent and not answered, in order; of those in ``leaving`` one of the same batch has been answered.
        low_priority: images in the queue that let all others go first.
        foreign: images queued there by another load balancer.
    """

    id: str
    rank: int
    role: str
    batch_size: int
    open_role: str
    times: ServiceTimes
    delay: NetworkDelay
    queue: dict[ImageId, Kind] = field(default_factory=dict)
    sent_at: dict[ImageId, float] = field(default_factory=dict)
    leaving: set[ImageId] = field(default_factory=set)
    low_priority: set[ImageId] = field(default_factory=set)
    foreign: int = 0

    @property
    def outstanding(self) -> int:
        return len(self.queue) + len(self.leaving)

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Images in the queue that are not begun."""

    @abstractmethod
    def finish_at(self, kind: Kind, now: float, ahead: int = 0, *, low_priority: bool = False) -> float:
        """When one more image would be ready, with ``ahead`` images of its kind sent before it."""

    def floor(self, kind: Kind, now: float, *, low_priority: bool = False) -> float:
        """A lower bound of :meth:`finish_at` from now on, while nothing happens here and :attr:`steady` holds."""
        return self.finish_at(kind, now, low_priority=low_priority)

    @property
    @abstractmethod
    def signature(self) -> Hashable:
        """Equal for replicas of one role that could begin an image at once, and would have it ready at the same time;
        None for one that could not."""

    @property
    @abstractmethod
    def steady(self) -> bool:
        """Whether :meth:`finish_at` never decreases as time goes by, while nothing happens here."""

    @abstractmethod
    def begun(self, request: ImageId) -> bool:
        """Whether the image is being generated, as far as the model knows; what it does not know counts as begun."""

    def assign(self, request: ImageId, kind: Kind, now: float, *, low_priority: bool = False) -> None:
        """The image is on its way there."""
        behind: list[ImageId] = []
        if self.low_priority and not low_priority:
            behind = [name for name in self.queue if name in self.low_priority and not self.begun(name)]
        self.queue[request] = kind
        for name in behind:
            self.queue[name] = self.queue.pop(name)
        if low_priority:
            self.low_priority.add(request)
        self.sent_at[request] = now
        self._assigned(request, now)

    def replied(
        self,
        request: ImageId,
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
            self.delay.observe(now - sent_at - queue_s - compute_s)
        if request in self.leaving:
            self.leaving.discard(request)
            return None
        kind = self.queue.get(request)
        if kind is None:
            return None
        self.times.observe(kind.variant, batch_size, compute_s, kind.work, now=now)
        gone = [request, *self._beside(request, kind, together - 1, now)] if together > 1 else [request]
        for name in gone:
            del self.queue[name]
        if self.low_priority:
            self.low_priority.difference_update(gone)
        self.leaving.update(gone[1:])
        self._left(gone, now, queued)
        if queued is not None:
            self.foreign = max(0, queued - len(self.queue))
        return kind

    def knows(self, request: ImageId) -> bool:
        """Whether the image was sent there and is not answered."""
        return request in self.queue or request in self.leaving

    def forget(self, request: ImageId, now: float) -> None:
        """The image was cancelled or failed on the way; nobody waits for it any more."""
        self.sent_at.pop(request, None)
        self.low_priority.discard(request)
        if request in self.leaving:
            self.leaving.discard(request)
        elif request in self.queue:
            self._forgotten(request, now)

    @abstractmethod
    def _assigned(self, request: ImageId, now: float) -> None: ...

    @abstractmethod
    def _beside(self, request: ImageId, kind: Kind, count: int, now: float) -> list[ImageId]:
        """The images most likely to have left with this one."""

    @abstractmethod
    def _left(self, gone: list[ImageId], now: float, queued: int | None) -> None: ...

    @abstractmethod
    def _forgotten(self, request: ImageId, now: float) -> None: ...


@dataclass(slots=True)
class BatchQueueModel(ReplicaQueueModel):
    """Whole batches of one kind, in order:

        remaining time of the running batch + whole batches queued before it + the batch that it would be part of

    In the first variant's role the batch it would be part of is taken as it is now, in all others as full. Taken as it
    is now, a heavy batch looks cheapest where nobody waits, images spread over many small batches, and the variant
    loses half of its throughput just when it is needed; besides, those already accepted would grow late with every
    image that joins them. An idle replica begins at once, with this image alone.

    The first ``running`` entries of ``queue`` are in the batch that runs, which ends at ``free_at``.
    """

    running: int = 0
    free_at: float = 0.0

    @property
    def waiting(self) -> int:
        return len(self.queue) - self.running

    @property
    def signature(self) -> Hashable:
        return None if self.queue or self.foreign else 0

    @property
    def steady(self) -> bool:
        return True

    def floor(self, kind: Kind, now: float, *, low_priority: bool = False) -> float:
        return self.finish_at(kind, now, low_priority=low_priority, catches_all=True)

    def finish_at(
        self, kind: Kind, now: float, ahead: int = 0, *, low_priority: bool = False, catches_all: bool = False
    ) -> float:
        """See the base class.

        Args:
            catches_all: the image misses no batch that begins while it is on its way.
        """
        usual_s, seconds, size, running = self.delay.usual_s, self.times.seconds, self.batch_size, self.running
        arrives = start = now + usual_s
        if running:
            # The reply of a batch that has ended is on its way for so long. One that is overdue by x beyond that is
            # expected to take x more: a stuck replica repels work the longer it hangs.
            start = self.free_at
            overdue_s = now - start - usual_s
            if overdue_s > 0:
                start += 2 * overdue_s
        rest = ahead + self.foreign
        if len(self.queue) > running:
            before = self._before(low_priority)
            rest += before.pop(kind, 0)
            for other, count in before.items():
                whole, odd = divmod(count, size)
                start += whole * seconds(other.variant, size, other.work)
                if odd:
                    start += seconds(other.variant, odd, other.work)
        full = kind.role != self.open_role and (running or rest)
        if rest >= size:
            start += rest // size * seconds(kind.variant, size, kind.work)
            rest %= size
        if rest and not catches_all and start < now + self.delay.slow_s:  # they may leave before it is there
            start += seconds(kind.variant, rest, kind.work)
            rest = 0
        last_s = seconds(kind.variant, size if full else rest + 1, kind.work)
        return (start if start > arrives else arrives) + last_s + usual_s

    def begun(self, request: ImageId) -> bool:
        return request not in self.queue or request in islice(self.queue, self.running)

    def _before(self, low_priority: bool) -> dict[Kind, int]:
        """The waiting images that one more would have to let go first, by kind."""
        counts: dict[Kind, int] = {}
        if len(self.queue) > self.running:
            for name, kind in islice(self.queue.items(), self.running, None):
                if low_priority or name not in self.low_priority:
                    counts[kind] = counts.get(kind, 0) + 1
        return counts

    def _assigned(self, request: ImageId, now: float) -> None:
        if not self.running:
            self._start(now + self.delay.usual_s)

    def _beside(self, request: ImageId, kind: Kind, count: int, now: float) -> list[ImageId]:
        return [name for name, other in self.queue.items() if other == kind and name != request][: max(0, count)]

    def _left(self, gone: list[ImageId], now: float, queued: int | None) -> None:
        self._start(now - self.delay.usual_s if queued else now, queued)

    def _forgotten(self, request: ImageId, now: float) -> None:
        running = request in islice(self.queue, self.running)
        del self.queue[request]
        if running:
            self.running -= 1
            if not self.running:
                self._start(now)

    def _start(self, at: float, there: int | None = None) -> None:
        """The head of the queue becomes the running batch: of those that were ``there``, for others are on their way.

        None, or none there: the batch begins with the first to arrive, and the model takes them to be all.
        """
        head = next(iter(self.queue.values()), None)
        most = min(self.batch_size, there or self.batch_size)
        self.running = 0
        for kind in self.queue.values():
            if kind != head or self.running == most:
                break
            self.running += 1
        if head is not None:
            self.free_at = at + self.times.seconds(head.variant, self.running, head.work)


@dataclass(slots=True)
class SlotQueueModel(ReplicaQueueModel):
    """As many slots as the largest batch: an image takes one as soon as one is free, and leaves it when it is done.

        the time until a slot is free, with those before it placed first + its own steps

    The steps of an image of the first variant's role are priced with the slots taken as they are now, those of all
    others with every slot taken: an image that joins later breaks no promise then.

    Attributes:
        left: of the images in a slot, the share of their run that is still to go at ``as_of``; below 0 when overdue.
    """

    left: dict[ImageId, float] = field(default_factory=dict)
    as_of: float = 0.0

    @property
    def waiting(self) -> int:
        return len(self.queue) - len(self.left)

    @property
    def signature(self) -> Hashable:
        free = len(self.left) < self.batch_size and len(self.left) == len(self.queue) and not self.foreign
        return (self.batch_size, len(self.queue)) if free else None

    @property
    def steady(self) -> bool:
        """With free slots, images in the others are priced by another pace than they have."""
        return len(self.left) >= self.batch_size

    def finish_at(self, kind: Kind, now: float, ahead: int = 0, *, low_priority: bool = False) -> float:
        arrives = now + self.delay.usual_s
        ahead += self.foreign
        self._advance(now)
        company = min(self.batch_size, len(self.queue) + ahead + 1)

        def run_s(it: Kind) -> float:
            return self.times.seconds(it.variant, company if it.role == self.open_role else self.batch_size, it.work)

        # One that is overdue by x is expected to take x more: a stuck replica repels work the longer it hangs.
        free = sorted([now + abs(left) * run_s(self.queue[name]) for name, left in self.left.items()])
        free = free[max(0, len(free) - self.batch_size) :]
        free += [arrives] * (self.batch_size - len(free))
        heapq.heapify(free)
        for it in [*self._before(low_priority), *[kind] * ahead]:
            heapq.heapreplace(free, max(free[0], arrives) + run_s(it))
        return max(free[0], arrives) + run_s(kind) + self.delay.usual_s

    def begun(self, request: ImageId) -> bool:
        return request not in self.queue or request in self.left

    def _before(self, low_priority: bool) -> list[Kind]:
        """The waiting images that one more would have to let go first."""
        if len(self.queue) == len(self.left):
            return []
        return [
            kind
            for name, kind in self.queue.items()
            if name not in self.left and (low_priority or name not in self.low_priority)
        ]

    def _assigned(self, request: ImageId, now: float) -> None:
        self._advance(now)
        self._fill()

    def _beside(self, request: ImageId, kind: Kind, count: int, now: float) -> list[ImageId]:
        self._advance(now)
        others = [name for name in self.left if name != request and self.queue[name].variant == kind.variant]
        return sorted(others, key=self.left.__getitem__)[: max(0, count)]

    def _left(self, gone: list[ImageId], now: float, queued: int | None) -> None:
        for name in gone:
            self.left.pop(name, None)
        self._fill()

    def _forgotten(self, request: ImageId, now: float) -> None:
        self._advance(now)
        del self.queue[request]
        self.left.pop(request, None)
        self._fill()

    def _advance(self, now: float) -> None:
        """All images in a slot move on together, each by what its own steps cost in this company."""
        passed, self.as_of = max(0.0, now - self.as_of), max(now, self.as_of)
        if not passed:
            return
        for name in self.left:
            kind = self.queue[name]
            run_s = self.times.seconds(kind.variant, len(self.left), kind.work)
            self.left[name] -= passed / run_s if run_s > 0 else 0.0

    def _fill(self) -> None:
        """Waiting images take the free slots, in order."""
        if len(self.queue) == len(self.left):
            return
        for name in self.queue:
            if len(self.left) >= self.batch_size:
                return
            self.left.setdefault(name, 1.0)
