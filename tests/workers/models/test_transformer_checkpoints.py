"""Checkpoints of diffusion transformers are loaded from diffusers' folders, and checked before by configurations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from testing.random_adapters import random_adapter, write_peft
from testing.tiny_models import SIZE
from testing.tiny_transformers import flux_pipeline, schnell_pipeline, sd3_pipeline, z_image_pipeline
from tests.workers.samples import family, image_request, variant
from weir.config import FamilyConfig
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.plan import HEAVY, LIGHT
from workers.models.checkpoint import check_family
from workers.models.family import Family
from workers.models.fetch import Repository, parts_of, repositories
from workers.models.stored_weights import size_bytes

FLOW = {"scheduler": "flow-euler"}
LAYOUTS: dict[str, Callable[..., Any]] = {
    "flux": flux_pipeline,
    "schnell": schnell_pipeline,
    "sd3": sd3_pipeline,
    "z-image": z_image_pipeline,
}
EACH = pytest.mark.parametrize("layout", list(LAYOUTS))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of each layout."""
    root = tmp_path_factory.mktemp("transformers")
    for name, build in LAYOUTS.items():
        build().save_pretrained(root / name)
    return root


@pytest.fixture
def changed(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a pipeline, replaces fields of one of its JSON files, and returns the copy."""

    def copied(layout: str, file: str, **fields: Any) -> Path:
        copy = tmp_path / layout
        shutil.copytree(saved / layout, copy)
        config = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(config | fields))
        return copy

    return copied


def of(folder: Path, **fields: Any) -> FamilyConfig:
    return family(folder, variant("l", **FLOW), variant("h", steps=3, guidance=3.0, **FLOW), **fields)


def refusal(config: FamilyConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_family(config)
    return caught.value.message


@EACH
def test_a_pipeline_is_loaded_from_its_folder_and_gives_the_images_of_the_saved_one(saved: Path, layout: str) -> None:
    config = of(saved / layout)
    loaded = Family.load(config, threads=1)
    pipeline = LAYOUTS[layout]()
    kept = Family(config, dict.fromkeys((LIGHT, HEAVY), pipeline))
    images = [it.generate(HEAVY, [image_request()])[0].image for it in (loaded, kept)]
    assert images[0] == images[1]
    loaded.warm_up(2)


@pytest.mark.parametrize(
    ("layout", "file", "fields", "named"),
    [
        ("flux", "transformer/config.json", {"in_channels": 384}, "in_channels is 384"),
        (
            "flux",
            "transformer/config.json",
            {"joint_attention_dim": 64},
            "joint_attention_dim is 64, and text_enc",
        ),
        ("flux", "transformer/config.json", {"pooled_projection_dim": 64}, "pooled_projection_dim is 64"),
        ("flux", "vae/config.json", {"latent_channels": 8}, "8 channels needs 32"),
        ("flux", "scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas is True"),
        ("flux", "scheduler/scheduler_config.json", {"_class_name": "FlowMatchLCMScheduler"}, "FlowMatchLCMScheduler"),
        ("flux", "model_index.json", {"_class_name": "FluxFillPipeline"}, "the pipeline class is FluxFillPipeline"),
        ("sd3", "transformer/config.json", {"in_channels": 33}, "in_channels is 33, and the VAE needs 16"),
        ("sd3", "transformer/config.json", {"patch_size": 4}, "patch_size is 4"),
        ("sd3", "transformer/config.json", {"pooled_projection_dim": 8}, "pooled_projection_dim is 8"),
        ("z-image", "transformer/config.json", {"cap_feat_dim": 8}, "cap_feat_dim is 8, and text_encoder needs 32"),
        ("z-image", "transformer/config.json", {"siglip_feat_dim": 8}, "siglip_feat_dim is 8"),
    ],
    ids=lambda it: "+".join(it) if isinstance(it, dict) else "",
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_key_of_its_configuration(
    changed: Callable[..., Path], layout: str, file: str, fields: dict[str, Any], named: str
) -> None:
    assert named in refusal(of(changed(layout, file, **fields)))


def test_samplers_of_another_noise_schedule_are_refused_by_name(saved: Path) -> None:
    message = refusal(family(saved / "sd3", variant("l"), variant("h", **FLOW)))
    assert "use flow-euler" in message
    assert "which unipc does not follow" in refusal(of(saved / "sd3", samplers=["unipc"]))


@pytest.mark.parametrize(
    ("layout", "fields", "named"),
    [
        ("flux", {"size": SIZE + 2}, "34x34 is not a multiple of 4"),
        ("sd3", {"size": 132}, "132x132 has a side of more than 128 pixels"),
        ("sd3", {"any_size": {"multiple": 4, "least_side": 16, "most_side": 160}}, "160 is more than the 128 pixels"),
        ("z-image", {"sizes": [ImageSize(260, 32)]}, "260x32 has a side of more than 256 pixels"),
    ],
    ids=str,
)
def test_sizes_that_a_transformer_has_no_positions_for_are_refused(
    saved: Path, layout: str, fields: dict[str, Any], named: str
) -> None:
    assert named in refusal(of(saved / layout, **fields))


@EACH
def test_textual_inversions_and_whole_files_are_refused_in_a_sentence(saved: Path, tmp_path: Path, layout: str) -> None:
    file = tmp_path / "some.safetensors"
    save_file({"clip_l": torch.zeros(1, 8)}, file)
    kind = type(LAYOUTS[layout]()).__name__
    assert f"a {kind} has no textual inversions" in refusal(of(saved / layout, textual_inversions={"<x>": str(file)}))
    assert f"a {kind} is not loaded from one file" in refusal(of(saved / layout, checkpoint=str(file)))


def test_adapters_are_refused_where_the_architecture_takes_none(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    save_file({"transformer.layers.0.attention.to_q.lora_A.weight": torch.zeros(1, 8)}, file)
    adapters = {"style": {"file": str(file)}}
    assert "a ZImagePipeline takes no LoRA adapters" in refusal(of(saved / "z-image", adapters=adapters))


def test_an_adapter_of_unknown_names_is_refused_with_one_of_them(saved: Path, tmp_path: Path) -> None:
    """Among them those of kohya for Stable Diffusion 3, which diffusers does not convert."""
    file, layer = tmp_path / "some.safetensors", "lora_unet_joint_blocks_0_x_block_attn_proj"
    save_file({f"{layer}.lora_down.weight": torch.zeros(1, 8), f"{layer}.lora_up.weight": torch.zeros(8, 1)}, file)
    for layout in ("flux", "sd3"):
        with pytest.raises(ConfigError, match=layer):
            Family.load(of(saved / layout, adapters={"style": {"file": str(file)}}))


def test_an_adapter_of_another_width_is_refused_with_its_layer(saved: Path, tmp_path: Path) -> None:
    tensors = random_adapter(flux_pipeline(), 1)
    narrow = {name: it[:, :-1] if "lora_A" in name else it for name, it in tensors.items()}
    file = write_peft({name: it.contiguous() for name, it in narrow.items()}, tmp_path / "some.safetensors")
    with pytest.raises(ConfigError, match="has the shape"):
        Family.load(of(saved / "flux", adapters={"style": {"file": str(file)}}))


# ------------------------------------------------------------------------------- shared encoders


def pair(saved: Path, light: str = "schnell", heavy: str = "flux", **fields: Any) -> FamilyConfig:
    """A family whose light variant has its encoders and its VAE from the heavy one's pipeline."""
    own = variant("l", pipeline=str(saved / light), shares_encoders=True, **FLOW)
    return family(saved / heavy, own | fields, variant("h", steps=3, guidance=3.0, **FLOW))


def test_a_variant_that_shares_encoders_has_its_own_denoiser_and_scheduler_only(saved: Path) -> None:
    light, heavy = Family.load(pair(saved), threads=1).pipelines.values()
    for part in ("text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2"):
        assert getattr(light, part) is getattr(heavy, part)
    assert light.transformer is not heavy.transformer
    assert (light.scheduler.config.use_dynamic_shifting, heavy.scheduler.config.use_dynamic_shifting) == (False, True)


def test_shared_encoders_are_not_needed_a_second_time(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "schnell", tmp_path / "schnell")
    for part in ("text_encoder", "text_encoder_2", "vae"):
        shutil.rmtree(tmp_path / "schnell" / part)
    config = pair(saved, str(tmp_path / "schnell"))
    check_family(config)
    output = Family.load(config, threads=1).generate(LIGHT, [image_request()])[0]
    assert output.image == Family.load(pair(saved), threads=1).generate(LIGHT, [image_request()])[0].image
    whole = pair(saved, shares_encoders=False)
    assert 0 < size_bytes(pair(saved), 4) < size_bytes(whole, 4)


def test_a_pipeline_of_another_kind_shares_no_encoders(saved: Path) -> None:
    assert "it is a StableDiffusion3Pipeline, and shares the encoders of a FluxPipeline" in refusal(pair(saved, "sd3"))


def test_only_denoiser_and_scheduler_of_a_variant_that_shares_encoders_are_fetched() -> None:
    config = pair(Path("nobody"))
    whole, lent = repositories(config)
    assert (whole.key, whole.lends) == ("pipeline", False)
    assert (lent.key, lent.lends) == ("light.pipeline", True)
    index = {"_class_name": "FluxPipeline", **{name: ["a", "b"] for name in ("vae", "transformer", "scheduler")}}
    assert parts_of(index, lent) == ["transformer", "scheduler"]
    assert parts_of(index, Repository("pipeline", "a", None, pipeline=True)) == ["vae", "transformer", "scheduler"]


@pytest.mark.parametrize("fields", [{"pipeline": None}, {"checkpoint": "a.safetensors"}], ids=str)
def test_shared_encoders_need_a_pipeline_of_their_own(saved: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shares_encoders needs a pipeline"):
        pair(saved, **fields)


def test_states_of_other_text_encoders_are_of_another_model() -> None:
    first, second = flux_pipeline(), flux_pipeline()
    with torch.no_grad():
        second.text_encoder_2.shared.weight.add_(1)
    models = [Family(of(Path("-")), dict.fromkeys((LIGHT, HEAVY), it)).models[HEAVY] for it in (first, second)]
    assert models[0] != models[1]
