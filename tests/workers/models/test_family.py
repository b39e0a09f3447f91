"""Families load from every supported layout, and an image depends only on its own request."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EDMEulerScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from testing.collector import recorded
from testing.tiny_models import SIZE
from tests.workers.samples import family, image_request, variant, with_bad_value
from weir.config import FamilyConfig
from weir.core import ImageSize, Overrides
from weir.errors import ConfigError, InvalidRequest
from weir.plan import HEAVY, LIGHT
from weir.prompts import Prompt
from workers.engine.engine import EngineOutput, OutOfMemory, recipe
from workers.engine.samplers import scheduler_for
from workers.models.architectures.stable_diffusion import StableDiffusion
from workers.models.architectures.stable_diffusion_xl import StableDiffusionXL
from workers.models.checkpoint import check_family
from workers.models.family import Family


class Discriminator:
    """A fake discriminator whose confidence is the image's brightness."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def confidence(self, images: torch.Tensor, prompts: list[str]) -> list[float]:
        assert images.shape[1] == 3
        self.prompts = prompts
        return (images.mean((1, 2, 3)) / 2 + 0.5).clamp(0, 1).tolist()


def pixels(output: EngineOutput) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(output.image))).astype(int)


@pytest.fixture(scope="module")
def tiny(embedded: FamilyConfig) -> Family:
    return Family(embedded, Family.load(embedded).pipelines, dict.fromkeys(embedded.keys, Discriminator()))


# ------------------------------------------------------------------------------------------- layouts


def test_light_and_heavy_share_one_vae_and_one_set_of_text_encoders(tiny: Family) -> None:
    light, heavy = tiny.pipelines[LIGHT], tiny.pipelines[HEAVY]
    for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        assert getattr(light, part) is getattr(heavy, part)
    assert light.unet is not heavy.unet


