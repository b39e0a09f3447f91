"""The shipped family has SDXL's architecture, small weights and no pickles."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline

from quality.checker import AttributeChecker
from training.checker import vocabulary
from workers.models.discriminator import Discriminator

ROOT = Path("models/weir-tiny")


def test_the_family_is_a_stable_diffusion_xl_pipeline() -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(ROOT / "pipeline")
    assert pipeline.unet.config.addition_embed_type == "text_time"
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_all_weights_together_stay_below_40_mb() -> None:
    weights = [p for p in ROOT.rglob("*.safetensors")]
    assert weights
    assert sum(p.stat().st_size for p in weights) < 40e6


def test_no_weights_are_pickled() -> None:
    assert not [p for p in ROOT.rglob("*") if p.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]


def test_the_checker_has_the_vocabulary_of_the_scenes() -> None:
    assert AttributeChecker.load(ROOT / "checker").words == vocabulary()


@pytest.mark.parametrize("prompt", ["a red circle", "a castle by the sea", "x" * 3000])
def test_the_discriminator_accepts_any_prompt(prompt: str) -> None:
    import torch

    [confidence] = Discriminator.load(ROOT / "discriminator").confidence(torch.zeros(1, 3, 64, 64), [prompt])
    assert 0 <= confidence <= 1
