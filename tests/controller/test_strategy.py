"""Tests of the strategy switch: AC ends when the cache does not pay off, and resumes after the hold-down."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.strategy import CacheHealth, StrategyState, SwitchRules, next_strategy, saved_seconds
from weir.approximation_levels import Strategy
from weir.errors import PlanError

RULES = SwitchRules(trip_s=10, hold_s=60)
GOOD = CacheHealth(fetch_s=0.02, saved_s=1.2, hit_share=0.8)
SLOW = CacheHealth(fetch_s=1.5, saved_s=1.2, hit_share=0.8)
DOWN = CacheHealth(fetch_s=math.inf, saved_s=1.2, hit_share=0.8)
EMPTY = CacheHealth(fetch_s=None, saved_s=0.0, hit_share=0.0)
BETWEEN = CacheHealth(fetch_s=0.9, saved_s=1.2, hit_share=0.8)
UNKNOWN = CacheHealth(fetch_s=None, saved_s=0.0, hit_share=None)


def run(measurements: list[CacheHealth], state: StrategyState = StrategyState()) -> list[Strategy]:
    """Returns the strategy after each measurement, one per second."""
    strategies = []
    for second, seen in enumerate(measurements):
        state = next_strategy(state, seen, float(second), RULES)
        strategies.append(state.strategy)
    return strategies


@pytest.mark.parametrize("bad", [SLOW, DOWN, EMPTY], ids=["slow", "down", "no hits"])
def test_ac_ends_after_the_trip_time_of_unfavourable_measurements(bad):
    strategies = run([GOOD] * 5 + [bad] * 20)
    assert strategies.index(Strategy.SM) == 5 + RULES.trip_s


def test_a_short_congestion_changes_nothing():
    assert set(run(([SLOW] * 9 + [GOOD]) * 20)) == {Strategy.AC}


def test_ac_resumes_only_after_the_hold_down():
    strategies = run([GOOD] * 100, StrategyState(Strategy.SM))
    assert strategies.index(Strategy.AC) == RULES.hold_s


def test_one_unfavourable_second_restarts_the_hold_down():
    assert set(run(([GOOD] * 59 + [SLOW]) * 5, StrategyState(Strategy.SM))) == {Strategy.SM}


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("seen", [BETWEEN, UNKNOWN], ids=["between the limits", "nothing measured"])
def test_neutral_measurements_change_nothing(strategy, seen):
    assert set(run([seen] * 1000, StrategyState(strategy))) == {strategy}


@given(
    st.lists(
        st.builds(
            CacheHealth,
            fetch_s=st.none() | st.floats(0, 3) | st.just(math.inf),
            saved_s=st.floats(0, 2),
            hit_share=st.none() | st.floats(0, 1),
        ),
        max_size=400,
    )
)
@settings(max_examples=100, derandomize=True)
def test_sm_lasts_at_least_the_hold_down_for_any_measurements(measurements):
    strategies = run(measurements)
    changes = [i for i in range(1, len(strategies)) if strategies[i] is not strategies[i - 1]]
    for left, back in pairwise(changes):
        if strategies[back] is Strategy.AC:
            assert back - left >= RULES.hold_s


def test_a_hit_saves_its_steps_and_misses_save_nothing():
    assert saved_seconds({0: 0.5, 10: 0.25, 20: 0.25}, step_s=0.084) == pytest.approx(15 * 0.084)
    assert saved_seconds({0: 1.0}, step_s=0.084) == saved_seconds({}, step_s=0.084) == 0


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: CacheHealth(math.nan, 1.0, 0.5), "fetch_s"),
        (lambda: CacheHealth(-1.0, 1.0, 0.5), "fetch_s"),
        (lambda: CacheHealth(0.1, math.nan, 0.5), "saved_s"),
        (lambda: CacheHealth(0.1, 1.0, 1.5), "hit_share"),
        (lambda: SwitchRules(fetch_limit=0.5, fetch_back=0.5), "fetch_back"),
        (lambda: SwitchRules(hits_limit=0.3, hits_back=0.2), "hits_limit"),
        (lambda: SwitchRules(hold_s=math.inf), "hold_s"),
    ],
)
def test_invalid_rules_are_refused_and_named(make, names):
    with pytest.raises(PlanError, match=names):
        make()
