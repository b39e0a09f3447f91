"""The live controller: once a second observe, decide, check, publish. Whatever fails, the last good plan stays.

It keeps no state that it could not do without: what is in force it reads from the load balancer, at its own start as
in every second, so that it can die and come back at any time. Versions only grow, a failed publication included.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from controller.counters import Counters
from controller.live_ranks import LiveRanks
from controller.plan_notes import MOST_NOTES, PlanNote
from controller.policy import Policy
from solvers.solution import Solution
from weir import metrics as metrics_of
from weir.errors import PlanError
from weir.plan import Plan
from weir.telemetry import Metrics, NoMetrics

log = logging.getLogger(__name__)

#: Seconds between observations.
TICK_S = 1.0
#: A plan that is not in force so long after its publication is published once more.
APPLY_S = 10.0
#: A pool that is still starting is left to the configuration's plan, but no longer than this.
START_S = 120.0
#: The version of the configuration's plan; the policy's first plan takes its place.
CONFIGURED = 1


class Controller:
    """Runs one policy on one live pool. All of it on one thread.

    Args:
        make_policy: a fresh policy; called at the start, after each of its failures, and when it is outdated.
        size: replicas of the pool. A plan is for those alive; Serve brings the others back meanwhile.
        look: the load balancer's counters; its argument is the look before.
        publish: sends a plan on its way, and raises when it could not; its second argument is the plan in force.
        metrics: where the controller records what it sees and does.
        outdated: whether what a policy is made from has changed since it was asked the last time.
        lead: whether this controller may publish. One that may not forgets what it knew, and waits.
        clock: seconds, only moves forward.
        unix_time: of the notes.

    Attributes:
        notes: of the last plans that it published, the newest last.
    """

    def __init__(
        self,
        make_policy: Callable[[], Policy],
        size: int,
        *,
        look: Callable[[Counters | None], Counters],
        publish: Callable[[Plan, Plan], None],
        metrics: Metrics | None = None,
        outdated: Callable[[], bool] = lambda: False,
        lead: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
    ):
        self._make_policy = make_policy
        self._size = size
        self._look = look
        self._publish = publish
        self._metrics = metrics or NoMetrics()
        self._outdated = outdated
        self._lead = lead
        self._clock = clock
        self._unix_time = unix_time
        self.notes: deque[PlanNote] = deque(maxlen=MOST_NOTES)
        self._policy_since = 0.0
        self._version = 0
        self._published_at = 0.0
        self._recorded: Solution | None = None
        self._trouble = ""
        self._forget()

    def _forget(self) -> None:
        self._policy: Policy | None = None
        self._before: Counters | None = None
        self._published: Plan | None = None
        self._ranks = LiveRanks()
        self._starting_since: float | None = self._clock()

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``. Nothing that fails ends it."""
        while not stop.wait(TICK_S):
            self.step()

    def step(self) -> None:
        """One second. Never raises: a failure is logged once, and the plan in force stays."""
        try:
            self._step()
        except Exception as error:
            self._metrics.add(metrics_of.FAILURES)
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self._trouble:
                log.warning("kept plan %d: %s", self._before.plan.version if self._before else 0, trouble)
            self._trouble = trouble
        else:
            if self._trouble:
                log.warning("the controller plans again")
            self._trouble = ""

    def _step(self) -> None:
        if not self._lead():
            self._forget()
            return
        seen = self._look(self._before)
        seen = replace(seen, ranks=self._ranks.observe(seen.ranks, self._clock()))
        self._before, before = seen, self._before
        self._metrics.set(metrics_of.REPLICAS, len(seen.ranks))
        self._version = max(self._version, seen.plan.version)
        if not seen.ranks or self._is_starting(seen):
            return  # no replica, or hardly any, could follow a plan
        plan = self._decide(seen, before)
        latest = self._published if self._published and self._published.version > seen.plan.version else seen.plan
        if plan is not None and plan != replace(latest, version=plan.version):
            self._send(plan, seen.plan)
            self._record_change(seen.plan, plan)
        elif latest is not seen.plan and self._clock() - self._published_at > APPLY_S:
            self._send(latest, seen.plan)

    def _is_starting(self, seen: Counters) -> bool:
        since = self._starting_since
        if since is None:
            return False
        if seen.plan.version > CONFIGURED or len(seen.ranks) >= self._size or self._clock() - since > START_S:
            self._starting_since = None
        return self._starting_since is not None

    def _decide(self, seen: Counters, before: Counters | None) -> Plan | None:
        """The policy's next plan for the whole pool; a policy that fails makes room for a fresh one."""
        policy, self._policy = self._policy, None
        if self._outdated() or policy is None:
            policy, self._policy_since = self._make_policy(), self._clock()
            if seen.plan.version > CONFIGURED or len(seen.ranks) < self._size:
                policy.resume(seen.plan)
                plan = None
            else:
                plan = policy.first_plan()
        else:
            plan = policy.observe(seen.since(before, self._clock() - self._policy_since))
        self._record_account(policy)
        if plan is not None:
            plan = spread(plan, seen.ranks, self._size)
        self._policy = policy
        return plan

    def _send(self, plan: Plan, running: Plan) -> None:
        self._version += 1
        plan = replace(plan, version=self._version)
        try:
            self._publish(plan, running)
        except Exception:
            if self._policy is not None:
                self._policy.resume(running)  # it believes in a plan that is not in force
            raise
        self._published, self._published_at = plan, self._clock()
        demand_rps = self._policy.account.forecast_rps if self._policy is not None else 0.0
        self.notes.append(PlanNote.of(plan, demand_rps, self._unix_time()))
        log.info("%s", self.notes[-1])

    # ------------------------------------------------------------------------------------------------- metrics

    def _record_account(self, policy: Policy) -> None:
        account = policy.account
        self._metrics.set(metrics_of.FORECAST, account.forecast_rps)
        if account.solution is not None:
            self._metrics.set(metrics_of.PLANNED_DEFERRAL, account.solution.deferral)
            self._metrics.set(metrics_of.PLANNED_SHED, account.solution.shed_rps)
            if account.solution is not self._recorded:
                self._metrics.observe(metrics_of.SOLVE_SECONDS, account.solution.seconds)
                self._recorded = account.solution
        for status, count in account.solved.items():
            self._metrics.add(metrics_of.SOLVES, count, status=status)
        account.solved.clear()
        for variant, factor in account.latency_factors.items():
            self._metrics.set(metrics_of.LATENCY_FACTOR, factor, role=variant)

    def _record_change(self, running: Plan, plan: Plan) -> None:
        flips = sum(a.role != b.role for a, b in zip(running.assignments, plan.assignments, strict=False))
        self._metrics.add(metrics_of.PLANS)
        self._metrics.add(metrics_of.ROLE_FLIPS, flips)


def spread(plan: Plan, ranks: Iterable[int], size: int) -> Plan:
    """The plan of the live replicas, given to their ranks; ranks that are coming back take the last assignment.

    Raises:
        PlanError: it is for another number of replicas.
    """
    live = sorted(rank for rank in ranks if rank < size)
    if len(plan.assignments) != len(live):
        raise PlanError(f"the plan is for {len(plan.assignments)} replicas and {len(live)} are alive")
    assignments = [plan.assignments[-1]] * size
    for assignment, rank in zip(plan.assignments, live, strict=True):
        assignments[rank] = assignment
    return replace(plan, assignments=tuple(assignments))
