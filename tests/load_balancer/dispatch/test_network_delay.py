"""Predictions include the network delay of calls."""

from __future__ import annotations

import pytest

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import BatchReport, Kind
from load_balancer.dispatch.network_delay import CALLS, NetworkDelay
from load_balancer.dispatch.service_times import ServiceTimes
from weir.plan import LIGHT, Plan

LIGHT_IMAGE = Kind(LIGHT, LIGHT)


def test_the_delay_is_half_of_the_round_trip():
    delay = NetworkDelay()
    for trip_s in [0.02] * 9 + [0.4]:
        delay.observe(trip_s)
    assert (delay.usual_s, delay.slow_s) == (0.01, pytest.approx(0.029))


def test_the_delay_follows_a_host_that_becomes_busy():
    delay = NetworkDelay()
    for trip_s in [0.002] * CALLS + [0.2] * CALLS:
        delay.observe(trip_s)
    assert delay.usual_s == delay.slow_s == 0.1


def test_the_delay_is_zero_before_the_first_calls_and_for_jumping_clocks():
    delay = NetworkDelay()
    assert delay.usual_s == 0
    delay.observe(-5.0)
    delay.observe(-5.0)
    assert delay.usual_s == delay.slow_s == 0


def test_swing_is_the_range_of_the_usual_delay_since_it_was_settled():
    delay = NetworkDelay()
    for trip_s in [0.02] * CALLS + [0.06] * CALLS:
        delay.observe(trip_s)
    assert delay.swing_s == pytest.approx(0.03)
    delay.settle()
    assert delay.swing_s == 0


@pytest.fixture
def dispatcher(profile) -> Dispatcher:
    """One light replica 0.1 s away; a light image takes 0.02 s, four of them 0.05 s."""
    dispatcher = Dispatcher(Plan.split(1, 1, 0, light_batch=4, heavy_batch=1, threshold=0), ServiceTimes(profile))
    dispatcher.sync([{"replica": "r", "rank": 0}])
    dispatcher.delay.observe(0.2)
    dispatcher.delay.observe(0.2)
    return dispatcher


def test_the_predicted_finish_includes_the_delay_in_both_directions(dispatcher):
    choice = dispatcher.pick(LIGHT_IMAGE, 10.0)
    assert choice is not None
    assert choice.finish_at == pytest.approx(10.0 + 0.1 + 0.02 + 0.1)


def test_an_image_misses_a_batch_that_begins_before_it_arrives(dispatcher):
    dispatcher.assign("r", "a", LIGHT_IMAGE, 10.0)  # arrives at 10.1, runs until 10.12
    dispatcher.assign("r", "b", LIGHT_IMAGE, 10.01)  # arrives at 10.11, runs in the next batch until 10.14
    in_time, too_late = dispatcher.finish_at(LIGHT_IMAGE, 10.015), dispatcher.finish_at(LIGHT_IMAGE, 10.03)
    assert in_time == pytest.approx(10.12 + 0.03 + 0.1)  # two images share the batch at 10.12
    assert too_late == pytest.approx(10.12 + 0.02 + 0.02 + 0.1)  # b runs first, and then it alone


def test_a_reply_shows_which_images_are_in_the_next_batch(dispatcher):
    for request, now in (("a", 10.0), ("b", 10.01), ("c", 10.15)):
        dispatcher.assign("r", request, LIGHT_IMAGE, now)
    dispatcher.finished("r", "a", 10.22, BatchReport(batch_size=1, compute_s=0.02, queued=1))
    assert dispatcher.begun("r", "b")
    assert not dispatcher.begun("r", "c")  # it was in transit
