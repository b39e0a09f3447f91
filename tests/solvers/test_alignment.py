"""Tests of the alignment: the served prompts have exactly the target shares, for every prediction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.alignment import align, total_variation
from weir.errors import ConfigError, PlanError

EXACT = 1e-9


@st.composite
def pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    """Generates two histograms over the same levels, many of which are empty."""
    levels = draw(st.integers(1, 9))
    weights = st.lists(st.sampled_from((0.0, 0.0, 1e-12, 0.1, 1.0, 7.0)), min_size=levels, max_size=levels)
    h, f = (np.array(draw(weights.filter(any))) for _ in range(2))
    return h / h.sum(), f / f.sum()


def assert_exact(h: np.ndarray, f: np.ndarray) -> np.ndarray:
    shift = align(h, f)
    assert (shift >= 0).all()
    assert shift.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert total_variation(h @ shift, f) < EXACT
    return shift


@given(pair=pairs())
@settings(max_examples=200, derandomize=True)
def test_alignment_is_exact_with_any_levels_empty(pair):
    assert_exact(*pair)


def test_alignment_is_exact_on_ten_thousand_random_pairs():
    random = np.random.default_rng(0)
    for h, f in random.dirichlet(np.ones(6), (10_000, 2)):
        assert_exact(h, f)


@pytest.mark.parametrize("levels", [1, 2, 6])
def test_alignment_is_exact_between_any_two_single_levels(levels):
    for i in range(levels):
        for j in range(levels):
            shift = assert_exact(np.eye(levels)[i], np.eye(levels)[j])
            assert shift[i, j] == 1


def test_alignment_is_exact_on_reversed_histograms():
    h = np.array([0.5, 0.25, 0.15, 0.1, 0.0, 0.0])
    assert_exact(h, h[::-1])


def test_the_shift_is_the_identity_when_predicted_and_target_shares_agree():
    h = np.array([0.1, 0.0, 0.4, 0.5])
    assert np.array_equal(align(h, h)[[0, 2, 3]], np.eye(4)[[0, 2, 3]])


@given(pair=pairs())
@settings(max_examples=200, derandomize=True)
def test_the_shift_keeps_the_order_of_prompts(pair):
    shift = align(*pair)
    last = 0
    for i in np.flatnonzero(pair[0]):
        reached = np.flatnonzero(shift[i] > 0)
        assert reached[0] >= last
        last = reached[-1]


def test_a_level_without_prompts_has_a_row_in_the_shift():
    shift = align([0.5, 0.0, 0.5], [0.0, 1.0, 0.0])
    assert shift[1].tolist() == [0, 1, 0]


def test_the_published_aligner_is_exact_under_overload_and_misses_when_prompts_move_down():
    want_fast, want_good = [0.0, 0.1, 0.9], [0.9, 0.1, 0.0]
    forced_faster = total_variation(want_good @ align(want_good, want_fast, "oda"), np.array(want_fast))
    let_be_better = total_variation(want_fast @ align(want_fast, want_good, "oda"), np.array(want_good))
    assert forced_faster < 0.01
    assert let_be_better > 0.1


def test_the_published_aligner_stays_finite_with_empty_levels():
    shift = align([1.0, 0.0, 0.0], [0.0, 0.0, 1.0], "oda")
    assert np.isfinite(shift).all()


@pytest.mark.parametrize(
    ("h", "f", "message"),
    [
        ([0.5, 0.4], [0.5, 0.5], "predicted adds up to 0.9"),
        ([0.5, 0.5], [0.7, 0.5], "target adds up to 1.2"),
        ([float("nan"), 1.0], [0.5, 0.5], "predicted is .*nan.*number"),
        ([0.5, 0.5], [1.5, -0.5], "target is .*at least 0"),
        ([0.0, 0.0], [0.5, 0.5], "predicted adds up to 0"),
        ([1.0], [0.5, 0.5], "predicted has 1 levels and target has 2"),
        ([], [], "predicted must be a list"),
        ([[1.0]], [1.0], "predicted must be a list"),
    ],
)
def test_invalid_histograms_are_refused_and_named(h, f, message):
    with pytest.raises(PlanError, match=message):
        align(h, f)


def test_an_unknown_aligner_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="monotone, oda"):
        align([1.0], [1.0], "best")
