"""Words of textual inversions give the images that diffusers gives with them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from testing.tiny_models import SIZE, WIDTH
from tests.workers.samples import family, image_request, variant
from weir.config import FamilyConfig
from weir.errors import ConfigError
from weir.plan import HEAVY
from workers.engine.samplers import scheduler_for
from workers.models.checkpoint import check_family
from workers.models.family import Family

WORD, PROMPT = "<style>", "a red circle in <style>"
CLASSES: dict[str, Any] = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
TENSORS = {"sd": ("emb_params",), "sdxl": ("clip_l", "clip_g")}


def inversion(path: Path, names: tuple[str, ...], vectors: int = 2, width: int = WIDTH) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    tensors = {name: torch.randn(vectors, width) for name in names}
    save_file(tensors, path)
    return tensors


def config(folders: Path, kind: str, file: Path, word: str = WORD) -> FamilyConfig:
    either = variant("l"), variant("h", guidance=2.0)
    return family(folders / kind, *either, textual_inversions={word: str(file)})


@pytest.mark.parametrize("kind", list(CLASSES))
@pytest.mark.parametrize("vectors", [1, 2])
def test_a_word_of_a_textual_inversion_gives_the_image_of_diffusers(
    folders: Path, tmp_path: Path, kind: str, vectors: int
) -> None:
    tensors = inversion(tmp_path / "style.safetensors", TENSORS[kind], vectors)
    whole = CLASSES[kind].from_pretrained(folders / kind)
    whole.scheduler = scheduler_for("euler", whole.scheduler.config)
    whole.set_progress_bar_config(disable=True)
    for name, number in zip(TENSORS[kind], ("", "_2"), strict=False):
        parts = {part: getattr(whole, part + number) for part in ("text_encoder", "tokenizer")}
        whole.load_textual_inversion({WORD: tensors[name]}, token=WORD, **parts)
    latents = torch.randn((1, 4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(7))
    how = {"latents": latents, "num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    theirs = whole(prompt=PROMPT, negative_prompt="blur", height=SIZE, width=SIZE, **how).images[0]
    settings = config(folders, kind, tmp_path / "style.safetensors")
    check_family(settings)
    loaded = Family.load(settings)
    [with_word] = loaded.generate(HEAVY, [image_request(prompt=PROMPT, negative_prompt="blur")])
    ours = np.asarray(Image.open(io.BytesIO(with_word.image)), float)
    assert np.abs(ours - theirs * 255).max() <= 1
    [without] = loaded.generate(HEAVY, [image_request(prompt="a red circle in style", negative_prompt="blur")])
    assert without.image != with_word.image


@pytest.mark.parametrize(
    ("kind", "names", "width", "named"),
    [
        ("sd", ("clip_l", "clip_g"), WIDTH, "it has clip_g, clip_l, and no single tensor for text_encoder"),
        ("sdxl", ("emb_params",), WIDTH, "it has emb_params, and no clip_l for text_encoder"),
        ("sd", ("emb_params",), 48, f"emb_params has the shape [2, 48]; text_encoder has the width {WIDTH}"),
    ],
)
def test_a_textual_inversion_for_another_kind_of_model_is_refused(
    folders: Path, tmp_path: Path, kind: str, names: tuple[str, ...], width: int, named: str
) -> None:
    inversion(tmp_path / "style.safetensors", names, width=width)
    with pytest.raises(ConfigError) as refused:
        check_family(config(folders, kind, tmp_path / "style.safetensors"))
    assert f"family tiny: textual_inversions.{WORD}: " in refused.value.message
    assert named in refused.value.message


def test_a_file_that_is_not_there_and_a_word_without_brackets_are_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        check_family(config(folders, "sd", tmp_path / "none.safetensors"))
    with pytest.raises(ValidationError, match="textual_inversions"):
        config(folders, "sd", tmp_path / "none.safetensors", word="style")
