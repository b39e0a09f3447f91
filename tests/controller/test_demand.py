"""Tests of the demand forecast: it is exact on a steady load, follows bursts and ignores invalid counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.demand import DemandForecast


def forecast(counts) -> float:
    demand = DemandForecast()
    for count in counts:
        demand.observe(count, 1.0)
    return demand.rate_rps()


def test_without_observations_the_demand_is_zero():
    assert forecast([]) == 0.0


def test_a_steady_rate_is_forecast_exactly():
    assert forecast([20] * 30) == pytest.approx(20)


def test_poisson_noise_changes_the_forecast_little():
    rng = np.random.default_rng(0)
    demand, seen = DemandForecast(), []
    for count in rng.poisson(20, 300):
        demand.observe(int(count), 1.0)
        seen.append(demand.rate_rps())
    assert np.mean(seen[20:]) == pytest.approx(20, rel=0.05)
    assert np.std(seen[20:]) < 2.0


@pytest.mark.parametrize(("seconds", "share"), [(1, 0.6), (3, 0.75), (8, 0.85)])
def test_a_tenfold_jump_shows_within_seconds(seconds, share):
    assert forecast([5] * 30 + [50] * seconds) >= share * 50


def test_the_end_of_a_burst_shows_within_seconds():
    assert forecast([50] * 30 + [5] * 4) < 15


def test_the_forecast_falls_without_arrivals():
    assert forecast([20] * 30 + [0] * 16) < 1.0


@pytest.mark.parametrize("invalid", [math.nan, -5, math.inf])
def test_invalid_counts_are_ignored(invalid):
    assert forecast([20] * 16 + [invalid]) == pytest.approx(20)


def test_a_late_observation_is_weighted_by_its_seconds():
    demand = DemandForecast()
    for _ in range(4):
        demand.observe(60, 3.0)
    assert demand.rate_rps() == pytest.approx(20)
