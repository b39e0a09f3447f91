"""Service times start from the profile and follow the reports of workers."""

from __future__ import annotations

import pytest

from load_balancer.dispatch.service_times import MEMORY_S, MOST_CORRECTION, MOST_SIZES, ServiceTimes
from weir.core import ImageSize
from weir.plan import HEAVY, LIGHT
from weir.profiles import BatchTimes

LARGE = ImageSize(128, 64)


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


def test_a_size_that_was_measured_has_its_own_times_and_shares_the_correction(profile):
    large = BatchTimes(batch_sizes=(1, 4), latency_s=(0.5, 1.0))
    heavy = profile.variant(HEAVY).model_copy(update={"sizes": {LARGE: large}})
    sized = profile.model_copy(update={"size": ImageSize(64, 64), "variants": {**profile.variants, HEAVY: heavy}})
    times = ServiceTimes(sized)
    assert times.seconds(HEAVY, 1, size=LARGE) == 0.5
    assert times.seconds(HEAVY, 1, 0.5, LARGE) == 0.25
    assert times.price(LARGE) == 5.0
    times.observe(HEAVY, 1, 1.0, size=LARGE, now=0.0)
    assert times.seconds(HEAVY, 1) == pytest.approx(0.1 * 1.2)
    assert times.whole(HEAVY, 1, 1.0, 1.0, LARGE) == pytest.approx(0.2)


def test_a_size_that_was_not_measured_costs_by_its_pixels(profile):
    times = ServiceTimes(profile, ImageSize(64, 64))
    assert times.seconds(HEAVY, 1, size=LARGE) == 0.2
    assert (times.price(LARGE), times.price(None)) == (2.0, 1.0)


def test_without_a_profile_sizes_are_compared_by_their_pixels():
    times = ServiceTimes(None, ImageSize(64, 64))
    times.observe(HEAVY, 1, 1.0, size=LARGE, now=0.0)
    assert times.seconds(HEAVY, 1) == pytest.approx(0.5)
    assert times.seconds(HEAVY, 2, size=LARGE) == pytest.approx(2.0)


def test_many_different_sizes_do_not_accumulate(profile):
    times = ServiceTimes(profile, ImageSize(64, 64))
    for width in range(64, 64 + 3 * MOST_SIZES):
        times.seconds(HEAVY, 1, size=ImageSize(width, 64))
    assert len(times._variants[HEAVY].sizes) <= MOST_SIZES + 1
    assert times.seconds(HEAVY, 1) == 0.1
