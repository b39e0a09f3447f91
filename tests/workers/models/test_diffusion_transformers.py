"""Images of diffusion transformers are those of diffusers' own pipelines, however their requests share calls."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import peft  # noqa: F401  diffusers loads adapters with it
import pytest
import torch
from PIL import Image

from testing.pictures import gradient, mask, png
from testing.random_adapters import flux_kohya_adapter, random_adapter, write_peft
from testing.tiny_models import SIZE, WIDTH
from testing.tiny_transformers import (
    FACTOR,
    flow_scheduler,
    flux_pipeline,
    schnell_pipeline,
    sd3_pipeline,
    z_image_pipeline,
)
from tests.workers.samples import family, image_request, variant
from weir.adapters import AdapterUse, AdapterWeights
from weir.core import Edit, ImageRequest, ImageSize, Overrides, Resume, WarmStart
from weir.errors import InvalidRequest
from weir.plan import HEAVY, LIGHT
from weir.states import State
from workers.engine.engine import denoise_job
from workers.models.architectures.registry import ARCHITECTURES, adapt
from workers.models.family import Family

STEPS = 5
SQUARE, WIDE, TALL = ImageSize(SIZE, SIZE), ImageSize(2 * SIZE, SIZE), ImageSize(SIZE - FACTOR, SIZE + 3 * FACTOR)
SIZES = (SQUARE, WIDE, TALL)
#: Largest difference of two latents of one request, whose standard deviation is about 1: float32 sums in another order.
ROUNDING = 2e-5
#: Largest difference after a resume from a state in float16.
HALF = 2e-2


class Kind(NamedTuple):
    """An architecture under test.

    Attributes:
        how: further arguments of its pipeline's call.
        negative: whether requests may have a negative prompt.
    """

    build: Callable[..., Any]
    guidance: float
    how: dict[str, Any]
    negative: bool


KINDS = {
    "flux-dev": Kind(flux_pipeline, 3.5, {"max_sequence_length": 512}, False),
    "flux-schnell": Kind(schnell_pipeline, 0.0, {"max_sequence_length": 256}, False),
    "sd3": Kind(sd3_pipeline, 3.5, {}, True),
    "z-image": Kind(z_image_pipeline, 4.0, {}, True),
}
EACH = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def engine(kind: Kind, pipeline: Any = None, **fields: Any) -> Family:
    whole = pipeline or kind.build()
    whole.set_progress_bar_config(disable=True)
    heavy = {"steps": STEPS, "guidance": kind.guidance, "scheduler": "flow-euler"} | fields
    light = heavy | {"steps": 2, "guidance": 0}
    config = family("-", variant("l", **light), variant("h", **heavy), sizes=(WIDE, TALL))
    return Family(config, dict.fromkeys((LIGHT, HEAVY), whole))


def asked(kind: Kind, name: str = "a", **fields: Any) -> ImageRequest:
    return image_request(name, **({"negative_prompt": "blur"} if kind.negative else {}) | fields)


def theirs(made: Family, kind: Kind, request: ImageRequest, key: str = HEAVY, **how: Any) -> torch.Tensor:
    """The finished latent [C, H/f, W/f] of diffusers' pipeline."""
    own, size = made.config.variants[key], request.size
    guidance = own.guidance if request.overrides.guidance is None else request.overrides.guidance
    pipeline = made.pipelines[key]
    latent = pipeline(
        prompt=request.prompt,
        **({"negative_prompt": request.negative_prompt} if kind.negative else {}),
        **size._asdict(),
        num_inference_steps=own.steps if request.overrides.steps is None else request.overrides.steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
        **kind.how,
        **how,
    ).images
    return unpacked(pipeline, latent, size)[0]


def unpacked(pipeline: Any, latents: torch.Tensor, size: ImageSize) -> torch.Tensor:
    """Latents [B, C, H/f, W/f] of a pipeline, which FLUX packs."""
    if not type(pipeline).__name__.startswith("Flux"):
        return latents
    return pipeline._unpack_latents(latents, size.height, size.width, pipeline.vae_scale_factor)


def apart(sample: Any, latent: torch.Tensor) -> float:
    assert sample.latent.shape == latent.shape
    return float((sample.latent - latent).abs().max())


def ended(made: Family, samples: list[Any]) -> list[Any]:
    """The samples when all of their steps have run, those that are left together."""
    while running := [it for it in samples if it.step < it.job.recipe.steps]:
        assert made.step(running) == [None] * len(running)
    return samples


