"""The plan in force, and which replicas are there to carry it out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from load_balancer.dispatch import Dispatcher
from load_balancer.pool import Pool
from weir.core import Plan, Role
from weir.errors import PlanError

log = logging.getLogger(__name__)

#: How often the replicas are asked who they are.
REFRESH_S = 1.0


class Roster:
    """Keeps the dispatcher's book of replicas true, under the newest valid plan.

    Args:
        clock: unix time, seconds.
    """

    def __init__(self, pool: Pool, plan: Plan, dispatcher: Dispatcher, clock: Callable[[], float] = time.time):
        self.plan = plan
        self._pool = pool
        self._dispatcher = dispatcher
        self._clock = clock
        self.plan_since = clock()
        self._refreshed = asyncio.Event()
        self._hurry = asyncio.Event()

    def apply(self, fields: Any) -> None:
        """Takes the next plan. Never raises: a wrong or older one changes nothing."""
        try:
            plan = Plan.from_dict(fields)
        except (PlanError, TypeError, AttributeError) as error:
            log.warning("kept plan %d: %s", self.plan.version, error)
            return
        if plan.version <= self.plan.version:
            return
        self.plan = plan
        self.plan_since = self._clock()
        self._dispatcher.set_plan(plan)
        self.hurry()

    async def watch(self) -> None:
        """Asks the replicas who they are, again and again; runs until cancelled, off every request's path."""
        while True:
            self._hurry.clear()
            try:
                self._dispatcher.sync(await self._pool.describe())
                self._refreshed.set()
                self._refreshed.clear()
            except TimeoutError:
                log.warning("a replica does not say who it is; keeping what was known")
            except Exception:
                log.exception("could not ask the replicas who they are; keeping what was known")
            wait = REFRESH_S if any(self._dispatcher.ready(role) for role in Role) else REFRESH_S / 5
            try:
                await asyncio.wait_for(self._hurry.wait(), wait)
            except TimeoutError:
                continue

    def hurry(self) -> None:
        """Something changed: the replicas are asked at once."""
        self._hurry.set()

    async def refreshed(self) -> None:
        """Returns when the replicas have been asked once more."""
        await self._refreshed.wait()

    def readiness(self) -> dict[str, Any]:
        """Ready as soon as every role of the plan has a live replica; ``pending`` says what is still missing."""
        replicas, pending, ready = {}, [], True
        for role in Role:
            planned, live = self.plan.count(role), self._dispatcher.ready(role)
            replicas[role.value] = {"planned": planned, "ready": live}
            if live < planned:
                pending.append(f"{role.value}: {live} of {planned} replicas ready")
            ready = ready and (live > 0 or planned == 0)
        age_s = round(self._clock() - self.plan_since, 3)
        return {
            "ready": ready,
            "pending": pending,
            "replicas": replicas,
            "plan": {"version": self.plan.version, "age_s": age_s, "threshold": self.plan.threshold},
        }
