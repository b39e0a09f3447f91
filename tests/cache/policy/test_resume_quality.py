"""The quality of resumed images, from the measurements of a cache profile."""

import json

import numpy as np
import pytest

from cache.policy.resume_quality import load_resume_quality, resumed_share
from cache.policy.selector import PUBLISHED, load_selector
from weir.errors import ConfigError


def profiled(*measured) -> str:
    rows = [{"from": low, "to": high, "pairs": n, "ratio": ratio} for low, high, n, ratio in measured]
    return json.dumps({"selector": {"steps": 50, "levels": [[0.9, 25], [0.5, 5]]}, "measured": rows})


def test_the_quality_of_resumed_images_is_that_measured_at_the_used_k(tmp_path) -> None:
    path = tmp_path / "profile.json"
    unused = (0.0, 0.4, 90, {"5": 0.1, "25": 0.1})
    path.write_text(profiled(unused, (0.5, 0.7, 30, {"5": 0.96, "25": 0.2}), (0.94, 1.0, 10, {"5": 1.0, "25": 0.92})))
    assert resumed_share(path) == pytest.approx((30 * 0.96 + 10 * 0.92) / 40)
    path.write_text(profiled((0.5, 0.7, 30, {"5": 1.2, "25": 1.1})))
    assert resumed_share(path) == 1.0, "nothing is better than a whole run"


def test_the_expected_quality_rises_with_similarity_falls_with_k_and_is_at_most_one(tmp_path) -> None:
    path = tmp_path / "profile.json"
    lucky = (0.0, 0.2, 1, {"5": 1.3, "25": 1.1})
    path.write_text(profiled(lucky, (0.2, 0.6, 50, {"5": 0.9, "25": 0.95}), (0.6, 1.0, 50, {"5": 1.0, "25": 0.97})))
    worth = load_resume_quality(path).at(np.linspace(-1, 1, 50), (5, 25))
    assert (np.diff(worth, axis=0) >= 0).all()
    assert (np.diff(worth, axis=1) <= 0).all()
    assert worth.max() == 1.0
    assert worth[0, 0] < 0.95


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_selector_has_no_measurements(name) -> None:
    with pytest.raises(ConfigError, match="weir cache profile"):
        load_resume_quality(name)


def test_resumed_images_of_a_published_selector_count_as_whole() -> None:
    assert resumed_share("nirvana") == 1.0


@pytest.mark.parametrize("measured", [[{}], [[0.5]], "x", [], [{"from": 0.5, "to": 0.7, "pairs": 1, "ratio": {}}]])
def test_a_cache_profile_with_invalid_measurements_is_refused(tmp_path, measured) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(json.loads(profiled()) | {"measured": measured}))
    with pytest.raises(ConfigError, match=r"profile\.json: not a cache profile"):
        resumed_share(path)


def test_the_cost_of_hits_is_the_mean_of_the_steps_that_ran(tmp_path) -> None:
    path = tmp_path / "profile.json"
    rows = [
        {"from": low, "to": low + 0.2, "pairs": n, "ratio": {"25": 1.0}, "steps": {"25": steps}}
        for low, n, steps in ((0.0, 60, 55.0), (0.4, 30, 25.0), (0.8, 10, 5.0))
    ]
    selector = {"steps": 50, "levels": [[0.3, 25]], "by": "confidence", "stride": 5, "accept": 0.9}
    path.write_text(json.dumps({"selector": selector, "measured": rows}))
    assert load_resume_quality(path).hits(load_selector(path)) == pytest.approx((0.4, 20.0))
    del rows[0]["steps"]
    path.write_text(json.dumps({"selector": selector, "measured": rows}))
    assert load_resume_quality(path).hits(load_selector(path)) == pytest.approx((0.4, 5.0)), "as many as are left"
