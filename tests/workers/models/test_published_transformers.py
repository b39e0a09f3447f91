"""The whole architectures of FLUX.1, Stable Diffusion 3.5 and Z-Image; on the meta device, which only has shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from testing.transformer_architectures import PUBLISHED, pipeline
from weir.config import load_family
from weir.core import ImageSize
from workers.engine.scheduling import Recipe
from workers.models.architectures.architecture import Architecture, Text
from workers.models.architectures.registry import adapt
from workers.models.checkpoint import check_configs
from workers.models.weights import _configs

SHAPES = [ImageSize.of(it) for it in ("1536x1024", "1008x1040")]
#: Number of tokens of the denoisers' prompts: T5's, for Stable Diffusion 3.5 those of CLIP before them.
TOKENS = {"flux.1-dev": 512, "flux.1-schnell": 256, "stable-diffusion-3.5-large": 77 + 256}


#: Models of different architectures, or with other settings of one.
DIFFERENT = [name for name in PUBLISHED if name != "stable-diffusion-3.5-large-turbo"]


@pytest.fixture(scope="module", params=DIFFERENT)
def named(request: pytest.FixtureRequest) -> tuple[str, Architecture]:
    return request.param, adapt(pipeline(request.param))


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def text(name: str) -> Text:
    """An encoded prompt of the published shapes."""
    if name.startswith("z-image"):
        return Text({"cap_feats": meta(45, 2560)}, 0)
    pooled = 768 if name.startswith("flux") else 768 + 1280
    return Text({"encoder_hidden_states": meta(TOKENS[name], 4096), "pooled_projections": meta(pooled)}, 0)


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_a_step_and_the_decoder_keep_the_shape_of_the_image(named: tuple[str, Architecture], size: ImageSize) -> None:
    name, model = named
    latents = meta(2, *model.latent_shape(size))
    conditions: dict[str, Any] = model.conditions(text(name), Recipe("heavy", size, 28, 3.5, "flow-euler"))
    with torch.inference_mode():
        stacked = model.stack([conditions] * 2)
        output = model.denoise(model.denoiser, latents, torch.zeros(2, device="meta"), stacked)
        images = model.decode(output[:1])
    assert output.shape == latents.shape == (2, 16, size.height // 8, size.width // 8)
    assert images.shape == (1, 3, size.height, size.width)


def test_the_published_configurations_pass_the_checks_before_a_start(named: tuple[str, Architecture]) -> None:
    name, model = named
    configs = _configs(model.pipeline.components)
    assert [*model.mismatches(configs, ["flow-euler"])] == []
    assert model.factor(configs) == 16
    most = {"flux": None, "stable": 192 * 16, "z": 512 * 16}
    assert model.most_side(configs) == most[name.partition(".")[0].partition("-")[0]]


def test_the_denoiser_has_the_published_number_of_parameters(named: tuple[str, Architecture]) -> None:
    name, model = named
    parameters = sum(it.numel() for it in model.denoiser.parameters())
    assert parameters / 1e9 == pytest.approx(PUBLISHED[name].billions, abs=0.06)


@pytest.mark.parametrize(
    ("name", "shift"),
    [("flux.1-dev", 1.15), ("flux.1-schnell", None), ("stable-diffusion-3.5-large", None), ("z-image", None)],
)
def test_the_shift_at_1024_pixels_is_the_published_one(name: str, shift: float | None) -> None:
    assert adapt(pipeline(name)).spacing(ImageSize(1024, 1024)).mu == (None if shift is None else pytest.approx(shift))


@pytest.mark.parametrize("name", ["flux", "stable-diffusion-3.5", "z-image"])
def test_a_shipped_family_fits_the_published_models(name: str) -> None:
    """Samplers and sizes of the family file, by the checks that run before a start."""
    config = load_family(f"deploy/families/{name}.yaml")
    for key, variant in config.variants.items():
        model = adapt(pipeline(variant.name))
        check_configs(config, key, type(model), _configs(model.pipeline.components))
        assert config.dtype == "bfloat16"
    assert [config.variants[key].shares_encoders for key in config.keys] == [True, False]
    every = config.model_copy(update={"eight_bit_encoders": type(model).text_encoders})
    check_configs(every, key, type(model), _configs(model.pipeline.components))
