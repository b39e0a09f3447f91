"""Which replica generates an image: the one of the role that would finish it first.

The state is this load balancer's own record of what it sent where (``finish_time.py``). Replies correct it: they say
which images left together, and the queue length that they carry shows work that another load balancer sent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from heapq import heapify, heapreplace
from typing import Any, NamedTuple

from load_balancer.dispatch.finish_time import (
    BatchQueueModel,
    ImageId,
    Kind,
    ReplicaQueueModel,
    SlotQueueModel,
    priced_open,
)
from load_balancer.dispatch.network_delay import NetworkDelay
from load_balancer.dispatch.role_index import MOST_FALLEN, MOST_SWING_S, TIE_S, RoleIndex
from load_balancer.dispatch.service_times import ServiceTimes
from weir.plan import Plan, ReplicaChoice


class Choice(NamedTuple):
    """A replica and the time, on the caller's clock, at which it would have the image ready."""

    replica: str
    finish_at: float


class Dispatcher:
    """The queue models of all replicas. Not thread-safe; time comes in as ``now`` (seconds, any monotone clock).

    Every :meth:`assign` has to be answered by exactly one :meth:`finished` or :meth:`forget`; both ignore a replica
    that is gone.
    """

    def __init__(self, plan: Plan, times: ServiceTimes, chance: random.Random | None = None):
        """
        Args:
            chance: for plans whose rules leave the choice of a replica to it.
        """
        self.times = times
        self.delay = NetworkDelay()
        self._model = SlotQueueModel if times.stepwise else BatchQueueModel
        self._chance = chance or random.Random()
        self._plan = plan
        self._replicas: dict[str, ReplicaQueueModel] = {}
        self._roles: dict[str, RoleIndex] = {}
        self._asked: tuple[Kind, float, bool] | None = None
        self._answer: Choice | None = None

    def set_plan(self, plan: Plan) -> None:
        """Gives every replica the role and the batch size that the plan has for its rank."""
        self._plan = plan
        for replica in self._replicas.values():
            self._follow(replica, replica.rank)
        self._roles = {}

    def sync(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Takes in the live replicas: ``replica``, ``rank``, ``ready`` and ``queued`` of each; others are gone."""
        seen: dict[str, ReplicaQueueModel] = {}
        same = True
        for it in described:
            if not it.get("ready", True):
                continue
            known = self._replicas.get(it["replica"])
            if known is None or known.rank != it["rank"]:
                same = False
                known = known or self._model(it["replica"], it["rank"], "", 1, "", self.times, self.delay)
                self._follow(known, it["rank"])
            foreign = max(0, it.get("queued", 0) - known.outstanding)
            if foreign != known.foreign:
                known.foreign = foreign
                self._changed(known)
            seen[known.id] = known
        if not same or len(seen) < len(self._replicas):
            self._roles = {}
        self._replicas = seen

    def remove(self, replica: str) -> None:
        """The replica died."""
        if self._replicas.pop(replica, None) is not None:
            self._roles = {}

    def role_of(self, replica: str) -> str:
        """The role of a live replica under the plan in force; "" when it is gone."""
        it = self._replicas.get(replica)
        return it.role if it else ""

    def ready(self, role: str) -> int:
        """Live replicas of the role."""
        index = self._index().get(role)
        return len(index.members) if index is not None else 0

    @property
    def ranks(self) -> list[int]:
        """Ranks of the live replicas, in ascending order."""
        return sorted(r.rank for r in self._replicas.values())

    def queued(self, role: str) -> int:
        """Images that wait at the replicas of the role to be begun."""
        return sum(r.waiting for r in self._replicas.values() if r.role == role)

    def capacity_rps(self, role: str) -> float:
        """Whole images per second that the replicas of the role generate in full batches; 0 while no time is known."""
        variant = self._plan.variant_of(role)
        seconds = [
            (r.batch_size, self.times.seconds(variant, r.batch_size)) for r in self._replicas.values() if r.role == role
        ]
        return sum(size / batch_s for size, batch_s in seconds if batch_s > 0)

    @property
    def outstanding(self) -> dict[str, int]:
        """Images sent to each replica and not answered yet."""
        return {r.id: r.outstanding for r in self._replicas.values()}

    def pick(
        self, kind: Kind, now: float, *, avoid: frozenset[str] = frozenset(), low_priority: bool = False
    ) -> Choice | None:
        """The replica that the plan's rules send an image of this kind to; None when there is no replica at all.

        Every replica holds all variants, so while none of the role is alive the others stand in.
        """
        if self._plan.rules.replica_choice is ReplicaChoice.EARLIEST_FINISH:
            return self._earliest(kind, now, avoid, low_priority)
        candidates = self._candidates(kind.role, avoid)
        if not candidates:
            return None
        replica = self._chance.choice(candidates)
        return Choice(replica.id, replica.finish_at(kind, now, low_priority=low_priority))

    def _earliest(self, kind: Kind, now: float, avoid: frozenset[str], low_priority: bool) -> Choice | None:
        index = self._index().get(kind.role)
        if index is not None and not avoid:
            question = (kind, now, low_priority)
            if self._asked != question:  # prediction and dispatch ask the same, one after the other
                found = index.earliest(kind, now, low_priority)
                self._asked, self._answer = question, None if found is None else Choice(found[0].id, found[1])
            return self._answer
        best = None
        for replica in self._candidates(kind.role, avoid):
            finish = replica.finish_at(kind, now, low_priority=low_priority)
            key = (finish + TIE_S * len(replica.queue), replica.rank)
            if best is None or key < best[0]:
                best = (key, Choice(replica.id, finish))
        return best[1] if best else None

    def finish_at(
        self,
        kind: Kind,
        now: float,
        images: int = 1,
        *,
        low_priority: bool = False,
        avoid: frozenset[str] = frozenset(),
    ) -> float | None:
        """When the last of ``images`` new images could be ready; None when there is no replica at all."""
        if images == 1:
            choice = self._earliest(kind, now, avoid, low_priority)
            return choice.finish_at if choice else None
        index = self._index().get(kind.role)
        if index is not None and not avoid:
            found = index.earliest(kind, now, low_priority)
            if found is not None and index.alike(found[0]) >= images:
                return found[1]
        candidates = self._candidates(kind.role, avoid)
        if not candidates:
            return None
        # Each goes where it is ready first; only where the last one went does the next one find another time.
        offers = [(it.finish_at(kind, now, low_priority=low_priority), it.id, 0, it) for it in candidates]
        heapify(offers)
        last = now
        for _ in range(images):
            finish, id, ahead, replica = offers[0]
            last = max(last, finish)
            ahead += 1
            heapreplace(offers, (replica.finish_at(kind, now, ahead, low_priority=low_priority), id, ahead, replica))
        return last

    def assign(self, replica: str, request: ImageId, kind: Kind, now: float, *, low_priority: bool = False) -> None:
        """Notes that the image was sent there; one of low priority lets all others go first."""
        it = self._replicas.get(replica)
        if it is not None:
            it.assign(request, kind, now, low_priority=low_priority)
            self._changed(it)

    def finished(
        self,
        replica: str,
        request: ImageId,
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
            queue_s, queued: how long it waited there, and the images that wait there now; None: not known.

        Returns:
            The kind of the image, with the first reply of those that left together; None with the others.
        """
        it = self._replicas.get(replica)
        if it is None:
            return None
        kind = it.replied(
            request,
            now,
            batch_size=batch_size,
            compute_s=compute_s,
            together=together or batch_size,
            queue_s=queue_s,
            queued=queued,
        )
        self._asked = None
        if kind is not None:
            self._changed(it)
        return kind

    def begun(self, replica: str, request: ImageId) -> bool:
        """Whether the image is being generated, as far as is known; what is not known counts as begun."""
        it = self._replicas.get(replica)
        return it is None or it.begun(request)

    def batch_s(self, replica: str, kind: Kind) -> float:
        """Predicted seconds of a full batch of the kind there; 0 when the replica is gone."""
        it = self._replicas.get(replica)
        return self.times.seconds(kind.variant, it.batch_size, kind.work) if it else 0.0

    def whole_s(self, kind: Kind, batch_size: int, compute_s: float) -> float:
        """What a batch of the kind would have taken with the variant's own number of steps."""
        return self.times.whole(kind.variant, batch_size, compute_s, kind.work)

    def position(self, request: ImageId) -> int | None:
        """0 while the image is generated, else 1 for the first of those that wait; None where it is at no replica."""
        for it in self._replicas.values():
            if request in it.queue:
                if it.begun(request):
                    return 0
                names = list(it.queue)
                return sum(not it.begun(name) for name in names[: names.index(request) + 1])
        return None

    def forget(self, replica: str, request: ImageId, now: float) -> None:
        """The image was cancelled or failed on the way; nobody waits for it any more."""
        it = self._replicas.get(replica)
        if it is not None and it.knows(request):
            it.forget(request, now)
            self._changed(it)

    def _candidates(self, role: str, avoid: frozenset[str]) -> list[ReplicaQueueModel]:
        index = self._index().get(role)
        members = index.members if index is not None else []
        if avoid:
            members = [r for r in members if r.id not in avoid]
        return members or [r for r in self._replicas.values() if r.id not in avoid]

    def _index(self) -> dict[str, RoleIndex]:
        """The live replicas by role; made afresh after a change of plan or of replicas."""
        if not self._roles:
            self._asked = None
            members: dict[str, list[ReplicaQueueModel]] = {}
            for it in self._replicas.values():
                members.setdefault(it.role, []).append(it)
            self._roles = {role: RoleIndex(its, self.times, self.delay) for role, its in members.items()}
        if self.times.fallen > MOST_FALLEN or self.delay.swing_s > MOST_SWING_S:
            self.times.settle()
            self.delay.settle()
            for index in self._roles.values():
                index.settle()
        return self._roles

    def _changed(self, replica: ReplicaQueueModel) -> None:
        self._asked = None
        index = self._roles.get(replica.role)
        if index is not None:
            index.refresh(replica)

    def _follow(self, replica: ReplicaQueueModel, rank: int) -> None:
        """Gives the replica what the plan has for its rank."""
        assignment = self._plan.assignment(rank)
        replica.rank, replica.role, replica.batch_size = rank, assignment.role, assignment.batch_size
        replica.open_role = priced_open(self._plan)
