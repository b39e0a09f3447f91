"""Models of a replica's queue, which predict when the replica would finish one more image.

There are two models, one for each kind of profile. A profile of steps belongs to workers whose images join and leave
at every step (:class:`SlotQueueModel`); a profile of whole batches belongs to workers that run a batch from begin to
end (:class:`BatchQueueModel`).

Both include the network delay (:mod:`load_balancer.dispatch.network_delay`): an image cannot join a batch that begins
before the image arrives, and a reply that is due may still be in transit.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from load_balancer.dispatch.network_delay import NetworkDelay
from load_balancer.dispatch.service_times import ServiceTimes
from weir.core import ImageSize
from weir.plan import Plan

#: Never reused. The load balancer uses strings and, for images of its peers, pairs; the simulator numbers.
ImageId = Hashable


class Kind(NamedTuple):
    """Images of one kind can share a batch.

    Attributes:
        role: replicas that the image is sent to.
        variant: key of the variant that generates it.
        work: share of the variant's own number of steps.
        size: of the image; None: the family's own.
    """

    role: str
    variant: str
    work: float = 1.0
    size: ImageSize | None = None


class BatchReport(NamedTuple):
    """What a reply says of the batch that generated its image.

    Attributes:
        batch_size: images in the denoiser's batch.
        compute_s: seconds from the image's first step to its last.
        device_s: seconds of these in which the device worked on the batch; None: all.
        together: number of images that finished at the same step; None: the whole batch.
        queue_s: how long the image waited at the replica, seconds; None: unknown.
        queued: how many images wait there now; None: unknown.
    """

    batch_size: int
    compute_s: float
    device_s: float | None = None
    together: int | None = None
    queue_s: float | None = None
    queued: int | None = None


def priced_open(plan: Plan) -> str:
    """The role whose images are predicted with the present occupancy of the batch; "": none.

    Images of all other roles are predicted with a full batch, however many images are in it yet.
    """
    return plan.first if plan.routing is None else ""


@dataclass(slots=True)
class ReplicaQueueModel(ABC):
    """Base of both models: the images that were sent to the replica, and the replica's assignment.

    Attributes:
        open_role: see :func:`priced_open`.
        queue: images sent and not answered, in order; for those in ``leaving`` another image of the batch was answered.
        low_priority: images in the queue that all others precede.
        foreign: number of images that other load balancers queued there.
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
        """Number of images in the queue that have not begun."""

    @abstractmethod
    def finish_at(self, kind: Kind, now: float, ahead: int = 0, *, low_priority: bool = False) -> float:
        """Predicted finish time of one more image, after ``ahead`` more images of its kind were sent."""

    def floor(self, kind: Kind, now: float, *, low_priority: bool = False) -> float:
        """A lower bound of :meth:`finish_at` from now on, while the queue is unchanged and :attr:`steady` holds."""
        return self.finish_at(kind, now, low_priority=low_priority)

    @property
    @abstractmethod
    def signature(self) -> Hashable:
        """Equal for replicas of one role that could begin an image at once and would finish it at the same time; None
        for a replica that could not begin at once."""

    @property
    def holds_until(self) -> float:
        """Until when :meth:`finish_at` keeps its value, while the queue and the service times are unchanged and calls
        have no network delay."""
        return -math.inf

    @property
    @abstractmethod
    def steady(self) -> bool:
        """Whether :meth:`finish_at` never decreases over time while the queue is unchanged."""

    @abstractmethod
    def begun(self, request: ImageId) -> bool:
        """Whether the image is being generated, as far as the model knows; an unknown image counts as begun."""

    def assign(self, request: ImageId, kind: Kind, now: float, *, low_priority: bool = False) -> None:
        """Records that the image was sent to the replica."""
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

    def replied(self, request: ImageId, now: float, report: BatchReport) -> Kind | None:
        """Takes in a reply; see ``Dispatcher.finished``."""
        batch_size, compute_s, device_s, together, queue_s, queued = report
        sent_at = self.sent_at.pop(request, None)
        if sent_at is not None and queue_s is not None:
            self.delay.observe(now - sent_at - queue_s - compute_s)
        if request in self.leaving:
            self.leaving.discard(request)
            return None
        kind = self.queue.get(request)
        if kind is None:
            return None
        device_s, together = compute_s if device_s is None else device_s, together or batch_size
        self.times.observe(kind.variant, batch_size, device_s, kind.work, kind.size, now=now)
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
        """Whether the image was sent to the replica and is not answered."""
        return request in self.queue or request in self.leaving

    def forget(self, request: ImageId, now: float) -> None:
        """Removes an image that was cancelled or failed."""
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
        """The images that most likely finished together with this one."""

    @abstractmethod
    def _left(self, gone: list[ImageId], now: float, queued: int | None) -> None: ...

    @abstractmethod
    def _forgotten(self, request: ImageId, now: float) -> None: ...


