"""Edits with a mask by an inpainting UNet are those of diffusers' inpainting pipelines, from the same seed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft  # noqa: F401  diffusers loads adapters with it
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deploy.check import check
from load_balancer.runner.provenance import made_with_inpainting
from testing.pictures import gradient, mask, png
from testing.random_adapters import random_adapter, write_peft
from testing.tiny_models import SIZE, inpainting_pipeline, sd_pipeline, sdxl_pipeline, unet
from testing.tiny_transformers import flux_pipeline
from tests.workers.samples import family, image_request, variant, with_bad_value
from weir.adapters import AdapterUse, AdapterWeights
from weir.config import FamilyConfig, load_family
from weir.core import Edit, ImageRequest, ImageSize
from weir.errors import ConfigError
from weir.plan import HEAVY, LIGHT
from workers.engine.engine import denoise_job
from workers.engine.samplers import scheduler_for
from workers.models.architectures.registry import INPAINTING
from workers.models.checkpoint import check_family
from workers.models.family import Family
from workers.models.fetch import parts_of, repositories
from workers.models.source import inpainting_key
from workers.models.stored_weights import size_bytes

KINDS = ("sd", "sdxl")
STEPS, SEED, GUIDANCE = 3, 7, 2.0
SQUARE, WIDE = ImageSize(SIZE, SIZE), ImageSize(2 * SIZE, SIZE)
#: Rounding in a few steps of float32, relative to latents of about 1.
ROUNDING = 2e-4


@pytest.fixture(scope="module")
def models(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines ``sd`` and ``sdxl``, and inpainting pipelines beside them. The latter's other parts are not loaded."""
    root = tmp_path_factory.mktemp("inpainting")
    for kind, make in zip(KINDS, (sd_pipeline, sdxl_pipeline), strict=True):
        base = make()
        base.scheduler = scheduler_for("euler-ancestral", {**base.scheduler.config, "steps_offset": 1})
        base.save_pretrained(root / kind)
        inpainting_pipeline(base).save_pretrained(root / f"{kind}-inpainting")
        for part in ("vae", "text_encoder"):
            shutil.rmtree(root / f"{kind}-inpainting" / part)
    return root


def config(models: Path, kind: str, **fields: Any) -> FamilyConfig:
    """A family whose heavy variant has an inpainting UNet."""
    how = {"steps": STEPS, "guidance": GUIDANCE, "scheduler": "euler-ancestral"}
    heavy = variant("h", **how | {"inpainting": str(models / f"{kind}-inpainting")} | fields)
    return family(models / kind, variant("l", **how), heavy, sizes=(WIDE,))


@pytest.fixture(scope="module")
def engines(models: Path) -> dict[str, Family]:
    return {kind: Family.load(config(models, kind), threads=1) for kind in KINDS}


def whole_mask(size: ImageSize) -> Image.Image:
    """A mask under which only a corner stays."""
    picture = Image.new("L", size, 255)
    picture.paste(0, (0, 0, 6, 10))
    return picture


def request(name: str = "a", size: ImageSize = SQUARE, strength: float = 1.0, **fields: Any) -> ImageRequest:
    own = fields.pop("mask", mask)
    edit = Edit(png(gradient(size)), None if own is None else png(own(size)), strength)
    return image_request(name, **{"negative_prompt": "blur", "size": size, "edit": edit} | fields)


def theirs(engine: Family, given: ImageRequest, adapter: Path | None = None, **how: Any) -> Any:
    """What diffusers' inpainting pipeline with a UNet of 9 channels makes of a request."""
    pipeline, edit = engine.pipelines[inpainting_key(HEAVY)], given.edit
    assert pipeline.unet.config.in_channels == 9
    assert edit is not None
    assert edit.mask is not None
    kind = type(pipeline).__name__.replace("Pipeline", "InpaintPipeline")
    fixed = {} if "XL" in kind else {"requires_safety_checker": False}
    unet = type(pipeline.unet).from_config(pipeline.unet.config)  # adapters of diffusers would stay in the engine's
    unet.load_state_dict(pipeline.unet.state_dict())
    whole = getattr(diffusers, kind)(**pipeline.components | {"unet": unet.eval()}, **fixed)
    whole.set_progress_bar_config(disable=True)
    if adapter is not None:
        whole.load_lora_weights(str(adapter), adapter_name="a")
    return whole(
        prompt=given.prompt,
        negative_prompt=given.negative_prompt or None,
        image=Image.open(io.BytesIO(edit.image)),
        mask_image=Image.open(io.BytesIO(edit.mask)),
        width=given.size.width,
        height=given.size.height,
        strength=edit.strength,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        **{"output_type": "latent"} | how,
    ).images[0]


