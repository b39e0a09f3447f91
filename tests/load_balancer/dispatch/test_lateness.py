"""Predictions are corrected by how late images really were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from load_balancer.dispatch.lateness import LEAST_IMAGES, WINDOW_S, Lateness


def test_a_few_images_prove_nothing():
    lateness = Lateness()
    for _ in range(LEAST_IMAGES - 1):
        lateness.observe(1.0, 0.0)
    assert lateness.seconds(0.0) == 0.0


def test_promises_are_kept_by_half_of_the_images():
    lateness = Lateness()
    for tenth in range(11):
        lateness.observe(tenth / 10, 0.0)
    assert lateness.seconds(0.0) == 0.5


def test_images_that_are_early_do_not_make_promises_shorter():
    lateness = Lateness()
    for _ in range(20):
        lateness.observe(-1.0, 0.0)
    assert lateness.seconds(0.0) == 0.0


@given(st.lists(st.floats(0, 100), min_size=LEAST_IMAGES))
def test_a_stall_is_forgiven(late):
    lateness = Lateness()
    for seconds in late:
        lateness.observe(seconds, 0.0)
    assert lateness.seconds(WINDOW_S) == 0.0
