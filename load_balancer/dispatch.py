"""Which replica draws an image: the one of the role that would finish it first.

The state is this load balancer's own book of what it sent where. A replica takes its queue in order, in batches of
one kind (role and work) of at most the plan's batch size, so the book can say when a new image would be done:

    remaining time of the running batch + whole batches queued before it + the batch that it would be part of

In the light role the batch it would be part of is taken as it is now, in the heavy role as full. Taken as it is now, a
heavy batch looks cheapest where nobody waits, images spread over many small batches, and the stage loses half of its
throughput just when it is needed; besides, those already accepted would grow late with every image that joins them. An
idle replica begins at once, with this image alone.

Replies correct the book: their batch size says which images left together, and the queue length that they carry shows
work that somebody else sent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import Any, NamedTuple

from load_balancer.service_times import ServiceTimes
from weir.core import Plan, ReplicaChoice, Role

#: Roles whose batches cost what full ones do, whoever is in them yet. The twin (``simulator/fleet.py``) reads it too.
PRICED_FULL = frozenset({Role.HEAVY})


class Kind(NamedTuple):
    """Images of one kind can share a batch. ``work`` is the share of the variant's own number of steps."""

    role: Role
    work: float = 1.0


class Choice(NamedTuple):
    """A replica and the time, on the caller's clock, at which it would have the image ready."""

    replica: str
    finish_at: float


@dataclass(slots=True)
class _Replica:
    """What is known of one replica. The first ``running`` entries of ``queue`` are in the batch being drawn."""

    id: str
    rank: int
    role: Role
    batch_size: int
    queue: dict[str, Kind] = field(default_factory=dict)
    running: int = 0
    free_at: float = 0.0
    leaving: set[str] = field(default_factory=set)  # drawn in a batch of which one reply is already here
    foreign: int = 0  # images queued there by somebody else

    def start_batch(self, now: float, times: ServiceTimes) -> None:
        """The head of the queue becomes the running batch."""
        if not self.queue:
            self.running = 0
            return
        head = next(iter(self.queue.values()))
        size = 0
        for kind in self.queue.values():
            if kind != head or size == self.batch_size:
                break
            size += 1
        self.running = size
        self.free_at = now + times.seconds(head.role, size, head.work)

    def finish_at(self, kind: Kind, now: float, times: ServiceTimes, ahead: int = 0) -> float:
        """When one more image would be ready, with ``ahead`` images of its kind sent before it."""
        # A batch that is overdue by x is expected to take x more: a stuck replica repels work the longer it hangs.
        start = now + abs(self.free_at - now) if self.running else now
        waiting = Counter(list(self.queue.values())[self.running :])
        waiting[kind] += ahead + self.foreign
        full = kind.role in PRICED_FULL and (self.running or waiting[kind])
        for other, count in waiting.items():
            whole, rest = divmod(count, self.batch_size)
            start += whole * times.seconds(other.role, self.batch_size, other.work)
            if other == kind:
                start += times.seconds(kind.role, self.batch_size if full else rest + 1, kind.work)
            elif rest:
                start += times.seconds(other.role, rest, other.work)
        return start


