"""Tests of the trend: which figures of a run count as flat and which as growing."""

from __future__ import annotations

import numpy as np
import pytest

from testing.trend import LEAST_SAMPLES, Allowance, trend

TIMES = np.arange(0.0, 3600.0, 5.0)
MEMORY = Allowance(share=0.03, step=6.0)
CHANCE = np.random.default_rng(1)


def judged(values: np.ndarray) -> bool:
    return trend(TIMES.tolist(), values.tolist(), MEMORY).growing


def noise(size: float) -> np.ndarray:
    return CHANCE.normal(0, size, len(TIMES))


def test_a_fluctuation_around_a_level_is_flat():
    assert not judged(200 + noise(5))


def test_a_leak_is_detected_in_noise():
    assert judged(200 + TIMES / 3600 * 30 + noise(5))


def test_growth_in_the_first_half_only_is_flat():
    assert not judged(200 + 100 * np.minimum(1, TIMES / 1500) + noise(2))


def test_growth_below_the_allowance_is_flat():
    assert not judged(200 + TIMES / 3600 * 8 + noise(1))


def test_single_spikes_are_not_growth():
    values = 200 + noise(1)
    values[-20:-10] += 500
    assert not judged(values)


def test_rising_noise_is_not_growth():
    assert not trend(TIMES[:20].tolist(), (10 + CHANCE.normal(0, 40, 20)).tolist(), MEMORY).growing


def test_a_row_has_the_first_and_last_quarter_and_the_growth_per_hour():
    found = trend(TIMES.tolist(), (100 + TIMES / 36).tolist(), MEMORY)
    assert found.first == pytest.approx(112.5, abs=0.2)
    assert found.last == pytest.approx(187.5, abs=0.2)
    assert found.growth == pytest.approx(50, abs=0.2)
    assert found.per_hour == pytest.approx(100)


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match=f"at least {LEAST_SAMPLES}"):
        trend([0.0] * 3, [1.0] * 3, MEMORY)