def latents(engine: Family, *requests: ImageRequest) -> list[torch.Tensor]:
    """The finished latents of requests that share calls of the denoiser."""
    jobs = [denoise_job(engine.config, HEAVY, it) for it in requests]
    assert len({engine.call_of(it) for it in jobs}) == 1
    samples = list(engine.begin(jobs))
    while running := [it for it in samples if it.step < STEPS]:
        assert engine.step(running) == [None] * len(running)
    return [it.latent for it in samples]


def pixels(image: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(image)), float)


# ---------------------------------------------------------------------------------------------- equality


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [SQUARE, WIDE], ids=str)
@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_an_edit_by_an_inpainting_unet_is_that_of_diffusers(
    engines: dict[str, Family], kind: str, size: ImageSize, strength: float
) -> None:
    given = request(size=size, strength=strength)
    [own] = latents(engines[kind], given)
    assert float((own - theirs(engines[kind], given)).abs().max()) <= ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_different_masks_and_strengths_share_calls(engines: dict[str, Family], kind: str) -> None:
    both = request("a"), request("b", strength=0.7, mask=whole_mask, negative_prompt="")
    for own, given in zip(latents(engines[kind], *both), both, strict=True):
        assert float((own - theirs(engines[kind], given)).abs().max()) <= ROUNDING


def test_the_pixels_that_stay_are_those_of_the_picture(engines: dict[str, Family]) -> None:
    given = request()
    [output] = engines["sdxl"].generate(HEAVY, [given])
    generated = np.asarray(mask(SQUARE)) > 0
    assert (pixels(output.image) == np.asarray(gradient(SQUARE)))[~generated].all()
    expected = theirs(engines["sdxl"], given, output_type="np") * 255
    assert np.abs(pixels(output.image) - expected)[generated].max() <= 1


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # PEFT's
def test_adapters_apply_to_the_inpainting_unet(engines: dict[str, Family], tmp_path: Path) -> None:
    engine = engines["sdxl"]
    path = write_peft(random_adapter(engine.pipelines[HEAVY], 1, text=False), tmp_path / "a.safetensors")
    given = request(adapters=(AdapterUse("a", 1.0, AdapterWeights(str(path))),))
    [own] = latents(engine, given)
    assert float((own - theirs(engine, given, path)).abs().max()) <= ROUNDING
    assert float((own - latents(engine, request())[0]).abs().max()) > 100 * ROUNDING


# ------------------------------------------------------------------------------------- which UNet runs


def test_only_edits_with_a_mask_of_a_variant_that_has_one_run_on_the_inpainting_unet(
    models: Path, engines: dict[str, Family]
) -> None:
    engine, plain = engines["sd"], Family.load(config(models, "sd", inpainting=None), threads=1)
    masked, whole, new = request("a"), request("b", mask=None), image_request("c")
    for key, given, same in [
        (HEAVY, masked, False),
        (HEAVY, whole, True),
        (HEAVY, new, True),
        (LIGHT, masked, True),
    ]:
        images = [pixels(it.generate(key, [given])[0].image) for it in (engine, plain)]
        assert (np.abs(images[0] - images[1]).max() <= 1) == same


