"""Weir's own policy: the joint program on honest inputs, and no image thrown away.

Differences to DiffServe, each with its reason:

- demand is the arrival rate (``controller.demand``), not a count of what is in flight;
- the light stage keeps head-room, because its queue costs deadlines. A heavy stage of whole batches is planned a little
  more than full: what it cannot finish in time is answered with the light image, so there a full queue costs quality
  only, and the gaps that chance leaves in a stage planned just full waste it. One that images join at every step has
  no such gaps and is planned just full, so that the threshold chooses who is deferred and not the deadline;
- requests that begin heavy have no light image to fall back on, so they weigh as much as a stage planned just full;
- the objective is measured quality, so nothing is deferred beyond the best mix;
- F(t) is corrected by live confidences, and the share of deferred requests by what was really deferred: chance and
  error in F(t) are paid back within a few plans;
- batch times are corrected by what the workers measured;
- what the cache saves is planned with, as it was in the last minute, and the plan says which hits are worth the heavy
  variant at once and which begin light like any other request. A resumed image is worth what was measured, so where
  there is time for whole runs the cache is left alone;
- heavy runs from noise get shorter where the whole ones would leave more requests light, by what was measured of each
  length;
- states that do not come in time count as what they cost, a whole run. While fetching takes longer than it saves, hits
  begin light (``controller/strategy.py``);
- prompts that are predicted to need the heavy variant go there at once while that costs less than drawing them twice;
- requests go to the replica that finishes first.
"""

from __future__ import annotations

import math
from dataclasses import replace

from controller.cache_forecast import LiveHits
from controller.curves import LiveDeferral
from controller.demand import DemandForecast
from controller.latencies import LiveLatency
from controller.observation import Observation
from controller.policy import Policy
from controller.prompt_groups import LiveGroups
from controller.setting import Setting
from controller.strategy import CacheHealth, StrategyState, SwitchRules, next_strategy, saved_seconds
from solvers.problem import CacheHit, Problem
from solvers.solution import Solution, Status
from solvers.solve import solve
from weir.approximation_levels import Strategy
from weir.core import Plan, Role, Rules

#: Seconds between solutions, and between trims of the threshold, when nothing surprising happens.
PERIOD_S = 5.0
TRIM_S = 2.0
#: A forecast this far above the planned demand asks for a plan at once.
SURPRISE = 1.3
#: Capacity planned for each request of the forecast.
HEAD_ROOM = 1.05
LIGHT_UTILISATION = 0.8
HEAVY_UTILISATION = 1.1
#: Where images join at every step chance leaves no gaps, and what is too much falls back whatever its confidence.
HEAVY_UTILISATION_BY_STEPS = 0.95
#: Share of the heavy stage that requests which begin heavy may count on. No light image stands behind them, so their
#: queue costs deadlines or light images; it is planned just full.
UNBACKED_UTILISATION = 0.95
#: Share of a light batch that a request waits for its replica to come free.
LIGHT_RESIDUAL = 0.5
#: Quality (0…1 over the whole curve) worth giving up to spare one role change, and to leave a GPU spare.
ROLE_CHANGE_COST = 2e-3
GPU_COST = 1e-5
#: Seconds over which a deviation of the deferred share is paid back, and the most it may move the share.
PAYBACK_S = 2.0
MOST_PAYBACK = 0.25
DEFAULT_SWITCH = SwitchRules()
#: Share of states that have to come in time for the cache to be left alone where it is not needed: one that ails goes
#: on being asked, or nobody would see it recover.
SOUND = 0.9
#: Seconds for which fetches count as measured: under SM seconds without any are many.
MEASURED_S = 30.0
#: Shares of steps, and qualities, are told apart no finer than this.
ROUNDING = 1e-6


