"""The judges of a family's images: trained discriminators, or CLIP scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from quality.suite import tensors
from tests.workers.samples import image_request
from training.scenes import Scene, caption, render, sample_scene
from weir.config import FamilyConfig, load_family
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.plan import LIGHT
from workers.models.discriminator import Discriminator
from workers.models.family import Family
from workers.models.judges import ClipConfidence, family_judge
from workers.models.weights import check_family

TINY = load_family("deploy/families/weir-tiny.yaml")


def judged_by(discriminator: str | None) -> FamilyConfig:
    """The embedded family with another judge."""
    light = TINY.light.model_copy(update={"discriminator": discriminator})
    return TINY.model_copy(update={"variants": {**TINY.variants, "light": light}})


BY_CLIP = judged_by("clip")


@pytest.fixture(scope="module")
def by_clip() -> ClipConfidence:
    judge = family_judge(BY_CLIP)
    assert isinstance(judge, ClipConfidence)
    return judge


def test_a_familys_judge_is_a_discriminator_or_its_clip_or_none() -> None:
    assert isinstance(family_judge(TINY), Discriminator)
    assert family_judge(judged_by(None)) is None
    check_family(BY_CLIP)


def test_clip_confidence_is_higher_for_the_images_own_prompt(by_clip: ClipConfidence) -> None:
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng) for _ in range(24)]
    prompts, images = [caption(scene) for scene in scenes], tensors_of(scenes)
    right = by_clip.confidence(images, prompts)
    wrong = by_clip.confidence(images, prompts[1:] + prompts[:1])
    assert all(0 <= value <= 1 for value in right + wrong)
    assert np.mean(np.array(right) > np.array(wrong)) > 0.9


def test_stored_features_give_the_same_confidence_as_the_image(by_clip: ClipConfidence) -> None:
    images = tensors_of([sample_scene(np.random.default_rng(seed)) for seed in range(3)])
    at_once = by_clip.confidence(images, ["a red circle"] * 3)
    later = by_clip.weigh(by_clip.see(images).numpy(), "a red circle")
    assert later == pytest.approx(at_once, abs=1e-3)


def test_light_images_of_a_family_judged_by_clip_have_a_confidence(by_clip: ClipConfidence) -> None:
    family = Family.load(BY_CLIP, threads=1)
    [output] = family.generate(LIGHT, [image_request(size=ImageSize(64, 64))])
    assert output.confidence is not None
    assert 0.5 < output.confidence < 1


def test_a_family_without_a_clip_is_refused_with_clip_as_its_judge(tmp_path: Path) -> None:
    fields = yaml.safe_load(Path("deploy/families/weir-tiny.yaml").read_text()) | {"discriminator": "clip"}
    del fields["clip"]
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(ConfigError, match="no clip is named"):
        load_family(tmp_path / "family.yaml")


def test_shipped_families_without_a_discriminator_are_judged_by_clip() -> None:
    for name in ("sdxl-lightning", "sdxl-turbo", "sd15-turbo"):
        family = load_family(f"deploy/families/{name}.yaml")
        assert (family.discriminator, family.clip) == ("clip", "openai/clip-vit-large-patch14")


def tensors_of(scenes: Sequence[Scene]) -> torch.Tensor:
    return tensors([Image.fromarray(render(scene)) for scene in scenes])
