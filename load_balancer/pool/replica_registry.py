"""The plan in force, and the live replicas that carry it out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.failure_detector import FailureDetector
from load_balancer.pool.pool import Pool, ReplicaLost
from weir.errors import PlanError
from weir.plan import Plan

log = logging.getLogger(__name__)

#: Seconds between two times that the replicas are asked to describe themselves.
REFRESH_S = 1.0
#: A replica that does not answer gets this long beyond its time to drain, seconds.
PATIENCE_S = 15.0


class ReplicaRegistry:
    """Keeps the dispatcher's replicas up to date, under the newest valid plan.

    Args:
        variants: keys of the variants that the replicas hold; a plan that names another one is refused.
        drain_s: the longest that a replica takes to finish what it has begun when it is told to stop.
        clock: unix time, seconds.
    """

    def __init__(
        self,
        pool: Pool,
        plan: Plan,
        dispatcher: Dispatcher,
        variants: Collection[str],
        clock: Callable[[], float] = time.time,
        *,
        drain_s: float = 60.0,
    ):
        """
        Raises:
            PlanError: the first plan names a variant that the replicas do not hold.
        """
        self.plan = plan.check(variants)
        self._variants = variants
        self._pool = pool
        self._dispatcher = dispatcher
        self._clock = clock
        self.plan_since = clock()
        self._refreshed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failures = FailureDetector(drain_s + PATIENCE_S)
        self._waits: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)

    def apply(self, fields: Any) -> None:
        """Takes the next plan. Never raises: a wrong or older one changes nothing."""
        try:
            plan = Plan.from_dict(fields).check(self._variants)
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
        """Asks the replicas to describe themselves, once a second; runs until cancelled, off every request's path."""
        while True:
            self._hurry.clear()
            try:
                await self._look(await self._pool.describe())
            except Exception:
                log.exception("could not ask the replicas to describe themselves; keeping what was known")
            wait = REFRESH_S if self._dispatcher.ranks else REFRESH_S / 5
            if self._failures.pending:
                wait = 0.0  # images wait there
            try:
                await asyncio.wait_for(self._hurry.wait(), wait)
            except TimeoutError:
                continue

    async def _look(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Updates the dispatcher; aborts the waits for lost replicas, and ends replicas that will not come back."""
        now = self._clock()
        found = self._failures.look(described, now)
        self._dispatcher.sync(found.book)
        self._dispatcher.times.forgive(now)
        for replica in found.lost:
            for wait in self._waits.get(replica, ()):
                if not wait.expired():
                    wait.reschedule(0)  # long ago, on any clock
        self._refreshed.set()
        self._refreshed.clear()
        for it in found.to_end:
            log.warning("%s has not answered for too long; another one takes its place", it["replica"])
            await self._pool.end(it)

    @asynccontextmanager
    async def while_heard(self, replica: str) -> AsyncIterator[None]:
        """Context manager that aborts a wait for the replica's answer when the replica is declared dead.

        Raises:
            ReplicaLost: the replica stopped answering; see ``load_balancer/dispatch/failure_detector.py``.
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
            raise ReplicaLost(replica, "it does not answer") from error

    def hurry(self) -> None:
        """Something changed: the replicas are asked at once."""
        self._hurry.set()

    async def refreshed(self) -> None:
        """Returns when the replicas have been asked once more."""
        await self._refreshed.wait()

    def readiness(self) -> dict[str, Any]:
        """Ready as soon as every role of the plan has a live replica; ``pending`` says what is still missing."""
        replicas, pending, ready = {}, [], True
        for role in self.plan.roles:
            planned, live = self.plan.count(role), self._dispatcher.ready(role)
            replicas[role] = {"planned": planned, "ready": live}
            if live < planned:
                pending.append(f"{role}: {live} of {planned} replicas ready")
            ready = ready and (live > 0 or planned == 0)
        age_s = round(self._clock() - self.plan_since, 3)
        return {
            "ready": ready,
            "pending": pending,
            "replicas": replicas,
            "plan": {"version": self.plan.version, "age_s": age_s, "threshold": self.plan.threshold},
        }
