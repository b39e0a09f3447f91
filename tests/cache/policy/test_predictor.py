"""The match predictor."""

import numpy as np
import pytest

from cache.policy.predictor import MatchPredictor
from weir.errors import ConfigError


def themes(count: int, seed: int) -> np.ndarray:
    """Unit vectors around three themes that recur."""
    centres = np.eye(16)[:3]
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(3, size=count)] + 0.1 * rng.normal(size=(count, 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def strangers(count: int) -> np.ndarray:
    vectors = np.random.default_rng(7).normal(size=(count, 16))
    vectors[:, :3] = 0
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_it_separates_recurring_themes_from_unrelated_prompts() -> None:
    predictor = MatchPredictor.fit(themes(500, 0), "clip-1")
    measured = predictor.measure(np.concatenate([themes(200, 1), strangers(200)]), np.arange(400) < 200)
    assert measured.recall > 0.8
    assert measured.precision > 0.95
    assert measured.hit_ratio == 0.5
    assert predictor.likely(themes(1, 2)[0])
    assert not predictor.likely(strangers(1)[0])


def test_it_agrees_with_scikit_learns_own_decision_function() -> None:
    from sklearn.svm import OneClassSVM

    hits, fresh = themes(200, 0), themes(50, 1)
    expected = OneClassSVM(kernel="rbf", nu=0.1, gamma=2.0).fit(hits).decision_function(fresh)
    assert np.allclose(MatchPredictor.fit(hits, "clip-1").scores(fresh), expected, atol=1e-3)


def test_it_is_read_back_and_knows_its_encoder(tmp_path) -> None:
    path = tmp_path / "predictor.safetensors"
    fitted = MatchPredictor.fit(themes(100, 0), "clip-1")
    fitted.save(path)
    assert np.allclose(MatchPredictor.load(path, "clip-1").scores(themes(9, 3)), fitted.scores(themes(9, 3)))
    with pytest.raises(ConfigError, match="clip-2"):
        MatchPredictor.load(path, "clip-2")


def test_a_failed_write_leaves_no_partial_file(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        MatchPredictor.fit(themes(100, 0), "clip-1").save(tmp_path / "missing" / "predictor.safetensors")


def test_too_few_hits_and_foreign_files_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="at least 50"):
        MatchPredictor.fit(themes(20, 0), "clip-1")
    (tmp_path / "x").write_bytes(b"no")
    with pytest.raises(ConfigError, match="not a match predictor"):
        MatchPredictor.load(tmp_path / "x")
