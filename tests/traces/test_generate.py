"""The project's traces equal the output of their recipes, and their prompts recur as in real logs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
from traces.generate import BurstyRecipe, NormalRecipe, generate, measure, read_recipe, write
from traces.loader import load_trace
from traces.prompts import (
    BACKGROUNDS,
    COLOURS,
    COUNT_SHARES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Habits,
    edit,
    prompt_by_id,
    prompt_log,
    random_prompt,
)
from traces.resemblance import resemblance
from training import scenes
from weir.errors import ConfigError

HERE = Path(traces.__file__).parent
BOTH = pytest.mark.parametrize("name", ["normal", "bursty"])


@BOTH
def test_the_trace_file_equals_the_output_of_its_recipe(name: str) -> None:
    recipe = read_recipe(HERE / f"{name}.json")
    assert generate(recipe).to_csv() == (HERE / f"{name}.csv").read_text()


@BOTH
def test_the_measurements_in_the_recipe_file_are_up_to_date(name: str) -> None:
    recipe = read_recipe(HERE / f"{name}.json")
    recorded = json.loads((HERE / f"{name}.json").read_text())["measured"]
    assert measure(generate(recipe)) == recorded


@BOTH
def test_the_trace_is_small_lasts_ten_minutes_and_has_all_seeds(name: str) -> None:
    trace = load_trace(HERE / f"{name}.csv")
    assert (HERE / f"{name}.csv").stat().st_size < 300_000
    assert 590 < trace.duration_s <= 600
    assert None not in trace.seeds


def test_bursty_alternates_between_the_published_rates_about_half_of_the_time_each() -> None:
    curve = read_recipe(HERE / "bursty.json").rate_curve()
    rpm = 60 * np.asarray(curve.rates_rps)
    assert (rpm.min(), rpm.max()) == pytest.approx((50, 388))
    assert 0.4 < np.mean(rpm > 219) < 0.6


def test_the_first_two_minutes_of_bursty_show_calm_and_bursts() -> None:
    rpm = 60 * np.asarray(load_trace(HERE / "bursty.csv").clip(120).rate_curve(10).rates_rps)
    assert np.sum(rpm < 100) >= 4
    assert np.sum(rpm > 250) >= 4


def test_normal_is_smooth_between_its_trough_and_its_peak() -> None:
    curve = read_recipe(HERE / "normal.json").rate_curve()
    rpm = 60 * np.asarray(curve.rates_rps)
    assert (rpm.min(), rpm.max()) == pytest.approx((60, 240))
    assert np.abs(np.diff(rpm)).max() < 1


@BOTH
def test_prompts_recur_about_as_often_as_in_real_logs(name: str) -> None:
    """A real log has 0.47, 0.37 and 0.14 by the same definition; a small vocabulary gives larger values."""
    shares = resemblance(load_trace(HERE / f"{name}.csv").prompts)
    assert 0.40 <= shares.near_duplicate <= 0.65
    assert 0.28 <= shares.near_duplicate_within <= 0.42
    assert 0.10 <= shares.exact_repeat <= 0.25


@BOTH
def test_prompts_ask_for_one_to_four_objects_in_the_stated_shares(name: str) -> None:
    prompts = load_trace(HERE / f"{name}.csv").prompts
    counts = [sum(word.strip(",") in SHAPES for word in prompt.split()) for prompt in prompts]
    shares = [counts.count(n) / len(counts) for n in (1, 2, 3, 4)]
    assert shares == pytest.approx(COUNT_SHARES, abs=0.06)


def test_a_recipe_and_its_trace_are_written_and_read_back(tmp_path: Path) -> None:
    recipe = BurstyRecipe(seed=5, duration_s=60, burst_rpm=100)
    trace = write(recipe, tmp_path / "mine.csv")
    assert read_recipe(tmp_path / "mine.json") == recipe
    loaded = load_trace(tmp_path / "mine.csv")
    assert loaded.prompts == trace.prompts
    assert loaded.arrivals_s == pytest.approx(trace.arrivals_s, abs=0.0006)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"recipe": {"kind": "normal", "seed": -1}}', "recipe.normal.seed: .* greater than or equal to 0"),
        ('{"recipe": {"kind": "normal", "seed": 1, "sped": 1}}', "recipe.normal.sped: Extra inputs"),
        ('{"recipe": {"kind": "odd"}}', "recipe: .*'normal', 'bursty'"),
        ("{", "Invalid JSON"),
    ],
)
def test_an_invalid_key_of_a_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / "r.json")
    with pytest.raises(ConfigError, match="there is no such file"):
        read_recipe(tmp_path / "none.json")


@settings(max_examples=30)
@given(st.integers(0, 10**9), st.floats(0.2, 3))
def test_recipes_give_arrivals_within_their_duration(seed: int, cv: float) -> None:
    for recipe in (NormalRecipe(seed=seed, duration_s=20, cv=cv), BurstyRecipe(seed=seed, duration_s=20, cv=cv)):
        curve = recipe.rate_curve()
        assert curve.duration_s == 20
        arrivals = curve.sample_arrivals(seed, cv)
        assert np.all(np.diff(arrivals) >= 0)
        assert np.all((arrivals >= 0) & (arrivals <= 20))


WORDS = {
    *SHAPES, *COLOURS, *TEXTURES, *SIZES, *BACKGROUNDS, *" ".join(RELATIONS).split(), "a", "and", "on", "background"
}  # fmt: skip


@settings(max_examples=100)
@given(st.integers(0, 10**9))
def test_an_edit_changes_one_attribute_and_gives_a_valid_prompt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = random_prompt(rng)
    after = edit(before, rng)
    assert before.valid
    assert after.valid
    assert set(after.text.replace(",", "").split()) <= WORDS

    def attributes(spec):
        objects = [v for t in spec.objects for v in (t.shape, t.colour, t.texture, t.size)]
        return [*objects, spec.relation, spec.background]

    assert sum(a != b for a, b in zip(attributes(before), attributes(after), strict=True)) == 1


def test_prompts_use_the_vocabulary_of_the_training_scenes() -> None:
    assert (SHAPES, COLOURS, SIZES) == (scenes.SHAPES, scenes.COLOURS, scenes.SIZES)
    assert (BACKGROUNDS, RELATIONS) == (scenes.BACKGROUNDS, scenes.RELATIONS)
    assert {"plain", *TEXTURES} == set(scenes.TEXTURES)


def test_equal_ids_give_equal_prompts() -> None:
    assert prompt_by_id(7) == prompt_by_id(7)
    assert len({prompt_by_id(i) for i in range(200)}) > 150


def test_prompts_resemble_recent_ones_more_the_more_often_users_go_on() -> None:
    def measured(goes_on: float) -> float:
        habits = Habits(goes_on=goes_on)
        return resemblance(prompt_log(np.random.default_rng(0), 800, habits)).near_duplicate_within

    assert measured(0) < 0.05 < 0.25 < measured(0.5) < measured(0.8)


def test_resemblance_counts_earlier_prompts_only() -> None:
    far = [f"word{i} other{i}" for i in range(20)]
    shares = resemblance(["a red circle", "a red circle", *far, "circle a red"])
    assert shares.near_duplicate == pytest.approx(2 / 23)
    assert shares.near_duplicate_within == pytest.approx(1 / 23)
    assert shares.exact_repeat == pytest.approx(1 / 23)
