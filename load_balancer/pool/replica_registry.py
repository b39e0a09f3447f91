"""The plan in force, and which replicas are there to carry it out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.failure_detector import FailureDetector
from load_balancer.pool.pool import Pool, ReplicaLost
from weir.core import Plan, Role
from weir.errors import PlanError

log = logging.getLogger(__name__)

#: How often the replicas are asked who they are.
REFRESH_S = 1.0
#: Beyond what a replica may take that is told to stop, seconds.
PATIENCE_S = 15.0


class ReplicaRegistry:
    """Keeps the dispatcher's book of replicas true, under the newest valid plan.

    Args:
        drain_s: the longest that a replica takes to finish what it has begun when it is told to stop.
        clock: unix time, seconds.
    """

    def __init__(
        self,
        pool: Pool,
        plan: Plan,
        dispatcher: Dispatcher,
        clock: Callable[[], float] = time.time,
        *,
        drain_s: float = 60.0,
    ):
        self.plan = plan
        self._pool = pool
        self._dispatcher = dispatcher
        self._clock = clock
        self.plan_since = clock()
        self._refreshed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._silence = FailureDetector(drain_s + PATIENCE_S)
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
                await self._look(await self._pool.describe())
            except Exception:
                log.exception("could not ask the replicas who they are; keeping what was known")
            wait = REFRESH_S if any(self._dispatcher.ready(role) for role in Role) else REFRESH_S / 5
            if self._silence.pending:
                wait = 0.0  # images wait there
            try:
                await asyncio.wait_for(self._hurry.wait(), wait)
            except TimeoutError:
                continue

    async def _look(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Brings the book up to date; ends the waits for those that are lost, and those themselves beyond hope."""
        now = self._clock()
        found = self._silence.look(described, now)
        self._dispatcher.sync(found.book)
        self._dispatcher.times.forgive(now)
        for replica in found.lost:
            for wait in self._waits.get(replica, ()):
                if not wait.expired():
                    wait.reschedule(0)  # long ago, on any clock
        self._refreshed.set()
        self._refreshed.clear()
        for it in found.to_end:
            log.warning("%s has said nothing for too long; another one takes its place", it["replica"])
            await self._pool.end(it)

    @asynccontextmanager
    async def while_heard(self, replica: str) -> AsyncIterator[None]:
        """Around a wait for the replica's answer.

        Raises:
            ReplicaLost: the replica fell silent; see ``load_balancer/dispatch/failure_detector.py``.
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
