"""Who judges the images of a family: its discriminator, or the score of its CLIP in its place."""

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


def test_a_family_names_a_folder_its_clip_or_nobody() -> None:
    assert isinstance(family_judge(TINY), Discriminator)
    assert family_judge(judged_by(None)) is None
    check_family(BY_CLIP)


def test_the_clip_is_surer_of_an_image_of_its_prompt_than_of_another(by_clip: ClipConfidence) -> None:
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng) for _ in range(24)]
    prompts, images = [caption(scene) for scene in scenes], tensors_of(scenes)
    right = by_clip.confidence(images, prompts)
    wrong = by_clip.confidence(images, prompts[1:] + prompts[:1])
    assert all(0 <= value <= 1 for value in right + wrong)
    assert np.mean(np.array(right) > np.array(wrong)) > 0.9


def test_what_it_saw_is_judged_later_as_at_once(by_clip: ClipConfidence) -> None:
    images = tensors_of([sample_scene(np.random.default_rng(seed)) for seed in range(3)])
    at_once = by_clip.confidence(images, ["a red circle"] * 3)
    later = by_clip.weigh(by_clip.see(images).numpy(), "a red circle")
    assert later == pytest.approx(at_once, abs=1e-3)


def test_light_images_of_such_a_family_have_a_confidence(by_clip: ClipConfidence) -> None:
    family = Family.load(BY_CLIP, threads=1)
    [drawn] = family.generate(LIGHT, [image_request(width=64, height=64)])
    assert drawn.confidence is not None
    assert 0.5 < drawn.confidence < 1


def test_a_family_without_a_clip_cannot_be_judged_by_it(tmp_path: Path) -> None:
    fields = yaml.safe_load(Path("deploy/families/weir-tiny.yaml").read_text()) | {"discriminator": "clip"}
    del fields["clip"]
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(ConfigError, match="no clip is named"):
        load_family(tmp_path / "family.yaml")


def test_the_families_that_ship_without_a_discriminator_go_by_their_clip() -> None:
    for name in ("sdxl-lightning", "sdxl-turbo", "sd15-turbo"):
        family = load_family(f"deploy/families/{name}.yaml")
        assert (family.discriminator, family.clip) == ("clip", "openai/clip-vit-large-patch14")


def tensors_of(scenes: Sequence[Scene]) -> torch.Tensor:
    return tensors([Image.fromarray(render(scene)) for scene in scenes])