# ------------------------------------------------------------------------------------------- equality


@EACH
@pytest.mark.parametrize("key", [LIGHT, HEAVY])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_run_gives_the_latent_of_the_diffusers_pipeline(kind: Kind, key: str, size: ImageSize) -> None:
    made, request = engine(kind), asked(kind, size=size)
    [sample] = ended(made, [*made.begin([denoise_job(made.config, key, request)])])
    assert apart(sample, theirs(made, kind, request, key)) < ROUNDING


@EACH
def test_images_that_join_late_at_other_steps_and_guidance_are_those_of_diffusers(kind: Kind) -> None:
    made = engine(kind)
    requests = [
        asked(kind, "a"),
        asked(kind, "b", seed=1, overrides=Overrides(steps=3), prompt="a much longer prompt " * 9),
        asked(kind, "c", seed=2, overrides=Overrides(guidance=2.5, steps=7)),
        asked(kind, "d", seed=3, overrides=Overrides(guidance=0.0)),
    ]
    jobs = [denoise_job(made.config, HEAVY, it) for it in requests]
    assert len({made.call_of(it) for it in jobs}) == 1
    samples: list[Any] = [*made.begin(jobs[:2])]
    made.step(samples)
    samples += made.begin(jobs[2:3])
    made.step(samples)
    samples += made.begin(jobs[3:])
    assert len({it.step for it in samples}) > 1
    for request, sample in zip(requests, ended(made, samples), strict=True):
        assert apart(sample, theirs(made, kind, request)) < ROUNDING


