"""Which replica draws an image: the one of the role that would finish it first.

The state is this load balancer's own book of what it sent where (``finish_time.py``). Replies correct
it: they say which images left together, and the queue length that they carry shows work that somebody else sent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from heapq import heapify, heapreplace
from typing import Any, NamedTuple

from load_balancer.dispatch.finish_time import BatchQueueModel, Kind, ReplicaQueueModel, SlotQueueModel
from load_balancer.dispatch.network_delay import NetworkDelay
from load_balancer.dispatch.service_times import ServiceTimes
from weir.core import Plan, ReplicaChoice, Role


class Choice(NamedTuple):
    """A replica and the time, on the caller's clock, at which it would have the image ready."""

    replica: str
    finish_at: float


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
        self.transit = NetworkDelay()
        self._book = SlotQueueModel if times.stepwise else BatchQueueModel
        self._chance = chance or random.Random()
        self._plan = plan
        self._replicas: dict[str, ReplicaQueueModel] = {}

    def set_plan(self, plan: Plan) -> None:
        """Gives every replica the role and the batch size that the plan has for its rank."""
        self._plan = plan
        self.times.use_light(plan.rules.light)
        for replica in self._replicas.values():
            replica.role, replica.batch_size = _duty(plan, replica.rank)

    def sync(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Takes in who is there: ``replica``, ``rank``, ``ready`` and ``queued`` of each. Who is missing is gone."""
        seen: dict[str, ReplicaQueueModel] = {}
        for it in described:
            if not it.get("ready", True):
                continue
            role, batch_size = _duty(self._plan, it["rank"])
            known = self._replicas.get(it["replica"]) or self._book(
                it["replica"], it["rank"], role, batch_size, self.times, self.transit
            )
            known.rank, known.role, known.batch_size = it["rank"], role, batch_size
            known.foreign = max(0, it.get("queued", 0) - known.outstanding)
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
        return sum(r.waiting for r in self._replicas.values() if r.role is role)

    def capacity_rps(self, role: Role) -> float:
        """Images per second that the replicas of the role can draw whole, in full batches; 0 while no time is known."""
        seconds = [
            (r.batch_size, self.times.seconds(role, r.batch_size)) for r in self._replicas.values() if r.role is role
        ]
        return sum(size / batch_s for size, batch_s in seconds if batch_s > 0)

    @property
    def outstanding(self) -> dict[str, int]:
        """Images sent to each replica and not answered yet."""
        return {r.id: r.outstanding for r in self._replicas.values()}

    def pick(
        self, kind: Kind, now: float, *, avoid: frozenset[str] = frozenset(), patient: bool = False
    ) -> Choice | None:
        """The replica that the plan's rules send an image of this kind to; None when there is no replica at all.

        Every replica holds both variants, so while none of the role is alive the others stand in.
        """
        if self._plan.rules.replica_choice is ReplicaChoice.EARLIEST_FINISH:
            return self._earliest(kind, now, avoid, patient)
        candidates = self._candidates(kind.role, avoid)
        if not candidates:
            return None
        replica = self._chance.choice(candidates)
        return Choice(replica.id, replica.finish_at(kind, now, patient=patient))

    def _earliest(
        self, kind: Kind, now: float, avoid: frozenset[str] = frozenset(), patient: bool = False
    ) -> Choice | None:
        best = None
        for replica in self._candidates(kind.role, avoid):
            finish = replica.finish_at(kind, now, patient=patient)
            key = (finish, replica.outstanding, replica.rank)
            if best is None or key < best[0]:
                best = (key, Choice(replica.id, finish))
        return best[1] if best else None

    def finish_at(self, kind: Kind, now: float, images: int = 1, *, patient: bool = False) -> float | None:
        """When the last of ``images`` new images could be ready; None when there is no replica at all."""
        if images == 1:
            choice = self._earliest(kind, now, patient=patient)
            return choice.finish_at if choice else None
        candidates = self._candidates(kind.role, frozenset())
        if not candidates:
            return None
        # Each goes where it is ready first; only where the last one went does the next one find another time.
        offers = [(it.finish_at(kind, now, patient=patient), it.id, 0, it) for it in candidates]
        heapify(offers)
        last = now
        for _ in range(images):
            finish, id, ahead, replica = offers[0]
            last = max(last, finish)
            ahead += 1
            heapreplace(offers, (replica.finish_at(kind, now, ahead, patient=patient), id, ahead, replica))
        return last

    def assign(self, replica: str, request: str, kind: Kind, now: float, *, patient: bool = False) -> None:
        """Notes that the image was sent there; a ``patient`` one lets all others go first."""
        if replica in self._replicas:
            self._replicas[replica].assign(request, kind, now, patient=patient)

    def finished(
        self,
        replica: str,
        request: str,
        now: float,
        *,
        batch_size: int,
        compute_s: float,
        together: int | None = None,
        queue_s: float | None = None,
        queued: int | None = None,
    ) -> Kind | None:
        """Takes in a reply.

        Args:
            batch_size, compute_s: images that shared the denoiser with this one, and its time from begin to end.
            together: images that left at the same step; None: its batch.
            queue_s, queued: how long it waited there, and how many wait there now; None: not known.

        Returns:
            What the image was of, with the first reply of those that left together; None with the others.
        """
        it = self._replicas.get(replica)
        if it is None:
            return None
        return it.replied(
            request,
            now,
            batch_size=batch_size,
            compute_s=compute_s,
            together=together or batch_size,
            queue_s=queue_s,
            queued=queued,
        )

    def begun(self, replica: str, request: str) -> bool:
        """Whether the image is being drawn, as far as the book knows; what it does not know counts as begun."""
        it = self._replicas.get(replica)
        return it is None or it.begun(request)

    def batch_s(self, replica: str, kind: Kind) -> float:
        """Predicted seconds of a full batch of the kind there; 0 when the replica is gone."""
        it = self._replicas.get(replica)
        return self.times.seconds(kind.role, it.batch_size, kind.work) if it else 0.0

    def whole_s(self, kind: Kind, batch_size: int, compute_s: float) -> float:
        """What a batch of the kind would have taken with the variant's own number of steps."""
        return self.times.whole(kind.role, batch_size, compute_s, kind.work)

    def position(self, request: str) -> int | None:
        """0 while the image is drawn, else 1 for the first of those that wait; None where it is at no replica."""
        for it in self._replicas.values():
            if request in it.queue:
                if it.begun(request):
                    return 0
                names = list(it.queue)
                return sum(not it.begun(name) for name in names[: names.index(request) + 1])
        return None

    def forget(self, replica: str, request: str, now: float) -> None:
        """The image was cancelled or failed on the way; nobody waits for it any more."""
        if replica in self._replicas:
            self._replicas[replica].forget(request, now)

    def _candidates(self, role: Role, avoid: frozenset[str]) -> list[ReplicaQueueModel]:
        alive = [r for r in self._replicas.values() if r.id not in avoid]
        return [r for r in alive if r.role is role] or alive


def _duty(plan: Plan, rank: int) -> tuple[Role, int]:
    assignment = plan.assignment(rank)
    return assignment.role, assignment.batch_size
