"""The denoiser with real models: equal to diffusers, independent of the batch, and resumable at any step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from testing.tiny_models import SIZE, sd_pipeline, sdxl_pipeline
from tests.workers.samples import image_request
from weir.config import FamilyConfig
from weir.core import ImageRequest, Overrides, Resume, WarmStart
from weir.errors import InvalidRequest, StateRefused, WeirError
from weir.plan import HEAVY, LIGHT
from weir.prompts import Prompt
from weir.states import State, capture_steps
from workers.engine.engine import DenoiseJob, denoise_job, recipe
from workers.engine.samplers import TCD_GAMMA, Sampler, scheduler_for
from workers.engine.scheduler_settings import SAMPLERS
from workers.models.architectures.stable_diffusion_xl import StableDiffusionXL
from workers.models.family import Family

STEPS = 10
#: Samplers of DDPM's noise schedule, which SDXL and Stable Diffusion have.
DDPM = [name for name, it in SAMPLERS.items() if not it.of_flows]
#: Largest difference of two latents (of standard deviation about 1) of one request in different batches or by
#: diffusers: float32 sums in another order.
NOISE = 1e-4
#: Largest difference after a resume, because states are stored in float16.
HALF = 2e-2


def config(scheduler: Any = "ddim", samplers: Sequence[Any] = (), **heavy: Any) -> FamilyConfig:
    variant = {"name": "v", "scheduler": scheduler, "steps": STEPS, "guidance": 2.0}
    variants = {"light": variant | {"name": "l"}, "heavy": variant | heavy}
    return FamilyConfig.model_validate(
        {"name": "tiny", "pipeline": "-", "size": SIZE, "samplers": list(samplers), **variants}
    )


def family(pipeline: Any = None, scheduler: Any = "ddim", samplers: Sequence[Any] = (), **fields: Any) -> Family:
    whole = pipeline or sdxl_pipeline()
    whole.scheduler = scheduler_for(scheduler, whole.scheduler.config)
    whole.set_progress_bar_config(disable=True)
    return Family(config(scheduler, samplers), dict.fromkeys((LIGHT, HEAVY), whole), **fields)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return family()


def run(engine: Family, jobs: Sequence[DenoiseJob]) -> list[Any]:
    """Runs the jobs together to their ends and returns the samples."""
    samples: list[Any] = [s for s in engine.begin(jobs) if not isinstance(s, WeirError)]
    assert len(samples) == len(jobs)
    while live := [s for s in samples if s.step < s.job.recipe.steps]:
        assert engine.step(live) == [None] * len(live)
    return samples


def job_for(name: str = "a", state: State | None = None, variant: str = HEAVY, **fields: Any) -> DenoiseJob:
    return denoise_job(config(), variant, image_request(name, **fields), state)


def plain(pipeline: Any) -> Any:
    """The pipeline without a zero terminal SNR, which not every sampler follows."""
    pipeline.scheduler.register_to_config(rescale_betas_zero_snr=False)
    return pipeline


def sampler_of(engine: Family) -> Sampler:
    return engine.sampler(recipe(engine.config, HEAVY, image_request()))


def diffusers_latent(engine: Family, request: ImageRequest, steps: int = STEPS, guidance: float = 2.0) -> torch.Tensor:
    """The finished latent of the diffusers pipeline."""
    whole, noises = engine.pipelines[HEAVY], torch.Generator().manual_seed(request.seed)
    latents = torch.randn((4, SIZE // 2, SIZE // 2), generator=noises)[None]
    name = recipe(engine.config, HEAVY, request).sampler
    own, whole.scheduler = whole.scheduler, scheduler_for(name, whole.scheduler.config)
    result = whole(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or None,
        latents=latents,
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
        generator=noises,
        **({"eta": TCD_GAMMA} if name == "tcd" else {}),
    )
    whole.scheduler = own
    return result.images[0]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max()) / max(1.0, float(b.std()))


# ------------------------------------------------------------------------------------------- equality


@pytest.mark.parametrize("scheduler", DDPM)
@pytest.mark.parametrize("kind", [sdxl_pipeline, sd_pipeline], ids=["sdxl, v", "sd, epsilon"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_run_gives_the_latent_of_the_diffusers_pipeline(scheduler: str, kind: Any, guidance: float) -> None:
    engine = family(plain(kind()), scheduler)
    request = image_request(negative_prompt="blurry", overrides=Overrides(guidance=guidance))
    [sample] = run(engine, [denoise_job(engine.config, HEAVY, request)])
    assert difference(sample.latent, diffusers_latent(engine, request, guidance=guidance)) < NOISE


def test_images_of_different_samplers_share_calls_and_each_is_that_of_diffusers() -> None:
    engine = family(plain(sdxl_pipeline()), samplers=DDPM)
    requests = [image_request(name, seed=i, overrides=Overrides(sampler=name)) for i, name in enumerate(DDPM)]
    jobs = [denoise_job(engine.config, HEAVY, request) for request in requests]
    assert len({engine.call_of(job) for job in jobs}) == 1
    early, late = jobs[::2], jobs[1::2]
    samples = engine.begin(early)
    for _ in range(3):
        engine.step(samples)  # type: ignore[arg-type]
    samples += engine.begin(late)
    while running := [it for it in samples if it.step < STEPS]:  # type: ignore[union-attr]
        engine.step(running)  # type: ignore[arg-type]
    for job, sample in zip([*early, *late], samples, strict=True):
        assert difference(sample.latent, diffusers_latent(engine, job.request)) < NOISE, job.recipe.sampler  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("sampler", "steps", "named"),
    [("unipc", None, "sampler is unipc; heavy of tiny has ddim, lcm"), ("lcm", 51, "lcm accepts 1 to 50")],
)
def test_a_sampler_that_the_family_does_not_allow_or_that_has_no_such_run_is_refused(
    sampler: Any, steps: int | None, named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        denoise_job(config(samplers=["lcm"]), HEAVY, image_request(overrides=Overrides(steps, sampler=sampler)))


def test_images_of_different_steps_prompts_and_guidance_do_not_change_by_sharing_calls(tiny: Family) -> None:
    jobs = [
        job_for("a", overrides=Overrides(steps=4)),
        job_for("b", overrides=Overrides(guidance=1.0), seed=8),
        job_for("c", overrides=Overrides(7, 5.0), negative_prompt="blurry"),
        job_for("d", overrides=Overrides(1, 0.0)),
    ]
    for together, alone in zip(run(tiny, jobs), jobs, strict=True):
        recipe = alone.recipe
        assert difference(together.latent, run(tiny, [alone])[0].latent) < NOISE
        assert difference(together.latent, diffusers_latent(tiny, alone.request, recipe.steps, recipe.guidance)) < NOISE


def test_an_image_that_joins_late_does_not_change(tiny: Family) -> None:
    first, late = job_for("a"), job_for("b", seed=8)
    [running, joining] = tiny.begin([first, late])
    for _ in range(3):
        tiny.step([running])
    while running.step < STEPS:  # type: ignore[union-attr]
        tiny.step([joining, running])
    while joining.step < STEPS:  # type: ignore[union-attr]
        tiny.step([joining])
    for sample, job in ((running, first), (joining, late)):
        assert difference(sample.latent, run(tiny, [job])[0].latent) < NOISE  # type: ignore[union-attr]


# --------------------------------------------------------------------------------- capture and resume


@pytest.fixture(scope="module")
def states(tiny: Family) -> dict[int, State]:
    [output] = tiny.generate(HEAVY, [image_request(capture="p")])
    return {state.step: state for state in output.states}


def test_states_are_captured_at_the_same_shares_of_every_run(states: dict[int, State]) -> None:
    assert tuple(states) == capture_steps(STEPS) == (1, 2, 3, 4, 5)
    assert capture_steps(50) == (5, 10, 15, 20, 25)
    assert all(s.latent.shape == (4, SIZE // 2, SIZE // 2) and s.latent.dtype == np.float16 for s in states.values())


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler-trailing", "euler-ancestral", "lcm", "tcd"])
def test_a_resumed_run_of_a_one_step_sampler_gives_the_latent_of_the_uninterrupted_run(scheduler: str) -> None:
    engine = family(sd_pipeline(), scheduler)
    [whole] = run(engine, [denoise_job(engine.config, HEAVY, image_request(capture="p"))])
    [output] = [f.result() for f in engine.finish([whole])]
    for state in output.states:
        request = image_request(resume=Resume("-", state.step))
        [sample] = run(engine, [denoise_job(engine.config, HEAVY, request, state)])
        assert difference(sample.latent, whole.latent) < HALF
        assert sample.job.first == state.step


def test_a_run_resumed_from_the_exact_latent_is_bit_for_bit_the_uninterrupted_run(tiny: Family) -> None:
    [whole] = run(tiny, [job_for()])
    [stopped] = tiny.begin([job_for()])
    for _ in range(5):
        tiny.step([stopped])
    [resumed] = tiny.begin([job_for()])
    resumed.latent, resumed.step = stopped.latent.clone(), 5  # type: ignore[union-attr]
    while resumed.step < STEPS:  # type: ignore[union-attr]
        tiny.step([resumed])
    assert torch.equal(resumed.latent, whole.latent)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["ddim", "euler-trailing", "dpmpp-2m-karras", "unipc"])
def test_resuming_equals_denoising_start_of_diffusers(name: Any) -> None:
    """A multistep sampler begins at the state without a history: its first step is of first order."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    engine = family(scheduler=name)
    [output] = engine.generate(HEAVY, [image_request(capture="p")])
    [state] = [it for it in output.states if it.step == 4]
    parts = engine.pipelines[HEAVY].components
    theirs = StableDiffusionXLImg2ImgPipeline(
        **{k: v for k, v in parts.items() if k not in ("feature_extractor", "image_encoder")}, add_watermarker=False
    )
    theirs.set_progress_bar_config(disable=True)
    scheduler = theirs.scheduler
    scheduler.set_timesteps(STEPS)
    expected = theirs(
        prompt="a red a",
        image=torch.from_numpy(state.latent)[None].float(),
        num_inference_steps=STEPS,
        denoising_start=1 - (float(scheduler.timesteps[4]) + 1) / 1000,
        guidance_scale=2.0,
        output_type="latent",
        original_size=(SIZE, SIZE),
        target_size=(SIZE, SIZE),
    ).images[0]
    request = image_request(resume=Resume("-", 4))
    [sample] = run(engine, [denoise_job(engine.config, HEAVY, request, state)])
    assert difference(sample.latent, expected) < NOISE


