"""A whole model in one file, as people share them, gives the images of diffusers' own loader and of its folder."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from testing.original_layout import Tensors, single_file
from testing.tiny_models import SIZE, WIDTH, sd_pipeline, sdxl_pipeline
from tests.workers.samples import family, image_request, variant
from weir.config import FamilyConfig
from weir.errors import ConfigError
from weir.plan import HEAVY
from workers.engine.samplers import scheduler_for
from workers.models.checkpoint import check_family
from workers.models.family import Family

#: Width of SDXL's second text encoder; diffusers tells the encoders of a file by their widths.
SECOND = 48


def wide_sdxl_pipeline() -> Any:
    """A tiny SDXL whose text encoders differ in their widths, as the real ones do."""
    pipeline = sdxl_pipeline()
    torch.manual_seed(1)
    config = CLIPTextConfig.from_dict({**pipeline.text_encoder_2.config.to_dict(), "hidden_size": SECOND})
    unet = {**pipeline.unet.config, "cross_attention_dim": WIDTH + SECOND}
    pipeline.register_modules(
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        unet=UNet2DConditionModel.from_config(unet).eval(),
    )
    return pipeline


KINDS = {"sd": sd_pipeline, "sdxl": wide_sdxl_pipeline}
GUIDANCE, STEPS = 2.0, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind as diffusers writes it."""
    root = tmp_path_factory.mktemp("models")
    for kind, made in KINDS.items():
        made().save_pretrained(root / kind)
    return root


@pytest.fixture
def written(models: Path, tmp_path: Path) -> Callable[..., FamilyConfig]:
    """Writes a model as one file, and returns a family that names it with the configurations of ``layout``."""

    def family_of(
        kind: str, layout: str | None = None, change: Callable[[Tensors], Tensors] = lambda it: it, **fields: Any
    ) -> FamilyConfig:
        place, weights = tmp_path / "configurations", shutil.ignore_patterns("*.safetensors")
        shutil.copytree(models / (layout or kind), place, ignore=weights)
        save_file(change(single_file(KINDS[kind]())), tmp_path / "model.safetensors")
        heavy = variant("h", guidance=GUIDANCE, steps=STEPS)
        return family(place, variant("l"), heavy, checkpoint=str(tmp_path / "model.safetensors"), **fields)

    return family_of


def refusal(config: FamilyConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_family(config)
    return caught.value.message


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_the_images_of_a_single_file_are_those_of_diffusers(
    written: Callable[..., FamilyConfig], kind: str, half: bool
) -> None:
    change = (lambda it: {name: tensor.half() for name, tensor in it.items()}) if half else (lambda it: it)
    config = written(kind, change=change)
    check_family(config)
    loaded = Family.load(config)
    whole = getattr(diffusers, type(KINDS[kind]()).__name__).from_single_file(
        config.checkpoint, config=config.pipeline, local_files_only=True, safety_checker=None
    )
    whole.scheduler = scheduler_for("euler", whole.scheduler.config)
    whole.set_progress_bar_config(disable=True)
    latents = torch.randn((1, 4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(7))
    how = {"latents": latents, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    theirs = whole(prompt="a red a", negative_prompt="blur", height=SIZE, width=SIZE, **how).images[0]
    [output] = loaded.generate(HEAVY, [image_request(negative_prompt="blur")])
    ours = np.asarray(Image.open(io.BytesIO(output.image)), float)
    assert np.abs(ours - theirs * 255).max() <= 1


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_single_file_has_the_weights_of_its_folder(
    written: Callable[..., FamilyConfig], kind: str, models: Path
) -> None:
    loaded = Family.load(written(kind)).pipelines[HEAVY]
    folder = Family.load(family(models / kind, variant("l"), variant("h"))).pipelines[HEAVY]
    for part in ("unet", "vae", "text_encoder", *(("text_encoder_2",) if kind == "sdxl" else ())):
        given = getattr(loaded, part).state_dict()
        for name, tensor in getattr(folder, part).state_dict().items():
            assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize(
    ("kind", "layout", "named"),
    [
        ("sd", "sdxl", "it has no tensor conditioner.embedders.0.transformer.text_model.embeddings.position_embedding"),
        ("sdxl", "sd", "it has no tensor cond_stage_model.transformer.text_model.embeddings.position_embedding"),
    ],
)
def test_a_file_of_another_kind_than_its_configurations_is_refused(
    written: Callable[..., FamilyConfig], kind: str, layout: str, named: str
) -> None:
    message = refusal(written(kind, layout))
    assert "family tiny: checkpoint: " in message
    assert named in message


def test_a_file_of_another_size_is_refused(written: Callable[..., FamilyConfig]) -> None:
    config = written("sdxl")
    file = Path(config.pipeline) / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [32, 64]}))
    assert "has the shape [16, 4, 3, 3]; the configuration of unet says [32, 4, 3, 3]" in refusal(config)


def test_a_file_without_a_tensor_is_refused_when_it_is_loaded(written: Callable[..., FamilyConfig]) -> None:
    lost = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    config = written("sdxl", change=lambda it: {name: tensor for name, tensor in it.items() if name != lost})
    with pytest.raises(ConfigError, match="family tiny: checkpoint: "):
        Family.load(config)


def test_a_missing_or_damaged_file_and_a_pickle_are_refused(
    written: Callable[..., FamilyConfig], tmp_path: Path
) -> None:
    config = written("sd")
    (tmp_path / "model.ckpt").write_bytes(b"x")
    for name, named in (("none.safetensors", "there is no such file"), ("model.ckpt", "not a .safetensors file")):
        assert named in refusal(config.model_copy(update={"checkpoint": str(tmp_path / name)}))
    file = Path(str(config.checkpoint))
    file.write_bytes(file.read_bytes()[:1000])
    assert "is damaged" in refusal(config)


def test_the_configurations_of_a_single_file_are_local(written: Callable[..., FamilyConfig]) -> None:
    config = written("sd").model_copy(update={"pipeline": "nobody/nothing"})
    assert "pipeline is nobody/nothing, a repository of the hub; give a local folder" in refusal(config)
