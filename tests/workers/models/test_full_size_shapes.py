"""SDXL's whole architecture takes every shape that its family allows; on the meta device, which only has shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from testing.sdxl_architecture import pipeline
from weir.config import load_family
from weir.core import ImageSize
from workers.engine.scheduling import Recipe
from workers.models.architectures.architecture import Architecture, Text
from workers.models.architectures.registry import adapt

FAMILY = load_family("deploy/families/sdxl-lightning.yaml")
#: The middle and the last shape are OpenAI's; the latents of the last but one are no multiple of the UNet's factor.
SHAPES = [ImageSize.of(it) for it in ("1024x1024", "640x1536", "1536x1024", "1000x1032", "1024x1536")]


@pytest.fixture(scope="module")
def sdxl() -> Architecture:
    return adapt(pipeline("meta"))


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_a_step_and_the_decoder_keep_the_shape_of_the_image(sdxl: Architecture, size: ImageSize) -> None:
    latents = meta(2, *sdxl.latent_shape(size))
    text = Text({"encoder_hidden_states": meta(77, 2048), "text_embeds": meta(1280)}, 0)
    conditions: dict[str, Any] = sdxl.conditions(text, Recipe("heavy", size, 50, 5.0, "euler"))
    stacked = {name: torch.stack([tensor] * 2) for name, tensor in conditions.items()}
    with torch.inference_mode():
        output = sdxl.denoise(sdxl.denoiser, latents, torch.zeros(2, device="meta"), stacked)
        images = sdxl.decode(output[:1])
    assert output.shape == latents.shape
    assert images.shape == (1, 3, size.height, size.width)


def test_every_size_of_openai_that_the_family_allows_is_generated_as_it_is() -> None:
    assert all(ImageSize.of(it) in FAMILY.allowed_sizes for it in ("1024x1024", "1536x1024", "1024x1536"))
