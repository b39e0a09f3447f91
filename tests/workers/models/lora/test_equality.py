"""Images with LoRA adapters equal those of diffusers' own pipeline, for every format, variant and batch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import peft  # noqa: F401  diffusers loads adapters with it
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from testing.random_adapters import (
    Tensors,
    attention_only,
    random_adapter,
    scaled,
    write_kohya,
    write_old_diffusers,
    write_peft,
    write_peft_folder,
)
from testing.tiny_models import SIZE
from tests.workers.samples import family, image_request, variant
from weir.adapters import AdapterUse, AdapterWeights
from weir.config import FamilyConfig
from weir.plan import HEAVY, LIGHT
from workers.engine.samplers import scheduler_for
from workers.models.family import Family

CLASSES: dict[str, Any] = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
#: Largest difference of an 8-bit image to diffusers' own.
ROUNDING = 1.0


def use(name: str, scale: float, path: Path) -> AdapterUse:
    return AdapterUse(name, scale, AdapterWeights(str(path)))


def config(folders: Path, kind: str) -> FamilyConfig:
    """A family whose light variant is a pipeline of its own, of the same architecture."""
    turbo = variant("l", pipeline=str(folders / f"{kind}-turbo"), guidance=0)
    return family(folders / kind, turbo, variant("h", guidance=2.0))


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)), float)


def theirs(folder: Path, kind: str, guidance: float, adapters: dict[str, tuple[Tensors | Path, float]]) -> np.ndarray:
    """The image of diffusers' pipeline with ``load_lora_weights`` and ``set_adapters``."""
    whole = CLASSES[kind].from_pretrained(folder)
    whole.scheduler = scheduler_for("euler", whole.scheduler.config)
    whole.set_progress_bar_config(disable=True)
    for name, (given, _) in adapters.items():
        whole.load_lora_weights(dict(given) if isinstance(given, dict) else str(given), adapter_name=name)
    if adapters:
        whole.set_adapters(list(adapters), [scale for _, scale in adapters.values()])
    latents = torch.randn((1, 4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(7))
    how = {"latents": latents, "num_inference_steps": 2, "guidance_scale": guidance, "output_type": "np"}
    return whole(prompt="a red a", negative_prompt="blur", height=SIZE, width=SIZE, **how).images[0] * 255


@pytest.fixture(scope="module")
def tensors(folders: Path) -> dict[str, Tensors]:
    return {kind: random_adapter(CLASSES[kind].from_pretrained(folders / kind), 1) for kind in CLASSES}


@pytest.fixture(scope="module")
def engines(folders: Path) -> dict[str, Family]:
    return {kind: Family.load(config(folders, kind)) for kind in CLASSES}


def ours(engine: Family, key: str, *uses: AdapterUse) -> np.ndarray:
    [output] = engine.generate(key, [image_request(negative_prompt="blur", adapters=uses)])
    assert output.error is None, output.error
    return pixels(output.image)


@pytest.mark.parametrize("kind", list(CLASSES))
@pytest.mark.parametrize("format", ["kohya", "diffusers", "old-diffusers", "peft"])
def test_an_adapter_at_scale_0_7_gives_the_image_of_diffusers(
    folders: Path, tmp_path: Path, engines: dict[str, Family], tensors: dict[str, Tensors], kind: str, format: str
) -> None:
    own, reference = tensors[kind], tensors[kind]
    match format:
        case "kohya":
            path = write_kohya(own, tmp_path / "a.safetensors", alpha=2.0)
            given: Tensors | Path = path
        case "diffusers":
            given = path = write_peft(own, tmp_path / "a.safetensors")
        case "old-diffusers":
            given = path = write_old_diffusers(attention_only(own), tmp_path / "a.safetensors")
        case _:
            path = write_peft_folder(own, tmp_path, alpha=2.0)
            given = scaled({k: v for k, v in reference.items() if k.startswith("unet.")}, 2.0 / 4)
    got = ours(engines[kind], HEAVY, use("a", 0.7, path))
    assert np.abs(got - theirs(folders / kind, kind, 2.0, {"a": (given, 0.7)})).max() <= ROUNDING
    assert np.abs(got - ours(engines[kind], HEAVY)).max() > 5


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # PEFT's, of two adapters
@pytest.mark.parametrize("key", [LIGHT, HEAVY])
def test_two_adapters_at_once_give_the_image_of_diffusers(
    folders: Path, tmp_path: Path, engines: dict[str, Family], tensors: dict[str, Tensors], key: str
) -> None:
    first = write_peft(tensors["sdxl"], tmp_path / "a.safetensors")
    pipeline = engines["sdxl"].pipelines[HEAVY]
    second = write_kohya(random_adapter(pipeline, 2, rank=3), tmp_path / "b.safetensors", alpha=1.0)
    got = ours(engines["sdxl"], key, use("a", 0.7, first), use("b", -0.4, second))
    folder, guidance = (folders / "sdxl", 2.0) if key == HEAVY else (folders / "sdxl-turbo", 0.0)
    expected = theirs(folder, "sdxl", guidance, {"a": (first, 0.7), "b": (second, -0.4)})
    assert np.abs(got - expected).max() <= ROUNDING


def test_images_of_different_adapters_share_a_call_and_are_as_alone(
    tmp_path: Path, engines: dict[str, Family], tensors: dict[str, Tensors]
) -> None:
    engine = engines["sdxl"]
    a = use("a", 0.7, write_peft(tensors["sdxl"], tmp_path / "a.safetensors"))
    b = use("b", 1.5, write_peft(random_adapter(engine.pipelines[HEAVY], 2, rank=2), tmp_path / "b.safetensors"))
    sets = [(), (a,), (b,), (a, b), (AdapterUse("a", -1.0, a.weights),)]
    requests = [image_request(str(i), negative_prompt="blur", adapters=it) for i, it in enumerate(sets)]
    together = engine.generate(HEAVY, requests)
    for request, output in zip(requests, together, strict=True):
        [alone] = engine.generate(HEAVY, [request])
        assert np.abs(pixels(alone.image) - pixels(output.image)).max() <= ROUNDING