def test_calls_of_the_two_unets_are_kept_apart(engines: dict[str, Family]) -> None:
    engine = engines["sd"]
    requests = [request("a"), image_request("b"), request("c", mask=None), request("d", mask=whole_mask)]
    calls = [engine.call_of(denoise_job(engine.config, HEAVY, it)) for it in requests]
    assert calls[0] == calls[3] != calls[1] == calls[2]
    together = [pixels(it.image) for it in engine.generate(HEAVY, requests)]
    alone = [pixels(engine.generate(HEAVY, [it])[0].image) for it in requests]
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(together, alone, strict=True))


def test_latents_of_the_inpainting_unet_are_those_of_another_model(engines: dict[str, Family]) -> None:
    engine = engines["sd"]
    made_by = [
        engine.generate(HEAVY, [it])[0].latent for it in (request(keep_latent=True), image_request(keep_latent=True))
    ]
    assert made_by[0] is not None
    assert made_by[1] is not None
    assert made_by[0].model != made_by[1].model == engine.models[HEAVY]


def test_an_inpainting_unet_of_two_variants_is_loaded_once(models: Path) -> None:
    given = config(models, "sd")
    both = given.model_copy(update={"variants": dict.fromkeys(given.keys, given.heavy)})
    loaded = Family.load(both, threads=1).pipelines
    assert loaded[inpainting_key(LIGHT)].unet is loaded[inpainting_key(HEAVY)].unet
    assert loaded[inpainting_key(LIGHT)].vae is loaded[LIGHT].vae


# ---------------------------------------------------------------------------------------------- weights


@pytest.fixture
def changed(models: Path, tmp_path: Path) -> Callable[..., FamilyConfig]:
    """A family whose inpainting pipeline has other values in one of its JSON files."""

    def with_fields(file: str, **fields: Any) -> FamilyConfig:
        shutil.copytree(models / "sdxl-inpainting", tmp_path / "own")
        path = tmp_path / "own" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return config(models, "sdxl", inpainting=str(tmp_path / "own"))

    return with_fields


@pytest.mark.parametrize("load", [check_family, Family.load], ids=["check", "load"])
@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("unet/config.json", {"in_channels": 4}, "in_channels is 4; an inpainting UNet has 9"),
        ("unet/config.json", {"in_channels": 8}, "in_channels is 8; an inpainting UNet has 9"),
        ("unet/config.json", {"cross_attention_dim": 48}, "cross_attention_dim is 48, and text_encoder"),
        ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "needs a StableDiffusionXLInpaint"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type is sample, and that of"),
    ],
    ids=["4 channels", "8 channels", "width", "class", "prediction"],
)
def test_an_inpainting_pipeline_that_does_not_fit_is_refused(
    changed: Callable[..., FamilyConfig],
    load: Callable[[FamilyConfig], Any],
    file: str,
    fields: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = changed(file, **fields)
    if load is not check_family:  # as for a repository of the hub, of which nothing is there before
        monkeypatch.setattr("workers.models.weights.check_family", lambda family: None)
    with pytest.raises(ConfigError) as caught:
        load(given)
    assert "family tiny: heavy.inpainting: " in caught.value.message
    assert message in caught.value.message


def test_a_part_that_is_missing_or_damaged_is_found_before_anything_is_loaded(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "sd-inpainting", tmp_path / "own")
    weights = tmp_path / "own" / "unet" / "diffusion_pytorch_model.safetensors"
    given = config(models, "sd", inpainting=str(tmp_path / "own"))
    with pytest.raises(ConfigError, match=r"its unet has no fp16 files \(weights: fp16\); fetch them, or set heavy"):
        check_family(config(models, "sd", inpainting=str(tmp_path / "own"), weights="fp16"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"heavy\.inpainting: .*is damaged"):
        check_family(given)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"heavy\.inpainting: .*no \.safetensors file"):
        check_family(given)


def test_the_file_set_of_the_variant_is_loaded(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "sd-inpainting", tmp_path / "own")
    own = tmp_path / "own" / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: it.half() for name, it in load_file(own).items()}
    own.unlink()
    save_file(half, own.with_suffix(".fp16.safetensors"))
    engine = Family.load(config(models, "sd", inpainting=str(tmp_path / "own"), weights="fp16"), threads=1)
    assert torch.equal(engine.pipelines[inpainting_key(HEAVY)].unet.conv_in.weight, half["conv_in.weight"].float())


