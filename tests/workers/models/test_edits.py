"""Edits are those of diffusers' own image-to-image and inpainting pipelines, from the same seed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from testing.pictures import gradient, mask, png
from testing.tiny_models import SIZE, sd_pipeline, sdxl_pipeline
from tests.workers.samples import family, image_request, variant
from weir.core import Edit, ImageRequest, ImageSize, Overrides, Resume
from weir.errors import InvalidRequest
from weir.plan import HEAVY, LIGHT
from weir.samplers import Scheduler
from workers.engine.engine import denoise_job
from workers.engine.samplers import TCD_GAMMA, scheduler_for
from workers.models.family import Family

KINDS = pytest.mark.parametrize("kind", [sd_pipeline, sdxl_pipeline], ids=["sd", "sdxl"])
STEPS, SEED = 3, 7
SQUARE, WIDE = ImageSize(SIZE, SIZE), ImageSize(2 * SIZE, SIZE)
#: Rounding in a few steps of float32, relative to latents of about 1.
ROUNDING = 2e-4


def engine(pipeline: Any, sampler: Scheduler = "ddim", steps: int = STEPS) -> Family:
    # Diffusers' pipelines set an offset of 1 where there is none, and warn.
    pipeline.scheduler = scheduler_for(sampler, {**pipeline.scheduler.config, "steps_offset": 1})
    pipeline.set_progress_bar_config(disable=True)
    heavy = {"steps": steps, "guidance": 2.0, "scheduler": sampler}
    config = family("-", variant("l", **heavy | {"steps": 2, "guidance": 0}), variant("h", **heavy), sizes=(WIDE,))
    return Family(config, dict.fromkeys((LIGHT, HEAVY), pipeline))


def edit(size: ImageSize = SQUARE, *, strength: float, masked: bool = False) -> Edit:
    return Edit(png(gradient(size)), png(mask(size)) if masked else None, strength)


def theirs(made: Family, key: str, request: ImageRequest, **how: Any) -> Any:
    """What diffusers makes of a request."""
    pipeline, given, own = made.pipelines[key], request.edit, made.config.variants[key]
    assert given is not None
    kind = type(pipeline).__name__.replace("Pipeline", "Img2ImgPipeline" if given.mask is None else "InpaintPipeline")
    fixed = {} if "XL" in kind else {"requires_safety_checker": False}
    whole = getattr(diffusers, kind)(**pipeline.components, **fixed)
    whole.set_progress_bar_config(disable=True)
    if given.mask is not None:
        how |= {"mask_image": Image.open(io.BytesIO(given.mask)), "width": request.size.width}
        how |= {"height": request.size.height}
    return whole(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        image=Image.open(io.BytesIO(given.image)),
        strength=given.strength,
        num_inference_steps=own.steps,
        guidance_scale=own.guidance,
        generator=torch.Generator().manual_seed(SEED),
        eta=TCD_GAMMA if own.scheduler == "tcd" else 0.0,
        **how,
    ).images[0]


def pixels(image: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(image)), float)


def latent(made: Family, request: ImageRequest, key: str = HEAVY) -> torch.Tensor:
    """The finished latent of a request."""
    [sample] = made.begin([denoise_job(made.config, key, request)])
    while sample.step < made.config.variants[key].steps:
        assert made.step([sample]) == [None]
    return sample.latent


@KINDS
@pytest.mark.parametrize("key", [LIGHT, HEAVY])
@pytest.mark.parametrize(("size", "strength"), [(SQUARE, 0.5), (WIDE, 0.75), (SQUARE, 1.0)], ids=str)
def test_an_edit_is_that_of_diffusers(kind: Callable[[], Any], key: str, size: ImageSize, strength: float) -> None:
    made = engine(kind())
    request = image_request(negative_prompt="blur", size=size, edit=edit(size, strength=strength))
    [output] = made.generate(key, [request])
    assert output.error is None
    expected = theirs(made, key, request, output_type="np")
    assert np.abs(pixels(output.image) - expected * 255).max() <= 1


@KINDS
@pytest.mark.parametrize("key", [LIGHT, HEAVY])
@pytest.mark.parametrize(("size", "strength"), [(SQUARE, 0.75), (WIDE, 1.0)], ids=str)
def test_an_edit_with_a_mask_is_that_of_diffusers(
    kind: Callable[[], Any], key: str, size: ImageSize, strength: float
) -> None:
    made = engine(kind())
    request = image_request(negative_prompt="blur", size=size, edit=edit(size, strength=strength, masked=True))
    [output] = made.generate(key, [request])
    assert output.error is None
    expected = theirs(made, key, request, output_type="np") * 255
    generated = np.asarray(mask(size)) > 0
    assert np.abs(pixels(output.image) - expected)[generated].max() <= 1
    assert (pixels(output.image) == np.asarray(gradient(size)))[~generated].all()
    assert np.abs(expected - np.asarray(gradient(size)))[~generated].max() > 1  # which is what diffusers leaves


@pytest.mark.parametrize(
    "sampler",
    ["euler", "euler-ancestral", "dpmpp-2m-karras", "dpmpp-2m-sde", "dpmpp-sde", "unipc", "lcm", "tcd"],
)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")  # of one that has no offset
def test_an_edit_by_any_sampler_is_that_of_diffusers(sampler: Scheduler, masked: bool) -> None:
    """Solvers that remember earlier steps, and those that add noise, included."""
    made = engine(sd_pipeline(), sampler, steps=6)
    request = image_request(edit=edit(strength=0.7, masked=masked))
    expected = theirs(made, HEAVY, request, output_type="latent")
    assert float((latent(made, request) - expected).abs().max()) < ROUNDING


def test_the_statistics_of_the_latents_of_sdxl_hold_for_the_picture_too() -> None:
    pipeline = sdxl_pipeline()
    pipeline.vae.register_to_config(latents_mean=[0.3, -0.2, 0.1, 0.5], latents_std=[1.5, 0.7, 2.0, 1.1])
    made = engine(pipeline)
    request = image_request(negative_prompt="blur", edit=edit(strength=0.5))
    [output] = made.generate(HEAVY, [request])
    assert np.abs(pixels(output.image) - theirs(made, HEAVY, request, output_type="np") * 255).max() <= 1


def test_edits_share_calls_with_other_images_and_do_not_change_them() -> None:
    made = engine(sd_pipeline(), "euler-ancestral")
    requests = [
        image_request("a"),
        image_request("b", edit=edit(strength=0.4)),
        image_request("c", edit=edit(strength=1.0, masked=True)),
    ]
    together = [pixels(it.image) for it in made.generate(HEAVY, requests)]
    alone = [pixels(made.generate(HEAVY, [it])[0].image) for it in requests]
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 3), (0.67, 2), (0.66, 1), (0.01, 1)])
def test_an_edit_runs_the_last_steps_and_at_least_one(strength: float, steps: int) -> None:
    made = engine(sd_pipeline())
    [output] = made.generate(HEAVY, [image_request(edit=edit(strength=strength))])
    assert (output.steps, output.first) == (steps, STEPS - steps)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (Edit(b"nothing", None, 0.5), "edit.image"),
        (Edit(png(gradient(SQUARE))[:80], None, 0.5), "edit.image"),
        (Edit(png(gradient(WIDE)), None, 0.5), "edit.image"),
        (Edit(png(gradient(SQUARE)), png(mask(WIDE)), 0.5), "edit.mask"),
    ],
    ids=["no image", "cut off", "another size", "mask of another size"],
)
def test_a_damaged_picture_fails_its_own_request_only(given: Edit, param: str) -> None:
    made = engine(sd_pipeline())
    failed, fine = made.generate(HEAVY, [image_request("a", edit=given), image_request("b")])
    assert failed.error is not None
    assert failed.error[0] == InvalidRequest.code
    assert failed.error[1].startswith(param)
    assert fine.error is None


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.01, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    request = image_request(edit=edit(strength=strength))
    with pytest.raises(InvalidRequest, match="strength"):
        denoise_job(engine(sd_pipeline()).config, HEAVY, request)


def test_an_edit_resumes_from_no_state() -> None:
    request = image_request(edit=edit(strength=0.5), resume=Resume("key", 1))
    with pytest.raises(InvalidRequest, match="an edit starts from its picture"):
        denoise_job(engine(sd_pipeline()).config, HEAVY, request)


def test_an_edit_reaches_a_worker_as_it_was_sent() -> None:
    request = image_request(edit=edit(strength=0.5, masked=True), overrides=Overrides(steps=2))
    assert ImageRequest.from_dict(request.to_dict(0.0), 0.0) == request
    plain = replace(request, edit=None)
    assert ImageRequest.from_dict(plain.to_dict(0.0), 0.0) == plain
