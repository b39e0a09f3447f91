"""Tests of the policies that assign levels to GPUs and to classes of prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.observation import Observation
from controller.registry import make_policy, names
from controller.service_ladder import PromptClass, StoredStates, ladder_of, service_ladder
from controller.setting import Setting
from solvers.alignment import align
from solvers.allocation import allocate
from tests.controller.test_policies import LADDER, run, second, setting
from weir.approximation_levels import Ladder, PromptGroup, Strategy
from weir.plan import Plan
from weir.profiles import Profile
from weir.prompt_levels import LevelRecord

#: Three classes, from the hardest prompts to the easiest.
CLASSES = (
    PromptGroup(share=0.5, quality=(1.0, 0.96, 0.90, 0.80)),
    PromptGroup(share=0.3, quality=(1.0, 1.0, 1.0, 1.0)),
    PromptGroup(share=0.2, quality=(1.0, 1.0, 1.0, 1.0)),
)
TOLD_APART = Ladder.model_validate({**LADDER.model_dump(), "prompts": [group.model_dump() for group in CLASSES]})
LEVELS = ["K=0", "K=10", "K=25"]


def policy(name: str, ladder: Ladder = LADDER, gpus: int = 16):
    found = make_policy(name, replace(setting(gpus=gpus), ladder=ladder))
    found.first_plan()
    return found


@pytest.mark.parametrize("name", [name for name in names(levels=True) if name != "nirvana"])
@pytest.mark.parametrize("ladder", [LADDER, TOLD_APART])
@pytest.mark.parametrize("rate", [0, 5, 12, 40, 400])
def test_a_plan_of_levels_is_valid_for_a_cluster(name, ladder, rate):
    plan = ([policy(name, ladder).first_plan(), *run(policy(name, ladder), [rate] * 8)])[-1]
    assert Plan.from_dict(plan.to_dict()) == plan
    assert plan.check(("light", "heavy")) is plan
    assert plan.routing is not None
    for level, shares in zip(plan.routing.levels, zip(*plan.routing.shares, strict=True), strict=True):
        assert plan.count(level.role) > 0 or max(shares) == 0, "no request goes where no replica is"
    assert len(plan.routing.shares) == max(1, len(ladder.prompts))


def test_argus_gives_every_gpu_a_level_and_every_level_a_role_of_its_own():
    plan = run(policy("argus"), [12] * 8)[-1]
    assert plan.routing is not None
    assert [level.name for level in plan.routing.levels] == [level.role for level in plan.routing.levels] == LEVELS
    assert [level.skipped for level in plan.routing.levels] == [0, 10, 25]
    assert {level.variant for level in plan.routing.levels} == {"heavy"}
    assert sum(plan.counts.values()) == 16
    assert plan.variant_of("K=10") == "heavy"


def test_weir_lets_any_gpu_serve_any_level_of_the_resident_model():
    plan = run(policy("weir-levels"), [12] * 8)[-1]
    assert plan.routing is not None
    assert plan.counts == {"heavy": 16}
    assert {level.role for level in plan.routing.levels} == {"heavy"}
    assert plan.routing.hurry


def test_nirvana_sends_everything_to_the_last_variant_and_leaves_the_step_to_the_cache():
    plan = make_policy("nirvana", setting()).first_plan()
    assert plan.counts == {"heavy": 16}
    assert (plan.rules.heavy_entry, plan.rules.direct, plan.routing) == (1.0, 0.0, None)


def test_argus_aligns_predicted_classes_with_its_allocation_by_the_published_aligner():
    it = policy("argus", TOLD_APART)
    plan = run(it, [12] * 8, classes={0: 6, 1: 4, 2: 2})[-1]
    assert plan.routing is not None
    found = allocate(it.agnostic(it._planned_rps))
    expected = align([0.5, 1 / 3, 1 / 6], found.target, "oda")
    reachable = np.array([plan.count(level) > 0 for level in LEVELS])
    expected = np.where(reachable, expected, 0.0)
    assert np.array(plan.routing.shares) == pytest.approx(expected / expected.sum(axis=1, keepdims=True))


def test_classes_and_levels_may_differ_in_number():
    two = (PromptGroup(share=0.5, quality=(1.0, 0.96, 0.9, 0.8)), PromptGroup(share=0.5, quality=(1.0,) * 4))
    ladder = Ladder.model_validate({**LADDER.model_dump(), "prompts": [group.model_dump() for group in two]})
    plan = run(policy("argus", ladder), [13] * 8, classes={0: 6, 1: 7})[-1]
    assert plan.routing is not None
    hard, easy = plan.routing.shares
    skipped = np.array([0, 10, 25])
    assert np.array(hard) @ skipped < np.array(easy) @ skipped, "the easier class skips more steps"


def test_argus_switches_to_smaller_models_while_fetching_is_slow_and_back():
    it = policy("argus")
    seen = {"found": {0.2: 10}, "reused": {0.2: 40}}
    assert run(it, [12] * 20, fetches=(0.01,) * 40, **seen)[-1].routing.levels[1].name == "K=10"
    slow = run(it, [12] * 20, start=21.0, fetches=(5.0,) * 40, **seen)[-1]
    assert it.strategy is Strategy.SM
    assert [level.variant for level in slow.routing.levels[:2]] == ["heavy", "light"]
    assert slow.count("light") > 0
    probe = slow.routing.levels[-1]
    assert (probe.skipped, probe.role) == (10, "K=0"), "a few requests go on fetching"
    assert 0 < slow.routing.shares[0][-1] <= 0.02
    back = run(it, [12] * 160, start=41.0, fetches=(0.01,) * 40, **seen)[-1]
    assert it.strategy is Strategy.AC
    assert [level.name for level in back.routing.levels] == LEVELS


def test_without_a_smaller_model_argus_stays_with_cached_states():
    cached = tuple(level for level in LADDER.levels if level.strategy is Strategy.AC)
    it = policy("argus", Ladder(family="none", device="a100", steps=50, levels=cached))
    run(it, [12] * 40, fetches=(5.0,) * 40, found={0.2: 10})
    assert it.strategy is Strategy.AC


def test_a_lost_replica_triggers_a_plan_at_once():
    it = policy("argus")
    run(it, [12] * 6)
    plan = it.observe(second(7.0, 12, replicas=(15,)))
    assert plan is not None
    assert len(plan.assignments) == 15
    assert it.observe(second(8.0, 12, replicas=(0,))) is None


def test_the_backlog_is_estimated_from_queued_images_when_it_is_not_measured():
    it = policy("weir-levels")
    plans = [it.observe(second(1.0 + i, 4, queued={"heavy": queued})) for i, queued in enumerate((0, 30))]
    calm, full = (np.array(plan.routing.shares[0]) @ np.array([0, 10, 25]) for plan in plans)
    assert (calm, it._backlog_s) == (0, pytest.approx(30 * 1.78 / 16))
    assert full > calm


def test_weir_plans_no_level_that_the_queue_leaves_no_time_for():
    it = policy("weir-levels")
    full = it.observe(Observation(now_s=1.0, arrivals=3, replicas=(16,), backlog_s=3.4))
    assert full.routing.shares[0][0] == 0, "a whole run takes 1.78 s of the 1.6 s that are left"


def test_a_plan_names_its_reason():
    assert run(policy("pac"), [40] * 8)[-1].reason.startswith("demand is 40.0/s; ")


# ------------------------------------------------------------------------------------------- the ladder of a service


def profile(light_quality: float = 0.9, **variants) -> Profile:
    light = {"name": "toy-light", "steps": 2, "batch_sizes": [1, 4], "latency_s": [0.1, 0.2]}
    heavy = {"name": "toy-heavy", "steps": 50, "batch_sizes": [1, 4], "latency_s": [1.0, 3.0]}
    light |= {"quality": {"values": [1.0, light_quality], "smaller_is_better": False}}
    return Profile.model_validate(
        {"family": "toy", "device": "none", "variants": {"light": light, **variants, "heavy": heavy}}
    )


STATES = StoredStates({10: 0.99, 25: 0.95}, {0: 2.0, 10: 1.0, 25: 1.0})


def test_the_ladder_of_a_service_has_its_cached_states_and_variants():
    ladder = service_ladder(profile(), 8.0, STATES)
    assert [level.name for level in ladder.levels] == ["K=0", "K=10", "K=25", "light"]
    assert ladder.levels[2].latency_s == (1.5,), "half the steps of a batch of four"
    assert [level.quality for level in ladder.levels] == pytest.approx([1.0, 0.99, 0.95, 0.9], abs=1e-5)
    assert ladder.similarity_shares == (0.5, 0.25, 0.25)
    assert service_ladder(profile(), 8.0).of(Strategy.AC) == (service_ladder(profile(), 8.0).levels[0],)


def test_a_dominated_variant_is_no_level():
    worse = {"name": "toy-worse", "steps": 9, "batch_sizes": [1], "latency_s": [0.4]}
    worse |= {"quality": {"values": [1.0, 0.8], "smaller_is_better": False}}
    assert [level.name for level in ladder_of(profile(worse=worse), 8.0, None).levels] == ["K=0", "light"]
    better = {**worse, "quality": {"values": [1.0, 0.97], "smaller_is_better": False}}
    found = ladder_of(profile(better=better), 8.0, None)
    assert [level.name for level in found.levels] == ["K=0", "better", "light"]


def test_a_light_variant_no_worse_than_the_heavy_one_still_makes_a_ladder():
    assert ladder_of(profile(light_quality=1.2), 8.0, STATES).levels[-1].quality < 1


def test_a_distance_as_quality_makes_no_ladder():
    light = profile().light.model_dump() | {"quality": {"values": [20.0, 22.0], "smaller_is_better": True}}
    fid = Profile.model_validate({**profile().model_dump(), "variants": {"light": light, "heavy": profile().heavy}})
    assert service_ladder(fid, 8.0, STATES) is None


def test_a_level_head_divides_prompts_into_classes():
    records = [
        LevelRecord(share=0.5, confidences=(0.1,), quality=(1.0, 0.7)),
        LevelRecord(share=0.5, confidences=(0.9,), quality=(1.0, 1.0)),
    ]
    ladder = service_ladder(profile(), 8.0, STATES, records)
    hard, easy = ladder.prompts
    assert (hard.quality[3], easy.quality[3]) == pytest.approx((0.7, 1.0))
    assert hard.quality[:3] == easy.quality[:3], "what resuming does to each class was not measured"


def test_classes_of_any_kind_make_the_mean_of_a_level():
    classes = [PromptClass(1.0, {"K=10": 0.9}), PromptClass(3.0, {"K=10": 1.0})]
    ladder = ladder_of(profile(), 8.0, STATES, classes)
    assert ladder.levels[1].quality == pytest.approx(0.975, abs=1e-5)
    assert [group.share for group in ladder.prompts] == [0.25, 0.75]


def test_a_setting_of_a_service_holds_its_ladder():
    found = Setting.of(profile(), 4, 8.0, states=STATES)
    assert found.ladder == service_ladder(profile(), 8.0, STATES)
    assert make_policy("argus", found).first_plan().counts == {"K=0": 4}