@dataclass(slots=True)
class BatchQueueModel(ReplicaQueueModel):
    """Models a replica that runs whole batches of one kind, in order. The predicted finish time of an image is:

    remaining time of the running batch + whole batches queued before it + the batch that it would be part of

    In the first variant's role the last term is the time of the batch at its present size, in all other roles that of a
    full batch. At its present size a heavy batch would look cheapest at replicas without a queue, images would spread
    over many small batches, and the variant would lose half of its throughput just when it is needed; besides, every
    image that joins would delay those already accepted. An idle replica begins at once, with this image alone.

    The first ``running`` entries of ``queue`` are in the batch that runs, which ends at ``free_at``. ``counts`` keeps
    what waits behind it, by kind, for images of low priority and for others, until the next batch begins.
    """

    running: int = 0
    free_at: float = 0.0
    counts: dict[bool, dict[Kind, int]] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        return len(self.queue) - self.running

    @property
    def signature(self) -> Hashable:
        return None if self.queue or self.foreign else 0

    @property
    def holds_until(self) -> float:
        return self.free_at if self.running else -math.inf

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
            catches_all: the image misses no batch that begins while it is in transit.
        """
        usual_s, seconds, size, running = self.delay.usual_s, self.times.seconds, self.batch_size, self.running
        arrives = start = now + usual_s
        if running:
            # The reply of a batch that has ended is in transit for the network delay. One that is overdue by x beyond
            # that is expected to take x more, so that a stuck replica gets less work the longer it hangs.
            start = self.free_at
            overdue_s = now - start - usual_s
            if overdue_s > 0:
                start += 2 * overdue_s
        rest = ahead + self.foreign
        if len(self.queue) > running:
            for other, count in self._before(low_priority).items():
                if other == kind:
                    rest += count
                    continue
                whole, odd = divmod(count, size)
                start += whole * seconds(other.variant, size, other.work, other.size)
                if odd:
                    start += seconds(other.variant, odd, other.work, other.size)
        full = kind.role != self.open_role and (running or rest)
        if rest >= size:
            start += rest // size * seconds(kind.variant, size, kind.work, kind.size)
            rest %= size
        if rest and not catches_all and start < now + self.delay.slow_s:  # they may have begun before it arrives
            start += seconds(kind.variant, rest, kind.work, kind.size)
            rest = 0
        last_s = seconds(kind.variant, size if full else rest + 1, kind.work, kind.size)
        return (start if start > arrives else arrives) + last_s + usual_s

    def begun(self, request: ImageId) -> bool:
        return request not in self.queue or request in islice(self.queue, self.running)

    def _before(self, low_priority: bool) -> dict[Kind, int]:
        """The waiting images that one more would have to let go first, by kind."""
        counts = self.counts.get(low_priority)
        if counts is None:
            counts = self.counts[low_priority] = {}
            for name, kind in islice(self.queue.items(), self.running, None):
                if low_priority or name not in self.low_priority:
                    counts[kind] = counts.get(kind, 0) + 1
        return counts

    def _assigned(self, request: ImageId, now: float) -> None:
        if not self.running:
            self._start(now + self.delay.usual_s)
            return
        kind = self.queue[request]
        for low_priority, counts in self.counts.items():
            if low_priority or request not in self.low_priority:
                counts[kind] = counts.get(kind, 0) + 1

    def _beside(self, request: ImageId, kind: Kind, count: int, now: float) -> list[ImageId]:
        return [name for name, other in self.queue.items() if other == kind and name != request][: max(0, count)]

    def _left(self, gone: list[ImageId], now: float, queued: int | None) -> None:
        self._start(now - self.delay.usual_s if queued else now, queued)

    def _forgotten(self, request: ImageId, now: float) -> None:
        running = request in islice(self.queue, self.running)
        del self.queue[request]
        self.counts = {}
        if running:
            self.running -= 1
            if not self.running:
                self._start(now)

    def _start(self, at: float, there: int | None = None) -> None:
        """Makes the head of the queue the running batch.

        Only the first ``there`` images had arrived; the others were in transit. With None or 0 the batch begins with
        the first image that arrives, and the model assumes that all have.
        """
        self.counts = {}
        head = next(iter(self.queue.values()), None)
        most = min(self.batch_size, there or self.batch_size)
        self.running = 0
        for kind in self.queue.values():
            if kind != head or self.running == most:
                break
            self.running += 1
        if head is not None:
            self.free_at = at + self.times.seconds(head.variant, self.running, head.work, head.size)


@dataclass(slots=True)
class SlotQueueModel(ReplicaQueueModel):
    """Models a replica with one slot for each image of its largest batch. An image takes a slot as soon as one is free,
    and leaves it when it is done. Its predicted finish time is:

    time until a slot is free for it, after the images before it + time of its own steps

    The steps of an image of the first variant's role are priced with the slots that are taken now, those of all other
    roles with every slot taken, so that an image that joins later does not make an accepted one late.

    Images of one size share slots and calls; those of another size have slots and calls of their own. As long as the
    replica has images of several sizes, it works on one size at a time, on that of its oldest image first. So the work
    that is left on other sizes comes before an image:

    work of other sizes, in batches of their own + time of the image among those of its own size

    Attributes:
        left: of the images in a slot, the share of their run that remains at ``as_of``; below 0 when overdue.
        mixed: whether the queue has images of several sizes.
    """

    left: dict[ImageId, float] = field(default_factory=dict)
    as_of: float = 0.0
    mixed: bool = False

    @property
    def waiting(self) -> int:
        return len(self.queue) - len(self.left)

    @property
    def signature(self) -> Hashable:
        free = len(self.left) < self.batch_size and len(self.left) == len(self.queue) and not self.foreign
        return (self.batch_size, len(self.queue)) if free and not self.mixed else None

    @property
    def steady(self) -> bool:
        """False with free slots: then images in the taken slots are priced by another pace than they have. False with
        several sizes, too: the order of their work is a guess."""
        return len(self.left) >= self.batch_size and not self.mixed

    def finish_at(self, kind: Kind, now: float, ahead: int = 0, *, low_priority: bool = False) -> float:
        arrives = now + self.delay.usual_s
        ahead += self.foreign
        self._advance(now)
        before = self._before(low_priority)
        taken, beside, others_s = self.left, len(self.queue), 0.0
        if self.mixed or (self.queue and next(iter(self.queue.values())).size != kind.size):
            others_s = self._others_s(kind.size, before)
            taken = {name: left for name, left in self.left.items() if self.queue[name].size == kind.size}
            beside = sum(it.size == kind.size for it in self.queue.values())
            before = [it for it in before if it.size == kind.size]
        company = min(self.batch_size, beside + ahead + 1)

        def run_s(it: Kind) -> float:
            batch_size = company if it.role == self.open_role else self.batch_size
            return self.times.seconds(it.variant, batch_size, it.work, it.size)

        # An image overdue by x is expected to take x more, so that a stuck replica gets less work as it hangs.
        free = sorted([now + abs(left) * run_s(self.queue[name]) for name, left in taken.items()])
        free = free[max(0, len(free) - self.batch_size) :]
        free += [arrives] * (self.batch_size - len(free))
        heapq.heapify(free)
        for it in [*before, *[kind] * ahead]:
            heapq.heapreplace(free, max(free[0], arrives) + run_s(it))
        return max(free[0], arrives) + others_s + run_s(kind) + self.delay.usual_s

    def begun(self, request: ImageId) -> bool:
        return request not in self.queue or request in self.left

    def _before(self, low_priority: bool) -> list[Kind]:
        """Kinds of the waiting images that would precede one more."""
        if len(self.queue) == len(self.left):
            return []
        return [
            kind
            for name, kind in self.queue.items()
            if name not in self.left and (low_priority or name not in self.low_priority)
        ]

    def _others_s(self, size: ImageSize | None, before: list[Kind]) -> float:
        """Seconds of the work that is left on images of other sizes, each at the pace of the batch that it is in."""
        left = [(self.queue[name], abs(share)) for name, share in self.left.items()] + [(it, 1.0) for it in before]
        counts = Counter(it.size for it, _ in left)
        seconds = 0.0
        for it, share in left:
            if it.size != size:
                batch = min(self.batch_size, counts[it.size])
                seconds += share * self.times.seconds(it.variant, batch, it.work, it.size) / batch
        return seconds

    def _assigned(self, request: ImageId, now: float) -> None:
        self._advance(now)
        self._fill()

    def _beside(self, request: ImageId, kind: Kind, count: int, now: float) -> list[ImageId]:
        self._advance(now)
        others = [name for name in self.left if name != request and self._calls(self.queue[name], kind)]
        return sorted(others, key=self.left.__getitem__)[: max(0, count)]

    @staticmethod
    def _calls(one: Kind, other: Kind) -> bool:
        """Whether images of two kinds can share a call."""
        return one.variant == other.variant and one.size == other.size

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
        """Advances the images in slots, each by the cost of its steps in a batch of the present size."""
        passed, self.as_of = max(0.0, now - self.as_of), max(now, self.as_of)
        if not passed:
            return
        if self.mixed:
            for oldest in list(self.left):
                if passed > 0 and self.left[oldest] > 0:
                    passed = self._advance_size(oldest, passed)
            if passed <= 0:
                return
        self._spend(self.left, passed)

    def _advance_size(self, oldest: ImageId, passed: float) -> float:
        """Spends time on the images of one size until the oldest of them is done; returns the seconds that are left."""
        kind = self.queue[oldest]
        group = [name for name in self.left if self.queue[name].size == kind.size]
        needed = self.left[oldest] * self.times.seconds(kind.variant, len(group), kind.work, kind.size)
        self._spend(group, min(passed, needed))
        return passed - needed

    def _spend(self, group: Collection[ImageId], passed: float) -> None:
        for name in group:
            kind = self.queue[name]
            run_s = self.times.seconds(kind.variant, len(group), kind.work, kind.size)
            self.left[name] -= passed / run_s if run_s > 0 else 0.0

    def _fill(self) -> None:
        """Puts waiting images into the free slots of their size, in order."""
        first = next(iter(self.queue.values()), None)
        self.mixed = first is not None and any(it.size != first.size for it in self.queue.values())
        if len(self.queue) == len(self.left):
            return
        if not self.mixed:
            for name in self.queue:
                if len(self.left) >= self.batch_size:
                    return
                self.left.setdefault(name, 1.0)
            return
        taken = Counter(self.queue[name].size for name in self.left)
        for name, kind in self.queue.items():
            if name not in self.left and taken[kind.size] < self.batch_size:
                taken[kind.size] += 1
                self.left[name] = 1.0