def test_a_prompt_is_encoded_again_for_another_tenant(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, encoded = StableDiffusionXL.encode, list[Prompt]()
    monkeypatch.setattr(StableDiffusionXL, "encode", lambda it, texts: encoded.extend(texts) or encode(it, texts))
    for tenant in ("acme", "acme", "globex"):
        tiny.generate(LIGHT, [image_request(prompt="a prompt of two tenants", tenant=tenant)])
    assert [it[0].text for it in encoded] == ["a prompt of two tenants"] * 2


def test_a_family_with_a_light_unet_folder_and_a_discriminator_loads(folders: Path) -> None:
    light = variant("light", unet=str(folders / "light_unet"), scheduler="ddim", steps=1)
    config = family(folders / "sdxl", light, variant("heavy"), discriminator=str(folders / "discriminator"))
    check_family(config)
    loaded = Family.load(config)
    [alone] = loaded.generate(LIGHT, [image_request("cat")])
    together = loaded.generate(LIGHT, [image_request("dog"), image_request("cat")])
    assert alone.confidence is not None
    assert alone.confidence == pytest.approx(together[1].confidence, abs=1e-4)


def test_sdxl_with_a_single_file_unet_and_fp16_files_loads_like_sdxl_lightning(folders: Path) -> None:
    lightning = variant(
        "lightning",
        unet=str(folders / "lightning"),
        unet_file="unet_4step.safetensors",
        scheduler="euler-trailing",
        steps=4,
    )
    loaded = Family.load(family(folders / "sdxl-fp16", lightning, variant("base", guidance=5.0), weights="fp16"))
    light, heavy = loaded.pipelines[LIGHT], loaded.pipelines[HEAVY]
    assert loaded.sampler(recipe(loaded.config, LIGHT, image_request())).name == "euler-trailing"
    assert not torch.equal(light.unet.conv_in.weight, heavy.unet.conv_in.weight)
    assert light.vae is heavy.vae
    assert all(p.dtype == torch.float32 and not p.is_meta for p in light.unet.parameters())
    for key in (LIGHT, HEAVY):
        assert pixels(loaded.generate(key, [image_request()])[0]).shape == (SIZE, SIZE, 3)


def test_another_vae_decodes_the_images_of_all_variants(folders: Path) -> None:
    """As the VAE of SDXL that suits float16: with plain files beside a pipeline with fp16 files."""
    other = str(folders / "sdxl-turbo" / "vae")
    turbo = variant("turbo", pipeline=str(folders / "sdxl-turbo"), steps=1)
    loaded = Family.load(family(folders / "sdxl", turbo, variant("base", guidance=5.0), vae=other))
    whole = StableDiffusionXLPipeline.from_pretrained(folders / "sdxl", vae=AutoencoderKL.from_pretrained(other))
    whole.scheduler = scheduler_for("euler", whole.scheduler.config)
    whole.set_progress_bar_config(disable=True)
    latents = torch.randn((1, 4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(7))
    how = {"latents": latents, "num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np"}
    theirs = whole(prompt="a red a", height=SIZE, width=SIZE, **how).images[0]
    ours = pixels(loaded.generate(HEAVY, [image_request()])[0])
    assert np.abs(ours - theirs * 255).max() <= 1
    light, heavy = loaded.pipelines[LIGHT], loaded.pipelines[HEAVY]
    assert light.vae is heavy.vae
    fp16 = family(folders / "sdxl-fp16", variant("l"), variant("h"), weights="fp16", vae=other)
    assert torch.equal(Family.load(fp16).pipelines[HEAVY].vae.decoder.conv_in.weight, heavy.vae.decoder.conv_in.weight)


def test_two_sdxl_pipelines_load_like_sdxl_turbo(folders: Path) -> None:
    turbo = variant("turbo", pipeline=str(folders / "sdxl-turbo"), steps=1)
    loaded = Family.load(family(folders / "sdxl", turbo, variant("base", guidance=5.0)))
    assert loaded.pipelines[LIGHT].vae is not loaded.pipelines[HEAVY].vae
    assert len(loaded.generate(LIGHT, [image_request()])[0].image) > 0


def test_two_stable_diffusion_pipelines_load_like_sd_turbo(folders: Path) -> None:
    turbo = variant("sd-turbo", pipeline=str(folders / "sd-turbo"), steps=1, scheduler="euler-trailing")
    loaded = Family.load(family(folders / "sd", turbo, variant("sd15", guidance=7.5, scheduler="ddim")))
    for key in (LIGHT, HEAVY):
        both = loaded.generate(key, [image_request("cat"), image_request("dog", negative_prompt="blur")])
        assert [pixels(d).shape for d in both] == [(SIZE, SIZE, 3)] * 2


def test_each_variant_may_have_a_file_set_of_its_own(folders: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folders / "light_unet").to(torch.bfloat16)
    unet.save_pretrained(tmp_path / "unet", variant="bf16")
    light = variant("bf16", unet=str(tmp_path / "unet"), weights="bf16", steps=1)
    medium = variant("fp16", pipeline=str(folders / "sdxl-fp16"), weights="fp16", steps=1)
    variants = {LIGHT: light, "medium": medium, HEAVY: variant("plain")}
    loaded = Family.load(FamilyConfig(name="mixed", pipeline=str(folders / "sdxl"), size=SIZE, variants=variants))
    unets = {key: it.unet for key, it in loaded.pipelines.items()}
    assert {it.dtype for it in unets.values()} == {torch.float32}
    assert torch.equal(unets[LIGHT].conv_in.weight, unet.conv_in.weight.float())
    stored = load_file(folders / "sdxl-fp16" / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(unets["medium"].conv_in.weight, stored["conv_in.weight"].float())
    plain = variant("h", pipeline=str(folders / "sdxl"), weights="plain")
    check_family(family(folders / "sdxl-fp16", variant("l"), plain, weights="fp16"))


def test_a_pipeline_named_twice_is_loaded_once(folders: Path) -> None:
    same = variant("light", pipeline=str(folders / "sdxl"), steps=1)
    loaded = Family.load(family(folders / "sdxl", same, variant("heavy")))
    assert loaded.pipelines[LIGHT].unet is loaded.pipelines[HEAVY].unet


def test_what_could_not_be_checked_before_is_refused_when_it_is_loaded(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a repository of the hub."""
    monkeypatch.setattr("workers.models.weights.check_family", lambda family: None)
    shutil.copytree(folders / "sdxl", tmp_path / "sdxl")
    EDMEulerScheduler().save_config(tmp_path / "sdxl" / "scheduler")
    with pytest.raises(ConfigError, match=r"family tiny: pipeline: .*scheduler: sigma_data is 0\.5"):
        Family.load(family(tmp_path / "sdxl", variant("l"), variant("h")))
    with pytest.raises(ConfigError, match="size: 33x33 is not a multiple of 2"):
        Family.load(family(folders / "sdxl", variant("l"), variant("h"), size=33))
    small = variant("l", unet=str(folders / "light_unet" / "diffusion_pytorch_model.safetensors"))
    with pytest.raises(ConfigError, match=r"light\.unet: .*does not fit the denoiser"):
        Family.load(family(folders / "sdxl", small, variant("h")))


@pytest.mark.parametrize("name", ["ddim", "euler", "euler-trailing"])
def test_a_scheduler_keeps_the_bases_noise_schedule_and_prediction_type(tiny: Family, name: Any) -> None:
    base = tiny.pipelines[HEAVY].scheduler.config
    made = scheduler_for(name, base).config
    for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "rescale_betas_zero_snr"):
        assert made[key] == base[key]


def test_a_scheduler_does_not_clip_latents_if_the_base_does_not_specify_it() -> None:
    assert scheduler_for("ddim", {"beta_schedule": "scaled_linear"}).config.clip_sample is False


@pytest.mark.parametrize("name", ["weir-tiny", "sdxl-lightning", "sdxl-turbo", "sd15-turbo"])
def test_the_family_files_that_ship_are_valid(name: str) -> None:
    from weir.config import read_yaml

    shipped = read_yaml(Path(__file__).parents[3] / "deploy" / "families" / f"{name}.yaml", FamilyConfig)
    assert shipped.name == name


# -------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("variant", [LIGHT, HEAVY])
def test_an_image_does_not_depend_on_its_batch(tiny: Family, variant: str) -> None:
    mine = image_request("cat", seed=11)
    others = [image_request("dog", seed=5, negative_prompt="blurry"), image_request("owl", seed=6)]
    [alone] = tiny.generate(variant, [mine])
    together = tiny.generate(variant, [others[0], mine, others[1]])[1]
    assert np.abs(pixels(alone) - pixels(together)).max() <= 1


def test_the_discriminator_judges_light_images_and_heavy_images_on_request(tiny: Family) -> None:
    asked = [image_request(seed=seed, judge=seed > 1) for seed in (1, 2, 3)]
    assert [d.confidence is None for d in tiny.generate(LIGHT, asked)] == [False, False, False]
    assert [d.confidence is None for d in tiny.generate(HEAVY, asked)] == [True, False, False]


def test_judging_and_encoding_an_image_are_spans_of_its_own_trace(tiny: Family) -> None:
    """An image that is not judged, or belongs to no trace, has no such span, whatever else is in its batch."""
    parents = {name: f"00-{number * 32}-{number * 16}-01" for name, number in (("a", "a"), ("b", "b"))}
    asked = [image_request(name, request_id=name, traceparent=parents[name], judge=name == "a") for name in parents]
    with recorded("worker") as collector:
        tiny.generate(HEAVY, [*asked, image_request("self-test", judge=True)])
    spans = sorted((it.attributes["weir.request_id"], it.name, it.trace_id[0]) for it in collector.spans)
    assert spans == [("a", "encode", "a"), ("a", "judge", "a"), ("b", "encode", "b")]


def test_the_same_request_gives_the_same_bytes_and_another_seed_another_image(tiny: Family) -> None:
    first, again, other = (tiny.generate(HEAVY, [image_request(seed=s)])[0] for s in (1, 1, 2))
    assert first.image == again.image
    assert first.image != other.image


@pytest.mark.parametrize("bit", [0, 31, 32, 53, 63])
def test_every_bit_of_a_seed_changes_the_image(tiny: Family, bit: int) -> None:
    one, other = (tiny.generate(HEAVY, [image_request(seed=s)])[0] for s in (5, 5 ^ 2**bit))
    assert one.image != other.image


def test_images_equal_those_of_the_diffusers_pipeline(tiny: Family) -> None:
    pipeline = tiny.pipelines[HEAVY]
    latents = torch.randn((4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(7))[None]
    expected = pipeline(
        prompt="a red a",
        latents=latents,
        height=SIZE,
        width=SIZE,
        num_inference_steps=4,
        guidance_scale=1.5,
        output_type="np",
    ).images[0]
    [output] = tiny.generate(HEAVY, [image_request()])
    assert np.abs(pixels(output) - expected * 255).max() <= 1


def test_a_request_without_overrides_uses_the_variants_own_steps(tiny: Family) -> None:
    for key, own in (("light", 1), ("heavy", 4)):
        assert tiny.generate(key, [image_request()])[0].steps == own
        assert tiny.generate(key, [image_request(overrides=Overrides(2, 3.0))])[0].steps == 2


def test_a_light_image_has_a_confidence_and_a_heavy_image_has_none(tiny: Family) -> None:
    light = tiny.generate(LIGHT, [image_request("cat"), image_request("dog")])
    assert all(d.confidence is not None and 0 <= d.confidence <= 1 for d in light)
    assert tiny.judges[LIGHT].prompts == ["a red cat", "a red dog"]  # type: ignore[union-attr]
    assert tiny.generate(HEAVY, [image_request()])[0].confidence is None


def test_images_of_other_sizes_and_prompts_of_any_length_are_generated(tiny: Family) -> None:
    [small] = tiny.generate(LIGHT, [image_request(size=ImageSize(16, 16), prompt="ö" * 500)])
    assert pixels(small).shape == (16, 16, 3)
    assert tiny.generate(LIGHT, [image_request(prompt="")])[0].error is None


def test_an_image_with_non_finite_values_fails_alone(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def second_not_finite(model: StableDiffusion, latents: torch.Tensor) -> torch.Tensor:
        images = real(model, latents)
        images[1] = float("nan")
        return images

    real = StableDiffusion.decode
    monkeypatch.setattr(StableDiffusion, "decode", second_not_finite)
    first, second = tiny.generate(LIGHT, [image_request("cat"), image_request("dog")])
    assert first.error is None
    assert second.error is not None
    assert second.error[0] == "not_finite"


@pytest.mark.parametrize(
    ("part", "file", "tensor", "value", "named"),
    [
        ("unet", "diffusion_pytorch_model", "mid_block.resnets.0.conv1.weight", "nan", "light.unet: "),
        ("sdxl/unet", "diffusion_pytorch_model", "conv_out.bias", "inf", "pipeline: "),
        ("sdxl/vae", "diffusion_pytorch_model", "decoder.conv_in.weight", "nan", "pipeline: "),
        ("sdxl/text_encoder_2", "model", "text_model.final_layer_norm.weight", "-inf", "pipeline: "),
    ],
)
def test_the_warm_up_names_the_variant_and_the_weights_whose_images_are_not_finite(
    folders: Path, tmp_path: Path, part: str, file: str, tensor: str, value: str, named: str
) -> None:
    shutil.copytree(folders / "sdxl", tmp_path / "sdxl")
    shutil.copytree(folders / "light_unet", tmp_path / "unet")
    with_bad_value(tmp_path / part / f"{file}.safetensors", tensor, float(value))
    light = variant("l", unet=str(tmp_path / "unet"), scheduler="ddim")
    loaded = Family.load(family(tmp_path / "sdxl", light, variant("h", scheduler="ddim")))
    with pytest.raises(ConfigError) as caught:
        loaded.warm_up(1)
    message = caught.value.message
    assert f"{named}{tmp_path / part.split('/')[0]}: an image of " in message
    assert f"{tensor} of its {part.split('/')[-1]} has values that are not finite" in message


def test_a_warm_up_whose_images_overflow_says_so(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    overflow = float("inf")
    monkeypatch.setattr(StableDiffusion, "decode", lambda model, latents: torch.full((len(latents), 3, 8, 8), overflow))
    with pytest.raises(ConfigError, match=r"an image of light failed in the warm-up; .*dtype: float32"):
        tiny.warm_up(2)


def test_running_out_of_memory_raises_an_error_of_its_own(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny.pipelines[LIGHT].unet, "forward", no_memory)
    with pytest.raises(OutOfMemory, match="a batch of 1"):
        tiny.generate(LIGHT, [image_request()])


def test_beat_advances_during_a_batch(tiny: Family) -> None:
    before = tiny.beat
    tiny.generate(HEAVY, [image_request()])
    assert tiny.beat > before
    tiny.probe()


# ----------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": ImageSize(48, 48)}, "size"),
        ({"size": ImageSize(16, SIZE)}, "size"),
        ({"overrides": Overrides(steps=0)}, "num_inference_steps"),
        ({"overrides": Overrides(steps=10**6)}, "num_inference_steps"),
        ({"overrides": Overrides(guidance=-1.0)}, "guidance_scale"),
        ({"overrides": Overrides(guidance=float("nan"))}, "guidance_scale"),
    ],
)
def test_a_request_out_of_range_names_its_field(embedded: FamilyConfig, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        recipe(embedded, HEAVY, image_request(**fields))
    assert caught.value.param == param


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_family_for_cuda_is_refused_without_a_cuda_device(folders: Path) -> None:
    with pytest.raises(ConfigError, match="finds no CUDA"):
        Family.load(family(folders / "sdxl", variant("l"), variant("h"), device="cuda"))
