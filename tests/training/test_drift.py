"""Drift of a level head: the alarm starts and ends only when samples differ significantly from the limits."""

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


def measured(difference: float, error: float = 0.001, samples: int = 100) -> list[LevelDrift]:
    return [LevelDrift("light", samples, 0.1, 0.1 + difference, error)]


def test_only_a_changed_loss_of_quality_raises_an_alarm():
    pairs, vectors = learnable()
    head, _ = fit_levels(pairs, vectors, "e-1", "f", alpha=0.95)
    fresh, fresh_vectors = learnable(seed=1)
    assert not alarmed(level_drifts(head, fresh, fresh_vectors), DriftRules(limit=0.1, back=0.2))
    worse = replace(fresh, quality=np.stack([fresh.quality[:, 0], *2 * [0.2 * fresh.quality[:, 0]]], axis=1))
    drifts = level_drifts(head, worse, fresh_vectors)
    assert alarmed(drifts, DriftRules(limit=0.1, back=0.2))


def test_a_version_depends_on_the_content_of_a_head_and_survives_saving(tmp_path):
    head, _ = fit_levels(*learnable(), "e-1", "f", alpha=0.95)
    other, _ = fit_levels(*learnable(seed=1), "e-1", "f", alpha=0.95)
    head.save(tmp_path / "head.safetensors")
    assert LevelHead.load(tmp_path / "head.safetensors").version == head.version != other.version


@pytest.mark.parametrize(("difference", "was", "now"), [(0.1, False, True), (0.0, True, False), (0.0, False, False)])
def test_a_significant_difference_starts_or_ends_the_alarm(difference, was, now):
    assert alarmed(measured(difference), RULES, was) is now
    assert alarmed(measured(-difference), RULES, was) is now


@given(st.floats(0.031, 0.059), st.booleans())
def test_an_insignificant_difference_changes_nothing(difference, was):
    assert alarmed(measured(difference, error=0.03), RULES, was) is was


@given(st.floats(-1, 1), st.booleans())
def test_a_level_with_few_samples_changes_nothing(difference, was):
    assert alarmed(measured(difference, samples=29), RULES, was) is was


def test_one_drifted_level_starts_the_alarm_and_all_levels_have_to_return_to_end_it():
    both = [*measured(0.0), *measured(0.1)]
    assert alarmed(both, RULES)
    assert alarmed([*measured(0.0), *measured(0.03, error=0.02)], RULES, was=True)


def test_samples_of_another_ladder_and_unordered_limits_are_refused():
    pairs, vectors = learnable()
    head, _ = fit_levels(pairs, vectors, "e-1", "f", alpha=0.95)
    with pytest.raises(ConfigError, match="shadow samples of the rungs a, b, c"):
        level_drifts(head, replace(pairs, rungs=("a", "b", "c")), vectors)
    with pytest.raises(ConfigError, match="limit < back"):
        DriftRules(limit=0.1, back=0.1)
