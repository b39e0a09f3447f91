"""Tests of all policies: the common contract, and the characteristics of each policy."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from baselines.diffserve import Ewm
from baselines.published import cascade
from controller.observation import Observation
from controller.policies import weir as weir_policy
from controller.registry import POLICIES, make_policy
from controller.setting import LevelStats, QualityCurve, Setting
from solvers.problem import GpuType, ShortRun
from solvers.solution import Status
from weir.approximation_levels import Ladder, Level, Strategy
from weir.core import DeferralCurve
from weir.plan import HEAVY, LIGHT, Plan

#: Quality by light share, where the discriminator picks the light ones: the more is heavy, the better.
RISING = QualityCurve((1.0, 0.998, 0.995, 0.99, 0.985, 0.98, 0.972, 0.963, 0.953, 0.942, 0.93), smaller_is_better=False)


#: For policies that assign levels: the heavy variant resumed at two steps, and the light one.
LADDER = Ladder(
    family="none",
    device="a100",
    steps=50,
    levels=(
        Level(name="K=0", strategy=Strategy.AC, latency_s=(1.78,), quality=1.0),
        Level(name="K=10", strategy=Strategy.AC, skipped_steps=10, latency_s=(1.424,), quality=0.98),
        Level(name="K=25", strategy=Strategy.AC, skipped_steps=25, latency_s=(0.89,), quality=0.95),
        Level(name="light", strategy=Strategy.SM, variant="light", latency_s=(0.1,), quality=0.9),
    ),
)


def setting(name: str = "diffserve-1", gpus: int = 16) -> Setting:
    c = cascade(name)
    gpu = GpuType.pair("a100", gpus, c.light, c.heavy)
    return Setting((gpu,), c.slo_s, c.deferral, QualityCurve(c.fid), 0.02, ladder=LADDER)


def second(now: float, arrivals: int, **fields) -> Observation:
    return Observation(now_s=now, arrivals=arrivals, **{"replicas": (16,), "in_flight": 2 * arrivals, **fields})


def run(policy, counts, start: float = 1.0, **fields):
    """Returns the plans of consecutive seconds with these arrivals."""
    plans = [policy.observe(second(start + i, count, **fields)) for i, count in enumerate(counts)]
    return [p for p in plans if p is not None]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("gpus", [1, 2, 16])
def test_every_policy_plans_for_every_replica_from_the_start(name, gpus):
    plan = make_policy(name, setting(gpus=gpus)).first_plan()
    assert sum(plan.counts.values()) == len(plan.assignments) == gpus


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("slo_s", [0.01, 1.0])
def test_a_deadline_that_no_batch_meets_still_gives_plans_for_every_replica(name, slo_s):
    policy = make_policy(name, replace(setting(gpus=4), slo_s=slo_s))
    plans = [policy.first_plan(), *run(policy, [5] * 20, replicas=(4,))]
    assert all(len(plan.assignments) == 4 for plan in plans)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_handles_no_demand_and_a_hundredfold_jump(name):
    policy = make_policy(name, setting())
    versions = [policy.first_plan().version]
    versions += [p.version for p in run(policy, [0] * 10 + [10] * 10 + [1000] * 10 + [0] * 10)]
    assert versions == sorted(set(versions))


def test_all_heavy_uses_the_best_batch_within_the_deadline_and_batch_1_as_published():
    assert make_policy("all-heavy", setting()).first_plan().assignments[0].batch_size == 4
    assert make_policy("all-heavy-published", setting()).first_plan().assignments[0].batch_size == 1


def test_diffserve_static_makes_the_published_plan():
    plan = make_policy("diffserve-static", setting("diffserve-3")).first_plan()
    assert (plan.threshold, plan.count(LIGHT), plan.count(HEAVY)) == (0.02, 9, 7)


def test_diffserve_plans_every_five_seconds_from_the_requests_in_flight():
    # 20 in flight make a demand of 24, for which the published optimum is t = 0.23.
    policy = make_policy("diffserve", setting())
    policy.first_plan()
    seconds = [policy.observe(second(1.0 + i, 7, in_flight=20)) for i in range(10)]
    assert [i for i, plan in enumerate(seconds) if plan] == [4, 9]
    assert seconds[9].threshold == 0.23


def test_diffserve_uses_the_ratio_of_queued_to_in_flight_requests_as_seconds():
    policy = make_policy("diffserve", setting())
    policy.first_plan()
    crowded = {"in_flight": 20, "deferred_in_flight": 10, "queued": {LIGHT: 10, HEAVY: 9}}
    plans = [policy.observe(second(1.0 + i, 7, **crowded)) for i in range(5)]
    # Delays of 0.5 + 0.9 s rule out heavy batches of 4.
    assert max(a.batch_size for a in plans[-1].assignments if a.role == HEAVY) == 2


def test_the_moving_average_equals_pandas():
    ewm = Ewm()
    for sample in (3.0, 9.0, 0.0, 1.0, 4.0, 4.0, 12.0):
        ewm.observe(sample)
    # pandas.Series([3, 9, 1, 4, 4, 12]).ewm(com=2.1).mean().iloc[-1]
    assert ewm.mean == pytest.approx(6.848740166)


def test_proteus_is_all_heavy_on_a_light_load_and_mixes_on_a_heavy_one():
    policy = make_policy("proteus", setting())
    policy.first_plan()
    assert run(policy, [5] * 20)[-1].rules.heavy_entry == 1.0
    assert 0.1 < run(policy, [60] * 20, start=21.0)[-1].rules.heavy_entry < 0.4


def test_weir_stops_at_the_best_mix_on_a_light_load():
    policy = make_policy("weir", setting())
    policy.first_plan()
    plan = run(policy, [5] * 20)[-1]
    assert cascade("diffserve-1").deferral.at(plan.threshold) == pytest.approx(0.6, abs=0.02)


def test_weir_keeps_a_replica_for_every_variant_while_there_is_no_demand():
    policy = make_policy("weir", setting(gpus=4))
    policy.resume(Plan.split(1, 4, 0, light_batch=1, heavy_batch=1, threshold=0.5))
    counts = run(policy, [0] * 10, replicas=(4,))[-1].counts
    assert counts[LIGHT] >= 1
    assert counts[HEAVY] >= 1


def test_the_first_plan_of_weir_names_the_demand_that_it_has_room_for():
    policy = make_policy("weir", setting())
    assert policy.first_plan().reason.startswith("no demand was observed yet; up to ")
    reasons = [plan.reason for plan in run(policy, [1] * 10)]
    assert any(reason.startswith("demand is ") for reason in reasons)
    assert not any(reason.startswith("demand fell ") for reason in reasons)


def test_weir_does_not_oscillate_on_a_steady_load():
    policy = make_policy("weir", setting())
    policy.first_plan()
    plans = run(policy, [24, 30, 27, 22, 29, 31, 25, 26] * 15)
    assert len({p.count(LIGHT) for p in plans}) == 1


def test_the_threshold_of_weir_does_not_follow_the_chance_of_single_images():
    policy, profiled, chance = make_policy("weir", setting()), cascade("diffserve-1").deferral, random.Random(0)
    plan, deferred = policy.first_plan(), []
    for now in range(1, 301):  # one request a second, with confidences as profiled
        confidence = float(np.interp(chance.random(), profiled.shares, profiled.thresholds))
        seen = second(now, 1, confidences=(confidence,), deferred=int(confidence < plan.threshold))
        plan = policy.observe(seen) or plan
        deferred.append(profiled.at(plan.threshold))
    assert max(map(abs, np.diff(deferred))) < 0.15


@pytest.mark.parametrize(("half_wave_s", "most_changes"), [(1, 1), (3, 1), (6, 50), (10, 30), (30, 10)])
def test_weir_changes_one_role_for_each_half_wave_of_an_oscillating_load_at_most(half_wave_s, most_changes):
    policy = make_policy("weir", setting())
    policy.first_plan()
    lights = [p.count(LIGHT) for p in run(policy, ([10] * half_wave_s + [60] * half_wave_s) * (150 // half_wave_s))]
    assert max(map(abs, np.diff(lights))) <= 1
    assert np.count_nonzero(np.diff(lights)) <= most_changes


def test_weir_plans_for_a_burst_within_two_seconds():
    policy = make_policy("weir", setting("diffserve-3"))
    policy.first_plan()
    before = run(policy, [2] * 20)[-1].count(LIGHT)
    after = run(policy, [12, 12], start=21.0)[-1].count(LIGHT)
    assert after > before + 2


def test_weir_compensates_for_too_few_deferred_images():
    typical = tuple(i / 20 for i in range(10))
    thresholds = []
    for deferred in (2, 6):
        policy = make_policy("weir", setting())
        policy.first_plan()
        seconds = [second(1.0 + i, 10, confidences=typical, deferred=deferred) for i in range(20)]
        thresholds.append([p for p in map(policy.observe, seconds) if p is not None][-1].threshold)
    assert thresholds[0] > thresholds[1]


def test_weir_plans_again_when_a_replica_dies():
    policy = make_policy("weir", setting())
    policy.first_plan()
    run(policy, [10] * 6)
    plan = policy.observe(second(7.0, 10, replicas=(15,)))
    assert plan is not None
    assert len(plan.assignments) == 15


def test_weir_makes_no_plan_without_replicas():
    policy = make_policy("weir", setting())
    policy.first_plan()
    assert policy.observe(second(1.0, 10, replicas=(0,))) is None


def test_weir_keeps_the_last_valid_split_when_every_solver_fails(monkeypatch):
    policy = make_policy("weir", setting())
    policy.first_plan()
    good = run(policy, [10] * 6)[-1]
    real = weir_policy.solve
    monkeypatch.setattr(weir_policy, "solve", lambda *a: replace(real(*a), status=Status.LIGHTEST, allocations=()))
    kept = run(policy, [40] * 6, start=7.0)[-1]
    assert kept.assignments == good.assignments
    assert kept.version > good.version


def test_weir_sheds_only_the_demand_beyond_the_all_light_capacity():
    policy = make_policy("weir", setting())
    policy.first_plan()
    assert run(policy, [100] * 20)[-1].admitted_rps is None
    limit = run(policy, [1000] * 20, start=21.0)[-1].admitted_rps
    assert limit == pytest.approx(0.8 * 16 * 20.78, rel=0.1)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_resumes_from_a_running_plan(name):
    first = make_policy(name, setting())
    running = [first.first_plan(), *run(first, [10] * 20)][-1]
    again = make_policy(name, setting())
    again.resume(running)
    plans = run(again, [10] * 20)
    assert all(plan.version > running.version for plan in plans)
    assert len({tuple(sorted(plan.counts.items())) for plan in plans}) <= 1


def cached(seconds: int, rate: int, saved: float = 0.2):
    """Returns the last plan of Weir's policy when half of the requests find a state with this saving."""
    policy = make_policy("weir", replace(setting("diffserve-3"), quality=RISING))
    policy.first_plan()
    return run(policy, [rate] * seconds, found={saved: rate // 2})[-1]


def test_weir_starts_every_hit_at_the_heavy_variant_while_there_is_capacity():
    assert cached(15, rate=2).rules.direct <= 0.2


def test_weir_lets_hits_begin_light_when_the_heavy_stage_is_full():
    assert cached(15, rate=14).rules.direct > 0.2


@pytest.mark.parametrize(("rate", "reuse"), [(1, False), (14, True)])
def test_weir_ignores_the_cache_where_there_is_time_for_whole_runs(rate, reuse):
    policy = make_policy("weir", replace(setting("diffserve-3"), quality=RISING, resumed=0.97))
    policy.first_plan()
    assert run(policy, [rate] * 15, found={0.5: rate // 2 + 1})[-1].rules.reuse is reuse


def test_the_first_plan_ignores_the_cache_and_runs_heavy_images_whole():
    short = (ShortRun(steps=10, work=0.2, loss=0.004),)
    measured = replace(setting("diffserve-3"), quality=RISING, resumed=0.97, short_runs=short)
    rules = make_policy("weir", measured).first_plan().rules
    assert (rules.reuse, rules.heavy_steps) == (False, None)
    assert make_policy("weir", replace(measured, resumed=1.0)).first_plan().rules.reuse


@pytest.mark.parametrize(("rate", "steps"), [(1, None), (10, 25)])
def test_weir_shortens_heavy_runs_where_whole_runs_would_leave_more_requests_light(rate, steps):
    runs = (ShortRun(steps=25, work=0.5, loss=0.002),)
    policy = make_policy("weir", replace(setting("diffserve-3"), quality=RISING, short_runs=runs))
    policy.first_plan()
    plan = run(policy, [rate] * 15)[-1]
    assert plan.rules.heavy_steps == steps
    assert Plan.from_dict(plan.to_dict()) == plan


def test_weir_sets_no_rule_for_hits_without_hits():
    policy = make_policy("weir", setting())
    policy.first_plan()
    assert run(policy, [10] * 15)[-1].rules.direct is None


def test_weir_starts_hard_prompts_at_the_heavy_variant_where_their_light_images_would_be_deferred():
    def level(confidences, light: float) -> LevelStats:
        grid = tuple(i / 50 for i in range(51))
        shares = tuple(sum(c < t for c in confidences) / len(confidences) for t in grid[:-1])
        values = tuple(1 - (1 - light) * (i / 10) ** 2 for i in range(11))
        return LevelStats(0.5, DeferralCurve(grid, (*shares, 1.0)), QualityCurve(values, smaller_is_better=False))

    hard, easy = level((0.05, 0.1), 0.5), level((0.8, 0.9), 1.0)
    policy = make_policy("weir", replace(setting("diffserve-3"), quality=RISING, levels=(hard, easy)))
    policy.first_plan()
    assert run(policy, [4] * 15, missed={0: 2, 1: 2})[-1].rules.heavy_levels == 1


def test_weir_lets_hits_begin_light_while_fetching_takes_longer_than_it_saves():
    policy = make_policy("weir", replace(setting("diffserve-3"), quality=RISING))
    policy.first_plan()
    seen = {"found": {0.2: 1}, "reused": {0.2: 20}}
    assert run(policy, [2] * 20, fetches=(0.01,), **seen)[-1].rules.direct <= 0.2
    assert run(policy, [2] * 20, start=21.0, fetches=(30.0,) * 20, **seen)[-1].rules.direct > 0.9
    assert run(policy, [2] * 160, start=41.0, fetches=(0.01,) * 20, **seen)[-1].rules.direct <= 0.2


def test_weir_stops_using_a_store_whose_fetches_fail_and_resumes_after_the_hold_down():
    policy = make_policy("weir", replace(setting("diffserve-3"), quality=RISING))
    policy.first_plan()
    seen = {"found": {0.2: 1}, "fetches": (0.02, 0.02)}
    run(policy, [2] * 20, reused={0.2: 2}, **seen)
    assert policy.strategy is Strategy.AC
    run(policy, [2] * 60, start=21.0, **seen)
    assert policy.strategy is Strategy.SM
    run(policy, [2] * 100, start=81.0, reused={0.2: 2}, **seen)
    assert policy.strategy is Strategy.SM, "not at the first good minute"
    run(policy, [2] * 60, start=181.0, reused={0.2: 2}, **seen)
    assert policy.strategy is Strategy.AC