class Weir(Policy):
    """See the module.

    Args:
        switch: when fetching states is given up, and taken up again.

    Attributes:
        strategy: AC while states are fetched for what they save, SM while that does not pay.
    """

    name = "weir"

    def __init__(self, setting: Setting, solver: str = "auto", switch: SwitchRules = DEFAULT_SWITCH):
        super().__init__(setting)
        self.switch = switch
        self.rules = Rules()
        self._solver = solver
        self._demand = DemandForecast()
        self._deferral = LiveDeferral(setting.deferral)
        self._latency = LiveLatency(setting)
        self._hits = LiveHits()
        self._groups = LiveGroups(setting.levels)
        self._strategy = StrategyState()
        self._plan: Plan | None = None
        self._seen_at_s = self._planned_at_s = self._trimmed_at_s = 0.0
        self._planned_rps = 0.0
        self._fetched_at_s = -math.inf
        self._share = 0.0
        self._owed = 0.0

    def first_plan(self) -> Plan:
        """Without any observation: ready for the largest demand that still gets the best quality. For that there is
        time, so resumed images, if they are worth less, are not needed either."""
        counts = tuple(g.count for g in self.setting.gpus)
        best = self._solve(0.0, counts).point.quality - ROUNDING
        low, high = 0.0, 1.0
        while self._solve(high, counts).point.quality >= best and high < 1e6:
            low, high = high, 2 * high
        for _ in range(6):
            middle = (low + high) / 2
            if self._solve(middle, counts).point.quality >= best:
                low = middle
            else:
                high = middle
        plan = self._publish(low, counts)
        self._plan = replace(plan, rules=replace(plan.rules, reuse=self.setting.resumed >= 1))
        return self._plan

    def resume(self, running: Plan) -> None:
        """Plans anew with the first request it sees, at the cost of changing the running roles."""
        super().resume(running)
        self._plan, self._planned_rps = running, 0.0
        self._share = self._deferral.curve().at(running.threshold)

    def observe(self, seen: Observation) -> Plan | None:
        self._demand.observe(seen.arrivals, seen.now_s - self._seen_at_s)
        self._seen_at_s = seen.now_s
        self._deferral.observe(seen.confidences)
        self._hits.observe(seen.arrivals, seen.found, seen.fetches, sum(seen.reused.values()))
        self._groups.observe(seen.missed, zip(seen.levels, seen.confidences, strict=False))
        self._latency.observe(seen.batches, seen.now_s)
        self._strategy = next_strategy(self._strategy, self._cache_health(seen), seen.now_s, self.switch)
        self.account.latency_factors = {role: self._latency.factor(role) for role in Role}
        self._owed += self._share * len(seen.confidences) - seen.deferred
        self._owed = max(-self._most_owed(), min(self._most_owed(), self._owed))
        if not any(seen.replicas):
            return None  # nobody could follow a plan
        demand_rps = self.demand_rps
        surprised = demand_rps > SURPRISE * self._planned_rps
        lost = self._plan is not None and len(self._plan.assignments) != sum(seen.replicas)
        if surprised or lost or seen.now_s - self._planned_at_s >= PERIOD_S:
            return self.plan_now(seen.now_s, seen.replicas)
        if self._plan is not None and seen.now_s - self._trimmed_at_s >= TRIM_S:
            self._trimmed_at_s = seen.now_s
            return self._trimmed(self._plan, self.next_version())
        return None

    @property
    def demand_rps(self) -> float:
        """What it plans for now, head-room included."""
        return HEAD_ROOM * self._demand.rate_rps()

    def plan_now(self, now_s: float, counts: tuple[int, ...]) -> Plan:
        """The plan for the demand as it is, whether one is due or not."""
        self._planned_at_s = self._trimmed_at_s = now_s
        return self._publish(self.demand_rps, counts)

    def _most_owed(self) -> float:
        return MOST_PAYBACK * PAYBACK_S * max(1.0, self._demand.rate_rps())

    def _publish(self, demand_rps: float, counts: tuple[int, ...]) -> Plan:
        problem = self.problem(demand_rps, counts)
        solution = solve(problem, self._solver)
        self.account.solves(demand_rps, solution)
        if solution.status is Status.LIGHTEST and self._plan and len(self._plan.assignments) == sum(counts):
            return self._trimmed(self._plan, self.next_version())  # no solver answered: the last good split stays
        self._share, self._planned_rps = begun_share(problem, solution), demand_rps
        rules = replace(
            self.rules,
            direct=self._least_saved(solution.point.direct) if problem.hits else None,
            heavy_levels=self._groups.levels_from(problem.groups, solution.point.entry),
            reuse=solution.point.reuse,
            heavy_steps=solution.point.steps,
        )
        version = self.next_version()
        return self._trimmed(replace(solution.to_plan(problem, version), rules=rules), version)

    def _trimmed(self, plan: Plan, version: int) -> Plan:
        """The plan with the threshold that defers the planned share, and what is owed of it, by the latest F(t)."""
        threshold = self._deferral.threshold_for(self._share + self._payback())
        self._plan = replace(plan, version=version, threshold=threshold)
        return self._plan

    def _payback(self) -> float:
        """What to add to the deferred share so that the last deviation is made up for."""
        if self._share in (0.0, 1.0):
            return 0.0
        expected = max(1.0, self._demand.rate_rps() * PAYBACK_S)
        return max(-MOST_PAYBACK, min(MOST_PAYBACK, self._owed / expected))

    def _solve(self, demand_rps: float, counts: tuple[int, ...]) -> Solution:
        return solve(self.problem(demand_rps, counts), self._solver)

    def problem(self, demand_rps: float, counts: tuple[int, ...]) -> Problem:
        """The program for a demand and so many live replicas of each type, with all that was observed."""
        setting, curve = self.setting, self._deferral.curve()
        quality = setting.quality
        hits = self._hits.hits(setting.resumed_reward)
        return Problem(
            gpus=tuple(
                replace(gpu, count=count, running_light=running)
                for gpu, count, running in zip(self._latency.gpus(), counts, self._running_light(counts), strict=True)
            ),
            demand_rps=demand_rps,
            slo_s=setting.slo_s,
            thresholds=curve.thresholds,
            deferral=curve.shares,
            quality=tuple(quality.reward(1 - f) if quality else f for f in curve.shares),
            hits=hits,
            direct_cuts=self._direct_cuts(hits),
            may_draw_whole=self.strategy is Strategy.AC and self._hits.arriving > SOUND,
            short_runs=setting.short_runs,
            groups=self._groups.groups(curve.thresholds),
            light_utilisation=LIGHT_UTILISATION,
            heavy_utilisation=HEAVY_UTILISATION_BY_STEPS if setting.stepwise else HEAVY_UTILISATION,
            unbacked_utilisation=UNBACKED_UTILISATION,
            fixed_s=setting.discriminator_s + self._hits.fetch_s,
            light_residual=LIGHT_RESIDUAL,
            role_change_cost=ROLE_CHANGE_COST,
            gpu_cost=GPU_COST,
        )

    def _direct_cuts(self, hits: tuple[CacheHit, ...]) -> tuple[float, ...]:
        """What the plan may choose from: while fetching does not pay, hits begin light like all others (SM), and those
        that are deferred go on showing what a fetch takes."""
        if not hits:
            return (0.0,)
        if self._strategy.strategy is Strategy.SM:
            return (1.0,)
        return (0.0, *(1 - hit.work for hit in hits[1:]), 1.0)

    @property
    def strategy(self) -> Strategy:
        return self._strategy.strategy

    def _least_saved(self, cut: float) -> float:
        """A cut of the program as the rule that requests are held against: in what a lookup promises, of which only a
        part arrives, and a hair below, so that rounding turns no hit away."""
        arriving = self._hits.arriving
        return cut if cut in (0.0, 1.0) else min(1.0, cut / arriving - ROUNDING)

    def _cache_health(self, seen: Observation) -> CacheHealth:
        if seen.fetches:
            self._fetched_at_s = seen.now_s
        measured = seen.now_s - self._fetched_at_s <= MEASURED_S
        hits = self._hits.hits(1.0)
        heavy_s = self._latency.gpus()[0].heavy.at(1)
        return CacheHealth(
            fetch_s=self._hits.fetch_s if measured else None,
            saved_s=saved_seconds({1 - hit.work: hit.share for hit in hits}, heavy_s),
            # Few hits cost nothing here, for only those that exist go to the heavy variant at once; what costs a whole
            # run is a state that was promised and does not come.
            hit_share=self._hits.arriving if measured else None,
        )

    def _running_light(self, counts: tuple[int, ...]) -> list[int | None]:
        """Light replicas of each type under the running plan, whose ranks run through the types in order."""
        if self._plan is None:
            return [None] * len(counts)
        running: list[int | None] = []
        first = 0
        for count in counts:
            running.append(sum(self._plan.assignment(r).role is Role.LIGHT for r in range(first, first + count)))
            first += count
        return running


def begun_share(problem: Problem, solution: Solution) -> float:
    """Of the requests that begin light, the share that the solution defers."""
    j, begun = solution.point.j, problem.groups[: solution.point.entry]
    total = sum(group.share for group in begun)
    if not problem.groups or total <= 0:
        return solution.deferral
    return sum(group.share * group.deferral[j] for group in begun) / total
