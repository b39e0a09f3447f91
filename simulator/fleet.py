"""The simulated replicas, and which of them gets a request.

A request goes to the replica of its role that would have its image ready first, by the rule of
``load_balancer/dispatch.py``, which keeps the same book for the cluster; a test holds the two together.

With a thousand replicas asking each of them for every request would be too slow, so the answer of each busy replica is
kept in an array and refreshed when its queue changes, and idle replicas wait in a heap by rank.
"""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np

from controller.setting import Setting
from load_balancer.dispatch import PRICED_FULL
from weir.core import Plan, Role

LIGHT, HEAVY = 0, 1
ROLES = {Role.LIGHT: LIGHT, Role.HEAVY: HEAVY}
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
    """

    __slots__ = (
        "alive",
        "batch_s",
        "busy_until",
        "epoch",
        "index",
        "kind",
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
        self.batch_s = self.busy_until = 0.0
        self.alive = True
        self.epoch = 0


class Fleet:
    """All replicas, and the book of when each would finish one more image."""

    def __init__(self, setting: Setting, plan: Plan):
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

    def refresh(self, replica: Replica) -> None:
        """Writes down when a busy replica would finish one more image of its role."""
        role = replica.role
        if not replica.running or not replica.alive:
            self.finish[role][replica.index] = NEVER
            return
        times, limit = replica.times[role], replica.limit
        whole, rest = divmod(len(replica.queue), limit)
        last = times[limit] if _PRICED_FULL[role] else times[rest + 1]
        self.finish[role][replica.index] = replica.busy_until + whole * times[limit] + last

    def earliest(self, role: int, now: float) -> tuple[Replica | None, float]:
        """The replica that would finish one more image of the role first, and when. None without any of the role."""
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

    def became_idle(self, replica: Replica) -> None:
        self.finish[replica.role][replica.index] = NEVER
        heapq.heappush(self.idle[replica.role], (replica.times[replica.role][1], replica.index))
