"""Several light variants before one heavy one: Weir's policy for each pair, and the pair in use as the load asks.

Every pair is planned by a policy of its own, which sees what all of them see but the confidences, for these are of the
pair in use. When that pair plans anew, all pairs' programs are solved for the same demand, and the best of them is in
use from then on (``solvers/cascades.py``). A change of the pair moves no weights: light variants are small, and a
replica holds all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controller.observation import Observation
from controller.policies.weir import Weir
from controller.policy import Policy
from controller.setting import Setting
from solvers.cascades import chosen_pair
from weir.core import Plan, Role
from weir.errors import ConfigError

#: Seconds between choices.
PERIOD_S = 5.0
#: Share of the range of all qualities that a pair has to be better by to be changed to.
SWITCH_COST = 5e-3


class WeirPairs(Policy):
    """See the module.

    Args:
        settings: one a pair; the hardware, the deadline and the scale of the quality are the same in all.

    Attributes:
        pair: the one in use.

    Raises:
        ConfigError: there is none, or they differ in what has to be the same, or say nothing of quality.
    """

    name = "weir-pairs"

    def __init__(self, settings: Sequence[Setting], solver: str = "auto"):
        if not settings:
            raise ConfigError("pairs is empty; give at least one cascade")
        first = settings[0]
        for i, other in enumerate(settings):
            if other.quality is None:
                raise ConfigError(f"pairs[{i}] has no measured quality, so it cannot be compared with another")
            if first.quality is None or first.quality.smaller_is_better != other.quality.smaller_is_better:
                raise ConfigError(f"pairs[{i}]: its quality is on another scale than that of pairs[0]")
            if (other.replicas, other.slo_s, other.stepwise) != (first.replicas, first.slo_s, first.stepwise):
                raise ConfigError(f"pairs[{i}]: GPUs, deadline and kind of profile must be those of pairs[0]")
        super().__init__(first)
        self.settings = tuple(settings)
        self.pair = 0
        self._members = tuple(Weir(setting, solver) for setting in settings)
        self._solver = solver
        self._chosen_at_s = 0.0
        values = [v for s in settings if s.quality for v in s.quality.values]
        self._switch_cost = SWITCH_COST * (max(values) - min(values))

    def first_plan(self) -> Plan:
        """The best pair's without any load, which is the one in use until the first choice."""
        self.pair = self._best(0.0, tuple(gpu.count for gpu in self.setting.gpus))
        return self._as_mine(self._members[self.pair].first_plan())

    def resume(self, running: Plan) -> None:
        super().resume(running)
        named = [i for i, setting in enumerate(self.settings) if setting.light == running.rules.light]
        self.pair = named[0] if named else 0
        self._members[self.pair].resume(running)

    def observe(self, seen: Observation) -> Plan | None:
        blind = replace(
            seen, confidences=(), levels=(), deferred=0, batches=tuple(b for b in seen.batches if b.role is Role.HEAVY)
        )
        plans = [member.observe(seen if i == self.pair else blind) for i, member in enumerate(self._members)]
        running, self.account = self.pair, self._members[self.pair].account
        if any(seen.replicas) and (plans[running] is not None or seen.now_s - self._chosen_at_s >= PERIOD_S):
            self._chosen_at_s = seen.now_s
            self.pair = self._best(self._members[running].demand_rps, seen.replicas)
        if self.pair != running:
            self.account = self._members[self.pair].account
            return self._as_mine(self._members[self.pair].plan_now(seen.now_s, seen.replicas))
        found = plans[running]
        return None if found is None else self._as_mine(found)

    def _best(self, demand_rps: float, counts: tuple[int, ...]) -> int:
        problems = [member.problem(demand_rps, counts) for member in self._members]
        return chosen_pair(problems, running=self.pair, switch_cost=self._switch_cost, solver=self._solver).pair

    def _as_mine(self, plan: Plan) -> Plan:
        rules = replace(plan.rules, light=self.settings[self.pair].light)
        return replace(plan, version=self.next_version(), rules=rules)
