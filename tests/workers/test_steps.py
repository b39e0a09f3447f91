"""Real models step by step: equal to diffusers, whoever shares the call, wherever the run begins."""

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
from weir.states import State, capture_steps
from workers.engine.engine import DenoiseJob, order_for
from workers.models.family import Family
from workers.models.weights import scheduler_for

STEPS = 10
#: The largest difference of two latents (of standard deviation about 1) of one request that were drawn in different
#: company, or by diffusers: float32 sums in another order.
NOISE = 1e-4
#: The same after a resume, for states are kept in float16.
HALF = 2e-2


def config(**heavy: Any) -> FamilyConfig:
    variant = {"name": "v", "scheduler": "ddim", "steps": STEPS, "guidance": 2.0}
    return FamilyConfig.model_validate(
        {"name": "tiny", "pipeline": "-", "size": SIZE, "light": variant | {"name": "l"}, "heavy": variant | heavy}
    )


def family(pipeline: Any = None, scheduler: Any = "ddim", **fields: Any) -> Family:
    whole = pipeline or sdxl_pipeline()
    whole.scheduler = scheduler_for(scheduler, whole.scheduler.config)
    whole.set_progress_bar_config(disable=True)
    return Family(config(), dict.fromkeys((LIGHT, HEAVY), whole), **fields)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return family()


def draw(engine: Family, orders: Sequence[DenoiseJob]) -> list[Any]:
    """The samples at the end of their runs; all of them together, however many steps each has left."""
    samples: list[Any] = [s for s in engine.begin(orders) if not isinstance(s, WeirError)]
    assert len(samples) == len(orders)
    while live := [s for s in samples if s.step < s.order.recipe.steps]:
        assert engine.step(live) == [None] * len(live)
    return samples


def ordered(name: str = "a", state: State | None = None, variant: str = HEAVY, **fields: Any) -> DenoiseJob:
    return order_for(config(), variant, image_request(name, **fields), state)


def piped(engine: Family, request: ImageRequest, steps: int = STEPS, guidance: float = 2.0) -> torch.Tensor:
    """The latent that diffusers' own pipeline finishes with."""
    whole = engine.pipelines[HEAVY]
    latents = torch.randn((4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(request.seed))[None]
    made = whole(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or None,
        latents=latents,
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    )
    return made.images[0]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max()) / max(1.0, float(b.std()))


