"""The fast simulator: every request accounted for, the same run for the same seed, faults survived."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.policies.weir import Weir
from controller.policy import Policy
from controller.registry import make_policy, names
from controller.setting import QualityCurve, Setting
from simulator.arrivals import Arrivals, poisson, steps
from simulator.conditions import Conditions
from simulator.confidences import sample_confidences
from simulator.device import STEPS
from simulator.engine import FETCH_WAIT_S, simulate
from simulator.families import family_setting
from simulator.outcome import UNANSWERED, Outcome
from simulator.request_stream import RequestStream
from solvers.problem import ShortRun
from weir.cascade import AT_DEADLINE, FROM_CACHE
from weir.config import RedrawConfig
from weir.core import CacheLookup, Resume
from weir.plan import HEAVY, LIGHT, Assignment, Level, LevelRouting, Plan, ReplicaChoice
from weir.profiles import Profile

SETTING = family_setting("diffserve-1", gpus=4)


class Fixed(Policy):
    """One plan for the whole run, with no rule of its own but that nothing is dropped."""

    name = "fixed"
    light, heavy = 1, 1

    def __init__(self, setting, **rules):
        super().__init__(setting)
        self.rules = replace(self.rules, **{"drop_after_s": None, **rules})

    def first_plan(self) -> Plan:
        return self.split(self.light, self.heavy, light_batch=2, heavy_batch=2, threshold=0.5)


def fixed(gpus: int = 2, runs: tuple[ShortRun, ...] = (), **rules) -> Fixed:
    return Fixed(replace(family_setting("diffserve-1", gpus=gpus), short_runs=runs), **rules)


def at(*times: float) -> Arrivals:
    return Arrivals.of(np.array(times), np.arange(len(times)))


def run(policy: Policy, arrivals: Arrivals, confidences, *, saved=None, classes=None, profile=None, **more) -> Outcome:
    """Simulates requests with these confidences in their light images.

    Args:
        saved: share of the heavy steps that the cache has for each; None without a cache.
        classes: predicted for the prompts; -1: none.
    """
    lookups = []
    if saved is not None or classes is not None:
        of = zip(
            [0.0] * len(arrivals) if saved is None else saved,
            [-1] * len(arrivals) if classes is None else classes,
            strict=True,
        )
        lookups = [
            CacheLookup(
                "p", resume=Resume("k", round(share * STEPS)) if share else None, prompt_class=None if it < 0 else it
            )
            for share, it in of
        ]
    stream = RequestStream(arrivals, {LIGHT: np.asarray(confidences, float)}, lookups=lookups)
    return simulate(policy, stream, profile, Conditions(**more))


def test_a_confident_light_image_takes_one_light_batch_and_the_discriminator():
    outcome = run(fixed(), at(1.0), np.array([0.9]))
    assert outcome.latencies_s == pytest.approx([0.1 + 0.02])
    assert outcome.paths.tolist() == [LIGHT]


def test_a_deferred_image_takes_a_heavy_batch_as_well():
    outcome = run(fixed(), at(1.0), np.array([0.1]))
    assert outcome.latencies_s == pytest.approx([0.12 + 1.78])
    assert outcome.paths.tolist() == [HEAVY]


def test_waiting_images_share_a_batch():
    # The first is generated alone; the two that came meanwhile share a batch (0.15 + 0.02 s).
    outcome = run(fixed(), at(1.0, 1.05, 1.1), np.array([0.9, 0.9, 0.9]))
    assert outcome.finished_s == pytest.approx([1.12, 1.29, 1.29])


def test_a_heavy_image_that_would_be_late_is_answered_with_the_light_one():
    times = at(*np.linspace(0, 1, 10))
    lost = run(fixed(), times, np.zeros(10))
    saved = run(fixed(light_fallback=True), times, np.zeros(10))
    assert lost.violated.any()
    assert not saved.violated.any()
    assert (saved.paths == LIGHT + AT_DEADLINE).any()


def test_a_request_whose_first_image_would_be_late_is_refused():
    outcome = run(fixed(heavy_entry=1.0), at(0.0, 0.1, 0.2, 0.3, 0.4), np.full(5, 0.9))
    # Two wait for the batch that ends after 1.78 s + 2.16 s; a third would have to wait for the one behind it.
    assert outcome.paths.tolist() == [HEAVY, HEAVY, HEAVY, UNANSWERED, UNANSWERED]
    assert not outcome.violated[:3].any()


def test_a_request_that_began_heavy_gets_a_light_image_when_the_heavy_one_would_be_late():
    policy = fixed(heavy_entry=1.0, light_fallback=True)
    outcome = run(policy, at(0.0, 0.1), np.full(2, 0.9), slowdowns=[(0.0, 3.0)])
    assert outcome.paths.tolist() == [HEAVY, LIGHT]
    assert outcome.violated.tolist() == [True, False]


def test_a_request_that_cannot_meet_its_drop_bound_is_dropped():
    outcome = run(fixed(drop_after_s=5.0), at(*np.linspace(0, 1, 10)), np.zeros(10))
    assert (outcome.paths == UNANSWERED).any()
    assert outcome.latencies_s[outcome.paths == HEAVY].max() <= 5.0


@pytest.mark.parametrize("name", names(levels=False))
@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=60),
    levels=st.integers(0, 2**16),
    gpus=st.integers(1, 4),
)
@settings(max_examples=8, derandomize=True)
def test_every_request_ends_once_and_not_too_early(name, gaps, levels, gpus):
    setting = family_setting("diffserve-1", gpus=gpus)
    arrivals = at(*np.cumsum(gaps))
    outcome = run(make_policy(name, setting), arrivals, np.random.default_rng(levels).random(len(gaps)))
    answered = outcome.paths != UNANSWERED
    assert np.isfinite(outcome.finished_s[answered]).all()
    assert np.isinf(outcome.finished_s[~answered]).all()
    assert (outcome.latencies_s >= 0.1 - 1e-9).all()
    assert outcome.busy_s <= gpus * outcome.finished_s[answered].max(initial=0) + 1e-6


@pytest.mark.parametrize("name", ["diffserve", "weir"])
def test_a_run_is_a_function_of_its_seed(name):
    arrivals = poisson(np.full(40, 6.0), seed=1)
    confidences = sample_confidences(SETTING.deferral, len(arrivals), seed=2)
    runs = [run(make_policy(name, SETTING), arrivals, confidences, seed=7) for _ in range(2)]
    assert np.array_equal(runs[0].finished_s, runs[1].finished_s)
    assert runs[0].plans == runs[1].plans


def test_weir_meets_every_deadline_while_replicas_die():
    arrivals = poisson(np.full(60, 5.0), seed=3)
    confidences = sample_confidences(SETTING.deferral, len(arrivals), seed=4)
    deaths = [(20.0, 0), (35.0, 3)]
    outcome = run(make_policy("weir", SETTING), arrivals, confidences, deaths=deaths)
    assert (outcome.paths != UNANSWERED).all()
    assert outcome.violated.mean() < 0.01
    assert sum(outcome.plans[-1].replicas.values()) == 2


def test_the_plan_keeps_serving_while_the_controller_is_dead_for_an_hour():
    class Dies(Weir):
        def observe(self, seen):
            return super().observe(seen) if seen.now_s < 60 else None

    arrivals = poisson(np.full(3660, 4.0), seed=3)
    outcome = run(Dies(SETTING), arrivals, sample_confidences(SETTING.deferral, len(arrivals), seed=4))
    assert (outcome.paths != UNANSWERED).all()
    assert outcome.violated.mean() < 0.01


def test_the_run_ends_when_all_replicas_die():
    arrivals = poisson(np.full(20, 5.0), seed=3)
    deaths = [(5.0, i) for i in range(4)]
    outcome = run(make_policy("weir", SETTING), arrivals, np.zeros(len(arrivals)), deaths=deaths)
    assert (outcome.paths[outcome.arrivals_s > 5.0] == UNANSWERED).all()


def test_weir_serves_its_capacity_under_overload():
    # Ten times what all light GPUs could generate: the admitted part is in time, the rest is refused at once.
    arrivals = poisson(np.full(30, 800.0), seed=5)
    outcome = run(make_policy("weir", SETTING), arrivals, sample_confidences(SETTING.deferral, len(arrivals), 6))
    late = outcome.arrivals_s > 10
    served = (~outcome.violated & late).sum() / 20
    assert served > 0.6 * 4 * 20.0


def test_a_trace_need_not_begin_at_zero():
    late = run(make_policy("weir", SETTING), at(1e9, 1e9 + 1), np.array([0.9, 0.9]))
    assert late.latencies_s == pytest.approx([0.12, 0.12], abs=1e-6)


def test_a_run_without_requests_is_valid():
    outcome = run(make_policy("weir", SETTING), at(), np.array([]))
    assert len(outcome.paths) == 0


def test_a_role_change_finishes_the_running_batch_and_moves_the_queue():
    class Turns(Fixed):
        light, heavy = 1, 2

        def observe(self, seen):
            if seen.now_s != 1.0:
                return None
            return self.split(2, 1, light_batch=2, heavy_batch=2, threshold=0.5)

    turns = Turns(family_setting("diffserve-1", gpus=3), light_fallback=True)
    outcome = run(turns, at(0.0, 0.2, 0.4, 0.6), np.zeros(4))
    assert outcome.role_changes == 1
    assert not outcome.violated.any()
    assert (outcome.paths == HEAVY).sum() >= 3


def test_a_slower_device_changes_the_plan_within_a_minute_and_deadlines_are_met():
    arrivals = poisson(np.full(150, 6.0), seed=3)
    confidences = sample_confidences(SETTING.deferral, len(arrivals), seed=4)
    slower = run(make_policy("weir", SETTING), arrivals, confidences, slowdowns=[(60.0, 1.5)])
    steady = run(make_policy("weir", SETTING), arrivals, confidences)

    def share(outcome, since: float) -> float:
        return outcome.light[outcome.arrivals_s > since].mean()

    assert share(slower, 120) > share(steady, 120) + 0.05
    assert slower.violated[slower.arrivals_s > 120].mean() < 0.01
    before, after = (
        np.mean([plan.thresholds[0] for plan in slower.plans if low < plan.at_s < low + 20]) for low in (40, 100)
    )
    assert after < 0.7 * before


STEPWISE = Profile.model_validate(
    {
        "family": "f",
        "device": "d",
        "light": {"name": "l", "steps": 2, "batch_sizes": [1, 2], "latency_s": [0.1, 0.15], "step_s": [0.05, 0.07],
                  "fixed": {"text_s": 0, "decode_s": 0}},
        "heavy": {"name": "h", "steps": 50, "batch_sizes": [1, 2], "latency_s": [2, 3], "step_s": [0.04, 0.06],
                  "fixed": {"text_s": 0, "decode_s": 0}},
    }
)  # fmt: skip


def test_with_a_stepwise_profile_a_late_image_joins_the_running_ones():
    outcome = run(Fixed(Setting.of(STEPWISE, 2, 10.0)), at(1.0, 2.0), np.zeros(2), profile=STEPWISE)
    # The second joins after 1 s of the first one's 2 s; both then go at the pace of two, 3 s for a whole run.
    assert outcome.finished_s[0] == pytest.approx(1.1 + 1.0 + 0.5 * 3)
    assert outcome.finished_s[1] == pytest.approx(3.6 + 0.5 * 2)
    assert outcome.busy_s == pytest.approx(0.2 + 3.5)


@pytest.mark.parametrize("name", names(levels=False))
@given(gaps=st.lists(st.floats(0, 1), min_size=1, max_size=60), levels=st.integers(0, 99), way_s=st.floats(0, 0.3))
@settings(max_examples=8, derandomize=True, deadline=None)
def test_every_request_ends_once_with_stepwise_batches_and_network_delays(name, gaps, levels, way_s):
    arrivals, confidences = at(*np.cumsum(gaps)), np.random.default_rng(levels).random(len(gaps))
    for setting, profile in ((family_setting("diffserve-1", gpus=3), None), (Setting.of(STEPWISE, 3, 6.0), STEPWISE)):
        outcome = run(
            make_policy(name, setting), arrivals, confidences, profile=profile, transit_s=(way_s,), deaths=[(3.0, 1)]
        )
        answered = outcome.paths != UNANSWERED
        assert np.isfinite(outcome.finished_s[answered]).all()
        assert np.isinf(outcome.finished_s[~answered]).all()
        assert (outcome.latencies_s >= 0.1 + 2 * way_s - 1e-9).all()


def test_a_call_takes_the_network_delay_twice():
    outcome = run(fixed(), at(1.0), np.array([0.1]), transit_s=(0.05,))
    assert outcome.latencies_s == pytest.approx([0.05 + 0.12 + 0.05 + 0.05 + 1.78 + 0.05])


def test_a_hit_starts_at_the_heavy_variant_and_runs_the_remaining_steps():
    outcome = run(fixed(), at(1.0), np.array([0.9]), saved=np.array([0.5]))
    assert outcome.latencies_s == pytest.approx([0.5 * 1.78])
    assert outcome.paths.tolist() == [FROM_CACHE]
    assert outcome.resumed_at.tolist() == [25]


def test_a_hit_below_the_cut_of_the_plan_begins_light_and_resumes_when_deferred():
    outcome = run(fixed(direct=0.6), at(1.0, 9.0), np.array([0.9, 0.1]), saved=np.array([0.5, 0.5]))
    assert outcome.latencies_s == pytest.approx([0.12, 0.12 + 0.5 * 1.78])
    assert outcome.paths.tolist() == [LIGHT, FROM_CACHE]


def test_a_state_that_arrives_too_late_costs_a_whole_run():
    saved = np.array([0.5, 0.5])
    outcome = run(fixed(), at(1.0, 9.0), np.zeros(2), saved=saved, fetches=[(0.0, 0.01), (8.0, 0.5)])
    assert outcome.latencies_s == pytest.approx([0.01 + 0.5 * 1.78, FETCH_WAIT_S + 1.78])
    assert outcome.paths.tolist() == [FROM_CACHE, HEAVY]


def test_weir_stops_using_a_failing_store_so_that_the_threshold_decides_which_images_stay_light():
    falling = QualityCurve(tuple(1 - 0.07 * (k / 10) ** 2 for k in range(11)), smaller_is_better=False)
    setting = replace(family_setting("sdxl-a100", gpus=16), resumed=0.97, quality=falling)
    arrivals = steps(6, 12, 200, 30, 3)
    confidences = sample_confidences(setting.deferral, len(arrivals), 4)
    saved = np.where(np.random.default_rng(1).random(len(arrivals)) < 0.5, 0.4, 0)

    class Believes(Weir):
        def observe(self, seen):
            return super().observe(replace(seen, reused={0.4: len(seen.fetches)}))

    believing, counting = (
        run(policy(setting), arrivals, confidences, saved=saved, fetches=[(0.0, 0.001), (60.0, 5.0)])
        for policy in (Believes, Weir)
    )
    late = arrivals.times_s > 75
    assert not counting.violated[late].any()
    by_deadline = [outcome.at_deadline[late].mean() for outcome in (believing, counting)]
    assert by_deadline[1] < by_deadline[0] / 2


def test_a_hit_is_generated_like_a_miss_when_the_plan_ignores_the_cache():
    outcome = run(fixed(reuse=False), at(1.0, 9.0), np.array([0.9, 0.1]), saved=np.array([0.5, 0.5]))
    assert outcome.latencies_s == pytest.approx([0.12, 0.12 + 1.78])
    assert outcome.paths.tolist() == [LIGHT, HEAVY]
    assert not outcome.resumed.any()


def test_a_short_run_takes_less_time_and_loses_quality_unless_a_state_leaves_fewer_steps():
    policy = fixed(runs=(ShortRun(steps=10, work=0.2, loss=3.0),), heavy_steps=10, direct=1.0)
    outcome = run(policy, at(1.0, 9.0, 17.0), np.array([0.1] * 3), saved=np.array([0.0, 0.5, 0.9]))
    assert outcome.latencies_s == pytest.approx([0.12 + 0.2 * 1.78, 0.12 + 0.2 * 1.78, 0.12 + 0.1 * 1.78])
    assert outcome.loss.tolist() == [3.0, 3.0, 0.0]
    assert outcome.paths.tolist() == [HEAVY, HEAVY, FROM_CACHE]


def test_a_prompt_of_a_hard_level_starts_at_the_heavy_variant():
    outcome = run(fixed(heavy_levels=1), at(1.0, 9.0, 17.0), np.array([0.9] * 3), classes=[0, 1, -1])
    assert outcome.paths.tolist() == [HEAVY, LIGHT, LIGHT]


def test_a_doubted_resumed_image_is_generated_from_noise_and_the_better_image_is_the_answer():
    lookups = [CacheLookup("p", resume=Resume("k", 25, min_confidence=0.8))] * 2
    stream = RequestStream(
        at(1.0, 9.0), {LIGHT: np.zeros(2), HEAVY: np.full(2, 0.9)}, resumed=np.array([0.95, 0.5]), lookups=lookups
    )
    outcome = simulate(fixed(light_fallback=True), stream)
    assert outcome.paths.tolist() == [FROM_CACHE, HEAVY]
    assert outcome.latencies_s == pytest.approx([0.5 * 1.78, 0.5 * 1.78 + 1.78])


def test_a_doubted_image_of_the_last_variant_is_redrawn_while_there_is_time():
    stream = RequestStream(
        at(1.0, 9.0), {LIGHT: np.zeros(2), HEAVY: np.array([0.7, 0.2])}, redrawn=np.array([[0.1, 0.3], [0.9, 0.9]])
    )
    one, two = (
        simulate(fixed(), stream, conditions=Conditions(redraw=redraw))
        for redraw in (RedrawConfig(), RedrawConfig(below=0.6, most=2))
    )
    assert one.latencies_s == pytest.approx([1.9, 1.9])
    # A third image would be ready after its deadline.
    assert two.latencies_s == pytest.approx([1.9, 1.9 + 1.78])
    assert two.paths.tolist() == [HEAVY, HEAVY]


THREE = Profile.model_validate(
    {
        "family": "f",
        "device": "d",
        "variants": {
            key: {"name": key, "steps": 10, "batch_sizes": [1, 2], "latency_s": [one_s, 1.5 * one_s]}
            for key, one_s in ((LIGHT, 0.1), ("medium", 0.5), (HEAVY, 2.0))
        },
    }
)


class Given(Policy):
    """One plan, as given."""

    name = "given"

    def __init__(self, plan: Plan):
        super().__init__(Setting.of(THREE, len(plan.assignments), 10.0))
        self.plan = plan

    def first_plan(self) -> Plan:
        return self.plan


def test_a_chain_of_three_continues_with_the_next_variant_when_a_judge_defers():
    chain = (LIGHT, "medium", HEAVY)
    plan = Plan(1, tuple(Assignment(key, 1) for key in chain), (0.5, 0.5), chain)
    confidences = {LIGHT: np.array([0.9, 0.1, 0.1]), "medium": np.array([0.9, 0.9, 0.1])}
    outcome = simulate(Given(plan), RequestStream(at(0.0, 10.0, 20.0), confidences), THREE)
    assert outcome.paths.tolist() == list(chain)
    assert outcome.latencies_s == pytest.approx([0.1, 0.6, 2.6])
    assert outcome.light.tolist() == [True, True, False]


def test_a_plan_with_levels_assigns_prompts_by_class_and_resumes_from_stored_states():
    levels = (Level("full", HEAVY, "full"), Level("K=5", HEAVY, "K=5", skipped=5), Level("light", LIGHT, "light"))
    routing = LevelRouting(levels, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    roles = tuple(Assignment(role, 1) for role in ("full", "K=5", "light"))
    plan = Plan(1, roles, (0.0,), (LIGHT, HEAVY), routing=routing)
    lookups = [CacheLookup("p", stored=((5, "k"),), prompt_class=each) for each in range(3)]
    outcome = simulate(Given(plan), RequestStream(at(0.0, 10.0, 20.0), {}, lookups=lookups), THREE)
    assert outcome.paths.tolist() == [HEAVY, FROM_CACHE, LIGHT]
    assert outcome.latencies_s == pytest.approx([2.0, 1.0, 0.1])


def test_the_seed_decides_a_random_replica_choice():
    class AtRandom(Fixed):
        light, heavy = 4, 1

    arrivals = at(*np.linspace(0, 1, 40))
    policy = lambda: AtRandom(family_setting("diffserve-1", 5), replica_choice=ReplicaChoice.RANDOM)  # noqa: E731
    one, same, other = (run(policy(), arrivals, np.ones(40), seed=seed).finished_s for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()


@pytest.mark.parametrize(("again", "path"), [(True, LIGHT), (False, HEAVY)])
def test_a_role_change_dispatches_or_keeps_the_queue_according_to_the_rules(again, path):
    class Turns(Fixed):
        light, heavy = 2, 1

        def observe(self, seen):
            return self.split(1, 2, light_batch=1, heavy_batch=1, threshold=0.0) if seen.now_s == 2.0 else None

        def first_plan(self):
            return self.split(2, 1, light_batch=1, heavy_batch=1, threshold=0.0)

    slow = replace(family_setting("diffserve-1", gpus=3), slo_s=60.0)
    # On a device that has become slow, the second image of each light replica still waits when the roles change.
    outcome = run(Turns(slow, dispatch_again=again), at(1.9, 1.9, 1.91, 1.91), np.ones(4), slowdowns=[(0.0, 5.0)])
    assert sorted(outcome.paths.tolist()) == sorted([LIGHT, LIGHT, LIGHT, path])
