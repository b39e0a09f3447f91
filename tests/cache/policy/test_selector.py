"""Selectors: published thresholds by name, and measured ones from a profile."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.policy.selector import PUBLISHED, By, Selector, load_selector, usable
from weir.errors import ConfigError

NIRVANA = PUBLISHED["nirvana"]


@pytest.mark.parametrize(
    ("similarity", "k"),
    [(1.0, 25), (0.951, 25), (0.95, 20), (0.9, 15), (0.85, 10), (0.75, 5), (0.65, 0), (0.1, 0), (float("nan"), 0)],
)
def test_nirvanas_thresholds_are_strict(similarity: float, k: int) -> None:
    assert NIRVANA.select(similarity) == k


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_higher_similarity_never_skips_fewer_steps(a: float, b: float) -> None:
    assert NIRVANA.select(max(a, b)) >= NIRVANA.select(min(a, b))


def test_a_hole_is_served_by_the_next_lower_state() -> None:
    assert usable(20, (5, 15, 25)) == 15
    assert usable(20, (25,)) == 0


def test_a_run_of_other_length_skips_the_same_shares() -> None:
    assert NIRVANA.for_steps(20).levels == ((0.95, 10), (0.9, 8), (0.85, 6), (0.75, 4), (0.65, 2))
    assert NIRVANA.for_steps(4).ks == (1, 2)
    assert NIRVANA.for_steps(1).select(1.0) == 0


@given(st.integers(1, 200))
def test_no_run_length_skips_a_larger_share(steps: int) -> None:
    scaled = NIRVANA.for_steps(steps)
    for similarity in (0.66, 0.76, 0.86, 0.91, 0.96):
        assert scaled.select(similarity) / steps <= NIRVANA.select(similarity) / 50


def test_a_profile_file_is_read_back(tmp_path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"selector": NIRVANA.to_dict()}))
    assert load_selector(path) == NIRVANA


JUDGED = Selector(((0.6, 25), (0.5, 20)), by=By.CONFIDENCE, stride=5)


def test_a_run_with_a_stride_has_fewer_steps() -> None:
    assert (NIRVANA.left(20), JUDGED.left(20), JUDGED.left(25), JUDGED.left(0)) == (30, 6, 5, 50)


def test_a_profile_by_confidence_is_read_back_as_one(tmp_path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"selector": JUDGED.to_dict()}))
    assert load_selector(path) == JUDGED


def test_only_runs_of_the_measured_length_have_a_stride() -> None:
    assert JUDGED.for_steps(50).stride == 5
    scaled = JUDGED.for_steps(20)
    assert (scaled.levels, scaled.by, scaled.stride) == (((0.6, 10), (0.5, 8)), By.CONFIDENCE, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not a cache profile"),
        ("{}", "selector"),
        ('{"selector": {"steps": 50, "levels": [[0.9, 5], [0.8, 10]]}}', "must both decrease"),
        ('{"selector": {"steps": 50, "levels": [[0.9, 60]]}}', "1…50"),
        ('{"selector": {"steps": 50, "levels": [["high", 5]]}}', "not a cache profile"),
        ('{"selector": {"steps": 50, "levels": [[0.9, 5]], "by": "chance"}}', "not a cache profile"),
        ('{"selector": {"steps": 50, "levels": [[0.9, 5]], "stride": 3}}', "must divide"),
    ],
)
def test_an_invalid_profile_is_refused_with_its_mistake(tmp_path, text: str, expected: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as refused:
        load_selector(path)
    assert str(path) in refused.value.message


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="nirvana, accuscale,"):
        load_selector("no-such")


def test_thresholds_of_prompts_and_images_are_not_applied_to_two_prompts() -> None:
    with pytest.raises(ConfigError, match="compare a prompt and an image"):
        load_selector("modm")


def test_levels_have_to_decrease() -> None:
    with pytest.raises(ConfigError, match="must both decrease"):
        Selector(((0.5, 10), (0.6, 5)))
