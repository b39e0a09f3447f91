"""Model folders in every supported layout."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from testing.tiny_models import SIZE, WIDTH, clip, sd_pipeline, sdxl_pipeline, tokenizer, unet
from weir.config import FamilyConfig

with warnings.catch_warnings():  # Ray's models raise pydantic deprecation warnings at import
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models in every layout: ``sdxl``, ``light_unet``, ``lightning/unet.safetensors``, ``sd``, …"""
    from safetensors.torch import save_file

    from workers.models.discriminator import Discriminator, DiscriminatorNet

    root = tmp_path_factory.mktemp("weights")
    base = sdxl_pipeline()
    base.save_pretrained(root / "sdxl")
    sdxl_pipeline().to(dtype=torch.float16).save_pretrained(root / "sdxl-fp16", variant="fp16")
    sdxl_pipeline(seed=3).save_pretrained(root / "sdxl-turbo")
    unet(1, channels=8).save_pretrained(root / "light_unet")
    (root / "lightning").mkdir()
    half = {k: v.half().contiguous() for k, v in unet(2).state_dict().items()}
    save_file(half, root / "lightning" / "unet_4step.safetensors")
    sd_pipeline().save_pretrained(root / "sd")
    sd_pipeline(seed=4).save_pretrained(root / "sd-turbo")
    words = tokenizer()
    reader = clip(words)
    reader.save_pretrained(root / "clip")
    words.save_pretrained(root / "clip")
    Discriminator(DiscriminatorNet(SIZE, WIDTH), reader, words).save(root / "discriminator", "../clip")
    return root


@pytest.fixture(scope="session")
def embedded(folders: Path) -> FamilyConfig:
    """The embedded family's layout: a pipeline folder and a light UNet folder beside it."""
    return FamilyConfig.model_validate(
        {
            "name": "tiny",
            "pipeline": str(folders / "sdxl"),
            "size": SIZE,
            "sizes": [16],
            "device": "cpu",
            "light": {
                "name": "tiny-light",
                "unet": str(folders / "light_unet"),
                "scheduler": "ddim",
                "steps": 1,
                "guidance": 1,
            },
            "heavy": {"name": "tiny-heavy", "scheduler": "ddim", "steps": 4, "guidance": 1.5},
        }
    )
