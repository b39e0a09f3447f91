"""A level classifier against samples of now: it alarms when it is surely wrong, and is calm when surely right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.test_level_head import learnable
from training.drift import DriftRules, LevelDrift, alarmed, level_drifts
from training.level_head import fit_levels
from weir.errors import ConfigError
from weir.prompt_levels import LevelHead

RULES = DriftRules()


def seen(difference: float, error: float = 0.001, samples: int = 100) -> list[LevelDrift]:
    return [LevelDrift("light", samples, 0.1, 0.1 + difference, error)]


def test_the_same_prompts_as_ever_raise_no_alarm_and_changed_ones_do():
    pairs, vectors = learnable()
    head, _ = fit_levels(pairs, vectors, "e-1", "f", alpha=0.95)
    fresh, fresh_vectors = learnable(seed=1)
    assert not alarmed(level_drifts(head, fresh, fresh_vectors), DriftRules(limit=0.1, back=0.2))
    worse = replace(fresh, quality=np.stack([fresh.quality[:, 0], *2 * [0.2 * fresh.quality[:, 0]]], axis=1))
    drifts = level_drifts(head, worse, fresh_vectors)
    assert alarmed(drifts, DriftRules(limit=0.1, back=0.2))


def test_a_version_changes_with_what_the_head_says_and_not_on_its_way_through_a_file(tmp_path):
    head, _ = fit_levels(*learnable(), "e-1", "f", alpha=0.95)
    other, _ = fit_levels(*learnable(seed=1), "e-1", "f", alpha=0.95)
    head.save(tmp_path / "head.safetensors")
    assert LevelHead.load(tmp_path / "head.safetensors").version == head.version != other.version


@pytest.mark.parametrize(("difference", "was", "now"), [(0.1, False, True), (0.0, True, False), (0.0, False, False)])
def test_it_follows_what_is_sure(difference, was, now):
    assert alarmed(seen(difference), RULES, was) is now
    assert alarmed(seen(-difference), RULES, was) is now


@given(st.floats(0.031, 0.059), st.booleans())
def test_between_the_limits_an_unsure_difference_changes_nothing(difference, was):
    assert alarmed(seen(difference, error=0.03), RULES, was) is was


@given(st.floats(-1, 1), st.booleans())
def test_few_samples_change_nothing(difference, was):
    assert alarmed(seen(difference, samples=29), RULES, was) is was


def test_one_drifted_level_is_enough_and_all_have_to_come_back():
    both = [*seen(0.0), *seen(0.1)]
    assert alarmed(both, RULES)
    assert alarmed([*seen(0.0), *seen(0.03, error=0.02)], RULES, was=True)


def test_samples_of_another_ladder_are_refused():
    pairs, vectors = learnable()
    head, _ = fit_levels(pairs, vectors, "e-1", "f", alpha=0.95)
    with pytest.raises(ConfigError, match="shadow samples of the rungs a, b, c"):
        level_drifts(head, replace(pairs, rungs=("a", "b", "c")), vectors)
    with pytest.raises(ConfigError, match="limit < back"):
        DriftRules(limit=0.1, back=0.1)
