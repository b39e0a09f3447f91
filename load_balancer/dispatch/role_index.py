"""Finds the replica of a role that finishes an image first, without evaluating the queue model of every replica.

Evaluating a thousand models for every image is too slow. Replicas that could begin an image at once and have the same
load predict the same finish time, so one of them is evaluated. For every other replica the last prediction is kept. It
is a lower bound of the next one, because a predicted finish never becomes earlier while the queue is unchanged. The
replica with the smallest bound is evaluated again, until the smallest bound is up to date.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence

import numpy as np

from load_balancer.dispatch.finish_time import Kind, ReplicaQueueModel
from load_balancer.dispatch.network_delay import NetworkDelay
from load_balancer.dispatch.service_times import ServiceTimes

#: Of equally early replicas the one with fewer images is taken: each image counts as this many seconds.
TIE_S = 1e-6
#: Beyond these changes of the service times (share) and the network delay (seconds), bounds are recomputed.
MOST_FALLEN = 0.05
MOST_SWING_S = 0.02
#: Number of kinds of images whose bounds are kept.
MOST_KINDS = 32
#: Stands for infinity, but can be subtracted from itself.
_NEVER = 1e300


class _Bounds:
    """The last known cost of one kind of image at each replica, by the place of the replica.

    Attributes:
        cost: the last cost; for a replica that has an equal, infinite.
        at: when it was computed.
        finish_at, holds_until: the finish time that the cost came from, and until when both are exact.
        stale: places whose queue has changed since.
    """

    __slots__ = ("at", "changes", "cost", "finish_at", "holds_until", "stale")

    def __init__(self, signatures: Sequence[Hashable]):
        count = len(signatures)
        self.cost = np.full(count, _NEVER)
        self.at = np.zeros(count)
        self.finish_at = [0.0] * count
        self.holds_until = [-_NEVER] * count
        self.stale = {place for place, signature in enumerate(signatures) if signature is None}
        self.changes = 0

    def follow(self, changes: int) -> None:
        """Nothing is exact any more after a change of the service times."""
        if changes != self.changes:
            self.changes = changes
            self.holds_until = [-_NEVER] * len(self.holds_until)


class RoleIndex:
    """The replicas of one role, by rank. :meth:`refresh` has to follow every change of a replica's queue."""

    def __init__(self, members: Sequence[ReplicaQueueModel], times: ServiceTimes, delay: NetworkDelay):
        self.members = sorted(members, key=lambda it: it.rank)
        self._times, self._delay = times, delay
        self._place = {it.id: place for place, it in enumerate(self.members)}
        self._alike: dict[Hashable, list[int]] = {}
        self._signatures: list[Hashable] = [None] * len(self.members)
        self._others = len(self.members)  # replicas without an equal
        self._unsteady: set[int] = set()
        self._bounds: dict[tuple[Kind, bool], _Bounds] = {}
        for it in self.members:
            self.refresh(it)

    def refresh(self, replica: ReplicaQueueModel) -> None:
        """Updates the index after the replica's queue has changed."""
        place, signature = self._place[replica.id], replica.signature
        known = self._signatures[place]
        if signature != known:
            self._signatures[place] = signature
            self._others += (signature is None) - (known is None)
            if known is not None:
                alike = self._alike[known]
                del alike[bisect_left(alike, place)]
                if not alike:
                    del self._alike[known]
            if signature is not None:
                insort(self._alike.setdefault(signature, []), place)
        elif signature is not None:
            return
        if signature is None:
            for bounds in self._bounds.values():
                bounds.stale.add(place)
        else:
            for bounds in self._bounds.values():
                bounds.stale.discard(place)
                bounds.cost[place] = _NEVER
        if signature is None and not replica.steady:
            self._unsteady.add(place)
        elif self._unsteady:
            self._unsteady.discard(place)

    def earliest(self, kind: Kind, now: float, low_priority: bool) -> tuple[ReplicaQueueModel, float] | None:
        """The replica that would finish the image first, and its finish time; None when the role has no replica."""
        best_cost, best, best_at = _NEVER, -1, 0.0
        for alike in self._alike.values():
            cost, finish_at = self._ask(alike[0], kind, now, low_priority)
            if not self.members[alike[0]].queue:  # idle, so no other could be earlier
                return self.members[alike[0]], finish_at
            if (cost, alike[0]) < (best_cost, best) or best < 0:
                best_cost, best, best_at = cost, alike[0], finish_at
        if self._others:
            bounds = self._bounds_of(kind, low_priority)
            bounds.stale |= self._unsteady
            exact = not (self._delay.slow_s or self._delay.swing_s or self._times.fallen)
            search = self._search if exact else self._search_loosely
            best_cost, best, best_at = search(bounds, kind, now, low_priority, (best_cost, best, best_at))
        return (self.members[best], best_at) if best >= 0 else None

    def __contains__(self, replica: ReplicaQueueModel) -> bool:
        return replica.id in self._place

    def alike(self, replica: ReplicaQueueModel) -> int:
        """Number of replicas, this one included, that could begin an image at once and would finish it at the same
        time."""
        signature = self._signatures[self._place[replica.id]]
        return 0 if signature is None else len(self._alike[signature])

    def settle(self) -> None:
        """Discards all bounds, after a large change of service times or network delay."""
        self._bounds.clear()

    def _ask(self, place: int, kind: Kind, now: float, low_priority: bool) -> tuple[float, float]:
        replica = self.members[place]
        finish_at = replica.finish_at(kind, now, low_priority=low_priority)
        return finish_at + TIE_S * len(replica.queue), finish_at

    def _search(
        self, bounds: _Bounds, kind: Kind, now: float, low_priority: bool, best: tuple[float, int, float]
    ) -> tuple[float, int, float]:
        """Search while predictions depend on nothing but the replicas' own queues."""
        bounds.follow(self._times.changes)
        costs, holds_until = bounds.cost, bounds.holds_until
        while True:
            for place in bounds.stale:
                costs[place], bounds.finish_at[place] = self._ask(place, kind, now, low_priority)
                bounds.at[place], holds_until[place] = now, max(now, self.members[place].holds_until)
            bounds.stale.clear()
            place = int(costs.argmin())
            bound = costs.item(place)
            if best[1] >= 0 and (bound, place) >= best[:2]:
                return best
            if now <= holds_until[place]:
                return bound, place, bounds.finish_at[place]
            bounds.stale.add(place)

    def _search_loosely(
        self, bounds: _Bounds, kind: Kind, now: float, low_priority: bool, best: tuple[float, int, float]
    ) -> tuple[float, int, float]:
        """Search while service times and network delay have changed within the limits above."""
        bounds.cost[list(bounds.stale)] = -_NEVER
        slack = self._times.fallen * (bounds.cost - bounds.at) + 2 * self._delay.swing_s
        left = bounds.cost - slack
        while True:
            place = int(left.argmin())
            if left[place] > (best[0] if best[1] >= 0 else _NEVER / 2):
                return best
            left[place] = _NEVER
            bounds.stale.discard(place)
            cost, finish_at = self._ask(place, kind, now, low_priority)
            floor = self.members[place].floor(kind, now, low_priority=low_priority)
            bounds.cost[place], bounds.at[place] = min(floor + TIE_S * len(self.members[place].queue), cost), now
            bounds.holds_until[place] = -_NEVER
            if best[1] < 0 or (cost, place) < best[:2]:
                best = cost, place, finish_at

    def _bounds_of(self, kind: Kind, low_priority: bool) -> _Bounds:
        bounds = self._bounds.get((kind, low_priority))
        if bounds is None:
            if len(self._bounds) >= MOST_KINDS:
                self._bounds.clear()
            bounds = self._bounds[kind, low_priority] = _Bounds(self._signatures)
        return bounds