@EACH
@pytest.mark.parametrize("k", [1, 3])
def test_a_run_that_resumes_at_k_gives_the_latent_of_diffusers_from_that_state(kind: Kind, k: int) -> None:
    """Diffusers' own run, with its latent rounded to float16 as the state is, when K steps have run."""
    made, request = engine(kind), asked(kind, size=TALL, resume=Resume("key", k))
    states: list[torch.Tensor] = []

    def rounded(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step != k - 1:
            return {}
        states.append(tensors["latents"].half())
        return {"latents": states[0].float()}

    expected = theirs(made, kind, request, callback_on_step_end=rounded)
    latent = unpacked(made.pipelines[HEAVY], states[0], TALL)[0].numpy()
    state = State(latent, k, STEPS, made._samplers[HEAVY, "flow-euler"].id, made.models[HEAVY])
    [sample] = ended(made, [*made.begin([denoise_job(made.config, HEAVY, request, state)])])
    assert apart(sample, expected) < ROUNDING
    assert apart(sample, theirs(made, kind, request)) < HALF


@EACH
def test_captured_states_are_those_that_diffusers_has_at_their_steps(kind: Kind) -> None:
    made, request = engine(kind), asked(kind, capture="partition")
    latents: list[torch.Tensor] = []

    def kept(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(unpacked(pipeline, tensors["latents"], SQUARE)[0])
        return {}

    theirs(made, kind, request, callback_on_step_end=kept)
    [output] = made.generate(HEAVY, [request])
    assert [it.step for it in output.states] == [1, 2]
    for state in output.states:
        assert float((torch.from_numpy(state.latent).float() - latents[state.step - 1]).abs().max()) < 5e-3


@EACH
def test_a_warm_start_begins_between_the_light_image_and_noise(kind: Kind) -> None:
    made = engine(kind)
    [light] = made.generate(LIGHT, [asked(kind, keep_latent=True)])
    assert light.latent is not None
    request = asked(kind, warm_start=WarmStart(light.latent.to_bytes(), 2))
    [sample] = made.begin([denoise_job(made.config, HEAVY, request)])
    sigma = float(made._schedule(sample.job.recipe, STEPS).noise[2])  # type: ignore[union-attr]
    noise = torch.randn(sample.latent.shape, generator=torch.Generator().manual_seed(7))  # type: ignore[union-attr]
    expected = (1 - sigma) * torch.from_numpy(light.latent.latent).float() + sigma * noise
    assert 0 < sigma < 1
    assert apart(sample, expected) < ROUNDING


@EACH
@pytest.mark.parametrize("size", [SQUARE, WIDE], ids=str)
def test_an_image_is_that_of_diffusers_and_has_previews(kind: Kind, size: ImageSize) -> None:
    made, request = engine(kind), asked(kind, size=size)
    latent = theirs(made, kind, request)[None]
    vae = made.pipelines[HEAVY].vae
    with torch.inference_mode():
        image = vae.decode(latent / vae.config.scaling_factor + vae.config.shift_factor).sample[0]
    expected = (image / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255
    [output] = made.generate(HEAVY, [request])
    assert np.abs(np.asarray(Image.open(io.BytesIO(output.image)), float) - expected).max() <= 1
    [sample] = made.begin([denoise_job(made.config, HEAVY, request)])
    assert made.step([sample]) == [None]  # type: ignore[list-item]
    preview = made.preview(sample)  # type: ignore[arg-type]
    assert preview is not None
    assert Image.open(io.BytesIO(preview)).size == (size.width // 2, size.height // 2)


@EACH
def test_everything_that_conditions_the_model_changes_the_latent(kind: Kind) -> None:
    """A model that ignored its conditions would make the equalities of this file worthless."""
    made = engine(kind)
    requests = [asked(kind), asked(kind, prompt="another"), asked(kind, seed=8)]
    if kind.guidance:
        requests.append(asked(kind, overrides=Overrides(guidance=kind.guidance + 1)))
    if kind.negative:
        requests.append(asked(kind, negative_prompt="another"))
    first, *others = ended(made, [*made.begin([denoise_job(made.config, HEAVY, it) for it in requests])])
    assert all(apart(it, first.latent) > 100 * ROUNDING for it in others), [apart(it, first.latent) for it in others]


def test_the_shift_of_flux_depends_on_the_size_and_its_images_are_still_those_of_diffusers() -> None:
    made = engine(KINDS["flux-dev"])
    adapter = adapt(made.pipelines[HEAVY])
    shifts = {size: adapter.spacing(size).mu for size in SIZES}
    assert len({*shifts.values()}) == 3


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flux-dev", {"use_dynamic_shifting": True, "shift_terminal": 0.1}),
        ("flux-dev", {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.4}),
        ("flux-schnell", {"use_beta_sigmas": True}),
        ("sd3", {"use_dynamic_shifting": True, "base_image_seq_len": 32}),
        ("sd3", {"shift": 5.0, "use_karras_sigmas": True}),
        ("z-image", {"shift": 6.0}),
        ("z-image", {"use_dynamic_shifting": True, "max_shift": 0.9}),
    ],
    ids=str,
)
def test_every_setting_of_the_scheduler_is_followed(name: str, settings: dict[str, Any]) -> None:
    kind = KINDS[name]
    pipeline = kind.build()
    pipeline.scheduler = flow_scheduler(**settings)
    made, request = engine(kind, pipeline), asked(kind, size=WIDE)
    [sample] = ended(made, [*made.begin([denoise_job(made.config, HEAVY, request)])])
    assert apart(sample, theirs(made, kind, request)) < ROUNDING


def test_a_transformer_of_stable_diffusion_3_without_dual_attention_is_served_too() -> None:
    kind = KINDS["sd3"]
    made, request = engine(kind, sd3_pipeline(dual=False)), asked(kind)
    [sample] = ended(made, [*made.begin([denoise_job(made.config, HEAVY, request)])])
    assert apart(sample, theirs(made, kind, request)) < ROUNDING


# --------------------------------------------------------------------------------------------- edits


@EACH
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("size", "strength"), [(SQUARE, 0.6), (WIDE, 0.4), (SQUARE, 1.0)], ids=str)
def test_an_edit_is_that_of_diffusers(kind: Kind, size: ImageSize, strength: float, masked: bool) -> None:
    made = engine(kind)
    given = Edit(png(gradient(size)), png(mask(size)) if masked else None, strength)
    request = asked(kind, size=size, edit=given)
    pipeline = made.pipelines[HEAVY]
    name = type(pipeline).__name__.replace("Pipeline", "InpaintPipeline" if masked else "Img2ImgPipeline")
    whole = getattr(diffusers, name)(**pipeline.components)
    whole.set_progress_bar_config(disable=True)
    expected = whole(
        prompt=request.prompt,
        image=gradient(size),
        strength=strength,
        **({"negative_prompt": request.negative_prompt} if kind.negative else {}),
        **({"mask_image": mask(size)} if masked else {}),
        **size._asdict(),
        num_inference_steps=STEPS,
        guidance_scale=kind.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
        **kind.how,
    ).images
    [sample] = ended(made, [*made.begin([denoise_job(made.config, HEAVY, request)])])
    assert apart(sample, unpacked(whole, expected, size)[0]) < ROUNDING


# ------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("name", ["flux-dev", "sd3"])
def test_images_with_different_adapters_share_calls_and_are_those_of_diffusers(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    made, plain = engine(kind), asked(kind)
    tensors = random_adapter(made.pipelines[HEAVY], 1, text=False)
    weights = AdapterWeights(str(write_peft(tensors, tmp_path / "a.safetensors")))
    scales = (0.7, -0.4)
    requests = [asked(kind, str(scale), adapters=(AdapterUse("a", scale, weights),)) for scale in scales]
    jobs = [denoise_job(made.config, HEAVY, it) for it in (*requests, plain)]
    *adapted, unchanged = ended(made, [*made.begin(jobs)])
    assert apart(unchanged, theirs(made, kind, plain)) < ROUNDING
    pipeline = kind.build()
    other = engine(kind, pipeline)
    pipeline.load_lora_weights(dict(tensors), adapter_name="a")
    for request, scale, sample in zip(requests, scales, adapted, strict=True):
        pipeline.set_adapters(["a"], [scale])
        assert apart(sample, theirs(other, kind, request)) < 10 * ROUNDING
        assert apart(sample, unchanged.latent) > 0.1


@pytest.mark.parametrize("rank", [3, 4], ids=["divisible by the layers of qkv", "not divisible"])
def test_an_adapter_of_flux_in_kohyas_names_is_applied_as_diffusers_does_it(rank: int, tmp_path: Path) -> None:
    kind = KINDS["flux-dev"]
    made, tensors = engine(kind), flux_kohya_adapter(rank, width=WIDTH)
    weights = AdapterWeights(str(write_peft(tensors, tmp_path / "a.safetensors")))
    request = asked(kind, adapters=(AdapterUse("a", 0.7, weights),))
    [sample] = ended(made, [*made.begin([denoise_job(made.config, HEAVY, request)])])
    pipeline = kind.build()
    other = engine(kind, pipeline)
    plain = theirs(other, kind, request)
    pipeline.load_lora_weights(dict(tensors), adapter_name="a")
    pipeline.set_adapters(["a"], [0.7])
    assert apart(sample, theirs(other, kind, request)) < 10 * ROUNDING
    assert apart(sample, plain) > 0.01


# ------------------------------------------------------------------------------------------- refusals


def error_of(made: Family, request: ImageRequest) -> tuple[str, str] | None:
    failed, fine = made.generate(HEAVY, [request, image_request("fine")])
    assert fine.error is None
    return failed.error


@EACH
def test_weights_in_a_prompt_are_refused_for_their_own_request_only(kind: Kind) -> None:
    error = error_of(engine(kind), image_request(prompt="a (red:1.4) circle", prompt_syntax="weighted"))
    assert error is not None
    assert error[0] == InvalidRequest.code
    assert error[1].startswith("prompt has weights, which")
    assert error_of(engine(kind), image_request(prompt="a red circle", prompt_syntax="weighted")) is None


@pytest.mark.parametrize("name", ["flux-dev", "flux-schnell"])
def test_a_negative_prompt_is_refused_where_it_would_have_no_effect(name: str) -> None:
    error = error_of(engine(KINDS[name]), image_request(negative_prompt="blur"))
    assert error == (
        InvalidRequest.code,
        "negative_prompt has no effect in Flux, whose guidance needs none; leave it out",
    )


@EACH
def test_tokens_beyond_the_window_are_counted(kind: Kind) -> None:
    made = engine(kind)
    long, short = made.generate(LIGHT, [image_request(prompt="x" * 600), image_request("b", prompt="x" * 200)])
    assert long.unused_tokens > 0
    assert short.unused_tokens == 0


def test_guidance_of_z_image_counts_from_zero_and_that_of_the_others_from_one() -> None:
    factors = {name: [adapt(kind.build()).guidance_factor(it) for it in (0, 1, 3)] for name, kind in KINDS.items()}
    assert factors == {
        "flux-dev": [None] * 3,
        "flux-schnell": [None] * 3,
        "sd3": [None, None, 3],
        "z-image": [None, 2, 4],
    }


def test_each_architecture_is_found_by_diffusers_name_of_its_pipeline() -> None:
    for kind in KINDS.values():
        pipeline = kind.build()
        assert type(adapt(pipeline)) is ARCHITECTURES[type(pipeline).__name__]
