"""Weir's policy for a ladder of variants, which chooses the chain by the load.

Every chain of two or three variants that ends in the best one has a policy of its own
(``controller/policies/weir.py``), which receives every observation whether or not its chain is in use. When the chain
in use is planned again, the programs of all chains are solved for the same demand, and the best chain is used from then
on (``solvers/cascades.py``). A change of the chain moves no weights, because a replica holds all variants.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from controller.observation import Observation
from controller.policies.weir import LONGEST, Weir
from controller.policy import Policy
from controller.setting import Setting
from solvers.cascades import chosen_chain
from weir.errors import ConfigError
from weir.plan import Plan

#: Seconds between choices of the chain.
PERIOD_S = 5.0
#: Gain in quality that a change of the chain requires, as a share of the range of all qualities.
SWITCH_COST = 5e-3


def weir(setting: Setting) -> Policy:
    """Makes Weir's policy for a ladder of any length."""
    return Weir(setting) if len(setting.variants) == 2 else WeirLadder(setting)


class WeirLadder(Policy):
    """Weir's policy for a ladder of three or more variants; see the module.

    Attributes:
        chains: the candidate chains, each from its fastest variant to the best one of the ladder.
        running: index of the chain in use.

    Raises:
        ConfigError: the qualities of the variants cannot be compared, because one was not measured or is on another
            scale.
    """

    name = "weir"
    reuses = True

    def __init__(self, setting: Setting, solver: str = "auto"):
        curves = {setting.variants[0]: setting.quality} | {key: it.quality for key, it in setting.middle.items()}
        values: list[float] = []
        for key, curve in curves.items():
            if curve is None:
                raise ConfigError(
                    f"policy weir needs the quality of every variant of the ladder, and that of mixes of {key} with "
                    f"{setting.last} was not measured; `weir calibrate --profile` measures it"
                )
            if setting.quality is None or curve.smaller_is_better != setting.quality.smaller_is_better:
                raise ConfigError(
                    f"policy weir compares the variants of the ladder, and the quality of {key} is on another scale "
                    f"than that of {setting.variants[0]}; measure both with `weir calibrate --profile`"
                )
            values += curve.values
        super().__init__(setting)
        *lights, last = setting.variants
        self.chains = tuple((*chosen, last) for length in range(1, LONGEST) for chosen in combinations(lights, length))
        self.running = 0
        self._members = tuple(Weir(setting.chain(chain), solver) for chain in self.chains)
        self._solver = solver
        self._chosen_at_s = 0.0
        self._switch_cost = SWITCH_COST * (max(values) - min(values))

    def first_plan(self) -> Plan:
        """Returns the first plan of the chain that is best without load, which is used until the first choice."""
        self.running = self._best(0.0, tuple(gpu.count for gpu in self.setting.gpus))
        member = self._members[self.running]
        plan, self.account = member.first_plan(), member.account
        return self._published(plan)

    def resume(self, running: Plan) -> None:
        super().resume(running)
        self.running = self.chains.index(running.chain) if running.chain in self.chains else 0
        for member in self._members:
            member.resume(running)

    def observe(self, seen: Observation) -> Plan | None:
        for i, member in enumerate(self._members):
            if i != self.running:
                member.watch(seen)
        member = self._members[self.running]
        found, self.account = member.observe(seen), member.account
        due = member.planned_at_s == seen.now_s or seen.now_s - self._chosen_at_s >= PERIOD_S
        if any(seen.replicas) and due:
            self._chosen_at_s = seen.now_s
            best = self._best(member.demand_rps, seen.replicas)
            if best != self.running:
                before, self.running = self.chains[self.running], best
                self.account = self._members[best].account
                found = self._members[best].plan_now(seen.now_s, seen.replicas)
                words = f"{' → '.join(self.chains[best])} is better now than {' → '.join(before)}"
                found = replace(found, reason=f"{words}; {found.reason}")
        return None if found is None else self._published(found)

    def _best(self, demand_rps: float, counts: tuple[int, ...]) -> int:
        problems = [member.problem(demand_rps, counts) for member in self._members]
        return chosen_chain(problems, running=self.running, switch_cost=self._switch_cost, solver=self._solver).chain

    def _published(self, plan: Plan) -> Plan:
        for i, member in enumerate(self._members):
            if i != self.running:
                member.follow(plan, self.account.forecast_rps)
        return replace(plan, version=self.next_version())
