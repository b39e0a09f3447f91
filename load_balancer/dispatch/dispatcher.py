"""Dispatch: an image is sent to the replica of its role that is predicted to finish it first.

The queue models (``finish_time.py``) follow from what this load balancer sent to each replica. Replies correct them: a
reply has the number of images that finished together, and a queue length that includes the work of other load
balancers.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import heapify, heapreplace
from typing import Any, NamedTuple

from load_balancer.dispatch.finish_time import (
    BatchQueueModel,
    BatchReport,
    ImageId,
    Kind,
    ReplicaQueueModel,
    SlotQueueModel,
    priced_open,
)
from load_balancer.dispatch.network_delay import NetworkDelay
from load_balancer.dispatch.replicas import Replicas
from load_balancer.dispatch.role_index import MOST_FALLEN, MOST_SWING_S, TIE_S, RoleIndex
from load_balancer.dispatch.service_times import ServiceTimes
from weir.plan import Plan, ReplicaChoice

#: A load balancer waits this many runs of one image for a replica of its own part; see :meth:`Dispatcher.prefer_part`.
PATIENCE = 2.0


class Choice(NamedTuple):
    """A replica and its predicted finish time of the image, on the caller's clock."""

    replica: str
    finish_at: float


class Dispatcher:
    """The queue models of all replicas. Not thread-safe; times are arguments (seconds of any monotonic clock).

    Exactly one :meth:`finished` or :meth:`forget` has to follow every :meth:`assign`; both ignore a replica that is
    gone.
    """

    def __init__(self, plan: Plan, times: ServiceTimes, chance: random.Random | None = None):
        """
        Args:
            chance: random generator for plans whose rules choose replicas at random.
        """
        self.times = times
        self.delay = NetworkDelay()
        self._model = SlotQueueModel if times.stepwise else BatchQueueModel
        self._chance = chance or random.Random()
        self.replicas = Replicas()
        self._roles: dict[str, RoleIndex] = {}
        self._own: dict[str, RoleIndex] = {}
        self._part = (0, 1)
        self._asked: tuple[Kind, float, bool] | None = None
        self._answer: Choice | None = None
        self.set_plan(plan)

    def set_plan(self, plan: Plan) -> None:
        """Gives every replica the role and the batch size of its rank in the plan."""
        self._plan = plan
        #: See :func:`load_balancer.dispatch.finish_time.priced_open`.
        self.open_role = priced_open(plan)
        self._at_random = plan.rules.replica_choice is ReplicaChoice.RANDOM
        for replica in self.replicas.values():
            self._follow(replica, replica.rank)
        self._regroup()

    def prefer_part(self, place: int, count: int) -> None:
        """Says which of ``count`` load balancers this one is, from 0. It then prefers its own part of the replicas of
        every role, as long as none of the others finishes an image earlier by :data:`PATIENCE` runs.

        Images of one batch become ready at the same instant, in several load balancers. Without parts of their own all
        of them would send their next runs to the same replica, before any has heard of the others.
        """
        if (place, count) != self._part:
            self._part = place, count
            self._regroup()

    def sync(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Takes in the ``replica``, ``rank``, ``ready`` and ``queued`` of all live replicas, and removes all others."""
        seen = Replicas()
        same = True
        for it in described:
            if not it.get("ready", True):
                continue
            known = self.replicas.get(it["replica"])
            if known is None or known.rank != it["rank"]:
                same = False
                self._regroup()  # the index of its role does not have it yet
                known = known or self._model(it["replica"], it["rank"], "", 1, "", self.times, self.delay)
                self._follow(known, it["rank"])
            foreign = max(0, it.get("queued", 0) - known.outstanding)
            if foreign != known.foreign:
                known.foreign = foreign
                self._changed(known)
            seen[known.id] = known
        if not same or len(seen) < len(self.replicas):
            self._regroup()
        self.replicas = seen

    def remove(self, replica: str) -> None:
        """Removes a replica that died."""
        if self.replicas.pop(replica, None) is not None:
            self._regroup()

    def pick(
        self,
        kind: Kind,
        now: float,
        *,
        avoid: Collection[str] = (),
        doubtful: Collection[str] = (),
        low_priority: bool = False,
    ) -> Choice | None:
        """Chooses the replica for an image of this kind by the plan's rules; None when there is no replica at all.

        Every replica holds all variants, so while no replica of the role is alive, the others serve it.

        Args:
            avoid: replicas that are not chosen.
            doubtful: replicas that, in another attempt, are chosen only if no other one has the role.
        """
        if not self._at_random:
            return self._earliest(kind, now, avoid, low_priority, doubtful)
        candidates = self._candidates(kind.role, avoid, doubtful)
        if not candidates:
            return None
        replica = self._chance.choice(candidates)
        return Choice(replica.id, replica.finish_at(kind, now, low_priority=low_priority))

    def _earliest(
        self, kind: Kind, now: float, avoid: Collection[str], low_priority: bool, doubtful: Collection[str] = ()
    ) -> Choice | None:
        if not avoid:
            question = (kind, now, low_priority)
            if self._asked == question:  # a dispatch repeats the question of the prediction before it
                return self._answer
            index = self._index().get(kind.role)
            if index is not None:
                found = index.earliest(kind, now, low_priority)
                if found is not None and kind.role in self._own:
                    own = self._own[kind.role].earliest(kind, now, low_priority)
                    patience_s = PATIENCE * self.times.run_s(kind)
                    if own is not None and own[1] <= found[1] + patience_s:
                        found = own
                self._asked, self._answer = question, None if found is None else Choice(found[0].id, found[1])
                return self._answer
        best = None
        for replica in self._candidates(kind.role, avoid, doubtful):
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
        avoid: Collection[str] = (),
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
        # Each image goes to the replica that finishes it first, which changes the finish time of that replica only.
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
        """Records that the image was sent to the replica; all other images precede one of low priority."""
        it = self.replicas.get(replica)
        if it is not None:
            it.assign(request, kind, now, low_priority=low_priority)
            self._changed(it)

    def finished(self, replica: str, request: ImageId, now: float, report: BatchReport) -> Kind | None:
        """Takes in a reply.

        Returns:
            The kind of the image for the first reply of those that finished together; None for the others.
        """
        it = self.replicas.get(replica)
        if it is None:
            return None
        kind = it.replied(request, now, report)
        self._asked = None
        if kind is not None:
            self._changed(it)
        return kind

    def begun(self, replica: str, request: ImageId) -> bool:
        """Whether the image is being generated, as far as the model knows; an unknown image counts as begun."""
        it = self.replicas.get(replica)
        return it is None or it.begun(request)

    def batch_s(self, replica: str, kind: Kind) -> float:
        """Predicted seconds of a full batch of the kind at the replica; 0 when the replica is gone."""
        it = self.replicas.get(replica)
        return self.times.seconds(kind.variant, it.batch_size, kind.work, kind.size) if it else 0.0

    def position(self, request: ImageId) -> int | None:
        """0 while the image is generated, 1 for the first waiting image, and so on; None when it is at no replica."""
        for it in self.replicas.values():
            if request in it.queue:
                if it.begun(request):
                    return 0
                names = list(it.queue)
                return sum(not it.begun(name) for name in names[: names.index(request) + 1])
        return None

    def forget(self, replica: str, request: ImageId, now: float) -> None:
        """Removes an image that was cancelled or failed."""
        it = self.replicas.get(replica)
        if it is not None and it.knows(request):
            it.forget(request, now)
            self._changed(it)

    def _candidates(self, role: str, avoid: Collection[str], doubtful: Collection[str] = ()) -> list[ReplicaQueueModel]:
        index = self._index().get(role)
        members = index.members if index is not None else []
        if avoid:
            members = [r for r in members if r.id not in avoid]
            members = [r for r in members if r.id not in doubtful] or members
        return members or [r for r in self.replicas.values() if r.id not in avoid]

    def _index(self) -> dict[str, RoleIndex]:
        """The live replicas by role; rebuilt after a change of plan or of replicas."""
        if not self._roles:
            members: dict[str, list[ReplicaQueueModel]] = {}
            for it in self.replicas.values():
                members.setdefault(it.role, []).append(it)
            self._roles = {role: RoleIndex(its, self.times, self.delay) for role, its in members.items()}
            self._own = {
                role: RoleIndex(own_part(index.members, *self._part), self.times, self.delay)
                for role, index in self._roles.items()
                if self._part[1] > 1
            }
        if self.times.fallen > MOST_FALLEN or self.delay.swing_s > MOST_SWING_S:
            self.times.settle()
            self.delay.settle()
            for index in (*self._roles.values(), *self._own.values()):
                index.settle()
        return self._roles

    def _regroup(self) -> None:
        self._roles, self._asked = {}, None

    def _changed(self, replica: ReplicaQueueModel) -> None:
        self._asked = None
        index = self._roles.get(replica.role)
        if index is not None:
            index.refresh(replica)
        own = self._own.get(replica.role)
        if own is not None and replica in own:
            own.refresh(replica)

    def _follow(self, replica: ReplicaQueueModel, rank: int) -> None:
        """Gives the replica the assignment of its rank in the plan."""
        assignment = self._plan.assignment(rank)
        replica.rank, replica.role, replica.batch_size = rank, assignment.role, assignment.batch_size
        replica.open_role = self.open_role


def own_part(members: Sequence[ReplicaQueueModel], place: int, count: int) -> Sequence[ReplicaQueueModel]:
    """The replicas that the load balancer at a place prefers: every ``count``-th, or one if there are fewer of them."""
    return members[place::count] or [members[place % len(members)]]
