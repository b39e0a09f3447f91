"""Weir's own policy for one cascade: the joint program on honest inputs, and no image thrown away.

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
- prompts that are predicted to need the heavy variant go there at once while that costs less than running both;
- requests go to the replica that finishes first.

A chain of three has two judges. The program chooses the share that each of them defers of what it sees, and the
thresholds follow from their live curves; the second judge sees only what the first one defers.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from controller.cache_forecast import LiveHits
from controller.curves import LiveDeferral, deferral_behind
from controller.demand import DemandForecast
from controller.latencies import LiveLatency
from controller.live_strategy import DEFAULT_RULES, LiveStrategy
from controller.observation import Observation
from controller.plan_notes import demand_words, solution_words
from controller.policy import Policy
from controller.prompt_groups import LiveGroups
from controller.setting import Setting
from controller.strategy import SwitchRules
from solvers.chain_grid import ChainGrid, chain_grid, mixed
from solvers.problem import CacheHit, MiddleStage, Problem
from solvers.solution import Solution, Status
from solvers.solve import solve
from weir.approximation_levels import Strategy
from weir.errors import ConfigError
from weir.plan import Plan, Rules

#: Variants of a cascade at most.
LONGEST = 3
#: Seconds between solutions, and between trims of the threshold, when nothing surprising happens.
PERIOD_S = 5.0
TRIM_S = 2.0
#: A forecast this far above the planned demand asks for a plan at once.
SURPRISE = 1.3
#: Capacity planned for each request of the forecast.
HEAD_ROOM = 1.05
LIGHT_UTILISATION = 0.8
HEAVY_UTILISATION = 1.1
#: What the middle stage of a chain of three does not finish is answered with the first variant's image, which is the
#: larger loss: it is planned just full.
MIDDLE_UTILISATION = 0.95
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
#: Share of states that have to come in time for the cache to be left alone where it is not needed: an unhealthy store
#: keeps being probed, or its recovery would not be seen.
SOUND = 0.9
#: Shares of steps, and qualities, are told apart no finer than this.
ROUNDING = 1e-6


class Weir(Policy):
    """See the module.

    Args:
        switch: when fetching states is given up, and taken up again.

    Attributes:
        strategy: AC while states are fetched for what they save, SM while that does not pay.

    Raises:
        ConfigError: the setting has more than three variants.
    """

    name = "weir"
    reuses = True

    def __init__(self, setting: Setting, solver: str = "auto", switch: SwitchRules = DEFAULT_RULES):
        super().__init__(setting)
        if len(setting.variants) > LONGEST:
            raise ConfigError(f"a cascade has at most {LONGEST} variants, not {', '.join(setting.variants)}")
        self.rules = Rules()
        self._solver = solver
        self._demand = DemandForecast()
        self._deferral = LiveDeferral(setting.deferral)
        self._behind = [LiveDeferral(judged.deferral) for judged in setting.middle.values()]
        self._latency = LiveLatency(setting)
        self._hits = LiveHits()
        self._groups = LiveGroups(setting.levels)
        self._strategy = LiveStrategy(switch)
        self._plan: Plan | None = None
        self._seen_at_s = self.planned_at_s = self._trimmed_at_s = 0.0
        self._planned_rps = 0.0
        self._shares = (0.0,) * len(setting.variants[1:])  # that each judge defers of what it sees
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
        """Plans again with the first request it sees, at the cost of changing the running roles."""
        super().resume(running)
        self.follow(running, 0.0)
        if self._is_mine(running):
            self._shares = tuple(
                curve.curve().at(threshold)
                for curve, threshold in zip((self._deferral, *self._behind), running.thresholds, strict=True)
            )

    def follow(self, running: Plan, demand_rps: float) -> None:
        """Takes note of a plan in force that another policy made for a demand."""
        self._plan, self._planned_rps = running, demand_rps

    def watch(self, seen: Observation) -> None:
        """Takes in one second without planning for it: the confidences, where the plan in force begins with the same
        variant, are of all prompts, as they would be under this policy's plans."""
        self._take_in(seen)
        self._owed = 0.0

    def observe(self, seen: Observation) -> Plan | None:
        self._take_in(seen)
        if not any(seen.replicas):
            return None  # no replica could follow a plan
        demand_rps = self.demand_rps
        surprised = demand_rps > SURPRISE * self._planned_rps
        lost = self._plan is not None and len(self._plan.assignments) != sum(seen.replicas)
        foreign = self._plan is not None and not self._is_mine(self._plan)
        if surprised or lost or foreign or seen.now_s - self.planned_at_s >= PERIOD_S:
            return self.plan_now(seen.now_s, seen.replicas)
        if self._plan is not None and seen.now_s - self._trimmed_at_s >= TRIM_S:
            self._trimmed_at_s = seen.now_s
            words = "thresholds follow the last confidences: " + self._deferral_words()
            return self._trimmed(self._plan, self.next_version(), words)
        return None

    def _take_in(self, seen: Observation) -> None:
        self._demand.observe(seen.arrivals, seen.now_s - self._seen_at_s)
        self._seen_at_s = seen.now_s
        # The judge of another plan's first variant may be none of this chain's, or one that sees a part only.
        begun = self._plan is None or self._plan.first == self.setting.variants[0]
        confidences, deferred = (seen.confidences, seen.deferred) if begun else ((), 0)
        self._deferral.observe(confidences)
        for curve, variant in zip(self._behind, self.setting.middle, strict=True):
            if self._plan is not None and self._is_mine(self._plan):
                curve.observe(seen.confidences_by_variant.get(variant, ()))
        self._hits.observe(seen.arrivals, seen.found, seen.fetches, sum(seen.reused.values()))
        self._groups.observe(seen.missed, zip(seen.levels, confidences, strict=False))
        self._latency.observe(seen.batches, seen.now_s)
        self._strategy.observe(seen, self._hits, self._latency.gpus()[0].heavy.at(1))
        self.account.latency_factors = {variant: self._latency.factor(variant) for variant in self.setting.variants}
        self._owed += self._shares[0] * len(confidences) - deferred
        self._owed = max(-self._most_owed(), min(self._most_owed(), self._owed))

    def _is_mine(self, plan: Plan) -> bool:
        return plan.chain == self.setting.variants and plan.routing is None

    @property
    def demand_rps(self) -> float:
        """What it plans for now, head-room included."""
        return HEAD_ROOM * self._demand.rate_rps()

    def plan_now(self, now_s: float, counts: tuple[int, ...]) -> Plan:
        """The plan for the demand as it is, whether one is due or not."""
        self.planned_at_s = self._trimmed_at_s = now_s
        return self._publish(self.demand_rps, counts)

    def _most_owed(self) -> float:
        return MOST_PAYBACK * PAYBACK_S * max(1.0, self._demand.rate_rps())

    def _publish(self, demand_rps: float, counts: tuple[int, ...]) -> Plan:
        problem = self.problem(demand_rps, counts)
        solution = solve(problem, self._solver)
        self.account.solves(demand_rps, solution)
        kept = self._plan is not None and self._is_mine(self._plan) and len(self._plan.assignments) == sum(counts)
        if solution.status is Status.LIGHTEST and self._plan is not None and kept:
            return self._trimmed(self._plan, self.next_version(), "no solver answered: the last good split stays")
        before_rps, self._planned_rps = self._planned_rps or None, demand_rps
        self._shares = begun_shares(problem, solution)
        words = [demand_words(demand_rps, before_rps), *solution_words(problem, solution, self._shares)]
        rules = replace(
            self.rules,
            direct=self._least_saved(solution.point.direct) if problem.hits else None,
            heavy_levels=self._groups.levels_from(problem.groups, solution.point.entry),
            reuse=solution.point.reuse,
            heavy_steps=solution.point.steps,
        )
        version = self.next_version()
        return self._trimmed(replace(solution.to_plan(problem, version), rules=rules), version, "; ".join(words))

    def _trimmed(self, plan: Plan, version: int, reason: str) -> Plan:
        """The plan with the thresholds that defer the planned shares, and what is owed of the first, by the latest
        F(t)."""
        thresholds = [self._deferral.threshold_for(self._shares[0] + self._payback())]
        for curve, judged, share in zip(self._behind, self.setting.middle.values(), self._shares[1:], strict=True):
            own = (self.setting.confidences, judged.confidences)
            curve.rebase(deferral_behind(thresholds[-1], *own, otherwise=judged.deferral))
            thresholds.append(curve.threshold_for(share))
        self._plan = replace(plan, version=version, thresholds=tuple(thresholds), reason=reason)
        return self._plan

    def _deferral_words(self) -> str:
        judged = zip(self.setting.variants, self._shares, strict=False)
        return ", ".join(f"{share:.0%} of the {variant} images are deferred" for variant, share in judged)

    def _payback(self) -> float:
        """What to add to the deferred share so that the last deviation is made up for."""
        if self._shares[0] in (0.0, 1.0):
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
        thresholds, deferral = curve.thresholds, curve.shares
        middle: tuple[MiddleStage, ...] = ()
        rewards = tuple(quality.reward(1 - f) if quality else f for f in curve.shares)
        if setting.middle:
            grid = self._grid()
            thresholds, deferral, rewards, middle = grid.thresholds, grid.deferral, grid.quality, (grid.middle,)
        return Problem(
            gpus=tuple(
                replace(gpu, count=count, running=running)
                for gpu, count, running in zip(self._latency.gpus(), counts, self._running(counts), strict=True)
            ),
            demand_rps=demand_rps,
            slo_s=setting.slo_s,
            thresholds=thresholds,
            deferral=deferral,
            quality=rewards,
            middle=middle,
            hits=hits,
            direct_cuts=self._direct_cuts(hits),
            may_run_whole=self.strategy is Strategy.AC and self._hits.arriving > SOUND,
            short_runs=setting.short_runs,
            groups=self._groups.groups(curve.thresholds),
            light_utilisation=LIGHT_UTILISATION,
            middle_utilisation=MIDDLE_UTILISATION,
            heavy_utilisation=HEAVY_UTILISATION_BY_STEPS if setting.stepwise else HEAVY_UTILISATION,
            unbacked_utilisation=UNBACKED_UTILISATION,
            fixed_s=setting.discriminator_s + self._hits.fetch_s,
            light_residual=LIGHT_RESIDUAL,
            role_change_cost=ROLE_CHANGE_COST,
            gpu_cost=GPU_COST,
        )

    def _grid(self) -> ChainGrid:
        """Of a chain of three; without measured qualities, the more the last variant answers, the better."""
        curves = [self.setting.quality, *(judged.quality for judged in self.setting.middle.values())]
        rewards = [curve.reward if curve else lambda share: 1 - share for curve in curves]
        return chain_grid(self._deferral.threshold_for, self._behind[0].threshold_for, mixed(rewards))

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

    def _running(self, counts: tuple[int, ...]) -> list[dict[str, int] | None]:
        """Replicas of each type by variant under the running plan, whose ranks run through the types in order; None
        where some of them serve a variant of another chain, and have to change anyway."""
        running: list[dict[str, int] | None] = []
        first = 0
        for count in counts:
            roles = [self._plan.assignment(rank).role for rank in range(first, first + count)] if self._plan else []
            known = self._plan is not None and set(roles) <= set(self.setting.variants)
            running.append({variant: roles.count(variant) for variant in self.setting.variants} if known else None)
            first += count
        return running


def begun_shares(problem: Problem, solution: Solution) -> tuple[float, ...]:
    """Of the images that each judge sees, the share that the solution defers; the first one sees those of requests
    that begin at the first variant."""
    j, begun = solution.point.j, problem.groups[: solution.point.entry]
    total = sum(group.share for group in begun)
    if problem.groups and total > 0:
        return (sum(group.share * group.deferral[j] for group in begun) / total,)
    reached = (1.0, *(stage.reached[j] for stage in problem.middle), problem.deferral[j])
    return tuple(after / before if before else 0.0 for before, after in pairwise(reached))
