"""Simulated replicas whose images join and leave at every step, by the rule of ``dispatch/finish_time.py``.

A step is so short beside a run that the twin lets an image join at once: it is ahead of a worker by half a step.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from controller.setting import Setting
from load_balancer.dispatch.finish_time import PRICED_FULL
from simulator.fleet import HEAVY, NEVER, ROLES, Fleet, Replica
from weir.core import Plan

_PRICED_FULL = frozenset(ROLES[role] for role in PRICED_FULL)
#: Of equally early replicas the one with the fewest images is taken: by so little more, in seconds, for each of them.
_TIE_S = 1e-9
#: What is left of a run that is over, in shares of it, is an error of rounding.
_OVER = 1e-9


class SeatFleet(Fleet):
    """Replicas with a free seat say how long one more image takes; the others when it would be ready."""

    def __init__(
        self, setting: Setting, plan: Plan, transit_s: Sequence[float] = (), work: Sequence[float] | None = None
    ):
        self.soon = (np.full(setting.replicas, NEVER), np.full(setting.replicas, NEVER))
        super().__init__(setting, plan, transit_s, work)

    def refresh(self, replica: Replica) -> None:
        role, limit, index = replica.role, replica.limit, replica.index
        for table in (*self.soon, *self.finish):
            table[index] = NEVER
        if not replica.alive:
            return
        times, company = replica.times[role], len(replica.running) + len(replica.queue) + replica.coming
        if company < limit and (not replica.running or replica.running_role == role):
            run_s = times[limit if role in _PRICED_FULL else company + 1]
            self.soon[role][index] = run_s + _TIE_S * company
        else:
            # Every seat is taken, so that those seated go at the pace of a full batch until the first one leaves.
            seated = replica.times[replica.running_role][len(replica.running)]
            free = sorted(replica.as_of + left * seated for left in replica.left)
            if replica.running_role != role:
                free = free[-1:] * limit  # the other role begins when all of this one have left
            free = free[max(0, len(free) - limit) :]
            free += [replica.as_of] * (limit - len(free))
            heapq.heapify(free)
            run_s = times[limit]
            if self._work is not None and role == HEAVY and replica.queue:
                run_s *= sum(self._work[i] for i in replica.queue) / len(replica.queue)
            for _ in range(company - len(replica.running)):
                heapq.heapreplace(free, free[0] + run_s)
            self.finish[role][index] = free[0] + times[limit]

    def own_s(self, replica: Replica) -> float:
        return replica.times[HEAVY][replica.limit]

    def earliest(self, role: int, now: float) -> tuple[Replica | None, float]:
        soon, finish = self.soon[role], self.finish[role]
        first, other = int(soon.argmin()), int(finish.argmin())
        soonest = now + self.usual_s + float(soon[first])
        if soonest <= finish[other]:
            return (self.replicas[first], soonest + self.usual_s) if soonest < NEVER else (None, NEVER)
        return self.replicas[other], float(finish[other]) + self.usual_s

    def became_idle(self, replica: Replica) -> None:
        self.refresh(replica)


def advance(replica: Replica, now: float) -> float:
    """All that are seated move on together; the seconds that the replica was busy since the last time."""
    passed, replica.as_of = now - replica.as_of, now
    if not replica.running:
        return 0.0
    share = passed / replica.times[replica.running_role][len(replica.running)]
    replica.left = [left - share for left in replica.left]
    return passed


def leavers(replica: Replica) -> list[int]:
    """Takes out those whose run is over; the others stay seated."""
    over = [i for i, left in zip(replica.running, replica.left, strict=True) if left <= _OVER]
    stay = [(i, left) for i, left in zip(replica.running, replica.left, strict=True) if left > _OVER]
    replica.running, replica.left = [i for i, _ in stay], [left for _, left in stay]
    return over