class Dispatcher:
    """The book of all replicas. Not thread-safe; time comes in as ``now`` (seconds, any monotone clock).

    Every :meth:`assign` has to be answered by exactly one :meth:`finished` or :meth:`forget`; both ignore a replica
    that is gone.
    """

    def __init__(self, plan: Plan, times: ServiceTimes, chance: random.Random | None = None):
        """
        Args:
            chance: for plans whose rules leave the choice of a replica to it.
        """
        self.times = times
        self._chance = chance or random.Random()
        self._plan = plan
        self._replicas: dict[str, _Replica] = {}

    def set_plan(self, plan: Plan) -> None:
        """Gives every replica the role and the batch size that the plan has for its rank."""
        self._plan = plan
        for replica in self._replicas.values():
            replica.role, replica.batch_size = _duty(plan, replica.rank)

    def sync(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Takes in who is there: ``replica``, ``rank``, ``ready`` and ``queued`` of each. Who is missing is gone."""
        seen: dict[str, _Replica] = {}
        for it in described:
            if not it.get("ready", True):
                continue
            role, batch_size = _duty(self._plan, it["rank"])
            known = self._replicas.get(it["replica"]) or _Replica(it["replica"], it["rank"], role, batch_size)
            known.rank, known.role, known.batch_size = it["rank"], role, batch_size
            known.foreign = max(0, it.get("queued", 0) - len(known.queue) - len(known.leaving))
            seen[known.id] = known
        self._replicas = seen

    def remove(self, replica: str) -> None:
        """The replica died."""
        self._replicas.pop(replica, None)

    def ready(self, role: Role) -> int:
        """How many live replicas have the role."""
        return sum(r.role is role for r in self._replicas.values())

    @property
    def ranks(self) -> list[int]:
        """Of the live replicas, ascending."""
        return sorted(r.rank for r in self._replicas.values())

    def queued(self, role: Role) -> int:
        """Images that wait at the replicas of the role for a batch."""
        return sum(len(r.queue) - r.running for r in self._replicas.values() if r.role is role)

    @property
    def outstanding(self) -> dict[str, int]:
        """Images sent to each replica and not answered yet."""
        return {r.id: len(r.queue) + len(r.leaving) for r in self._replicas.values()}

    def pick(self, kind: Kind, now: float, *, avoid: frozenset[str] = frozenset()) -> Choice | None:
        """The replica that the plan's rules send an image of this kind to; None when there is no replica at all.

        Every replica holds both variants, so while none of the role is alive the others stand in.
        """
        if self._plan.rules.replica_choice is ReplicaChoice.EARLIEST_FINISH:
            return self._earliest(kind, now, avoid)
        candidates = self._candidates(kind.role, avoid)
        if not candidates:
            return None
        replica = self._chance.choice(candidates)
        return Choice(replica.id, replica.finish_at(kind, now, self.times))

    def _earliest(self, kind: Kind, now: float, avoid: frozenset[str] = frozenset()) -> Choice | None:
        best = None
        for replica in self._candidates(kind.role, avoid):
            finish = replica.finish_at(kind, now, self.times)
            key = (finish, len(replica.queue) + len(replica.leaving), replica.rank)
            if best is None or key < best[0]:
                best = (key, Choice(replica.id, finish))
        return best[1] if best else None

    def finish_at(self, kind: Kind, now: float, images: int = 1) -> float | None:
        """When the last of ``images`` new images could be ready; None when there is no replica at all."""
        if images == 1:
            choice = self._earliest(kind, now)
            return choice.finish_at if choice else None
        candidates = self._candidates(kind.role, frozenset())
        if not candidates:
            return None
        # Each goes where it is ready first; only where the last one went does the next one find another time.
        offers = [(replica.finish_at(kind, now, self.times), replica.id, 0, replica) for replica in candidates]
        heapify(offers)
        last = now
        for _ in range(images):
            finish, id, ahead, replica = offers[0]
            last = max(last, finish)
            heapreplace(offers, (replica.finish_at(kind, now, self.times, ahead + 1), id, ahead + 1, replica))
        return last

    def assign(self, replica: str, request: str, kind: Kind, now: float) -> None:
        """Notes that the image was sent there."""
        it = self._replicas.get(replica)
        if it is None:
            return
        it.queue[request] = kind
        if not it.running:
            it.start_batch(now, self.times)

    def finished(
        self,
        replica: str,
        request: str,
        now: float,
        *,
        batch_size: int,
        compute_s: float,
        queued: int | None = None,
    ) -> Kind | None:
        """Takes in a reply: the size and the time of the batch it was drawn in, and the images waiting there now.

        Returns:
            What the batch was of, with its first reply; None with the others.
        """
        it = self._replicas.get(replica)
        if it is None:
            return None
        if request in it.leaving:
            it.leaving.discard(request)
            return None
        kind = it.queue.pop(request, None)
        if kind is None:
            return None
        self.times.observe(kind.role, batch_size, compute_s, kind.work)
        together = [id for id, other in it.queue.items() if other == kind][: batch_size - 1]
        for id in together:
            del it.queue[id]
        it.leaving = set(together)
        it.start_batch(now, self.times)
        if queued is not None:
            it.foreign = max(0, queued - len(it.queue))
        return kind

    def begun(self, replica: str, request: str) -> bool:
        """Whether the image is being drawn, as far as the book knows; what it does not know counts as begun."""
        it = self._replicas.get(replica)
        if it is None or request not in it.queue:
            return True
        return list(it.queue).index(request) < it.running

    def batch_s(self, replica: str, kind: Kind) -> float:
        """Predicted seconds of a full batch of the kind there; 0 when the replica is gone."""
        it = self._replicas.get(replica)
        return self.times.seconds(kind.role, it.batch_size, kind.work) if it else 0.0

    def forget(self, replica: str, request: str, now: float) -> None:
        """The image was cancelled or failed on the way; nobody waits for it any more."""
        it = self._replicas.get(replica)
        if it is None:
            return
        if request in it.leaving:
            it.leaving.discard(request)
            return
        if request not in it.queue:
            return
        position = list(it.queue).index(request)
        del it.queue[request]
        if position < it.running:
            it.running -= 1
            if not it.running:
                it.start_batch(now, self.times)

    def _candidates(self, role: Role, avoid: frozenset[str]) -> list[_Replica]:
        alive = [r for r in self._replicas.values() if r.id not in avoid]
        return [r for r in alive if r.role is role] or alive


def _duty(plan: Plan, rank: int) -> tuple[Role, int]:
    assignment = plan.assignment(rank)
    return assignment.role, assignment.batch_size
