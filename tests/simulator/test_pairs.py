"""Cascades of several light variants: what is built from them, and the pair in use as the load changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baselines.comparison.light_variants import best_by_demand, built, read_cascades, run_pairs, usable
from controller.policies.light_variants import WeirPairs
from simulator.arrivals import steps
from simulator.families import family_setting
from weir.errors import ConfigError


@pytest.fixture(scope="module")
def cascades():
    return read_cascades(["diffserve-1", "diffserve-2"], gpus=16)


def test_pairs_are_built_from_all_variants_that_the_cascades_list(cascades):
    names = [tuple(variant.name for variant in chain) for chain in built(cascades)]
    assert names == [("sdxs", "sd-turbo"), ("sdxs", "sd-1.5"), ("sd-turbo", "sd-1.5")]
    assert usable(cascades) == cascades


def test_the_faster_light_variant_takes_over_where_the_better_one_serves_less(cascades):
    rows = best_by_demand(cascades)
    assert rows[0]["light"] == "sd-turbo"
    assert rows[-1]["light"] == "sdxs"


def test_the_pair_in_use_changes_within_a_run_and_is_better_than_either_alone(cascades):
    turbo, sdxs, chosen = run_pairs(cascades, steps(32, 330, 120, 30, 1))
    assert chosen.changes >= 2
    assert min(chosen.shares.values()) > 0
    assert turbo.violation_ratio > 0.05
    assert chosen.violation_ratio < 0.005
    assert chosen.quality < sdxs.quality  # FID


def test_its_plans_name_the_light_variant_and_it_goes_on_from_one_that_runs(cascades):
    settings = [replace(cascade.setting, light=cascade.light) for cascade in cascades]
    plan = WeirPairs(settings).first_plan()
    assert plan.rules.light == "sd-turbo"
    second = WeirPairs(settings)
    second.resume(replace(plan, version=7, rules=replace(plan.rules, light="sdxs")))
    assert (second.pair, second.next_version()) == (1, 8)


def test_a_single_cascade_is_a_run_without_a_choice(cascades):
    (alone,) = run_pairs(cascades[:1], steps(4, 8, 20, 5, 1))
    assert (alone.pair, alone.changes) == ("sd-turbo", 0)


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (["diffserve-1", "diffserve-3"], "its heavy variant is sdxl"),
        (["diffserve-1", "diffserve-1"], "give each once"),
        ([], "give one to five"),
    ],
)
def test_cascades_that_do_not_go_together_are_refused(families, message):
    with pytest.raises(ConfigError, match=message):
        read_cascades(families, gpus=4)


def test_pairs_on_other_gpus_are_refused():
    one, other = family_setting("diffserve-1", 4), family_setting("diffserve-2", 8)
    with pytest.raises(ConfigError, match=r"pairs\[1\]: GPUs"):
        WeirPairs([one, other])
    with pytest.raises(ConfigError, match="no measured quality"):
        WeirPairs([replace(one, quality=None)])
