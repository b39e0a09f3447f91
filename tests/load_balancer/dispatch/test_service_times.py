"""Service times start from the profile and follow the reports of workers."""

from __future__ import annotations

import pytest

from load_balancer.dispatch.service_times import MEMORY_S, MOST_CORRECTION, ServiceTimes
from weir.plan import HEAVY, LIGHT


def test_with_a_profile_the_prediction_is_the_profile(profile):
    times = ServiceTimes(profile)
    assert times.seconds(LIGHT, 1) == 0.02
    assert times.seconds(LIGHT, 4) == 0.05
    assert times.seconds(HEAVY, 1, work=0.5) == 0.05


def test_slower_replies_raise_the_prediction_gradually(profile):
    times = ServiceTimes(profile)
    for _ in range(50):
        times.observe(LIGHT, 4, 0.10, now=0.0)
    assert times.seconds(LIGHT, 4) == pytest.approx(0.10, rel=0.01)
    assert times.seconds(HEAVY, 1) == 0.1


def test_one_slow_batch_changes_little(profile):
    times = ServiceTimes(profile)
    times.observe(LIGHT, 1, 0.04, now=0.0)
    assert times.seconds(LIGHT, 1) == pytest.approx(0.024)


def test_without_a_profile_everything_looks_instant_until_the_first_reply():
    times = ServiceTimes()
    assert times.seconds(HEAVY, 8) == 0
    times.observe(HEAVY, 2, 3.0, now=0.0)
    assert times.seconds(HEAVY, 1) == pytest.approx(1.5)


@pytest.mark.parametrize("compute_s", [-1.0, 0.0, 1e12])
def test_nonsense_times_leave_a_finite_prediction(profile, compute_s):
    times = ServiceTimes(profile)
    times.observe(LIGHT, 1, compute_s, now=0.0)
    assert 0 <= times.seconds(LIGHT, 1) <= 0.02 * MOST_CORRECTION


def test_a_stall_is_dropped_after_a_time_without_batches(profile):
    times = ServiceTimes(profile)
    times.observe(HEAVY, 1, 10.0, now=0.0)
    stalled = times.seconds(HEAVY, 1)
    assert stalled > 1.0
    times.forgive(MEMORY_S)
    assert times.seconds(HEAVY, 1) == stalled
    times.forgive(MEMORY_S + 1)
    assert times.seconds(HEAVY, 1) == 0.1


def test_corrections_to_faster_times_are_kept(profile):
    times = ServiceTimes(profile)
    times.observe(HEAVY, 1, 0.05, now=0.0)
    times.forgive(MEMORY_S + 1)
    assert times.seconds(HEAVY, 1) == pytest.approx(0.09)


def test_every_variant_has_times_of_its_own(profile):
    times = ServiceTimes(profile)
    times.observe(LIGHT, 1, 0.2, now=0.0)
    assert times.seconds(LIGHT, 1) > 0.02
    assert times.seconds(HEAVY, 1) == 0.1


def test_fallen_is_the_largest_decrease_since_predictions_were_settled(profile):
    times = ServiceTimes(profile)
    times.observe(LIGHT, 1, 0.04, now=0.0)
    assert times.fallen == 0
    before = times.seconds(LIGHT, 1)
    times.observe(LIGHT, 1, 0.01, now=0.0)
    assert times.fallen == pytest.approx(1 - times.seconds(LIGHT, 1) / before)
    times.settle()
    assert times.fallen == 0