# ------------------------------------------------------------------------------------------- equality


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler-trailing"])
@pytest.mark.parametrize("kind", [sdxl_pipeline, sd_pipeline], ids=["sdxl, v", "sd, epsilon"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_run_is_the_one_of_diffusers(scheduler: str, kind: Any, guidance: float) -> None:
    engine = family(kind(), scheduler)
    request = image_request(negative_prompt="blurry", overrides=Overrides(guidance=guidance))
    [sample] = draw(engine, [order_for(config(), HEAVY, request)])
    assert apart(sample.latent, piped(engine, request, guidance=guidance)) < NOISE


def test_images_of_different_steps_prompts_and_guidance_share_calls_and_stay_what_they_are(tiny: Family) -> None:
    orders = [
        ordered("a", overrides=Overrides(steps=4)),
        ordered("b", overrides=Overrides(guidance=1.0), seed=8),
        ordered("c", overrides=Overrides(7, 5.0), negative_prompt="blurry"),
        ordered("d", overrides=Overrides(1, 0.0)),
    ]
    for together, alone in zip(draw(tiny, orders), orders, strict=True):
        recipe = alone.recipe
        assert apart(together.latent, draw(tiny, [alone])[0].latent) < NOISE
        assert apart(together.latent, piped(tiny, alone.request, recipe.steps, recipe.guidance)) < NOISE


def test_an_image_that_joins_late_is_what_it_is_alone(tiny: Family) -> None:
    first, late = ordered("a"), ordered("b", seed=8)
    [running, joining] = tiny.begin([first, late])
    for _ in range(3):
        tiny.step([running])
    while running.step < STEPS:  # type: ignore[union-attr]
        tiny.step([joining, running])
    while joining.step < STEPS:  # type: ignore[union-attr]
        tiny.step([joining])
    for sample, order in ((running, first), (joining, late)):
        assert apart(sample.latent, draw(tiny, [order])[0].latent) < NOISE  # type: ignore[union-attr]


# --------------------------------------------------------------------------------- capture and resume


@pytest.fixture(scope="module")
def states(tiny: Family) -> dict[int, State]:
    [drawn] = tiny.generate(HEAVY, [image_request(capture="p")])
    return {state.step: state for state in drawn.states}


def test_states_are_captured_at_the_same_shares_of_every_run(states: dict[int, State]) -> None:
    assert tuple(states) == capture_steps(STEPS) == (1, 2, 3, 4, 5)
    assert capture_steps(50) == (5, 10, 15, 20, 25)
    assert all(s.latent.shape == (4, SIZE // 2, SIZE // 2) and s.latent.dtype == np.float16 for s in states.values())


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler-trailing"])
def test_a_resumed_run_is_the_uninterrupted_one(scheduler: str) -> None:
    engine = family(sd_pipeline(), scheduler)
    [whole] = draw(engine, [ordered(capture="p")])
    [drawn] = [f.result() for f in engine.finish([whole])]
    for state in drawn.states:
        [sample] = draw(engine, [ordered(state=state, resume=Resume("-", state.step))])
        assert apart(sample.latent, whole.latent) < HALF
        assert sample.order.first == state.step


def test_a_run_that_resumes_from_the_exact_latent_is_bit_for_bit_the_uninterrupted_one(tiny: Family) -> None:
    [whole] = draw(tiny, [ordered()])
    [stopped] = tiny.begin([ordered()])
    for _ in range(5):
        tiny.step([stopped])
    [resumed] = tiny.begin([ordered()])
    resumed.latent, resumed.step = stopped.latent.clone(), 5  # type: ignore[union-attr]
    while resumed.step < STEPS:  # type: ignore[union-attr]
        tiny.step([resumed])
    assert torch.equal(resumed.latent, whole.latent)  # type: ignore[union-attr]


def test_resuming_is_what_diffusers_calls_denoising_start(tiny: Family, states: dict[int, State]) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    parts = tiny.pipelines[HEAVY].components
    theirs = StableDiffusionXLImg2ImgPipeline(
        **{k: v for k, v in parts.items() if k not in ("feature_extractor", "image_encoder")}, add_watermarker=False
    )
    theirs.set_progress_bar_config(disable=True)
    scheduler = theirs.scheduler
    scheduler.set_timesteps(STEPS)
    expected = theirs(
        prompt="a red a",
        image=torch.from_numpy(states[4].latent)[None].float(),
        num_inference_steps=STEPS,
        denoising_start=1 - (float(scheduler.timesteps[4]) + 1) / 1000,
        guidance_scale=2.0,
        output_type="latent",
        original_size=(SIZE, SIZE),
        target_size=(SIZE, SIZE),
    ).images[0]
    [sample] = draw(tiny, [ordered(state=states[4], resume=Resume("-", 4))])
    assert apart(sample.latent, expected) < NOISE


def test_another_prompt_goes_its_own_way_from_the_same_state(tiny: Family, states: dict[int, State]) -> None:
    same, other = draw(tiny, [ordered(n, state=states[3], resume=Resume("-", 3), seed=9) for n in ("a", "b")])
    assert not torch.equal(same.latent, other.latent)


def test_a_resumed_run_may_leave_steps_out(tiny: Family, states: dict[int, State]) -> None:
    """It is the end of a shorter run, which enters its steps at the same levels of noise."""
    [drawn] = draw(tiny, [ordered(state=states[4], resume=Resume("-", 4, 2))])
    as_shorter = replace(states[4], step=2, steps=STEPS // 2)
    [shorter] = draw(tiny, [ordered(state=as_shorter, resume=Resume("-", 2), overrides=Overrides(steps=STEPS // 2))])
    assert torch.equal(drawn.latent, shorter.latent)
    [picture] = tiny.generate(HEAVY, [image_request(resume=Resume("-", 4, 2), capture="p")], [states[4]])
    assert (picture.first, picture.steps, picture.states) == (4, 3, ())


def test_a_run_whose_state_is_lost_leaves_no_steps_out(tiny: Family) -> None:
    [picture] = tiny.generate(HEAVY, [image_request(resume=Resume("lost", 4, 2))])
    assert (picture.first, picture.steps) == (0, STEPS)


def test_a_schedule_whose_shorter_runs_have_other_levels_takes_no_state_into_them(states: dict[int, State]) -> None:
    leading = sdxl_pipeline()
    leading.scheduler.register_to_config(timestep_spacing="leading")
    other = family(leading)
    fit = replace(states[4], sampler=other.samplers[HEAVY].id, model=other.models[HEAVY])
    [refused] = other.begin([ordered(state=fit, resume=Resume("-", 4, 2))])
    assert isinstance(refused, StateRefused)
    assert "noise level" in refused.message


@pytest.mark.parametrize("stride", [0, 3, 4])
def test_a_stride_divides_the_run(stride: int) -> None:
    with pytest.raises(InvalidRequest, match="must divide"):
        ordered(resume=Resume("-", 6, stride))


@pytest.mark.parametrize(
    ("spoilt", "said"),
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
def test_an_unfit_latent_is_refused_for_its_own_request_alone(
    tiny: Family, states: dict[int, State], spoilt: dict[str, Any], said: str
) -> None:
    bad = ordered("bad", state=replace(states[4], **spoilt), resume=Resume("-", 4))
    fine, refused = tiny.begin([ordered("fine"), bad])
    assert isinstance(refused, StateRefused)
    assert said in refused.message
    assert not isinstance(fine, WeirError)


def test_a_lora_merged_into_the_attention_makes_another_model(tiny: Family) -> None:
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
    [sample] = tiny.begin([ordered(warm_start=WarmStart(finished, 6))])
    schedule = tiny.samplers[HEAVY].schedule(STEPS)
    noise = torch.randn((4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(7))
    expected = float(schedule.signal[6]) * torch.from_numpy(light.latent.latent).float()
    expected += float(schedule.noise[6]) * noise
    assert apart(sample.latent, expected) < 1e-6  # type: ignore[union-attr]
    [drawn] = tiny.generate(HEAVY, [image_request(warm_start=WarmStart(finished, 6))])
    assert (drawn.first, drawn.steps) == (6, STEPS - 6)


def test_a_warm_start_of_something_else_is_refused(tiny: Family, states: dict[int, State]) -> None:
    with pytest.raises(StateRefused, match="not a stored state"):
        ordered(warm_start=WarmStart(b"nonsense", 6))
    [refused] = tiny.begin([ordered(warm_start=WarmStart(states[3].to_bytes(), 6))])
    assert isinstance(refused, StateRefused)
    assert "step is 3" in refused.message


# ------------------------------------------------------------------------------------- what is around


def test_a_prompt_is_encoded_once(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = tiny.pipelines[HEAVY].encode_prompt

    def counted(prompts: list[str], **arguments: Any) -> Any:
        asked.extend(prompts)
        return real(prompts, **arguments)

    monkeypatch.setattr(tiny.pipelines[HEAVY], "encode_prompt", counted)
    once = [ordered("new", prompt="a new one", negative_prompt="old"), ordered("same", prompt="a new one")]
    tiny.begin(once)
    tiny.begin(once)
    assert sorted(asked) == ["a new one", "old"]


def test_numbers_that_run_out_of_range_fail_their_own_image_at_that_step(tiny: Family) -> None:
    good, bad = tiny.begin([ordered("a"), ordered("b")])
    bad.latent = torch.full_like(bad.latent, float("inf"))  # type: ignore[union-attr]
    errors = tiny.step([good, bad])
    assert errors[0] is None
    assert errors[1] is not None
    assert errors[1].code == "not_finite"


def test_decoding_beside_the_loop_gives_the_same_pictures(tiny: Family) -> None:
    aside = family(decode_aside=True)
    requests = [image_request("a"), image_request("b")]
    assert [d.image for d in aside.generate(HEAVY, requests)] == [d.image for d in tiny.generate(HEAVY, requests)]


def test_a_preview_is_a_small_picture_of_what_is_becoming() -> None:
    engine = family()
    [sample] = engine.begin([ordered()])
    assert engine.preview(sample) is None  # nothing was decoded yet: no telling what latents look like
    engine.generate(HEAVY, [image_request()])
    assert engine.preview(sample) is None  # no step yet
    engine.step([sample])
    png = engine.preview(sample)
    assert png is not None
    assert Image.open(io.BytesIO(png)).size == (SIZE // 2, SIZE // 2)


def test_a_linear_decoder_is_previewed_exactly() -> None:
    from workers.engine.previews import Previews

    latents, weights = torch.randn(2, 4, 8, 8), torch.randn(3, 4)
    colours = torch.einsum("oc,bchw->bohw", weights, latents) + 0.5
    previews = Previews()
    previews.learn(latents, colours.repeat_interleave(4, 2).repeat_interleave(4, 3))
    made = previews.image(latents)
    assert made is not None
    assert (made - colours).abs().max() < 1e-3
