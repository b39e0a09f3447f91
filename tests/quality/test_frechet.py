"""The Fréchet distance has the known values for Gaussians."""

import numpy as np
import pytest

from quality.frechet import frechet_distance


def test_the_distance_of_a_set_to_itself_is_zero() -> None:
    features = np.random.default_rng(0).normal(size=(200, 8))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_a_shift_adds_its_square() -> None:
    features = np.random.default_rng(0).normal(size=(200, 8))
    assert frechet_distance(features, features + 2.0) == pytest.approx(8 * 4.0, rel=1e-6)


def test_scaling_an_axis_adds_the_squared_difference_of_standard_deviations() -> None:
    features = np.random.default_rng(0).normal(size=(5000, 1))
    features = (features - features.mean()) / features.std(ddof=1)
    assert frechet_distance(features, 3 * features) == pytest.approx((3 - 1) ** 2, rel=1e-3)


def test_features_of_different_width_are_refused() -> None:
    with pytest.raises(ValueError, match="one width"):
        frechet_distance(np.zeros((4, 2)), np.zeros((4, 3)))
