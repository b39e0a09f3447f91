"""The Fréchet distance agrees with what is known of Gaussians."""

import numpy as np
import pytest

from quality.frechet import frechet_distance


def test_it_is_zero_between_a_set_and_itself() -> None:
    features = np.random.default_rng(0).normal(size=(200, 8))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_a_shift_counts_with_its_square() -> None:
    features = np.random.default_rng(0).normal(size=(200, 8))
    assert frechet_distance(features, features + 2.0) == pytest.approx(8 * 4.0, rel=1e-6)


def test_scaling_one_axis_counts_as_the_square_of_the_difference_of_deviations() -> None:
    features = np.random.default_rng(0).normal(size=(5000, 1))
    features = (features - features.mean()) / features.std(ddof=1)
    assert frechet_distance(features, 3 * features) == pytest.approx((3 - 1) ** 2, rel=1e-3)


def test_features_of_different_width_are_refused() -> None:
    with pytest.raises(ValueError, match="one width"):
        frechet_distance(np.zeros((4, 2)), np.zeros((4, 3)))
