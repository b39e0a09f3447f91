"""Profile files: what is wrong with one is said by its key, and noise in it cannot turn a plan upside down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testing.toy_family import PROFILE
from weir.core import Role
from weir.errors import ConfigError
from weir.profiles import Profile, load_profile


def written(folder: Path, **heavy: Any) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps({**PROFILE, "heavy": {**PROFILE["heavy"], **heavy}}))
    return path


@pytest.mark.parametrize(
    ("heavy", "problem"),
    [
        ({"latency_s": [0.1]}, "one entry for each batch size"),
        ({"latency_s": []}, "heavy.latency_s"),
        ({"latency_s": [0.1, 0.0]}, "positive seconds"),
        ({"latency_s": [float("nan"), 0.2]}, "positive seconds"),
        ({"latency_s": [0.1, float("inf")]}, "positive seconds"),
        ({"batch_sizes": [4, 1]}, "must ascend"),
        ({"batch_sizes": [0, 4]}, "must ascend"),
        ({"steps": 0}, "heavy.steps"),
    ],
)
def test_a_wrong_entry_is_named_with_the_way_to_a_new_profile(tmp_path, heavy, problem):
    with pytest.raises(ConfigError, match=problem) as refused:
        load_profile(written(tmp_path, **heavy))
    assert "weir profile" in refused.value.message


def test_times_that_fall_with_the_batch_size_count_as_level(tmp_path):
    profile = load_profile(written(tmp_path, batch_sizes=[1, 2, 4], latency_s=[0.2, 0.15, 0.3]))
    assert profile.variant(Role.HEAVY).latency.latency_s == (0.2, 0.2, 0.3)


def test_without_measured_confidences_only_the_threshold_1_defers():
    curve = Profile.model_validate(PROFILE).deferral()
    assert (curve.at(0.9), curve.at(1.0)) == (0.0, 1.0)
