"""What a checkpoint is, is known from its configurations and headers, before anything is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CosineDPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file

from deploy.check import check
from testing.tiny_models import SIZE
from tests.workers.samples import family, variant
from weir.assets import FAMILY
from weir.config import FamilyConfig, load_family
from weir.errors import ConfigError
from workers.models.checkpoint import check_family

UNET = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def changed(folders: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a folder of models, replaces fields of one of its JSON files, and returns the copy."""

    def copied(layout: str, file: str = "", **fields: Any) -> Path:
        copy = tmp_path / layout
        shutil.copytree(folders / layout, copy)
        if file:
            config = json.loads((copy / file).read_text())
            (copy / file).write_text(json.dumps(config | fields))
        return copy

    return copied


def refusal(config: FamilyConfig) -> str:
    """The error message of :func:`check_family`."""
    with pytest.raises(ConfigError) as caught:
        check_family(config)
    return caught.value.message


def test_a_family_is_checked_without_torch_and_diffusers() -> None:
    code = (
        f"import sys; from deploy.check import check; from pathlib import Path; check(Path({str(FAMILY)!r})); "
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weir_check_refuses_a_family_for_its_weights(changed: Callable[..., Path], tmp_path: Path) -> None:
    copy = changed("sd", "unet/config.json", in_channels=9)
    path = tmp_path / "family.yaml"
    path.write_text(json.dumps(family(copy, variant("l"), variant("h")).model_dump(mode="json")))
    with pytest.raises(ConfigError, match="in_channels is 9"):
        check(path)


# ------------------------------------------------------------------------------------------------- files


def test_a_missing_pipeline_names_key_path_and_remedy(tmp_path: Path) -> None:
    message = refusal(family(tmp_path / "nowhere", variant("l"), variant("h")))
    assert "family tiny: pipeline:" in message
    assert str(tmp_path / "nowhere") in message
    assert "save_pretrained" in message


def test_a_missing_or_truncated_part_is_found_before_anything_is_loaded(changed: Callable[..., Path]) -> None:
    copy = changed("sdxl")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is damaged" in refusal(family(copy, variant("l"), variant("h")))
    weights.unlink()
    assert "no .safetensors file" in refusal(family(copy, variant("l"), variant("h")))


def test_the_error_for_another_pipeline_class_names_the_supported_ones(changed: Callable[..., Path]) -> None:
    copy = changed("sdxl", "model_index.json", _class_name="PixArtSigmaPipeline")
    message = refusal(family(copy, variant("l"), variant("h")))
    assert "PixArtSigmaPipeline" in message
    assert "StableDiffusionXLPipeline" in message


def test_a_broken_unet_folder_names_the_variants_key(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    message = refusal(family(folders / "sdxl", variant("l", unet=str(tmp_path / "unet")), variant("h")))
    assert "light.unet" in message
    assert "config.json" in message


def test_the_error_for_a_missing_file_lists_the_existing_files(folders: Path) -> None:
    wrong = variant("l", unet=str(folders / "lightning"), unet_file="8step.safetensors")
    assert "unet_4step.safetensors" in refusal(family(folders / "sdxl", wrong, variant("h")))


def test_a_pickle_file_is_refused(folders: Path) -> None:
    wrong = variant("l", unet=str(folders / "lightning"), unet_file="unet.ckpt")
    assert "not a .safetensors file" in refusal(family(folders / "sdxl", wrong, variant("h")))


def test_a_missing_discriminator_is_found_before_anything_is_loaded(folders: Path, tmp_path: Path) -> None:
    config = family(folders / "sdxl", variant("l"), variant("h"), discriminator=str(tmp_path / "none"))
    assert "discriminator" in refusal(config)


def test_missing_files_of_a_set_are_named(folders: Path) -> None:
    message = refusal(family(folders / "sdxl", variant("l"), variant("h"), weights="fp16"))
    assert "no part has fp16 files (weights: fp16)" in message


def test_a_folder_with_another_file_set_only_is_refused_with_the_key_that_names_it(folders: Path) -> None:
    message = refusal(family(folders / "sdxl-fp16", variant("l"), variant("h")))
    assert "fp16.safetensors" in message
    assert "name the file set in weights" in message


def test_a_unet_without_files_of_the_set_is_refused_with_the_key_for_its_plain_file(folders: Path) -> None:
    light = variant("l", unet=str(folders / "light_unet"))
    message = refusal(family(folders / "sdxl-fp16", light, variant("h"), weights="fp16"))
    assert "light.unet" in message
    assert f"(weights: fp16); name its file: unet_file: {UNET}" in message


# ----------------------------------------------------------------------------------------- another VAE


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"_class_name": "AutoencoderTiny"}, "its class is AutoencoderTiny; use a VAE of the class AutoencoderKL"),
        ({"latent_channels": 16}, "in_channels is 4, and the VAE's latents have 16"),
    ],
)
def test_a_vae_that_does_not_fit_is_refused_by_its_configuration(
    changed: Callable[..., Path], folders: Path, fields: dict[str, Any], named: str
) -> None:
    copy = changed("sdxl", "vae/config.json", **fields)
    assert named in refusal(family(folders / "sdxl", variant("l"), variant("h"), vae=str(copy / "vae")))