def test_different_prompts_give_different_latents_from_the_same_state(tiny: Family, states: dict[int, State]) -> None:
    same, other = run(tiny, [job_for(n, state=states[3], resume=Resume("-", 3), seed=9) for n in ("a", "b")])
    assert not torch.equal(same.latent, other.latent)


def test_a_resumed_run_with_a_stride_equals_the_end_of_a_shorter_run(tiny: Family, states: dict[int, State]) -> None:
    """The shorter run has the same noise levels at the steps that remain."""
    [output] = run(tiny, [job_for(state=states[4], resume=Resume("-", 4, 2))])
    as_shorter = replace(states[4], step=2, steps=STEPS // 2)
    [shorter] = run(tiny, [job_for(state=as_shorter, resume=Resume("-", 2), overrides=Overrides(steps=STEPS // 2))])
    assert torch.equal(output.latent, shorter.latent)
    [output] = tiny.generate(HEAVY, [image_request(resume=Resume("-", 4, 2), capture="p")], [states[4]])
    assert (output.first, output.steps, output.states) == (4, 3, ())


def test_a_run_whose_state_is_missing_runs_all_steps(tiny: Family) -> None:
    [output] = tiny.generate(HEAVY, [image_request(resume=Resume("lost", 4, 2))])
    assert (output.first, output.steps) == (0, STEPS)


def test_a_stride_is_refused_if_the_shorter_schedule_has_other_noise_levels(states: dict[int, State]) -> None:
    leading = sdxl_pipeline()
    leading.scheduler.register_to_config(timestep_spacing="leading")
    other = family(leading)
    fit = replace(states[4], sampler=sampler_of(other).id, model=other.models[HEAVY])
    [refused] = other.begin([job_for(state=fit, resume=Resume("-", 4, 2))])
    assert isinstance(refused, StateRefused)
    assert "noise level" in refused.message


@pytest.mark.parametrize("stride", [0, 3, 4])
def test_a_stride_that_does_not_divide_the_run_is_refused(stride: int) -> None:
    with pytest.raises(InvalidRequest, match="must divide"):
        job_for(resume=Resume("-", 6, stride))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"latent": np.zeros((4, 3, 3), np.float16)}, "shape"),
        ({"latent": np.zeros((4, SIZE // 2, SIZE // 2), np.float32)}, "dtype"),
        ({"latent": np.full((4, SIZE // 2, SIZE // 2), np.nan, np.float16)}, "not finite"),
        ({"latent": np.full((4, SIZE // 2, SIZE // 2), np.inf, np.float16)}, "not finite"),
        ({"step": 3}, "step"),
        ({"steps": 50}, "number of steps"),
        ({"sampler": "Euler-epsilon-0"}, "sampler"),
        ({"model": "another"}, "model"),
    ],
)
def test_a_latent_that_does_not_fit_is_refused_without_affecting_other_requests(
    tiny: Family, states: dict[int, State], changed: dict[str, Any], named: str
) -> None:
    bad = job_for("bad", state=replace(states[4], **changed), resume=Resume("-", 4))
    fine, refused = tiny.begin([job_for("fine"), bad])
    assert isinstance(refused, StateRefused)
    assert named in refused.message
    assert not isinstance(fine, WeirError)


def test_a_lora_merged_into_the_attention_changes_the_models_id(tiny: Family) -> None:
    merged = sdxl_pipeline()
    with torch.no_grad():
        for name, weight in merged.unet.named_parameters():
            if "to_q" in name:
                weight += 0.01
    assert family(sdxl_pipeline()).models == tiny.models
    assert family(merged).models != tiny.models


# ----------------------------------------------------------------------------------------- warm start


def test_a_warm_start_re_noises_the_light_image_to_the_level_of_its_step(tiny: Family) -> None:
    [light] = tiny.generate(LIGHT, [image_request(keep_latent=True)])
    assert light.latent is not None
    assert light.latent.step == light.latent.steps
    finished = light.latent.to_bytes()
    [sample] = tiny.begin([job_for(warm_start=WarmStart(finished, 6))])
    schedule = sampler_of(tiny).schedule(STEPS)
    noise = torch.randn((4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(7))
    expected = float(schedule.signal[6]) * torch.from_numpy(light.latent.latent).float()
    expected += float(schedule.noise[6]) * noise
    assert difference(sample.latent, expected) < 1e-6  # type: ignore[union-attr]
    [output] = tiny.generate(HEAVY, [image_request(warm_start=WarmStart(finished, 6))])
    assert (output.first, output.steps) == (6, STEPS - 6)


def test_a_warm_start_that_is_no_finished_latent_is_refused(tiny: Family, states: dict[int, State]) -> None:
    with pytest.raises(StateRefused, match="not a stored state"):
        job_for(warm_start=WarmStart(b"nonsense", 6))
    [refused] = tiny.begin([job_for(warm_start=WarmStart(states[3].to_bytes(), 6))])
    assert isinstance(refused, StateRefused)
    assert "step is 3" in refused.message


# ----------------------------------------------------------- encoding, failures, decoding and previews


def test_a_prompt_is_encoded_once(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = StableDiffusionXL.encode

    def counted(model: Any, prompts: list[Prompt]) -> Any:
        asked.extend(part.text for prompt in prompts for part in prompt)
        return real(model, prompts)

    monkeypatch.setattr(StableDiffusionXL, "encode", counted)
    once = [job_for("new", prompt="a new one", negative_prompt="old"), job_for("same", prompt="a new one")]
    tiny.begin(once)
    tiny.begin(once)
    assert sorted(asked) == ["a new one", "old"]


def test_an_image_with_non_finite_values_fails_alone_at_that_step(tiny: Family) -> None:
    good, bad = tiny.begin([job_for("a"), job_for("b")])
    bad.latent = torch.full_like(bad.latent, float("inf"))  # type: ignore[union-attr]
    errors = tiny.step([good, bad])
    assert errors[0] is None
    assert errors[1] is not None
    assert errors[1].code == "not_finite"


def test_decoding_in_another_thread_gives_the_same_images(tiny: Family) -> None:
    aside = family(decode_aside=True)
    requests = [image_request("a"), image_request("b")]
    assert [d.image for d in aside.generate(HEAVY, requests)] == [d.image for d in tiny.generate(HEAVY, requests)]


def test_a_preview_is_a_small_image_of_the_estimated_result() -> None:
    engine = family()
    [sample] = engine.begin([job_for()])
    assert engine.preview(sample) is None  # no image was decoded yet, so the map to colours is unknown
    engine.generate(HEAVY, [image_request()])
    assert engine.preview(sample) is None  # no step yet
    engine.step([sample])
    png = engine.preview(sample)
    assert png is not None
    assert Image.open(io.BytesIO(png)).size == (SIZE // 2, SIZE // 2)


def test_previews_of_a_linear_decoder_are_exact() -> None:
    from workers.engine.previews import Previews

    latents, weights = torch.randn(2, 4, 8, 8), torch.randn(3, 4)
    colours = torch.einsum("oc,bchw->bohw", weights, latents) + 0.5
    previews = Previews()
    previews.learn(latents, colours.repeat_interleave(4, 2).repeat_interleave(4, 3))
    result = previews.image(latents)
    assert result is not None
    assert (result - colours).abs().max() < 1e-3
