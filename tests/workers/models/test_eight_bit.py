"""Text encoders in 8 bits take less memory and encode prompts almost as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.policy.partition import Partitions, Settings
from testing.tiny_models import sdxl_pipeline
from testing.tiny_transformers import flux_pipeline, sd3_pipeline, z_image_pipeline
from tests.workers.samples import family, image_request, variant
from weir.config import FamilyConfig
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.plan import HEAVY
from weir.prompts import parsed
from workers.models.architectures.registry import adapt
from workers.models.checkpoint import check_family
from workers.models.eight_bit import EightBitLinear, keep_in_eight_bits
from workers.models.family import Family
from workers.models.stored_weights import size_bytes

PROMPTS = [parsed(it, "plain") for it in ("a red circle", "", "a blue square beside a green star " * 4)]


def memory(model: torch.nn.Module) -> int:
    return sum(it.nbytes for it in model.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_is_its_original_within_half_a_step_of_each_weight(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48).to(dtype)
    with torch.no_grad():
        layer.weight[3] = 0
    small, x = EightBitLinear(layer), torch.randn(5, 64, dtype=dtype)
    error = (small.weight.float() * small.scale.float() - layer.weight.float()).abs()
    assert (error <= 0.51 * layer.weight.float().abs().amax(1, keepdim=True) / 127 + 1e-2 * layer.weight.abs()).all()
    with torch.inference_mode():
        assert float((small(x) - layer(x)).abs().max()) < 0.05
    assert small.weight.nbytes == layer.weight.numel()


@pytest.mark.parametrize(
    ("build", "part"),
    [(flux_pipeline, "text_encoder_2"), (sd3_pipeline, "text_encoder_3"), (z_image_pipeline, "text_encoder")],
    ids=["flux", "sd3", "z-image"],
)
def test_prompts_are_encoded_almost_as_before(build: Callable[[], Any], part: str) -> None:
    whole, small = adapt(build()), adapt(build())
    keep_in_eight_bits(small.part(part))
    with torch.inference_mode():
        for before, after in zip(whole.encode(PROMPTS), small.encode(PROMPTS), strict=True):
            for name, tensor in before.tensors.items():
                assert float((after.tensors[name] - tensor).norm() / tensor.norm()) < 0.02
    linear = [it for it in whole.part(part).modules() if isinstance(it, torch.nn.Linear)]
    saved = 3 * sum(it.weight.numel() for it in linear) - 4 * sum(it.out_features for it in linear)
    assert memory(whole.part(part)) - memory(small.part(part)) == saved


def config(folder: Path, *parts: str) -> FamilyConfig:
    flow = {"scheduler": "flow-euler"}
    return family(folder, variant("l", **flow), variant("h", steps=3, **flow), eight_bit_encoders=parts)


def test_a_family_names_the_encoders_and_its_states_are_apart(tmp_path: Path) -> None:
    flux_pipeline().save_pretrained(tmp_path / "flux")
    whole, small = (Family.load(config(tmp_path / "flux", *it), threads=1) for it in ((), ("text_encoder_2",)))
    kinds = {type(it) for it in small.pipelines[HEAVY].text_encoder_2.modules()}
    assert EightBitLinear in kinds
    assert torch.nn.Linear not in kinds
    outputs = [it.generate(HEAVY, [image_request()])[0] for it in (whole, small)]
    assert all(it.error is None for it in outputs)
    assert outputs[0].image != outputs[1].image
    assert whole.models[HEAVY] != small.models[HEAVY]
    names = {Partitions(it.config, "clip").name("tenant", Settings(ImageSize(32, 32))) for it in (whole, small)}
    assert len(names) == 2
    assert size_bytes(small.config, 2) < size_bytes(whole.config, 2)


def test_an_encoder_that_the_pipeline_does_not_have_is_refused(tmp_path: Path) -> None:
    sdxl_pipeline().save_pretrained(tmp_path)
    wrong = family(tmp_path, variant("l"), variant("h"), eight_bit_encoders=["text_encoder_3"])
    with pytest.raises(ConfigError, match="text_encoder_3: a StableDiffusionXLPipeline has no such text encoder"):
        check_family(wrong)