def test_a_vae_without_weights_is_refused(changed: Callable[..., Path], folders: Path) -> None:
    copy = changed("sdxl")
    (copy / "vae" / UNET).unlink()
    message = refusal(family(folders / "sdxl", variant("l"), variant("h"), vae=str(copy / "vae")))
    assert "family tiny: vae: " in message
    assert "there is no .safetensors file" in message


# ----------------------------------------------------------------------------- another kind of denoiser


@pytest.mark.parametrize(
    ("layout", "fields", "named"),
    [
        ("sd", {"in_channels": 9}, "in_channels is 9"),
        ("sd", {"in_channels": 8}, "in_channels is 8"),
        ("sdxl", {"in_channels": 9}, "in_channels is 9"),
        ("sd", {"out_channels": 8}, "out_channels is 8"),
        ("sd", {"num_class_embeds": 1000}, "num_class_embeds is 1000"),
        ("sd", {"encoder_hid_dim": 64}, "encoder_hid_dim is 64"),
        ("sd", {"addition_embed_type": "text_time"}, "addition_embed_type is text_time"),
        ("sdxl", {"addition_embed_type": None}, "addition_embed_type is None"),
        ("sdxl", {"cross_attention_dim": 768}, "cross_attention_dim is 768"),
        ("sdxl", {"projection_class_embeddings_input_dim": 72}, "projection_class_embeddings_input_dim is 72"),
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["the pipeline's unet", "the variant's unet"])
def test_a_unet_of_another_kind_is_refused_by_the_key_of_its_configuration(
    changed: Callable[..., Path], folders: Path, layout: str, fields: dict[str, Any], named: str, own: bool
) -> None:
    copy = changed(layout, "unet/config.json", **fields)
    if own:
        message = refusal(family(folders / layout, variant("l", unet=str(copy / "unet")), variant("h")))
        assert "light.unet" in message
    else:
        message = refusal(family(copy, variant("l"), variant("h")))
    assert named in message


def renamed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def inpainting(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"conv_in.weight": torch.zeros(16, 9, 3, 3)}


def lora(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.replace(".weight", ".lora_A.weight"): t for name, t in tensors.items() if "to_q" in name}


def quantized(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"conv_in.weight.absmax": torch.zeros(16)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed("model.diffusion_model."), "its tensors have the prefix model.diffusion_model."),
        (renamed("unet."), "its tensors have the prefix unet."),
        (renamed("_orig_mod."), "its tensors have the prefix _orig_mod."),
        (inpainting, "conv_in.weight has the shape [16, 9, 3, 3] and not [16, 4, 3, 3]"),
        (lora, "tensors, such as add_embedding.linear_1.bias"),
        (quantized, "it has 1 more tensors, such as conv_in.weight.absmax"),
    ],
    ids=["original", "prefixed", "compiled", "inpainting", "lora", "quantized"],
)
def test_a_single_file_that_does_not_fit_is_refused_by_what_differs(
    folders: Path, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], named: str
) -> None:
    save_file(change(load_file(folders / "sdxl" / "unet" / UNET)), tmp_path / "unet.safetensors")
    message = refusal(
        family(folders / "sdxl", variant("l", unet=str(tmp_path), unet_file="unet.safetensors"), variant("h"))
    )
    assert "light.unet" in message
    assert named in message


