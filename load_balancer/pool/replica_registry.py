"""The registry of live replicas, and the plan in force."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.failure_detector import FailureDetector
from load_balancer.pool.answer_waits import AnswerWaits
from load_balancer.pool.draining import check_drain, check_known, replaced, working
from load_balancer.pool.pool import Pool
from weir.errors import PlanError
from weir.plan import Plan

log = logging.getLogger(__name__)

#: Seconds between two probes of the replicas.
REFRESH_S = 1.0
#: Seconds beyond the time to drain after which a replica that does not answer is killed.
GRACE_S = 15.0


class ReplicaRegistry:
    """Probes the replicas, keeps the dispatcher up to date, and holds the newest valid plan.

    Args:
        variants: keys of the variants that the replicas hold; a plan with another one is refused.
        drain_s: longest time that a replica which is being stopped takes to finish what it has begun.
        clock: seconds of a monotonic clock.

    Attributes:
        waits: for the replicas' answers; they end when a replica is declared dead.
    """

    def __init__(
        self,
        pool: Pool,
        plan: Plan,
        dispatcher: Dispatcher,
        variants: Collection[str],
        clock: Callable[[], float] = time.monotonic,
        *,
        drain_s: float = 60.0,
    ):
        """
        Raises:
            PlanError: the first plan has a variant that the replicas do not hold.
        """
        self.plan = plan.check(variants)
        self._variants = variants
        self._pool = pool
        self._dispatcher = dispatcher
        self._clock = clock
        self.plan_since = clock()
        self._refreshed = asyncio.Event()
        self._probe_requested = asyncio.Event()
        self._failures = FailureDetector(drain_s + GRACE_S)
        self._available: list[Mapping[str, Any]] = []
        self._known: dict[str, Mapping[str, Any]] = {}
        #: Ids of the drained replicas: they finish what they have, and get nothing new.
        self.drained: set[str] = set()
        self.waits = AnswerWaits()

    def apply(self, fields: Any) -> None:
        """Takes the next plan. Never raises: an invalid or older plan changes nothing."""
        try:
            plan = Plan.from_dict(fields).check(self._variants)
        except (PlanError, TypeError, AttributeError) as error:
            log.warning("kept plan %d: %s", self.plan.version, error)
            return
        if not plan.replaces(self.plan.version):
            if plan.version > self.plan.version:
                log.warning("kept plan %d: version %d is too far ahead of it", self.plan.version, plan.version)
            return
        self.plan = plan
        self.plan_since = self._clock()
        self._dispatcher.set_plan(plan)
        self.probe_now()

    async def watch(self) -> None:
        """Probes the replicas once a second until cancelled."""
        while True:
            self._probe_requested.clear()
            try:
                await self._take_in(await self._pool.describe())
            except Exception:
                log.exception("the replicas could not be probed; their last descriptions are kept")
            wait = REFRESH_S if self._dispatcher.replicas.ranks else REFRESH_S / 5
            if self._failures.pending:
                wait = 0.0  # images wait at a replica that may be lost
            try:
                await asyncio.wait_for(self._probe_requested.wait(), wait)
            except TimeoutError:
                continue

    async def _take_in(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Updates the dispatcher; aborts the waits for lost replicas, and ends replicas that will not come back."""
        now = self._clock()
        found = self._failures.assess(described, now)
        self._available = found.available
        self._known = replaced(self._known, found.available, len(self.plan.assignments))
        self.drained &= self._known.keys()
        self._dispatcher.sync(working(found.available, self.drained))
        self._dispatcher.times.forgive(now)
        for replica in found.lost:
            self.waits.abort(replica)
        self._refreshed.set()
        self._refreshed.clear()
        for it in found.to_end:
            log.warning("%s has not answered for too long and is killed; Ray Serve replaces it", it["replica"])
            await self._pool.end(it)

    def drain(self, replica: str, *, force: bool = False) -> bool:
        """Sends the replica no more images; it finishes those that it has. Returns False if it is drained already.

        Raises:
            NotFound, Conflict: as :func:`check_drain`.
        """
        check_drain(replica, self._known, self.drained, force=force)
        changed = replica not in self.drained
        self.drained.add(replica)
        self._dispatcher.sync(working(self._available, self.drained))
        return changed

    def restore(self, replica: str) -> bool:
        """Sends a drained replica images again. Returns False if it is not drained.

        Raises:
            NotFound: there is no such replica.
        """
        check_known(replica, self._known)
        changed = replica in self.drained
        self.drained.discard(replica)
        self._dispatcher.sync(working(self._available, self.drained))
        return changed

    def set_drained(self, replicas: Iterable[str]) -> None:
        """Drains exactly these replicas, as another load balancer has decided, as far as they are known."""
        wanted = set(replicas) & self._known.keys()
        if wanted != self.drained:
            self.drained = wanted
            self._dispatcher.sync(working(self._available, self.drained))

    def on_nodes_of(self, replicas: Collection[str]) -> frozenset[str]:
        """Ids of all replicas that run on a node of one of these."""
        nodes = {_node(self._known[it]) for it in replicas if it in self._known} - {None}
        return frozenset(replica for replica, it in self._known.items() if _node(it) in nodes)

    @property
    def undrained_ranks(self) -> list[int]:
        """Ranks of the plan in force whose replicas are not drained, in ascending order."""
        drained = {self._known[replica]["rank"] for replica in self.drained}
        return [rank for rank in range(len(self.plan.assignments)) if rank not in drained]

    def replicas(self) -> list[dict[str, Any]]:
        """Every replica, by rank: its id, node and process, role, state, and number of images in flight."""
        answering = {it["replica"]: it.get("ready", True) for it in self._available}
        listed = []
        for replica, it in sorted(self._known.items(), key=lambda known: known[1]["rank"]):
            process = it.get("process") or {}
            working_state = {True: "serving", False: "starting", None: "not answering"}[answering.get(replica)]
            listed.append(
                {
                    "id": replica,
                    "rank": it["rank"],
                    "role": self.plan.assignment(it["rank"]).role,
                    "state": "drained" if replica in self.drained else working_state,
                    "in_flight": self.waits.count(replica),
                    "node": process.get("node"),
                    "pid": process.get("pid"),
                    "clock_skew_s": round(it.get("clock_skew_s", 0.0), 3),
                }
            )
        return listed

    @property
    def clock_skew_s(self) -> float:
        """Largest difference between the wall clock of a replica that answers and this process's, seconds."""
        return max((abs(it.get("clock_skew_s", 0.0)) for it in self._available), default=0.0)

    def probe_now(self) -> None:
        """Requests a probe of the replicas at once."""
        self._probe_requested.set()

    async def refreshed(self) -> None:
        """Returns after the next probe of the replicas."""
        await self._refreshed.wait()

    async def found(self) -> None:
        """Returns when there is a replica that takes work."""
        while not self._dispatcher.replicas.ranks:
            await self.refreshed()

    def readiness(self) -> dict[str, Any]:
        """The readiness report: ready when every role of the plan has a live replica; ``pending`` lists what is
        missing. A drained replica is not missing: others serve the role that only drained replicas have."""
        replicas, pending, ready = {}, [], bool(self._dispatcher.replicas.ranks)
        roles = Counter(self.plan.assignment(rank).role for rank in self.undrained_ranks)
        for role in self.plan.roles:
            planned, live = roles[role], self._dispatcher.replicas.ready(role)
            replicas[role] = {"planned": planned, "ready": live}
            if live < planned:
                pending.append(f"{role}: {live} of {planned} replicas ready")
            ready = ready and (live > 0 or planned == 0)
        if self.drained and not self._dispatcher.replicas.ranks:
            pending.append(f"{len(self.drained)} replicas are drained, and no other one takes work")
        age_s = round(self._clock() - self.plan_since, 3)
        return {
            "ready": ready,
            "pending": pending,
            "replicas": replicas,
            "plan": {"version": self.plan.version, "age_s": age_s, "threshold": self.plan.threshold},
        }


def _node(described: Mapping[str, Any]) -> str | None:
    return (described.get("process") or {}).get("node")
