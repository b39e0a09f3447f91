"""The recipe runs from a seed to a family that the workers load."""

from pathlib import Path

import torch

from training.recipe import BUDGETS, train_family
from weir.config import load_family
from weir.core import ImageRequest, Role
from workers.family import Family


def test_the_smoke_budget_runs_every_stage_and_its_family_draws(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train_family(tmp_path / "weir-tiny", tmp_path / "work", budget=BUDGETS["smoke"], seed=1, device="cpu")
    family = load_family("deploy/families/weir-tiny.yaml")
    moved = {
        "pipeline": str(tmp_path / "weir-tiny" / "pipeline"),
        "discriminator": str(tmp_path / "weir-tiny" / "discriminator"),
        "clip": str(tmp_path / "weir-tiny" / "clip"),
        "light": family.light.model_copy(update={"unet": str(tmp_path / "weir-tiny" / "light_unet")}),
    }
    engine = Family.load(family.model_copy(update=moved), threads=1)
    [drawn] = engine.generate(Role.LIGHT, [ImageRequest("a", "a red circle", 1, 64, 64, deadline=1e12)])
    assert drawn.error is None
    assert drawn.confidence is not None
    assert 0 < drawn.confidence < 1
