"""The twin: every request accounted for, the same run for the same seed, faults survived."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.policies import POLICIES, make_policy
from controller.policies.weir import Weir
from controller.policy import Policy
from controller.setting import QualityCurve, Setting
from simulator.arrivals import Arrivals, poisson, steps
from simulator.confidences import drawn
from simulator.engine import FETCH_WAIT_S, simulate
from simulator.families import family_setting
from simulator.outcome import ANSWERED_AT_DEADLINE, ANSWERED_HEAVY, ANSWERED_LIGHT, UNANSWERED
from solvers.problem import ShortRun
from weir.core import Plan
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


def test_a_confident_light_image_takes_a_light_batch_and_its_judgement():
    outcome = simulate(fixed(), at(1.0), np.array([0.9]))
    assert outcome.latencies_s == pytest.approx([0.1 + 0.02])
    assert outcome.paths.tolist() == [ANSWERED_LIGHT]


def test_a_deferred_image_takes_the_heavy_batch_besides():
    outcome = simulate(fixed(), at(1.0), np.array([0.1]))
    assert outcome.latencies_s == pytest.approx([0.12 + 1.78])
    assert outcome.paths.tolist() == [ANSWERED_HEAVY]


def test_images_that_wait_leave_together():
    # The first is drawn alone; the two that came meanwhile share a batch (0.15 + 0.02 s).
    outcome = simulate(fixed(), at(1.0, 1.05, 1.1), np.array([0.9, 0.9, 0.9]))
    assert outcome.finished_s == pytest.approx([1.12, 1.29, 1.29])


def test_a_heavy_batch_of_which_all_would_be_late_is_given_up_whole_and_the_replica_goes_on():
    setting = replace(family_setting("diffserve-1", gpus=2), slo_s=3.0)
    policy = Fixed(setting, heavy_entry=1.0, light_fallback=True)
    # The second and the third wait until 2.78 s; either alone would be in time then, together they would not.
    outcome = simulate(policy, at(1.0, 1.9, 1.9, 8.0), np.full(4, 0.9))
    assert outcome.paths.tolist() == [ANSWERED_HEAVY, ANSWERED_LIGHT, ANSWERED_LIGHT, ANSWERED_HEAVY]
    assert not outcome.violated.any()


def test_a_heavy_image_that_would_be_late_is_answered_with_the_light_one():
    times = at(*np.linspace(0, 1, 10))
    lost = simulate(fixed(), times, np.zeros(10))
    saved = simulate(fixed(light_fallback=True), times, np.zeros(10))
    assert lost.violated.any()
    assert not saved.violated.any()
    assert (saved.paths == ANSWERED_AT_DEADLINE).any()


def test_a_request_that_begins_heavy_gets_a_light_image_when_its_heavy_one_could_only_begin_too_late():
    times = at(*np.linspace(0, 1, 10))
    late, turned = (
        simulate(fixed(heavy_entry=1.0, light_fallback=fallback), times, np.full(10, 0.9)) for fallback in (False, True)
    )
    assert late.violated.any()
    assert not turned.violated.any()
    assert set(turned.paths.tolist()) == {ANSWERED_HEAVY, ANSWERED_LIGHT}


def test_what_cannot_make_its_bound_is_dropped():
    outcome = simulate(fixed(drop_after_s=5.0), at(*np.linspace(0, 1, 10)), np.zeros(10))
    assert (outcome.paths == UNANSWERED).any()
    assert outcome.latencies_s[outcome.paths == ANSWERED_HEAVY].max() <= 5.0


@pytest.mark.parametrize("name", POLICIES)
@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=60),
    levels=st.integers(0, 2**16),
    gpus=st.integers(1, 4),
)
@settings(max_examples=8, derandomize=True)
def test_every_request_ends_once_and_none_before_it_could(name, gaps, levels, gpus):
    setting = family_setting("diffserve-1", gpus=gpus)
    arrivals = at(*np.cumsum(gaps))
    outcome = simulate(make_policy(name, setting), arrivals, np.random.default_rng(levels).random(len(gaps)))
    answered = outcome.paths != UNANSWERED
    assert np.isfinite(outcome.finished_s[answered]).all()
    assert np.isinf(outcome.finished_s[~answered]).all()
    assert (outcome.latencies_s >= 0.1 - 1e-9).all()
    assert outcome.busy_s <= gpus * outcome.finished_s[answered].max(initial=0) + 1e-6


@pytest.mark.parametrize("name", ["diffserve", "weir"])
def test_a_run_is_a_function_of_its_seed(name):
    arrivals = poisson(np.full(40, 6.0), seed=1)
    confidences = drawn(SETTING.deferral, len(arrivals), seed=2)
    runs = [simulate(make_policy(name, SETTING), arrivals, confidences, seed=7) for _ in range(2)]
    assert np.array_equal(runs[0].finished_s, runs[1].finished_s)
    assert runs[0].plans == runs[1].plans


def test_weir_keeps_every_deadline_while_replicas_die():
    arrivals = poisson(np.full(60, 5.0), seed=3)
    confidences = drawn(SETTING.deferral, len(arrivals), seed=4)
    deaths = [(20.0, 0), (35.0, 3)]
    outcome = simulate(make_policy("weir", SETTING), arrivals, confidences, deaths=deaths)
    assert (outcome.paths != UNANSWERED).all()
    assert outcome.violated.mean() < 0.01
    assert outcome.plans[-1][1] + outcome.plans[-1][2] == 2


def test_a_controller_that_is_dead_for_an_hour_leaves_a_plan_that_serves():
    class Dies(Weir):
        def observe(self, seen):
            return super().observe(seen) if seen.now_s < 60 else None

    arrivals = poisson(np.full(3660, 4.0), seed=3)
    outcome = simulate(Dies(SETTING), arrivals, drawn(SETTING.deferral, len(arrivals), seed=4))
    assert (outcome.paths != UNANSWERED).all()
    assert outcome.violated.mean() < 0.01


def test_the_death_of_all_loses_requests_and_ends():
    arrivals = poisson(np.full(20, 5.0), seed=3)
    deaths = [(5.0, i) for i in range(4)]
    outcome = simulate(make_policy("weir", SETTING), arrivals, np.zeros(len(arrivals)), deaths=deaths)
    assert (outcome.paths[outcome.arrivals_s > 5.0] == UNANSWERED).all()


def test_weir_serves_what_it_can_of_a_flood():
    # Ten times what all light GPUs could draw: the admitted part is in time, the rest is refused at once.
    arrivals = poisson(np.full(30, 800.0), seed=5)
    outcome = simulate(make_policy("weir", SETTING), arrivals, drawn(SETTING.deferral, len(arrivals), 6))
    late = outcome.arrivals_s > 10
    served = (~outcome.violated & late).sum() / 20
    assert served > 0.6 * 4 * 20.0


def test_a_trace_need_not_begin_at_zero():
    late = simulate(make_policy("weir", SETTING), at(1e9, 1e9 + 1), np.array([0.9, 0.9]))
    assert late.latencies_s == pytest.approx([0.12, 0.12], abs=1e-6)


def test_no_request_at_all_is_a_run_too():
    outcome = simulate(make_policy("weir", SETTING), at(), np.array([]))
    assert len(outcome.paths) == 0


def test_a_change_of_role_lets_the_running_batch_end_and_moves_the_queue():
    class Turns(Fixed):
        light, heavy = 1, 2

        def observe(self, seen):
            if seen.now_s != 1.0:
                return None
            return self.split(2, 1, light_batch=2, heavy_batch=2, threshold=0.5)

    turns = Turns(family_setting("diffserve-1", gpus=3), light_fallback=True)
    outcome = simulate(turns, at(0.0, 0.2, 0.4, 0.6), np.zeros(4))
    assert outcome.role_changes == 1
    assert not outcome.violated.any()
    assert (outcome.paths == ANSWERED_HEAVY).sum() >= 3


def test_a_slower_device_moves_the_plan_within_a_minute_and_keeps_the_deadlines():
    arrivals = poisson(np.full(150, 6.0), seed=3)
    confidences = drawn(SETTING.deferral, len(arrivals), seed=4)
    slower = simulate(make_policy("weir", SETTING), arrivals, confidences, slowdowns=[(60.0, 1.5)])
    steady = simulate(make_policy("weir", SETTING), arrivals, confidences)

    def share(outcome, since: float) -> float:
        return outcome.light[outcome.arrivals_s > since].mean()

    assert share(slower, 120) > share(steady, 120) + 0.05
    assert slower.violated[slower.arrivals_s > 120].mean() < 0.01
    before, after = ([row for row in slower.plans if low < row[0] < low + 20] for low in (40, 100))
    assert np.mean([threshold for *_, threshold in after]) < 0.7 * np.mean([threshold for *_, threshold in before])


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


def test_where_steps_were_measured_a_late_image_joins_those_that_run():
    outcome = simulate(Fixed(Setting.of(STEPWISE, 2, 10.0)), at(1.0, 2.0), np.zeros(2))
    # The second joins after 1 s of the first one's 2 s; both then go at the pace of two, 3 s for a whole run.
    assert outcome.finished_s[0] == pytest.approx(1.1 + 1.0 + 0.5 * 3)
    assert outcome.finished_s[1] == pytest.approx(3.6 + 0.5 * 2)
    assert outcome.busy_s == pytest.approx(0.2 + 3.5)


@pytest.mark.parametrize("name", POLICIES)
@given(gaps=st.lists(st.floats(0, 1), min_size=1, max_size=60), levels=st.integers(0, 99), way_s=st.floats(0, 0.3))
@settings(max_examples=8, derandomize=True, deadline=None)
def test_every_request_ends_once_also_by_steps_and_with_calls_that_take_their_time(name, gaps, levels, way_s):
    arrivals, confidences = at(*np.cumsum(gaps)), np.random.default_rng(levels).random(len(gaps))
    for setting in (family_setting("diffserve-1", gpus=3), Setting.of(STEPWISE, 3, 6.0)):
        outcome = simulate(make_policy(name, setting), arrivals, confidences, transit_s=(way_s,), deaths=[(3.0, 1)])
        answered = outcome.paths != UNANSWERED
        assert np.isfinite(outcome.finished_s[answered]).all()
        assert np.isinf(outcome.finished_s[~answered]).all()
        assert (outcome.latencies_s >= 0.1 + 2 * way_s - 1e-9).all()


def test_a_call_takes_its_time_out_and_back():
    outcome = simulate(fixed(), at(1.0), np.array([0.1]), transit_s=(0.05,))
    assert outcome.latencies_s == pytest.approx([0.05 + 0.12 + 0.05 + 0.05 + 1.78 + 0.05])


def test_a_hit_goes_to_the_heavy_variant_at_once_and_runs_only_what_is_left():
    outcome = simulate(fixed(), at(1.0), np.array([0.9]), saved=np.array([0.5]))
    assert outcome.latencies_s == pytest.approx([0.5 * 1.78])
    assert outcome.paths.tolist() == [ANSWERED_HEAVY]


def test_a_hit_that_saves_too_little_for_the_plan_begins_light_and_resumes_when_deferred():
    outcome = simulate(fixed(direct=0.6), at(1.0, 9.0), np.array([0.9, 0.1]), saved=np.array([0.5, 0.5]))
    assert outcome.latencies_s == pytest.approx([0.12, 0.12 + 0.5 * 1.78])
    assert outcome.paths.tolist() == [ANSWERED_LIGHT, ANSWERED_HEAVY]
    assert outcome.resumed.tolist() == [False, True]


def test_a_state_is_waited_for_and_one_that_comes_too_late_costs_a_whole_run():
    saved = np.array([0.5, 0.5])
    outcome = simulate(fixed(), at(1.0, 9.0), np.zeros(2), saved=saved, fetches=[(0.0, 0.01), (8.0, 0.5)])
    assert outcome.latencies_s == pytest.approx([0.01 + 0.5 * 1.78, FETCH_WAIT_S + 1.78])
    assert outcome.resumed.tolist() == [True, False]


def test_weir_stops_asking_a_store_that_fails_and_leaves_fewer_light_than_by_believing_it():
    falling = QualityCurve(tuple(1 - 0.07 * (k / 10) ** 2 for k in range(11)), smaller_is_better=False)
    setting = replace(family_setting("sdxl-a100", gpus=16), resumed=0.97, quality=falling)
    arrivals = steps(6, 12, 200, 30, 3)
    confidences = drawn(setting.deferral, len(arrivals), 4)
    saved = np.where(np.random.default_rng(1).random(len(arrivals)) < 0.5, 0.4, 0)

    class Believes(Weir):
        def observe(self, seen):
            return super().observe(replace(seen, reused={0.4: len(seen.fetches)}))

    believing, counting = (
        simulate(policy(setting), arrivals, confidences, saved=saved, fetches=[(0.0, 0.001), (60.0, 5.0)])
        for policy in (Believes, Weir)
    )
    late = arrivals.times_s > 75
    assert not counting.violated[late].any()
    by_deadline = [(run.paths[late] == ANSWERED_AT_DEADLINE).mean() for run in (believing, counting)]
    assert by_deadline[1] < by_deadline[0] / 2  # who stays light is chosen by the threshold, not by the clock
    assert counting.light[late].mean() < believing.light[late].mean()


def test_where_the_plan_leaves_the_cache_alone_a_hit_is_drawn_like_a_miss():
    outcome = simulate(fixed(reuse=False), at(1.0, 9.0), np.array([0.9, 0.1]), saved=np.array([0.5, 0.5]))
    assert outcome.latencies_s == pytest.approx([0.12, 0.12 + 1.78])
    assert outcome.paths.tolist() == [ANSWERED_LIGHT, ANSWERED_HEAVY]
    assert not outcome.resumed.any()


def test_a_short_run_takes_less_time_and_is_worth_less_unless_a_state_leaves_fewer_steps():
    policy = fixed(runs=(ShortRun(steps=10, work=0.2, loss=3.0),), heavy_steps=10, direct=1.0)
    outcome = simulate(policy, at(1.0, 9.0, 17.0), np.array([0.1] * 3), saved=np.array([0.0, 0.5, 0.9]))
    assert outcome.latencies_s == pytest.approx([0.12 + 0.2 * 1.78, 0.12 + 0.2 * 1.78, 0.12 + 0.1 * 1.78])
    assert outcome.loss.tolist() == [3.0, 3.0, 0.0]
    assert outcome.resumed.tolist() == [False, False, True]


def test_a_prompt_of_a_hard_level_goes_to_the_heavy_variant_at_once():
    outcome = simulate(fixed(heavy_levels=1), at(1.0, 9.0, 17.0), np.array([0.9] * 3), levels=np.array([0, 1, -1]))
    assert outcome.paths.tolist() == [ANSWERED_HEAVY, ANSWERED_LIGHT, ANSWERED_LIGHT]