@pytest.mark.parametrize("named", ["pipeline", "unet"])
def test_an_inpainting_unet_elsewhere_says_where_it_belongs(models: Path, tmp_path: Path, named: str) -> None:
    unet(5, sdxl=False, in_channels=9).save_pretrained(tmp_path / "unet")
    reference = {"pipeline": models / "sd-inpainting", "unet": tmp_path / "unet"}[named]
    wrong = family(models / "sd", variant("l"), variant("h", **{named: str(reference)}))
    with pytest.raises(ConfigError, match=rf"heavy\.{named}: .*name (it|its pipeline) in inpainting of"):
        check_family(wrong)


def test_an_architecture_without_inpainting_unets_refuses_one(models: Path, tmp_path: Path) -> None:
    flux_pipeline().save_pretrained(tmp_path / "flux")
    flow = {"scheduler": "flow-euler", "guidance": 3.0}
    heavy = variant("h", **flow, inpainting=str(models / "sd-inpainting"))
    with pytest.raises(ConfigError, match="Weir has no inpainting for a FluxPipeline; leave inpainting out"):
        check_family(family(tmp_path / "flux", variant("l", **flow), heavy))


def test_only_the_unet_is_fetched_and_counted(models: Path) -> None:
    it = repositories(config(Path("nobody"), "sd", inpainting_revision="abc"))[-1]
    assert (it.key, it.repository, it.revision) == ("heavy.inpainting", "nobody/sd-inpainting", "abc")
    index = json.loads((models / "sd-inpainting" / "model_index.json").read_text())
    assert sorted(parts_of(index, it)) == ["scheduler", "unet"]
    sizes = [size_bytes(given, 4) for given in (config(models, "sd"), config(models, "sd", inpainting=None))]
    own = load_file(models / "sd-inpainting" / "unet" / "diffusion_pytorch_model.safetensors")
    assert sizes[0] - sizes[1] == sum(tensor.numel() for tensor in own.values()) * 4


def test_the_warm_up_names_an_inpainting_unet_whose_images_are_not_finite(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "sd-inpainting", tmp_path / "own")
    with_bad_value(tmp_path / "own" / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.weight", float("nan"))
    broken = Family.load(config(models, "sd", inpainting=str(tmp_path / "own")), threads=1)
    with pytest.raises(ConfigError, match=r"heavy\.inpainting: .*own: an image of .*conv_in\.weight of its unet"):
        broken.warm_up(1)
    Family.load(config(models, "sd"), threads=1).warm_up(2)


# ------------------------------------------------------------------------------------------ family files


def test_a_family_file_names_it_and_weir_check_shows_it(models: Path, tmp_path: Path) -> None:
    fields = config(models, "sd").model_dump(mode="json")
    fields["variants"][HEAVY]["inpainting"] = "sd-inpainting"
    (models / "family.yaml").write_text(json.dumps(fields))
    assert load_family(models / "family.yaml").heavy.inpainting == str(models / "sd-inpainting")
    assert any(
        it.endswith(f"edits with a mask by {models}/sd-inpainting") for it in check(models / "family.yaml").details
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inpainting": None, "inpainting_revision": "abc"}, "inpainting_revision needs inpainting"),
        ({"inpainting": None, "weights": "fp16"}, "weights names a file set"),
    ],
)
def test_settings_of_an_inpainting_pipeline_need_one(models: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(models, "sd", **fields)


def test_provenance_names_the_inpainting_pipeline_of_edits_with_a_mask_only() -> None:
    own = config(Path("nobody"), "sd", inpainting_revision="abc").heavy
    edit, whole = request().edit, request(mask=None).edit
    assert made_with_inpainting(own, edit) == {"inpainting": "nobody/sd-inpainting@abc"}
    assert made_with_inpainting(own, whole) == made_with_inpainting(own, None) == {}


def test_inpainting_classes_are_those_of_diffusers() -> None:
    assert all(hasattr(diffusers, name) for name in INPAINTING)
