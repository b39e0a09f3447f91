"""Checkers of finished images: that of Stable Diffusion as diffusers runs it, and one's own."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from testing.tiny_models import SIZE, sdxl_pipeline
from tests.workers.samples import family, image_request, variant
from weir.errors import Blocked, ConfigError
from weir.plan import HEAVY
from workers.models.family import Family
from workers.models.safety import ConceptChecker, family_safety_checker

SIDE = 32
IMAGES = 24


def published(folder: Path) -> StableDiffusionSafetyChecker:
    """A small safety checker with random weights that finds something in about half of all images."""
    torch.manual_seed(3)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tower, projection_dim=16)).eval()
    model.visual_projection.weight.data.normal_()
    model.concept_embeds.data.normal_()
    model.special_care_embeds.data.normal_()
    model.vision_model.encoder.layers[-1].mlp.fc2.weight.data.normal_()  # else all images look alike to it
    with torch.no_grad():
        seen = F.normalize(model.visual_projection(model.vision_model(pictures()).pooler_output), dim=-1)
        for embeds, thresholds, share in (
            (model.concept_embeds, model.concept_embeds_weights, 0.95),
            (model.special_care_embeds, model.special_care_embeds_weights, 0.8),
        ):
            thresholds.data = (seen @ F.normalize(embeds, dim=-1).T).quantile(share, 0)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def pictures(height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """Noise of several scales, [B, 3, H, W] in −1…1, whose values are whole ones of 8 bits."""
    chance = np.random.default_rng(5)
    colours = chance.integers(0, 256, (IMAGES, 3, 4, 4), dtype=np.uint8)
    rows = colours.repeat(height // 4, 2).repeat(width // 4, 3)
    return torch.from_numpy(rows / 127.5 - 1).float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checker")
    published(folder)
    return folder


def by_diffusers(folder: Path, images: torch.Tensor) -> list[bool]:
    processor = CLIPImageProcessor.from_pretrained(folder)
    model = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    shown = [Image.fromarray(it) for it in ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]
    pixels = processor(shown, return_tensors="pt").pixel_values
    return model(clip_input=pixels, images=np.zeros((len(shown), 1)))[1]


def test_the_published_checker_finds_what_it_finds_in_diffusers(folder: Path) -> None:
    images = pictures()
    found = ConceptChecker.load(str(folder), "cpu").blocked(images, ["auto"] * IMAGES)
    assert found == by_diffusers(folder, images)
    assert 0 < sum(found) < IMAGES


def test_at_the_level_low_it_finds_less(folder: Path) -> None:
    checker = ConceptChecker.load(str(folder), "cpu")
    strict, low = (checker.blocked(pictures(), [level] * IMAGES) for level in ("auto", "low"))
    assert sum(low) < sum(strict)
    assert all(it for it, also in zip(strict, low, strict=True) if also)
    mixed = checker.blocked(pictures(), ["auto", "low"] * (IMAGES // 2))
    assert mixed == [(strict, low)[i % 2][i] for i in range(IMAGES)]


def test_a_score_that_diffusers_rounds_to_0_blocks_nothing(folder: Path) -> None:
    model = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    images, processor = pictures()[:1], CLIPImageProcessor.from_pretrained(folder)
    checker = ConceptChecker(model, "cpu", processor.image_mean, processor.image_std)
    model.special_care_embeds_weights.data.fill_(2)
    with torch.no_grad():
        tower = model.vision_model((images / 2 + 0.5 - checker._mean) / checker._std).pooler_output
        cosines = F.normalize(model.visual_projection(tower), dim=-1) @ F.normalize(model.concept_embeds, dim=-1).T
    for above, blocked in ((0.0004, False), (0.0006, True)):
        model.concept_embeds_weights.data = cosines[0] - above
        assert checker.blocked(images, ["auto"]) == [blocked]


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64)])
def test_of_other_shapes_the_middle_is_looked_at(folder: Path, height: int, width: int) -> None:
    images = pictures(height, width)
    found = ConceptChecker.load(str(folder), "cpu").blocked(images, ["auto"] * IMAGES)
    theirs = by_diffusers(folder, images)  # whose pixels are rounded to 8 bits after the resize
    assert sum(a != b for a, b in zip(found, theirs, strict=True)) <= 1


class Bright:
    """Blocks bright images."""

    def __init__(self, device: str):
        self.levels: list[str] = []

    def blocked(self, images: torch.Tensor, levels: Sequence[str]) -> list[bool]:
        self.levels += levels
        return [True] * len(images)


def engine(checker: Any) -> Family:
    config = family("-", variant("l"), variant("h"))
    return Family(config, dict.fromkeys(config.keys, sdxl_pipeline()), checker=checker)


def test_a_blocked_image_is_an_error_and_none_of_its_states_is_kept() -> None:
    checker = Bright("cpu")
    [output] = engine(checker).generate(HEAVY, [image_request(moderation="auto", capture="p", keep_latent=True)])
    assert output.error == (Blocked.code, "the safety checker blocked the image; ask for something else")
    assert (output.image, output.states, output.latent) == (b"", (), None)
    assert checker.levels == ["auto"]


def test_only_images_of_moderated_requests_are_checked_in_a_shared_batch() -> None:
    checker = Bright("cpu")
    requests = [image_request(str(i), moderation=it) for i, it in enumerate(("off", "low", "off", "auto"))]
    outputs = engine(checker).generate(HEAVY, requests)
    assert [output.error is not None for output in outputs] == [False, True, False, True]
    assert checker.levels == ["low", "auto"]
    assert Image.open(io.BytesIO(outputs[0].image)).size == (SIZE, SIZE)


def test_a_family_names_the_published_checker_or_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_checkers")
    module.Bright = Bright  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_checkers", module)
    made = [
        family_safety_checker(family("-", variant("l"), variant("h"), safety_checker=name))
        for name in (None, str(folder), "own_checkers:Bright")
    ]
    assert [type(it) for it in made] == [type(None), ConceptChecker, Bright]


@pytest.mark.parametrize("damage", ["no folder", "no weights", "another model"])
def test_a_checker_that_cannot_be_loaded_is_an_error_with_the_remedy(folder: Path, tmp_path: Path, damage: str) -> None:
    name = tmp_path / "checker"
    if damage != "no folder":
        name.mkdir()
        for file in folder.iterdir():
            if file.suffix == ".json":
                (name / file.name).write_bytes(file.read_bytes())
    if damage == "another model":
        config = json.loads((folder / "config.json").read_text())
        (name / "config.json").write_text(json.dumps(config | {"projection_dim": 8}))
        (name / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"safety_checker: .* is no safety checker of Stable Diffusion"):
        ConceptChecker.load(str(name), "cpu")
