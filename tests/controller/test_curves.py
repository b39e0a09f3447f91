"""Tests of the live deferral curve: it begins as the profile and follows the observed confidences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.published import cascade
from controller.curves import LiveDeferral
from weir.core import DeferralCurve

STRAIGHT = DeferralCurve((0.0, 1.0), (0.0, 1.0))


def test_without_images_the_curve_is_the_profile():
    profile = cascade("diffserve-1").deferral
    live = LiveDeferral(profile)
    assert live.threshold_for(0.582) == pytest.approx(0.2)
    curve = live.curve()
    assert curve.at(0.2) == pytest.approx(0.582, abs=0.01)


@given(st.lists(st.floats(0, 1), max_size=60))
@settings(max_examples=100, derandomize=True)
def test_the_curve_rises_from_zero_to_one_for_any_images(confidences):
    live = LiveDeferral(STRAIGHT)
    live.observe(confidences)
    curve = live.curve()
    assert curve.shares[0] == 0
    assert curve.shares[-1] == 1
    assert list(curve.shares) == sorted(curve.shares)
    assert list(curve.thresholds) == sorted(set(curve.thresholds))
    assert len(curve.shares) <= 202


def test_a_drifting_discriminator_moves_the_threshold_within_a_minute():
    rng = np.random.default_rng(0)
    live = LiveDeferral(STRAIGHT)
    live.observe((rng.random(600) ** 3).tolist())  # a minute at 10 requests/s; the profile said uniform
    threshold = live.threshold_for(0.5)
    assert np.mean(rng.random(100_000) ** 3 < threshold) == pytest.approx(0.5, abs=0.1)


def test_thresholds_distinguish_confidences_near_zero_and_one():
    # Real discriminators answer near 0 or near 1; equal steps of the threshold would see a single jump.
    rng = np.random.default_rng(1)
    live = LiveDeferral(STRAIGHT)
    live.observe((rng.random(1000) * 1e-3).tolist())
    threshold = live.threshold_for(0.3)
    assert np.mean(rng.random(100_000) * 1e-3 < threshold) == pytest.approx(0.3, abs=0.1)


def test_the_window_forgets_old_confidences():
    live = LiveDeferral(STRAIGHT)
    live.observe([0.1] * 5000)
    live.observe([0.9] * 1000)
    assert live.threshold_for(0.5) == pytest.approx(0.9, abs=0.01)


def test_confidences_outside_their_range_are_ignored():
    live = LiveDeferral(STRAIGHT)
    live.observe([float("nan"), -1.0, 2.0])
    assert live.threshold_for(0.5) == pytest.approx(0.5)
