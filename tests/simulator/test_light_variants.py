"""Cascades of several light variants: what is built from them, and the pair in use as the load changes."""

from __future__ import annotations

import pytest

from baselines.comparison.light_variants import best_by_demand, built, ladder_setting, read_cascades, run_pairs, usable
from simulator.arrivals import steps
from weir.errors import ConfigError


@pytest.fixture(scope="module")
def cascades():
    return read_cascades(["diffserve-1", "diffserve-2"], gpus=16)


def test_pairs_are_built_from_all_variants_of_the_cascades(cascades):
    names = [tuple(variant.name for variant in chain) for chain in built(cascades)]
    assert names == [("sdxs", "sd-turbo"), ("sdxs", "sd-1.5"), ("sd-turbo", "sd-1.5")]
    assert usable(cascades) == cascades


def test_the_faster_light_variant_is_chosen_where_the_better_one_serves_less(cascades):
    rows = best_by_demand(cascades)
    assert rows[0]["light"] == "sd-turbo"
    assert rows[-1]["light"] == "sdxs"


def test_a_ladder_serves_more_than_the_better_pair_with_better_images_than_the_faster_one(cascades):
    turbo, sdxs, chosen = run_pairs(cascades, steps(32, 330, 120, 30, 1))
    assert min(chosen.shares.values()) > 0
    assert turbo.violation_ratio > 0.05
    assert chosen.violation_ratio < 0.01
    assert chosen.quality < sdxs.quality  # FID


def test_the_ladder_begins_with_the_fastest_variant_and_ends_in_the_heavy_one(cascades):
    ladder = ladder_setting(cascades)
    assert ladder.variants == ("sdxs", "sd-turbo", "sd-1.5")
    assert ladder.quality == cascades[1].setting.quality
    assert ladder.middle["sd-turbo"].quality == cascades[0].setting.quality


def test_a_single_cascade_has_a_single_run(cascades):
    (alone,) = run_pairs(cascades[:1], steps(4, 8, 20, 5, 1))
    assert (alone.pair, alone.changes) == ("sd-turbo", 0)


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (["diffserve-1", "diffserve-3"], "its heavy variant is sdxl"),
        (["diffserve-1", "diffserve-1"], "give each light variant once"),
        ([], "give one to five"),
    ],
)
def test_incompatible_cascades_are_refused(families, message):
    with pytest.raises(ConfigError, match=message):
        read_cascades(families, gpus=4)
