"""The plan in force, and which replicas are there to carry it out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from load_balancer.dispatch import Dispatcher
from load_balancer.pool import Pool, ReplicaLost
from weir.core import Plan, Role
from weir.errors import PlanError

log = logging.getLogger(__name__)

#: How often the replicas are asked who they are.
REFRESH_S = 1.0
#: A replica that has said nothing this many times in a row is out of the book until it speaks again.
SILENT_LOOKS = 3


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
        self._silent: Counter[str] = Counter()
        self._waits: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)

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
                self._dispatcher.sync(self._heard(await self._pool.describe()))
                self._refreshed.set()
                self._refreshed.clear()
            except Exception:
                log.exception("could not ask the replicas who they are; keeping what was known")
            wait = REFRESH_S if any(self._dispatcher.ready(role) for role in Role) else REFRESH_S / 5
            if any(looks < SILENT_LOOKS for looks in self._silent.values()):
                wait = 0.0  # images wait there
            try:
                await asyncio.wait_for(self._hurry.wait(), wait)
            except TimeoutError:
                continue

    def _heard(self, described: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that speak, or have been silent for less than ``SILENT_LOOKS`` looks. Ends the waits for the others."""
        looked = list(described)
        silent = {it["replica"] for it in looked if it.get("silent")}
        self._silent = Counter({replica: self._silent[replica] + 1 for replica in silent})
        lost = {replica for replica, looks in self._silent.items() if looks >= SILENT_LOOKS}
        for replica in lost:
            if self._silent[replica] == SILENT_LOOKS:
                log.warning("%s says nothing; no image goes there until it does", replica)
            for wait in self._waits.get(replica, ()):
                if not wait.expired():
                    wait.reschedule(0)  # long ago, on any clock
        return [it for it in looked if it["replica"] not in lost]

    @asynccontextmanager
    async def while_heard(self, replica: str) -> AsyncIterator[None]:
        """Around a wait for the replica's answer.

        Raises:
            ReplicaLost: the replica fell silent for ``SILENT_LOOKS`` looks.
        """
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._waits[replica].add(limit)
                try:
                    yield
                finally:
                    self._waits[replica].discard(limit)
                    if not self._waits[replica]:
                        del self._waits[replica]
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ReplicaLost(replica, "it says nothing") from error

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
