"""The simulated replicas, and which of them gets a request.

A request goes to the replica of its role that would have its image ready first, by the rule of
``load_balancer/dispatch/dispatcher.py``, which keeps the same book for the cluster; a test holds the two together.

With a thousand replicas asking each of them for every request would be too slow, so the answer of each busy replica is
kept in an array and refreshed when its queue changes, and idle replicas wait in a heap by rank.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np

from controller.setting import Setting
from load_balancer.dispatch.finish_time import PRICED_FULL
from weir.core import Plan, Role

LIGHT, HEAVY = 0, 1
ROLES = {Role.LIGHT: LIGHT, Role.HEAVY: HEAVY}
ROLE_NAMES = (Role.LIGHT, Role.HEAVY)
NEVER = float("inf")
_PRICED_FULL = (Role.LIGHT in PRICED_FULL, Role.HEAVY in PRICED_FULL)


class Replica:
    """One simulated GPU.

    Attributes:
        times: seconds by batch size, for each role.
        running: requests in the batch being drawn; empty when idle.
        running_role: the role it was begun in; a change of role lets it end as it is.
        batch_s, busy_until: how long that batch takes, and when it ends.
        epoch: grows when a batch is abandoned, so that its end is ignored.
        coming: requests on their way there.
        left, as_of: of those that run step by step, the share of their runs still to go at this time.
    """

    __slots__ = (
        "alive",
        "as_of",
        "batch_s",
        "busy_until",
        "coming",
        "epoch",
        "index",
        "kind",
        "left",
        "limit",
        "queue",
        "role",
        "running",
        "running_role",
        "times",
    )

    def __init__(self, index: int, kind: int, times: tuple[list[float], list[float]]):
        self.index = index
        self.kind = kind
        self.times = times
        self.role = self.running_role = LIGHT
        self.limit = 1
        self.queue: deque[int] = deque()
        self.running: list[int] = []
        self.batch_s = self.busy_until = self.as_of = 0.0
        self.left: list[float] = []
        self.coming = 0
        self.alive = True
        self.epoch = 0


class Fleet:
    """All replicas, and the book of when each would finish one more image."""

    def __init__(
        self, setting: Setting, plan: Plan, transit_s: Sequence[float] = (), work: Sequence[float] | None = None
    ):
        """
        Args:
            transit_s: what calls take one way; see :mod:`load_balancer.dispatch.network_delay`.
            work: share of a whole heavy run that each request needs; None: all need all of it.
        """
        self.usual_s, self.slow_s = (float(s) for s in np.percentile(transit_s, (50, 90))) if transit_s else (0.0, 0.0)
        most = max(a.batch_size for a in plan.assignments)
        self.replicas: list[Replica] = []
        self._profiled: list[tuple[list[float], tuple[float, ...]]] = []  # the times in force, and the profile's
        for kind, gpu in enumerate(setting.gpus):
            most = max(most, *gpu.light.batch_sizes, *gpu.heavy.batch_sizes)
            light = [gpu.light.at(b) + setting.discriminator_s for b in range(most + 2)]
            heavy = [gpu.heavy.at(b) for b in range(most + 2)]
            self._profiled += [(times, tuple(times)) for times in (light, heavy)]
            for _ in range(gpu.count):
                self.replicas.append(Replica(len(self.replicas), kind, (light, heavy)))
        n = len(self.replicas)
        self._work = work
        self.finish = (np.full(n, NEVER), np.full(n, NEVER))
        self.idle: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])
        self.members: tuple[list[int], list[int]] = ([], [])
        self.set_plan(plan)

    def set_plan(self, plan: Plan) -> list[Replica]:
        """Gives every live replica its role and batch size by its rank. Returns those whose role changed."""
        changed = []
        alive = [r for r in self.replicas if r.alive]
        for rank, replica in enumerate(alive):
            assignment = plan.assignment(rank)
            role = ROLES[assignment.role]
            if role != replica.role:
                changed.append(replica)
                self.finish[replica.role][replica.index] = NEVER
            replica.role = role
            replica.limit = assignment.batch_size
        for role in (LIGHT, HEAVY):
            self.members[role][:] = [r.index for r in alive if r.role == role]
            self.idle[role][:] = [(r.times[role][1], r.index) for r in alive if r.role == role and not r.running]
            heapq.heapify(self.idle[role])
        for replica in alive:
            self.refresh(replica)
        return changed

    def slow_down(self, factor: float) -> None:
        """Every batch begun from now on takes so many times what the profile says. The book follows at ``set_plan``."""
        for times, profiled in self._profiled:
            times[:] = [factor * seconds for seconds in profiled]

    def use_light(self, setting: Setting) -> None:
        """Light batches begun from now on take what they do in this setting. The book follows at ``set_plan``."""
        for kind, gpu in enumerate(setting.gpus):
            times, before = self._profiled[2 * kind]
            profiled = tuple(gpu.light.at(b) + setting.discriminator_s for b in range(len(before)))
            times[:] = profiled
            self._profiled[2 * kind] = (times, profiled)

    def refresh(self, replica: Replica) -> None:
        """Writes down when a busy replica would finish one more image of its role."""
        role = replica.role
        if not replica.running or not replica.alive:
            self.finish[role][replica.index] = NEVER
            return
        times, limit = replica.times[role], replica.limit
        whole, rest = divmod(len(replica.queue) + replica.coming, limit)
        last = times[limit] if _PRICED_FULL[role] else times[rest + 1]
        waits = whole * times[limit]
        if self._work is not None and role == HEAVY and replica.queue:
            works = [self._work[i] for i in replica.queue] + [1.0] * replica.coming
            waits = sum(works[: whole * limit]) / limit * times[limit]
            last *= (sum(works[whole * limit :]) + limit - rest) / limit
        self.finish[role][replica.index] = replica.busy_until + waits + last

    def own_s(self, replica: Replica) -> float:
        """What one image's own steps add to the batch that it would be part of, if it runs all of them."""
        return replica.times[HEAVY][replica.limit] / (replica.limit if replica.running else 1)

    def earliest(self, role: int, now: float) -> tuple[Replica | None, float]:
        """The replica that would finish one more image of the role first, and when. None without any of the role."""
        if self.slow_s:
            at, index = min(
                ((self._finish_at(self.replicas[i], now), i) for i in self.members[role]), default=(NEVER, 0)
            )
            return (self.replicas[index], at) if at < NEVER else (None, NEVER)
        idle = self.idle[role]
        while idle:
            replica = self.replicas[idle[0][1]]
            if replica.alive and replica.role == role and not replica.running and not replica.queue:
                break
            heapq.heappop(idle)
        finish = self.finish[role]
        index = int(finish.argmin())
        at = float(finish[index])
        if idle and now + idle[0][0] <= at:
            return self.replicas[idle[0][1]], now + idle[0][0]
        return (self.replicas[index], at) if at < NEVER else (None, NEVER)

    def _finish_at(self, replica: Replica, now: float) -> float:
        """With calls that take their time no table helps: an image may miss the batch that is next."""
        times, limit, ahead = replica.times[replica.role], replica.limit, len(replica.queue) + replica.coming
        if not replica.running and not ahead:
            return now + 2 * self.usual_s + times[1]
        whole, rest = divmod(ahead, limit)
        start = max(replica.busy_until, now) + whole * times[limit]
        if rest and start < now + self.slow_s:
            start, rest = start + times[rest], 0
        own = times[limit] if _PRICED_FULL[replica.role] else times[rest + 1]
        return max(start, now + self.usual_s) + own + self.usual_s

    def became_idle(self, replica: Replica) -> None:
        self.finish[replica.role][replica.index] = NEVER
        heapq.heappush(self.idle[replica.role], (replica.times[replica.role][1], replica.index))
