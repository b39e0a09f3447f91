"""The traces of the project are what their recipes say, and their prompts come as in real logs."""

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
    draw_picture,
    edit,
    prompt_by_id,
    prompt_log,
)
from traces.resemblance import resemblance
from training import scenes
from weir.errors import ConfigError

HERE = Path(traces.__file__).parent
BOTH = pytest.mark.parametrize("name", ["normal", "bursty"])


@BOTH
def test_the_trace_is_what_its_recipe_makes_to_the_byte(name: str) -> None:
    recipe = read_recipe(HERE / f"{name}.json")
    assert generate(recipe).to_csv() == (HERE / f"{name}.csv").read_text()


@BOTH
def test_the_figures_beside_the_trace_are_its_own(name: str) -> None:
    recipe = read_recipe(HERE / f"{name}.json")
    noted = json.loads((HERE / f"{name}.json").read_text())["measured"]
    assert measure(generate(recipe)) == noted


@BOTH
def test_the_trace_is_small_lasts_ten_minutes_and_fixes_every_seed(name: str) -> None:
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


def test_normal_is_smooth_with_one_trough_and_one_peak_as_stated() -> None:
    curve = read_recipe(HERE / "normal.json").rate_curve()
    rpm = 60 * np.asarray(curve.rates_rps)
    assert (rpm.min(), rpm.max()) == pytest.approx((60, 240))
    assert np.abs(np.diff(rpm)).max() < 1


@BOTH
def test_prompts_recur_as_in_real_logs(name: str) -> None:
    """A real log measures 0.47, 0.37 and 0.14 by the same rule; a small vocabulary resembles itself more."""
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
    ("text", "says"),
    [
        ('{"recipe": {"kind": "normal", "seed": -1}}', "recipe.normal.seed: .* greater than or equal to 0"),
        ('{"recipe": {"kind": "normal", "seed": 1, "sped": 1}}', "recipe.normal.sped: Extra inputs"),
        ('{"recipe": {"kind": "odd"}}', "recipe: .*'normal', 'bursty'"),
        ("{", "Invalid JSON"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_recipe(tmp_path / "r.json")
    with pytest.raises(ConfigError, match="there is no such file"):
        read_recipe(tmp_path / "none.json")


@settings(max_examples=30)
@given(st.integers(0, 10**9), st.floats(0.2, 3))
def test_recipes_of_any_seed_bring_arrivals_within_their_duration(seed: int, cv: float) -> None:
    for recipe in (NormalRecipe(seed=seed, duration_s=20, cv=cv), BurstyRecipe(seed=seed, duration_s=20, cv=cv)):
        curve = recipe.rate_curve()
        assert curve.duration_s == 20
        drawn = curve.draw_arrivals(seed, cv)
        assert np.all(np.diff(drawn) >= 0)
        assert np.all((drawn >= 0) & (drawn <= 20))


WORDS = {
    *SHAPES, *COLOURS, *TEXTURES, *SIZES, *BACKGROUNDS, *" ".join(RELATIONS).split(), "a", "and", "on", "background"
}  # fmt: skip


@settings(max_examples=100)
@given(st.integers(0, 10**9))
def test_an_edit_changes_one_attribute_and_leaves_a_prompt_the_family_knows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = draw_picture(rng)
    after = edit(before, rng)
    assert before.drawable
    assert after.drawable
    assert set(after.text.replace(",", "").split()) <= WORDS

    def attributes(picture):
        things = [v for t in picture.things for v in (t.shape, t.colour, t.texture, t.size)]
        return [*things, picture.relation, picture.background]

    assert sum(a != b for a, b in zip(attributes(before), attributes(after), strict=True)) == 1


def test_prompts_use_the_words_of_the_scenes_that_the_family_learns_from() -> None:
    assert (SHAPES, COLOURS, SIZES) == (scenes.SHAPES, scenes.COLOURS, scenes.SIZES)
    assert (BACKGROUNDS, RELATIONS) == (scenes.BACKGROUNDS, scenes.RELATIONS)
    assert {"plain", *TEXTURES} == set(scenes.TEXTURES)


def test_the_same_id_stands_for_the_same_prompt() -> None:
    assert prompt_by_id(7) == prompt_by_id(7)
    assert len({prompt_by_id(i) for i in range(200)}) > 150


def test_users_who_never_go_on_leave_hardly_a_neighbour_alike() -> None:
    def measured(goes_on: float) -> float:
        habits = Habits(goes_on=goes_on)
        return resemblance(prompt_log(np.random.default_rng(0), 800, habits)).near_duplicate_within

    assert measured(0) < 0.05 < 0.25 < measured(0.5) < measured(0.8)


def test_resemblance_counts_what_came_before() -> None:
    far = [f"word{i} other{i}" for i in range(20)]
    shares = resemblance(["a red circle", "a red circle", *far, "circle a red"])
    assert shares.near_duplicate == pytest.approx(2 / 23)
    assert shares.near_duplicate_within == pytest.approx(1 / 23)
    assert shares.exact_repeat == pytest.approx(1 / 23)
