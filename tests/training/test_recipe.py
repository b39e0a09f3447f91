"""The recipe trains a family that the workers can load, and continues the training of a family."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from testing.toy_family import with_variants
from training.recipe import BUDGETS, train_family
from weir.config import load_family
from weir.core import ImageRequest, ImageSize
from weir.errors import ConfigError
from workers.models.family import Family


def test_the_smoke_budget_runs_every_stage_and_its_family_generates_images(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train_family(tmp_path / "weir-tiny", tmp_path / "work", budget=BUDGETS["smoke"], seed=1, device="cpu")
    family = load_family("deploy/families/weir-tiny.yaml")
    moved = {
        "pipeline": str(tmp_path / "weir-tiny" / "pipeline"),
        "clip": str(tmp_path / "weir-tiny" / "clip"),
    }
    parts = {"unet": "light_unet", "discriminator": "discriminator"}
    light = {key: str(tmp_path / "weir-tiny" / folder) for key, folder in parts.items()}
    engine = Family.load(with_variants(family.model_copy(update=moved), light=light), threads=1)
    [output] = engine.generate("light", [ImageRequest("a", "a red circle", 1, ImageSize(64, 64), deadline=1e12)])
    assert output.error is None
    assert output.confidence is not None
    assert 0 < output.confidence < 1

    continues_the_training(tmp_path)


def continues_the_training(tmp_path: Path) -> None:
    """A run that starts from the family trains the parts that its budget has steps for, and keeps the others."""
    kept = replace(BUDGETS["smoke"], scenes=500, seen=32, heavy_steps=0, decoder_steps=0, light_steps=0)
    made, again = tmp_path / "weir-tiny", tmp_path / "again"
    train_family(again, tmp_path / "work-again", budget=kept, seed=2, device="cpu", start=made, drawn_steps=1)
    weights = {p.relative_to(made) for p in made.rglob("*.safetensors")}
    assert {p.relative_to(again) for p in again.rglob("*.safetensors")} == weights
    changed = {str(p.parent) for p in weights if (made / p).read_bytes() != (again / p).read_bytes()}
    assert changed == {"discriminator"}


def test_a_budget_without_unets_needs_a_family_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--start"):
        train_family(tmp_path, tmp_path / "work", budget=BUDGETS["discriminator"], seed=1, device="cpu")
    with pytest.raises(ConfigError, match="no family to start from"):
        train_family(tmp_path, tmp_path / "work", budget=BUDGETS["smoke"], seed=1, device="cpu", start=tmp_path / "not")
