"""Predictions are corrected by the measured lateness of images."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from load_balancer.dispatch.lateness import LEAST_IMAGES, WINDOW_S, Lateness


def test_lateness_is_zero_after_a_few_images():
    lateness = Lateness()
    for _ in range(LEAST_IMAGES - 1):
        lateness.observe(1.0, 0.0)
    assert lateness.seconds(0.0) == 0.0


def test_lateness_is_the_median():
    lateness = Lateness()
    for tenth in range(11):
        lateness.observe(tenth / 10, 0.0)
    assert lateness.seconds(0.0) == 0.5


def test_early_images_do_not_make_lateness_negative():
    lateness = Lateness()
    for _ in range(20):
        lateness.observe(-1.0, 0.0)
    assert lateness.seconds(0.0) == 0.0


@given(st.lists(st.floats(0, 100), min_size=LEAST_IMAGES))
def test_a_stall_expires(late):
    lateness = Lateness()
    for seconds in late:
        lateness.observe(seconds, 0.0)
    assert lateness.seconds(WINDOW_S) == 0.0
