"""Ladder files: valid ones, the mix of strategies, and the refusal of invalid ones by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weir.approximation_levels import Strategy, load_ladder
from weir.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "deploy" / "ladders" / "argus-sdxl.json"


def level(name: str, latency_s: float, quality: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "strategy": "ac", "latency_s": [latency_s], "quality": quality} | more


TOP = level("full", 4.0, 1.0)
HALF = level("half", 2.0, 0.9, skipped_steps=25)
SMALL = level("small", 1.0, 0.8, strategy="sm", variant="tiny-sd")


def ladder_of(path: Path, *levels: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"family": "f", "device": "d", "steps": 50, "levels": levels} | more))
    return path


def test_the_published_ladder_has_the_throughput_of_the_paper():
    ladder = load_ladder(SHIPPED)
    levels = ladder.of(Strategy.AC)
    per_min = [60 * r for r in ladder.rates_rps(levels)]
    assert [level.skipped_steps for level in levels] == [0, 5, 10, 15, 20, 25]
    assert per_min == pytest.approx([23.58, 26.19, 29.47, 33.68, 39.29, 47.14], abs=0.02)


def test_a_mix_keeps_the_levels_on_the_pareto_front(tmp_path):
    beaten = level("slow-small", 3.0, 0.7, strategy="sm", variant="sd15")
    ladder = load_ladder(ladder_of(tmp_path / "l.json", TOP, HALF, beaten, SMALL | {"quality": 0.65}))
    assert [rung.name for rung in ladder.of(Strategy.AC)] == ["full", "half"]
    assert [rung.name for rung in ladder.of(Strategy.SM)] == ["full", "slow-small", "small"]
    assert [rung.name for rung in ladder.of(*Strategy)] == ["full", "half", "small"]


def test_every_cached_level_of_the_published_ladder_is_better_than_the_smallest_model():
    assert Strategy.SM not in {rung.strategy for rung in load_ladder(SHIPPED).of(*Strategy)}


def test_rates_use_the_best_batch_within_the_time_limit(tmp_path):
    top = TOP | {"batch_sizes": [1, 2, 4], "latency_s": [4.0, 5.0, 8.0]}
    ladder = load_ladder(ladder_of(tmp_path / "l.json", top, throughput_factor=2))
    levels = ladder.of(Strategy.AC)
    assert ladder.rates_rps(levels) == (1.0,)
    assert ladder.rates_rps(levels, longest_s=6.0) == (0.8,)
    assert ladder.rates_rps(levels, longest_s=1.0) == (0.0,)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "levels: .*at least 1"),
        ([HALF], r"levels\[0\] must be the heavy variant from noise"),
        ([SMALL], r"levels\[0\] must be the heavy variant from noise"),
        ([TOP | {"quality": 0.9}], r"levels\[0\] must be .*quality 1"),
        ([TOP, HALF, HALF], "level names must differ"),
        ([TOP, level("more", 1.5, 0.8, skipped_steps=30), HALF], "half skips 25 steps after more with 30"),
        ([TOP, level("all", 0.1, 0.5, skipped_steps=50)], "all skips 50 steps .*stay below steps"),
        ([TOP, HALF | {"latency_s": [5.0]}], "half must be faster than full"),
        ([TOP, HALF | {"quality": 1.0}], "half must be faster than full and of lower quality"),
        ([TOP, HALF, SMALL, level("mid", 1.5, 0.85, strategy="sm", variant="sd15")], "mid must be faster than small"),
        ([TOP | {"latency_s": [float("nan")]}], "latency_s.*finite"),
        ([TOP | {"latency_s": [0.0]}], "latency_s must be positive"),
        ([TOP | {"latency_s": [1.0, 2.0]}], "one entry for each batch size"),
        ([TOP | {"batch_sizes": [2, 1], "latency_s": [1.0, 2.0]}], "batch_sizes must ascend"),
        ([TOP, HALF | {"quality": float("nan")}], "quality.*finite"),
        ([TOP, HALF | {"variant": "tiny-sd"}], "an sm level names its variant"),
        ([TOP, SMALL | {"skipped_steps": 5}], "skipped_steps belongs to ac"),
        ([TOP, SMALL | {"speed": 5}], "speed: Extra inputs"),
        ([TOP, SMALL | {"strategy": "xl"}], "'ac' or 'sm'"),
    ],
)
def test_an_invalid_ladder_is_refused_by_name(tmp_path, levels, message):
    path = ladder_of(tmp_path / "ladder.json", *levels)
    with pytest.raises(ConfigError, match=message) as refusal:
        load_ladder(path)
    assert str(refusal.value).startswith(str(path))


HALVES = [{"share": 0.5, "quality": [1.0, 0.95]}, {"share": 0.5, "quality": [1.0, 0.85]}]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"similarity_shares": [1.0]}, "similarity_shares has 1 entries for 2 ac levels"),
        ({"similarity_shares": [0.5, 0.4]}, "similarity_shares: shares must .* add up to 0.9"),
        ({"prompts": HALVES[:1]}, "prompts: shares must .* add up to 0.5"),
        ({"prompts": [HALVES[0] | {"share": 0.6}, HALVES[1]]}, "prompts: shares must .* add up to 1.1"),
        ({"prompts": [HALVES[0] | {"quality": [1.0]}, HALVES[1]]}, r"prompts\.0: quality has 1 entries for 2 levels"),
        ({"prompts": [HALVES[0], HALVES[0]]}, "mean quality at level half is 0.95, not 0.9"),
        ({"prompts": [HALVES[0] | {"share": float("nan")}, HALVES[1]]}, "share.*"),
    ],
)
def test_shares_that_do_not_fit_the_levels_are_refused_by_name(tmp_path, more, message):
    assert load_ladder(ladder_of(tmp_path / "good.json", TOP, HALF, prompts=HALVES)).prompts
    with pytest.raises(ConfigError, match=message):
        load_ladder(ladder_of(tmp_path / "bad.json", TOP, HALF, **more))


def test_a_missing_or_unreadable_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.json: there is no such file"):
        load_ladder(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json: not a readable JSON file"):
        load_ladder(tmp_path / "broken.json")