def test_a_single_file_of_another_size_is_refused(folders: Path) -> None:
    wrong = variant("l", unet=str(folders / "light_unet" / UNET))
    assert "does not fit the denoiser" in refusal(family(folders / "sdxl", wrong, variant("h")))


# ------------------------------------------------------------------------------- another noise schedule

ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler-trailing"])
@pytest.mark.parametrize(
    ("made", "key"),
    [
        (EDMEulerScheduler, "sigma_data"),
        (EDMDPMSolverMultistepScheduler, "sigma_data"),
        (FlowMatchEulerDiscreteScheduler, "shift"),
        (lambda: UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "use_flow_sigmas"),
    ],
    ids=["EDM", "EDM multistep", "flow matching", "flow sigmas"],
)
def test_a_pipeline_with_another_noise_schedule_is_refused_by_its_key(
    changed: Callable[..., Path], scheduler: str, made: Callable[[], Any], key: str
) -> None:
    copy = changed("sdxl")
    made().save_config(copy / "scheduler")
    either = variant("l", scheduler=scheduler), variant("h", scheduler=scheduler)
    message = refusal(family(copy, *either))
    assert f"scheduler: {key} is " in message


@pytest.mark.parametrize(
    "kind", [EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, CosineDPMSolverMultistepScheduler]
)
def test_another_noise_schedule_is_known_by_its_class_where_the_file_leaves_its_settings_out(
    changed: Callable[..., Path], kind: type
) -> None:
    copy = changed("sdxl")
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": kind.__name__}))
    message = refusal(family(copy, variant("l"), variant("h")))
    assert f"scheduler: _class_name is {kind.__name__}: " in message


@pytest.mark.parametrize(
    ("scheduler", "fields", "key"),
    [
        ("ddim", ZERO_SNR | {"timestep_spacing": "trailing"}, "rescale_betas_zero_snr"),
        ("ddim", ZERO_SNR | {"timestep_spacing": "linspace"}, "rescale_betas_zero_snr"),
        ("euler", {"prediction_type": "flow_prediction"}, "prediction_type"),
        ("euler", {"timestep_type": "continuous"}, "timestep_type"),
        ("ddim", {"beta_schedule": "laplace"}, "beta_schedule"),
        ("euler", {"timestep_spacing": "karras"}, "timestep_spacing"),
        ("ddim", {"clip_sample": True}, "clip_sample"),
        ("ddim", {"thresholding": True}, "thresholding"),
        ("ddim", {"snr_shift_scale": 3.0}, "snr_shift_scale"),
    ],
)
def test_a_setting_that_a_scheduler_cannot_follow_is_refused_by_its_key(
    changed: Callable[..., Path], scheduler: str, fields: dict[str, Any], key: str
) -> None:
    copy = changed("sdxl", "scheduler/scheduler_config.json", **fields)
    message = refusal(family(copy, variant("l", scheduler=scheduler), variant("h", scheduler=scheduler)))
    assert f"scheduler: {key} is {fields[key]}" in message


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("side", "nearest"), [(33, "32x32 and 34x34"), (SIZE + 3, "34x34 and 36x36")])
def test_a_size_between_two_latents_is_refused_with_the_nearest_sizes(folders: Path, side: int, nearest: str) -> None:
    message = refusal(family(folders / "sdxl", variant("l"), variant("h"), size=side))
    assert f"size: {side}x{side} is not a multiple of 2," in message
    assert message.endswith(f"the nearest sizes are {nearest}")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"size": 66}, "size: 66x66 is not a multiple of 4, "),
        ({"sizes": (32, 70)}, "sizes: 70x70 is not a multiple of 4, "),
        ({"size": 127}, "size: 127x127 is not a multiple of 4, "),
        ({"sizes": ("96x64", "66x64")}, "sizes: 66x64 is not a multiple of 4, "),
        ({"sizes": ("64x66",)}, "the nearest sizes are 64x64 and 64x68"),
        (
            {"any_size": {"multiple": 6, "least_side": 32, "most_side": 128}},
            "any_size.multiple: 6 is not a multiple of 4, the factor between pixels and latents of light",
        ),
    ],
)
def test_every_size_of_the_embedded_family_is_a_multiple_of_its_factor(fields: dict[str, Any], named: str) -> None:
    embedded = load_family(FAMILY)
    check_family(embedded)
    assert named in refusal(FamilyConfig.model_validate(embedded.model_dump() | fields))
