"""Profile files: errors name the key, and noise in latencies is removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testing.toy_family import PROFILE
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.profiles import Profile, load_profile


def profile_file(folder: Path, **heavy: Any) -> Path:
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
def test_an_invalid_entry_is_named_with_the_remedy(tmp_path, heavy, problem):
    with pytest.raises(ConfigError, match=problem) as refused:
        load_profile(profile_file(tmp_path, **heavy))
    assert "weir profile" in refused.value.message


def test_latencies_are_made_non_decreasing_in_the_batch_size(tmp_path):
    profile = load_profile(profile_file(tmp_path, batch_sizes=[1, 2, 4], latency_s=[0.2, 0.15, 0.3]))
    assert profile.variant("heavy").latency.latency_s == (0.2, 0.2, 0.3)


def test_without_measured_confidences_only_threshold_1_defers():
    curve = Profile.model_validate(PROFILE).deferral()
    assert (curve.at(0.9), curve.at(1.0)) == (0.0, 1.0)


# ------------------------------------------------------------------------------------------------------ ladders

LADDER: dict[str, Any] = {
    "light": {**PROFILE["light"], "confidences": [0.2, 0.4]},
    "medium": {**PROFILE["heavy"], "name": "toy-medium", "steps": 10, "confidences": [0.5, 0.9]},
    "heavy": PROFILE["heavy"],
}


def three(**changes: Any) -> dict[str, Any]:
    """A profile of three variants, with some fields changed."""
    variants = {key: {**fields, **changes.get(key, {})} for key, fields in LADDER.items()}
    return {"family": "toy", "device": "none", "variants": variants}


def test_light_heavy_confidences_and_quality_are_a_short_form_of_two_variants():
    quality = {"values": [1, 0.5], "smaller_is_better": False}
    short = Profile.model_validate({**PROFILE, "confidences": [0.1], "quality": quality})
    assert short.keys == ("light", "heavy")
    assert short.light.confidences == short.confidences == (0.1,)
    assert short.light.quality is not None
    assert short.light.quality == short.quality
    assert Profile.model_validate_json(short.model_dump_json()) == short


def test_each_judge_has_its_own_deferral_curve():
    profile = Profile.model_validate(three())
    assert [profile.deferral(key).at(0.45) for key in ("light", "medium")] == [1.0, 0.0]
    assert profile.deferral() == profile.deferral("light")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"medium": {"confidences": [0.5]}}, "of the same prompts in the same order"),
        ({"medium": {"confidences": [0.5, 2]}}, "less than or equal to 1"),
        (
            {"heavy": {"quality": {"values": [1, 1], "smaller_is_better": False}}},
            "belongs to the variant that is mixed",
        ),
        (
            {"light": {"quality": {"values": [1, 1], "smaller_is_better": False, "by_heavy_steps": {50: 1}}}},
            "fewer than the last variant's 50 steps",
        ),
    ],
)
def test_inconsistent_variants_are_refused(tmp_path, changes, problem):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(three(**changes)))
    with pytest.raises(ConfigError, match=problem):
        load_profile(path)


def test_a_profile_of_another_ladder_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(three()))
    assert load_profile(path, ("light", "medium", "heavy")).keys == ("light", "medium", "heavy")
    with pytest.raises(ConfigError, match="and the family light, heavy; measure the family with `weir profile`"):
        load_profile(path, ("light", "heavy"))


# ------------------------------------------------------------------------------------------------------- sizes

OWN, WIDE, LARGE = ImageSize(64, 64), ImageSize(128, 64), ImageSize(128, 128)
TIMES = {"batch_sizes": [1, 4], "latency_s": [0.4, 1.0]}


def with_sizes(heavy: dict[str, Any] | None = None) -> dict[str, Any]:
    """The toy family's profile, in which the heavy variant was also measured at 128x128."""
    return {**PROFILE, "size": 64, "heavy": {**PROFILE["heavy"], "sizes": {"128x128": TIMES}, **(heavy or {})}}


def test_a_size_that_was_measured_has_its_own_times(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(with_sizes()))
    profile = load_profile(path, ("light", "heavy"), OWN)
    assert profile.variant("heavy", LARGE).latency.at(4) == 1.0
    assert profile.variant("heavy", OWN) == profile.variant("heavy")
    assert profile.variant("heavy", LARGE).confidences == profile.variant("heavy").confidences
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_the_times_of_another_size_lie_between_the_measured_ones(tmp_path):
    profile = Profile.model_validate(with_sizes())
    own, large = profile.variant("heavy").latency_s[0], 0.4
    third = (WIDE.pixels - OWN.pixels) / (LARGE.pixels - OWN.pixels)
    assert profile.variant("heavy", WIDE).latency_s[0] == pytest.approx(own + (large - own) * third)
    assert profile.variant("heavy", ImageSize(64, 128)).latency_s == profile.variant("heavy", WIDE).latency_s


def test_the_price_of_a_size_is_that_of_the_last_variant():
    profile = Profile.model_validate(with_sizes())
    assert profile.price(LARGE) == pytest.approx(0.4 / PROFILE["heavy"]["latency_s"][0])
    assert profile.price(OWN) == 1.0


def test_a_profile_of_the_older_form_was_measured_at_the_familys_own_size(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    assert load_profile(path).size is None
    profile = load_profile(path, ("light", "heavy"), OWN)
    assert profile.size == OWN
    assert profile.price(LARGE) == 4.0, "by the pixels"


def test_texts_and_verdicts_take_the_same_time_at_every_size():
    fixed = {"text_s": 0.01, "decode_s": 0.02, "discriminator_s": 0.03, "png_s": 0.01}
    stepwise = {"step_s": [0.001, 0.002], "fixed": fixed, "batch_sizes": [1, 4], "latency_s": [0.1, 0.2]}
    variants = {key: {**PROFILE[key], **stepwise} for key in ("light", "heavy")}
    large = Profile.model_validate({**PROFILE, "size": 64, **variants}).variant("heavy", LARGE)
    assert large.fixed is not None
    assert (large.fixed.text_s, large.fixed.discriminator_s) == (0.01, 0.03)
    assert large.fixed.decode_s == pytest.approx(0.08)
    assert large.step_s == pytest.approx((0.004, 0.008))


@pytest.mark.parametrize(
    ("heavy", "problem"),
    [
        ({"sizes": {"wide": TIMES}}, "'wide' is not a size; write WIDTHxHEIGHT"),
        ({"sizes": {"8x8": TIMES}}, "8x8 is out of range"),
        ({"sizes": {"128x128": {**TIMES, "latency_s": [1.0]}}}, "one entry for each batch size"),
        (
            {"sizes": {"128x128": {**TIMES, "step_s": [0.1, 0.2], "fixed": {"text_s": 0, "decode_s": 0}}}},
            "sizes.128x128: step_s and fixed have to be measured at all sizes or at none",
        ),
    ],
)
def test_an_invalid_size_is_named_with_the_remedy(tmp_path, heavy, problem):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(with_sizes(heavy)))
    with pytest.raises(ConfigError, match=problem) as refused:
        load_profile(path)
    assert "weir profile" in refused.value.message


def test_a_profile_of_another_own_size_is_refused(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(with_sizes()))
    with pytest.raises(ConfigError, match="it was measured at 64x64, and the family's own size is 128x128"):
        load_profile(path, (), LARGE)
