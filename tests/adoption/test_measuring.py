"""What the first stages of an adoption depend on, and what they say of sets of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adoption.context import Choices, Context
from adoption.images import DrawnImages, Round
from adoption.measuring import FRECHET_SHARES, fingerprint, frechet_by_share
from adoption.run import stages
from adoption.stages import Results, stage_keys
from testing.toy_family import FAMILY as TOY
from weir.assets import FAMILY
from weir.config import FamilyConfig, load_family
from workers.engine.image_decoder import to_png

PROMPTS = [f"a red circle {i}" for i in range(40)]


def keys_of(family: FamilyConfig, choices: Choices) -> dict[str, str]:
    return stage_keys(stages(family, PROMPTS, choices))


@pytest.fixture
def toy(tmp_path: Path) -> FamilyConfig:
    """A family with a local file."""
    (tmp_path / "unet.safetensors").write_bytes(b"0")
    return FamilyConfig.model_validate({**TOY, "pipeline": str(tmp_path)})


def test_other_weights_of_a_local_file_are_noticed(toy: FamilyConfig, tmp_path: Path) -> None:
    before = fingerprint(toy)
    assert fingerprint(toy) == before
    (tmp_path / "unet.safetensors").write_bytes(b"01")
    assert fingerprint(toy) != before


@pytest.mark.parametrize(
    ("change", "repeated"),
    [
        ({"replicas": 8}, {"ladder"}),
        ({"cache_pairs": 9}, {"cache"}),
        ({"steps": 7}, {"discriminators", "calibration", "levels", "ladder"}),
        ({"keep": 0.9}, set()),
    ],
)
def test_an_option_repeats_only_the_stages_that_depend_on_it(
    change: dict[str, int], repeated: set[str], toy: FamilyConfig
) -> None:
    before, after = keys_of(toy, Choices()), keys_of(toy, replace(Choices(), **change))  # type: ignore[arg-type]
    assert {name for name in before if before[name] != after[name]} == repeated


def test_images_do_not_depend_on_how_they_are_judged(toy: FamilyConfig) -> None:
    before, after = keys_of(toy, Choices()), keys_of(toy, Choices(measure="clip", clip="other"))
    assert before["images"] == after["images"]
    assert before["scores"] != after["scores"]


def test_the_frechet_distance_grows_with_images_unlike_the_references(tmp_path: Path) -> None:
    """Heavy images are like the references, light ones are not."""
    rng = np.random.default_rng(0)
    reference = tmp_path / "reference"
    reference.mkdir()

    def picture(brightness: int) -> bytes:
        return to_png(rng.integers(brightness, brightness + 60, (64, 64, 3), np.uint8))

    choices = Choices(reference=reference)
    family = load_family(FAMILY)
    context = Context(family, PROMPTS, choices, Results(tmp_path / "work", stages(family, PROMPTS, choices)))
    for key, brightness in (("light", 0), ("heavy", 150)):
        images = DrawnImages(context.results.folder("images"), Round(key), len(PROMPTS))
        for i in range(len(PROMPTS)):
            images.write(i, picture(brightness))
            (reference / f"{i}.png").write_bytes(picture(150))
    found = frechet_by_share(context, tmp_path / "work")["light"]
    assert len(found) == len(FRECHET_SHARES)
    assert found[0] == min(found) < found[-1]
