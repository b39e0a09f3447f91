"""Thresholds are chosen from an evaluation, whose curve and confidences are written into a profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from quality.calibration import Calibration
from testing.toy_family import PROFILE
from weir.profiles import load_profile

#: A hundred evenly spaced confidences, and a quality that falls once more than half of the images are light.
SPREAD = Calibration(tuple(i / 100 for i in range(100)), (0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6))


def test_a_threshold_defers_images_with_lower_confidence():
    half = SPREAD.at(0.5)
    assert (half.light_share, half.quality, half.kept) == pytest.approx((0.5, 0.8, 1.0))
    assert SPREAD.at(0.0).light_share == 1.0
    assert SPREAD.at(1.0).light_share == 0.0


def test_the_chosen_threshold_is_the_lowest_that_keeps_the_quality():
    chosen = SPREAD.least(0.95)
    assert chosen.kept >= 0.95
    assert chosen.threshold == pytest.approx(0.4)
    assert SPREAD.at(chosen.threshold - 0.02).kept < 0.95


def test_more_quality_than_all_heavy_is_answered_with_threshold_1():
    assert SPREAD.least(1.5).threshold == 1.0


@given(keep=st.floats(0, 1), quality=st.lists(st.floats(0.1, 1), min_size=2, max_size=12))
def test_every_threshold_above_the_chosen_one_keeps_the_quality(keep, quality):
    measured = Calibration(SPREAD.confidences, tuple(quality))
    chosen = measured.least(keep)
    above = [t / 100 for t in range(100) if t / 100 >= chosen.threshold]
    assert chosen.threshold == 1.0 or all(measured.at(t).kept >= keep for t in above)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation.json"
    figures = {
        "confidences": SPREAD.confidences,
        "quality": {"discriminator": SPREAD.quality, "random": []},
        "heavy_by_steps": {"1": 0.5, "2": 0.7, "1000": 0.8},
    }
    path.write_text(json.dumps(figures))
    return path


def weir(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_calibrate_writes_curve_and_confidences_into_the_profile(evaluation, tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(PROFILE))
    done = weir("calibrate", evaluation, "--keep", "0.95", "--profile", profile, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["chosen"]["kept"] >= 0.95
    updated = load_profile(profile)
    assert updated.confidences == SPREAD.confidences
    assert updated.quality is not None
    assert (updated.quality.values, updated.quality.smaller_is_better) == (SPREAD.quality, False)
    assert updated.quality.by_heavy_steps == {1: 0.5, 2: 0.7}  # only numbers of steps below the variant's own
    assert updated.heavy.quality is None


def test_calibrate_writes_the_curve_of_every_lighter_variant_into_a_profile_of_three(evaluation, tmp_path):
    figures = json.loads(evaluation.read_text())
    backwards = tuple(reversed(SPREAD.confidences))
    figures["variants"] = {"medium": {"confidences": backwards, "quality": {"discriminator": [0.8, 0.79]}}}
    figures["variants"]["heavy"] = {"confidences": [0.9] * 100}
    evaluation.write_text(json.dumps(figures))
    profile = tmp_path / "profile.json"
    heavy = PROFILE["heavy"]
    ladder = {"light": PROFILE["light"], "medium": {**heavy, "name": "toy-medium"}, "heavy": heavy}
    profile.write_text(json.dumps({"family": "toy", "device": "none", "variants": ladder}))
    assert weir("calibrate", evaluation, "--profile", profile).exit_code == 0
    updated = load_profile(profile)
    assert updated.variant("light").confidences == SPREAD.confidences
    assert updated.variant("medium").confidences == backwards, "in the order of the prompts"
    assert updated.variant("medium").quality.values == (0.8, 0.79)
    assert updated.variant("heavy").confidences == (0.9,) * 100
    chosen = weir("calibrate", evaluation, "--variant", "medium", "--keep", "0.99")
    assert "plan.thresholds.medium" in chosen.stdout
    missing = weir("calibrate", evaluation, "--variant", "large")
    assert (missing.exit_code, "'large' is missing" in missing.stderr) == (2, True)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no such file; create it with `weir evaluate`"),
        ("{", "not a readable JSON file"),
        ("[]", "not an evaluation of a family"),
        ('{"confidences": []}', "not an evaluation of a family"),
        ('{"confidences": [], "quality": {"discriminator": [1, 1]}}', "are empty"),
        ('{"confidences": [2], "quality": {"discriminator": [1, 1]}}', "must lie in 0…1"),
        ('{"confidences": [NaN], "quality": {"discriminator": [1, 1]}}', "not finite"),
    ],
)
def test_an_invalid_evaluation_is_refused_with_a_remedy(tmp_path, content, problem):
    path = tmp_path / "evaluation.json"
    if content is not None:
        path.write_text(content)
    done = weir("calibrate", path)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert "Traceback" not in done.output
