"""Tests of Weir's policy for a ladder of variants: the chain in use follows the load."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.curves import deferral_behind
from controller.observation import Observation
from controller.policies.ladder import WeirLadder
from controller.policies.weir import Weir
from controller.registry import make_policy
from controller.setting import JudgedVariant, QualityCurve, Setting
from solvers.problem import GpuType
from weir.core import LatencyProfile
from weir.errors import ConfigError
from weir.plan import Plan
from weir.profiles import deferral_of

PROMPTS = np.random.default_rng(3).random((2, 400))
#: Judges that agree to some degree.
EASY = tuple(np.clip(PROMPTS[0], 0, 1).tolist())
EASIER = tuple(np.clip(0.3 + 0.5 * PROMPTS[0] + 0.2 * PROMPTS[1], 0, 1).tolist())


def curve(light_alone: float) -> QualityCurve:
    """Quality that falls slowly at small light shares, because the discriminator selects the light images."""
    return QualityCurve(tuple(1 - (1 - light_alone) * (i / 10) ** 2 for i in range(11)), smaller_is_better=False)


def ladder(gpus: int = 12, **changes) -> Setting:
    latencies = {
        "quick": LatencyProfile((1, 4), (0.02, 0.05)),
        "medium": LatencyProfile((1, 4), (0.25, 1.0)),
        "best": LatencyProfile((1, 4), (1.28, 3.2)),
    }
    fields = {
        "gpus": (GpuType("gpu", gpus, latencies),),
        "slo_s": 8.0,
        "deferral": deferral_of(EASY),
        "quality": curve(0.6),
        "confidences": EASY,
        "middle": {"medium": JudgedVariant(deferral_of(EASIER), curve(0.9), EASIER)},
    }
    return Setting(**{**fields, **changes})


class Service:
    """Simulates a service that follows the plan, one second per call."""

    def __init__(self, policy: WeirLadder, seed: int = 0):
        self.policy, self.plan, self.now = policy, policy.first_plan(), 0.0
        self.chance = np.random.default_rng(seed)
        self.plans = [self.plan]

    def seconds(self, count: int, rate: int) -> Plan:
        for _ in range(count):
            self.now += 1
            seen: dict[str, list[float]] = {}
            deferred = 0
            for prompt in self.chance.integers(0, len(EASY), rate):
                for judge, confidences in (("quick", EASY), ("medium", EASIER)):
                    if judge not in self.plan.chain[:-1]:
                        continue
                    seen.setdefault(judge, []).append(confidences[prompt])
                    if not self.plan.defers(judge, confidences[prompt]):
                        break
                    deferred += judge == self.plan.first
            found = self.policy.observe(
                Observation(
                    now_s=self.now,
                    arrivals=rate,
                    replicas=(self.policy.setting.replicas,),
                    confidences=tuple(seen.get(self.plan.first, ())),
                    deferred=deferred,
                    confidences_by_variant={judge: tuple(values) for judge, values in seen.items()},
                )
            )
            if found is not None:
                self.plan = found
                self.plans.append(found)
        return self.plan


def test_every_chain_of_two_and_of_three_is_planned():
    assert WeirLadder(ladder()).chains == (("quick", "best"), ("medium", "best"), ("quick", "medium", "best"))
    assert isinstance(make_policy("weir", ladder()), WeirLadder)
    assert isinstance(make_policy("weir", ladder().chain(("quick", "best"))), Weir)


def test_low_demand_gets_the_best_mix_and_high_demand_the_variant_that_serves_it():
    service = Service(WeirLadder(ladder()))
    calm = service.seconds(20, 1)
    assert calm.count("best") >= 4
    flood = service.seconds(20, 400)
    assert flood.first == "quick"
    assert flood.count("quick") >= 6
    again = service.seconds(60, 1)
    assert again.thresholds[-1] == calm.thresholds[-1] == 1, "everything is of the best variant"


def test_a_medium_load_uses_all_three_variants():
    service = Service(WeirLadder(ladder()))
    plan = service.seconds(40, 38)
    assert plan.chain == ("quick", "medium", "best")
    assert set(plan.counts) == set(plan.chain)
    assert 0 < plan.thresholds[1] < 1
    assert "% of the medium images are deferred" in plan.reason


def test_the_middle_judge_defers_the_planned_share_of_the_images_that_reach_it():
    policy = WeirLadder(ladder())
    service = Service(policy)
    plan = service.seconds(60, 38)
    reached = [b for a, b in zip(EASY, EASIER, strict=True) if a < plan.thresholds[0]]
    share = sum(b < plan.thresholds[1] for b in reached) / len(reached)
    planned = policy._members[policy.running]._shares[1]
    assert share == pytest.approx(planned, abs=0.1)


def test_versions_grow_and_every_plan_is_for_the_whole_pool():
    service = Service(WeirLadder(ladder()))
    for rate in (1, 30, 400, 0, 12):
        service.seconds(12, rate)
    versions = [plan.version for plan in service.plans]
    assert versions == sorted(set(versions))
    assert {len(plan.assignments) for plan in service.plans} == {12}
    assert all(plan.check(("quick", "medium", "best")) is plan for plan in service.plans)


def test_a_steady_load_changes_no_chain_and_no_role():
    service = Service(WeirLadder(ladder()))
    service.seconds(20, 38)
    settled = len(service.plans)
    service.seconds(60, 38)
    assert len({(plan.chain, tuple(sorted(plan.counts.items()))) for plan in service.plans[settled:]}) == 1


def test_a_change_of_the_chain_is_given_as_the_reason():
    service = Service(WeirLadder(ladder()))
    service.seconds(20, 1)
    service.seconds(20, 38)
    changes = [plan.reason for plan in service.plans if "is better now than" in plan.reason]
    assert " → best is better now than quick → best; demand rose from 1.1 to " in changes[0]


def test_the_policy_resumes_from_a_running_plan_of_any_chain():
    service = Service(WeirLadder(ladder()))
    running = service.seconds(40, 38)
    again = WeirLadder(ladder())
    again.resume(running)
    assert again.chains[again.running] == running.chain
    foreign = WeirLadder(ladder())
    foreign.resume(Plan.split(7, 4, 4, light_batch=1, heavy_batch=1, threshold=0.5))
    seen = Observation(now_s=1.0, arrivals=3, replicas=(8,))
    assert foreign.observe(seen).version == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": None}, "mixes of quick with best was not measured; `weir calibrate --profile` measures it"),
        ({"middle": {"medium": JudgedVariant(deferral_of(EASIER))}}, "mixes of medium with best was not measured"),
        ({"middle": {"medium": JudgedVariant(deferral_of(EASIER), QualityCurve((20.0, 21.0)))}}, "on another scale"),
    ],
)
def test_qualities_that_cannot_be_compared_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        WeirLadder(ladder(**changes))


def test_a_chain_has_the_curves_of_its_own_first_variant():
    pair = ladder().chain(("medium", "best"))
    assert (pair.variants, pair.quality, pair.confidences) == (("medium", "best"), curve(0.9), EASIER)
    assert not pair.middle
    four = dict.fromkeys(("quick", "medium", "good", "best"), LatencyProfile((1,), (1.0,)))
    with pytest.raises(ConfigError, match="a cascade has at most 3 variants"):
        Weir(replace(ladder(), gpus=(GpuType("gpu", 1, four),)))


def test_the_curve_of_the_second_judge_covers_what_the_first_one_defers():
    alone = deferral_of(EASIER)
    behind = deferral_behind(0.5, EASY, EASIER, alone)
    assert behind.at(0.5) > alone.at(0.5) + 0.1
    assert deferral_behind(0.5, EASY, EASIER[:-1], alone) is alone, "of other prompts: independent"
    assert deferral_behind(0.01, EASY, EASIER, alone) is alone, "too few to say"


def test_a_ladder_of_four_is_planned_in_chains_of_at_most_three():
    setting = ladder()
    gpu = setting.gpus[0]
    latencies = {"quickest": LatencyProfile((1, 4), (0.01, 0.02)), **gpu.latencies}
    middle = {"quick": JudgedVariant(deferral_of(EASY), curve(0.6), EASY), **setting.middle}
    four = replace(setting, gpus=(replace(gpu, latencies=latencies),), middle=middle, quality=curve(0.4))
    assert {len(chain) for chain in WeirLadder(four).chains} == {2, 3}
    assert len(WeirLadder(four).chains) == 6
