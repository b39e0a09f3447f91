"""The live controller: once a second it observes, decides, checks and publishes. A failure leaves the last valid plan
in force.

The controller can lose its state at any time: it reads the plan in force from the load balancer at its start and every
second. Versions only grow, also after a failed publication.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from controller.counters import Counters
from controller.live_ranks import LiveRanks
from controller.plan_notes import MOST_NOTES, PlanNote
from controller.policy import Policy
from solvers.solution import Solution
from weir import metrics as metrics_of
from weir import tracing
from weir.clocks import Clocks
from weir.errors import PlanError
from weir.pin import fitted, held
from weir.plan import PINNED, Plan
from weir.telemetry import Metrics, NoMetrics

log = logging.getLogger(__name__)

#: Seconds between observations.
TICK_S = 1.0
#: Seconds after which a published plan that is not in force is published again.
APPLY_S = 10.0
#: Seconds for which a starting pool keeps the plan of the configuration at most.
START_S = 120.0
#: Version of the configuration's plan, which the first plan of the policy replaces.
CONFIGURED = 1


class ServiceLink(NamedTuple):
    """How a controller observes and steers a service.

    Attributes:
        look: returns the counters of the load balancer; its argument is the previous snapshot.
        publish: publishes a plan, or raises when it cannot; its second argument is the plan in force.
        lead: whether this controller may publish. A controller that may not drops its state and waits.
    """

    look: Callable[[Counters | None], Counters]
    publish: Callable[[Plan, Plan], None]
    lead: Callable[[], bool] = lambda: True


class Controller:
    """Runs one policy on one live pool, on a single thread.

    Args:
        make_policy: makes a new policy by its name, "" for that of the configuration, for a number of replicas; called
            at the start, after each failure of the policy, when it is outdated, when another one is to plan, and when
            the pool is to have another number of replicas.
        size: number of replicas of the configuration. A plan covers the live ones; Serve starts the others meanwhile.
        metrics: records observations and plans.
        outdated: whether the inputs of the policy have changed since the last call.
        clocks: the wall clock is that of the notes.

    Attributes:
        notes: notes of the last published plans, the newest last.
    """

    def __init__(
        self,
        make_policy: Callable[[str, int], Policy],
        size: int,
        service: ServiceLink,
        *,
        metrics: Metrics | None = None,
        outdated: Callable[[], bool] = lambda: False,
        clocks: Clocks = Clocks(),
    ):
        self._make_policy = make_policy
        self._configured = self._size = size
        self._service = service
        self._metrics = metrics or NoMetrics()
        self._outdated = outdated
        self._clock = clocks.monotonic
        self._unix_time = clocks.unix
        self.notes: deque[PlanNote] = deque(maxlen=MOST_NOTES)
        self._policy_since = 0.0
        self._version = 0
        self._published_at = 0.0
        self._recorded: Solution | None = None
        self._failure = ""
        self._reset()

    def _reset(self) -> None:
        self._policy: Policy | None = None
        self._policy_for: tuple[str, int] | None = None  # its name and the number of replicas
        self._wanted: Plan | None = None  # the policy's last plan, without the operator's pin
        self._before: Counters | None = None
        self._published: Plan | None = None
        self._ranks = LiveRanks()
        self._starting_since: float | None = self._clock()

    def run(self, stop: threading.Event) -> None:
        """Runs a step every second until ``stop`` is set. No failure ends the loop."""
        while not stop.wait(TICK_S):
            self.step()

    def step(self) -> None:
        """Runs one step. It never raises: a failure is logged once, and the plan in force stays."""
        try:
            self._step()
        except Exception as error:
            self._metrics.add(metrics_of.FAILURES)
            failure = f"{type(error).__name__}: {error}"
            if failure != self._failure:
                log.warning("kept plan %d: %s", self._before.plan.version if self._before else 0, failure)
            self._failure = failure
        else:
            if self._failure:
                log.warning("the controller recovered and plans again")
            self._failure = ""

    def _step(self) -> None:
        if not self._service.lead():
            self._reset()
            return
        began = self._unix_time()
        seen = self._service.look(self._before)
        seen = replace(seen, ranks=self._ranks.observe(seen.ranks, self._clock()))
        self._before, before = seen, self._before
        self._size = seen.size or self._configured
        self._metrics.set(metrics_of.REPLICAS, len(seen.ranks))
        self._version = max(self._version, seen.plan.version)
        if not seen.ranks or self._is_starting(seen):
            return  # there are no replicas, or too few, to apply a plan
        latest = self._published if self._published and self._published.version > seen.plan.version else seen.plan
        plan = self._next(seen, self._decide(seen, before), latest)
        if plan is not None and _differs(plan, latest):
            self._send(plan, seen.plan, began)
            self._record_change(seen.plan, plan)
        elif latest is not seen.plan and self._clock() - self._published_at > APPLY_S:
            self._send(latest, seen.plan, began)

    def _is_starting(self, seen: Counters) -> bool:
        since = self._starting_since
        if since is None:
            return False
        if seen.plan.version > CONFIGURED or len(seen.ranks) >= self._size or self._clock() - since > START_S:
            self._starting_since = None
        return self._starting_since is not None

    def _decide(self, seen: Counters, before: Counters | None) -> Plan | None:
        """Returns the next plan of the policy for the live replicas. A policy that fails is replaced in the next
        step."""
        policy, self._policy = self._policy, None
        wanted, known = (seen.policy, self._size), self._policy_for
        if self._outdated() or policy is None or known != wanted:
            switched = known is not None and known[0] != seen.policy
            policy, self._policy_since = self._make_policy(*wanted), self._clock()
            self._policy_for = wanted
            plan = self._begin(policy, seen, switched)
        else:
            plan = policy.observe(seen.since(before, self._clock() - self._policy_since))
        self._record_account(policy)
        if plan is not None:
            plan = replace(plan, origin=seen.policy)
            check_size(plan, self._live(seen))
        self._policy = policy
        return plan

    def _begin(self, policy: Policy, seen: Counters, switched: bool) -> Plan | None:
        """Returns the first plan of a new policy; None if it continues from the plan in force."""
        if switched or seen.plan.origin not in ("", seen.policy):  # of another policy, or pinned
            return fitted(policy.first_plan(), len(self._live(seen)))
        if seen.plan.version > CONFIGURED or len(seen.ranks) < self._size:
            policy.resume(seen.plan)
            return None
        return policy.first_plan()

    def _next(self, seen: Counters, plan: Plan | None, latest: Plan) -> Plan | None:
        """Returns the plan for the whole pool that is to be in force; None if there is no other.

        Args:
            plan: the policy's next plan, if it has one.
            latest: the last published plan, or the plan in force.
        """
        self._wanted = plan or self._wanted
        live = self._live(seen)
        if seen.pin is not None:
            plan = held(self._wanted or seen.pin.plan, seen.pin, len(live))
        elif plan is None and self._wanted is not None and latest.origin == PINNED:  # the pin has ended
            plan = fitted(self._wanted, len(live))
        elif plan is None and len(latest.assignments) != self._size:  # the pool is to have another size
            plan = fitted(latest, len(live))
        return None if plan is None else spread(plan, live, self._size)

    def _live(self, seen: Counters) -> list[int]:
        """The live ranks of the pool that a plan is for."""
        return [rank for rank in seen.ranks if rank < self._size]

    def _send(self, plan: Plan, running: Plan, began: float) -> None:
        """Publishes a plan under the next version.

        Args:
            running: the plan in force.
            began: begin of this step, unix time.
        """
        self._version += 1
        plan = replace(plan, version=self._version)
        demand_rps = self._policy.account.forecast_rps if self._policy is not None else 0.0
        planning = tracing.span(
            "plan",
            since=began,
            plan_version=plan.version,
            origin=plan.origin,
            reason=plan.reason,
            demand_rps=demand_rps,
            solve_s=None if self._recorded is None else self._recorded.seconds,
        )
        try:
            with planning, tracing.span("publish", "client"):
                self._service.publish(plan, running)
        except Exception:
            if self._policy is not None and plan.origin != PINNED:
                self._policy.resume(running)  # its own last plan did not come into force
            raise
        self._published, self._published_at = plan, self._clock()
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


def _differs(plan: Plan, latest: Plan) -> bool:
    """Whether a plan has to be published after the latest one. An equal plan has to if only one of them is pinned, so
    that the plan in force tells whether the end of a pin was published."""
    return plan != replace(latest, version=plan.version) or (plan.origin == PINNED) != (latest.origin == PINNED)


def check_size(plan: Plan, ranks: Sequence[int]) -> None:
    """Checks that a plan is for the live replicas.

    Raises:
        PlanError: it is for another number of replicas.
    """
    if len(plan.assignments) != len(ranks):
        raise PlanError(f"the plan is for {len(plan.assignments)} replicas and {len(ranks)} are alive")


def spread(plan: Plan, ranks: Sequence[int], size: int) -> Plan:
    """Extends a plan for the live replicas to all ranks of the pool. Other ranks, which restart or are drained, get the
    last assignment.

    Args:
        ranks: ranks of the live replicas, ascending and below ``size``.

    Raises:
        PlanError: the plan is for another number of replicas.
    """
    check_size(plan, ranks)
    assignments = [plan.assignments[-1]] * size
    for assignment, rank in zip(plan.assignments, ranks, strict=True):
        assignments[rank] = assignment
    return replace(plan, assignments=tuple(assignments))
