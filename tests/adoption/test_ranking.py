"""Quality of mixes by light share, and the scale of confidences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adoption.ranking import SHARES, Figures, Pair, fit_scale, held_out_confidence

scores = st.lists(st.floats(0, 1), min_size=8, max_size=30)


def pair_of(light: list[float], seed: int = 0) -> Pair:
    values = np.array(light)
    return Pair(values, np.random.default_rng(seed).random(len(values)))


@given(scores, st.integers(0, 9))
def test_no_choice_beats_the_oracle(light: list[float], seed: int) -> None:
    pair = pair_of(light)
    confidence = np.random.default_rng(seed).random(len(light))
    assert (np.array(pair.oracle()) >= np.array(pair.curve(confidence)) - 1e-9).all()


@given(scores)
def test_every_curve_leads_from_all_heavy_to_all_light(light: list[float]) -> None:
    pair = pair_of(light)
    for curve in (pair.curve(pair.light), pair.random(), pair.oracle()):
        assert len(curve) == len(SHARES)
        assert curve[0] == pytest.approx(pair.heavy.mean())
        assert curve[-1] == pytest.approx(pair.light.mean())


def test_the_oracle_has_the_whole_gain_and_an_area_of_one() -> None:
    pair = pair_of(np.linspace(0, 1, 50).tolist())
    figures = Figures.of(pair, pair.light - pair.heavy)
    assert figures.auc == 1
    assert figures.gain == pytest.approx(1)
    assert Figures.from_dict(figures.to_dict()) == figures


def test_images_of_one_label_have_no_area_under_the_curve() -> None:
    figures = Figures.of(Pair(np.ones(10), np.zeros(10)), np.linspace(0, 1, 10))
    assert figures.auc is None


def test_the_scale_gives_probabilities() -> None:
    rng = np.random.default_rng(1)
    pair = Pair(rng.random(400), rng.random(400))
    told = pair.light - pair.heavy
    logits = np.stack([10 * told + rng.normal(size=400), told + rng.normal(size=400)], 1)
    weights, constant = fit_scale(logits, pair)
    probability = 1 / (1 + np.exp(-(logits @ weights + constant)))
    sure = probability > 0.8
    assert pair.as_good[sure].mean() == pytest.approx(probability[sure].mean(), abs=0.1)


def test_a_logit_that_never_changes_has_no_weight() -> None:
    rng = np.random.default_rng(1)
    weights, _ = fit_scale(np.stack([rng.normal(size=50), np.ones(50)], 1), Pair(rng.random(50), rng.random(50)))
    assert weights[0] > 0
    assert weights[1] == 0


def test_confidences_do_not_know_the_scores_of_their_own_images() -> None:
    rng = np.random.default_rng(2)
    pair = Pair(rng.random(300), rng.random(300))
    figures = Figures.of(pair, held_out_confidence(rng.normal(size=(300, 3)), pair))
    assert figures.auc == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("light", [0.0, 1.0])
def test_images_of_one_label_still_get_a_scale(light: float) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 2))
    weights, constant = fit_scale(logits, Pair(np.full(20, light), np.full(20, 0.5)))
    assert np.isfinite([*weights, constant]).all()
