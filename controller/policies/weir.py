"""Weir's policy for one cascade: the joint program on live measurements.

Differences from DiffServe, each with its reason:

- The demand is the arrival rate (``controller.demand``), not a count of requests in flight.
- The light stage keeps head-room, because its queue costs deadlines. A heavy stage of whole batches is planned slightly
  more than full: a request that it cannot finish in time is answered with the light image, so a full queue costs
      quality
  only, and a stage planned just full would waste capacity in random gaps. A heavy stage that images join at every step
  has no such gaps and is planned just full, so that the threshold decides which images are deferred, not the deadline.
- Requests that begin heavy have no light image to fall back on, so they have the weight of a stage planned just full.
- The objective is measured quality, so nothing is deferred beyond the best mix.
- F(t) is corrected by live confidences, and the share of deferred requests by the observed share: random deviations and
  errors in F(t) are compensated within a few plans.
- Batch times are corrected by the measurements of the workers.
- The savings of the cache in the last minute are part of the program. The plan decides which hits start at the heavy
  variant and which begin light like any other request. A resumed image has its measured quality, so the cache is
  ignored where there is time for whole runs.
- Heavy runs from noise get shorter, by the measured quality of each length, where whole runs would leave more requests
  light.
- States that do not arrive in time count as whole runs. While fetching takes longer than it saves, hits begin light
  (``controller/strategy.py``).
- Prompts that are predicted to need the heavy variant start there while that costs less than running both variants.
- A request goes to the replica that finishes it first.

A chain of three has two judges. The program chooses the share that each of them defers of the images it sees, and the
thresholds follow from their live curves. The second judge sees only the images that the first one defers.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from controller.cache_forecast import CacheForecast
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

#: Largest number of variants in a cascade.
LONGEST = 3
#: Seconds between solutions, and between corrections of the thresholds, on a steady load.
PERIOD_S = 5.0
TRIM_S = 2.0
#: Ratio of forecast to planned demand that triggers a plan at once.
SURPRISE = 1.3
#: Demand that a plan is made for at least, requests per second. Without any demand no variant would need a replica, and
#: the next request may need each of them.
LEAST_RPS = 1e-3
#: Capacity planned for each request of the forecast.
HEAD_ROOM = 1.05
LIGHT_UTILISATION = 0.8
HEAVY_UTILISATION = 1.1
#: A request that the middle stage of a chain of three does not finish is answered with the image of the first variant,
#: which is a larger loss, so the stage is planned just full.
MIDDLE_UTILISATION = 0.95
#: A stage that images join at every step has no random gaps, and its excess falls back regardless of confidence.
HEAVY_UTILISATION_BY_STEPS = 0.95
#: Utilisation of the heavy stage by requests that begin heavy. They have no light image to fall back on, so their queue
#: costs deadlines or additional light images; it is planned just full.
UNBACKED_UTILISATION = 0.95
#: Wait of a request for its replica, as a share of the light batch latency.
LIGHT_RESIDUAL = 0.5
#: Quality (0…1 over the whole curve) that avoiding one role change, and leaving one GPU spare, is worth.
ROLE_CHANGE_COST = 2e-3
GPU_COST = 1e-5
#: Time over which a deviation of the deferred share is compensated, seconds, and the least number of images. Over a few
#: images, a single one would decide, and the threshold would swing between its ends.
PAYBACK_S = 2.0
PAYBACK_IMAGES = 10
#: Largest correction of the deferred share.
MOST_PAYBACK = 0.25
#: Least share of successful fetches for which a plan may ignore the cache: an unhealthy store keeps being probed,
#: because its recovery would stay unnoticed otherwise.
SOUND = 0.9
#: Shares of steps and qualities that differ by less are equal.
ROUNDING = 1e-6


class Weir(Policy):
    """Weir's policy for a cascade of two or three variants; see the module.

    Args:
        switch: limits at which fetching states ends and resumes.

    Attributes:
        strategy: AC while fetching states saves time, SM while it does not.

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
        self._hits = CacheForecast()
        self._groups = LiveGroups(setting.levels)
        self._strategy = LiveStrategy(switch)
        self._plan: Plan | None = None
        self._seen_at_s = self.planned_at_s = self._trimmed_at_s = 0.0
        self._planned_rps = 0.0
        self._forecast_rps: float | None = None  # demand of the last plan that was made for an observed demand
        self._shares = (0.0,) * len(setting.variants[1:])  # planned share that each judge defers of the images it sees
        self._owed = 0.0

    def first_plan(self) -> Plan:
        """Returns the plan for the largest demand that still gets the best quality. At this demand there is time for
        whole runs, so the plan does not resume images if that lowers their quality."""
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
        reason = f"no demand was observed yet; up to {low:.1f}/s get the best quality"
        self._forecast_rps = None
        self._plan = replace(plan, reason=reason, rules=replace(plan.rules, reuse=self.setting.resumed >= 1))
        return self._plan

    def resume(self, running: Plan) -> None:
        """Continues from the plan in force. The next plan accounts for the cost of changing its roles."""
        super().resume(running)
        self.follow(running, 0.0)
        if self._is_mine(running):
            self._shares = tuple(
                curve.curve().at(threshold)
                for curve, threshold in zip((self._deferral, *self._behind), running.thresholds, strict=True)
            )

    def follow(self, running: Plan, demand_rps: float) -> None:
        """Records the plan in force, which another policy made for a demand."""
        self._plan, self._planned_rps = running, demand_rps
        self._forecast_rps = demand_rps or None

    def watch(self, seen: Observation) -> None:
        """Adds the observation of one second without planning. The confidences are used when the plan in force begins
        with the same variant: they then cover all prompts, as under the plans of this policy."""
        self._take_in(seen)
        self._owed = 0.0

    def observe(self, seen: Observation) -> Plan | None:
        self._take_in(seen)
        if not any(seen.replicas):
            return None  # there is no replica to apply a plan
        demand_rps = self.demand_rps
        surprised = demand_rps > SURPRISE * self._planned_rps
        lost = self._plan is not None and len(self._plan.assignments) != sum(seen.replicas)
        foreign = self._plan is not None and not self._is_mine(self._plan)
        if surprised or lost or foreign or seen.now_s - self.planned_at_s >= PERIOD_S:
            return self.plan_now(seen.now_s, seen.replicas)
        if self._plan is not None and seen.now_s - self._trimmed_at_s >= TRIM_S:
            self._trimmed_at_s = seen.now_s
            words = "thresholds follow the recent confidences: " + self._deferral_words()
            return self._trimmed(self._plan, self.next_version(), words)
        return None

    def _take_in(self, seen: Observation) -> None:
        self._demand.observe(seen.arrivals, seen.now_s - self._seen_at_s)
        self._seen_at_s = seen.now_s
        # The judge of another plan's first variant may be missing in this chain, or see only a part of its images.
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
        most = MOST_PAYBACK * self._payback_images()
        self._owed = max(-most, min(most, self._owed))

    def _is_mine(self, plan: Plan) -> bool:
        return plan.chain == self.setting.variants and plan.routing is None

    @property
    def demand_rps(self) -> float:
        """Requests per second to plan for now, head-room included."""
        return HEAD_ROOM * self._demand.rate_rps()

    def plan_now(self, now_s: float, counts: tuple[int, ...]) -> Plan:
        """Returns a plan for the current demand, whether or not one is due."""
        self.planned_at_s = self._trimmed_at_s = now_s
        return self._publish(max(LEAST_RPS, self.demand_rps), counts)

    def _payback_images(self) -> float:
        """Number of images over which a deviation is compensated."""
        return max(PAYBACK_IMAGES, self._demand.rate_rps() * PAYBACK_S)

    def _publish(self, demand_rps: float, counts: tuple[int, ...]) -> Plan:
        problem = self.problem(demand_rps, counts)
        solution = solve(problem, self._solver)
        self.account.solves(demand_rps, solution)
        kept = self._plan is not None and self._is_mine(self._plan) and len(self._plan.assignments) == sum(counts)
        if solution.status is Status.LIGHTEST and self._plan is not None and kept:
            return self._trimmed(self._plan, self.next_version(), "every solver failed: the last valid split stays")
        before_rps, self._planned_rps, self._forecast_rps = self._forecast_rps, demand_rps, demand_rps
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
        """Returns the plan with the thresholds that defer the planned shares by the latest F(t); the first share
        includes the compensation of past deviations."""
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
        """Correction of the first deferred share that compensates past deviations."""
        if self._shares[0] in (0.0, 1.0):
            return 0.0
        return max(-MOST_PAYBACK, min(MOST_PAYBACK, self._owed / self._payback_images()))

    def _solve(self, demand_rps: float, counts: tuple[int, ...]) -> Solution:
        return solve(self.problem(demand_rps, counts), self._solver)

    def problem(self, demand_rps: float, counts: tuple[int, ...]) -> Problem:
        """Returns the allocation problem for a demand and ``counts`` live replicas by type, with all live
        measurements."""
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
        """Returns the grid of a chain of three. Without measured qualities, a larger share of the last variant is
        better."""
        curves = [self.setting.quality, *(judged.quality for judged in self.setting.middle.values())]
        rewards = [curve.reward if curve else lambda share: 1 - share for curve in curves]
        return chain_grid(self._deferral.threshold_for, self._behind[0].threshold_for, mixed(rewards))

    def _direct_cuts(self, hits: tuple[CacheHit, ...]) -> tuple[float, ...]:
        """Returns the cuts that the plan may choose. Under SM all hits begin light like other requests, and the
        deferred ones keep measuring the fetch time."""
        if not hits:
            return (0.0,)
        if self._strategy.strategy is Strategy.SM:
            return (1.0,)
        return (0.0, *(1 - hit.work for hit in hits[1:]), 1.0)

    @property
    def strategy(self) -> Strategy:
        return self._strategy.strategy

    def _least_saved(self, cut: float) -> float:
        """Converts a cut of the program to the rule of the plan, which applies to the saving that a lookup reports.
        Only a part of the fetches succeed, so the cut is divided by that part; it is lowered slightly against
        rounding."""
        arriving = self._hits.arriving
        return cut if cut in (0.0, 1.0) else min(1.0, cut / arriving - ROUNDING)

    def _running(self, counts: tuple[int, ...]) -> list[dict[str, int] | None]:
        """Returns the replicas of each type by variant under the running plan, whose ranks run through the types in
        order; None when some of them serve a variant of another chain and have to change in any case."""
        running: list[dict[str, int] | None] = []
        first = 0
        for count in counts:
            roles = [self._plan.assignment(rank).role for rank in range(first, first + count)] if self._plan else []
            known = self._plan is not None and set(roles) <= set(self.setting.variants)
            running.append({variant: roles.count(variant) for variant in self.setting.variants} if known else None)
            first += count
        return running


def begun_shares(problem: Problem, solution: Solution) -> tuple[float, ...]:
    """Returns the share that the solution defers of the images that each judge sees. The first judge sees the requests
    that begin at the first variant."""
    j, begun = solution.point.j, problem.groups[: solution.point.entry]
    total = sum(group.share for group in begun)
    if problem.groups and total > 0:
        return (sum(group.share * group.deferral[j] for group in begun) / total,)
    reached = (1.0, *(stage.reached[j] for stage in problem.middle), problem.deferral[j])
    return tuple(after / before if before else 0.0 for before, after in pairwise(reached))
