"""Schedules equal diffusers' schedulers: same timesteps, latents and estimates of the finished latent."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from weir.errors import ConfigError
from workers.engine.samplers import Sampler

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V_PREDICTION = {"prediction_type": "v_prediction"}
SPACINGS = {"leading": {"steps_offset": 1}, "trailing": {}, "linspace": {}}


def make(kind: type, spacing: str, **fields: Any) -> Any:
    clips = {"clip_sample": False} if kind is DDIMScheduler else {}
    return kind(**BETAS, **clips, timestep_spacing=spacing, **SPACINGS[spacing], **fields)


def model(x: torch.Tensor, step: int) -> torch.Tensor:
    """A nonlinear function in place of a denoiser."""
    return torch.tanh(1.3 * x + 0.1 * step)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", list(SPACINGS))
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])
def test_a_schedule_gives_the_schedulers_latents(kind: type, prediction: str, spacing: str, steps: int) -> None:
    scheduler = make(kind, spacing, prediction_type=prediction)
    table = Sampler(make(kind, spacing, prediction_type=prediction)).schedule(steps)
    scheduler.set_timesteps(steps)
    assert table.timesteps.tolist() == scheduler.timesteps.tolist()
    theirs = ours = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    assert table.initial == pytest.approx(float(scheduler.init_noise_sigma))
    for step, timestep in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(theirs, timestep), step)
        moved = scheduler.step(output, timestep, theirs)
        output = model(ours * float(table.scale[step]), step)
        estimate = float(table.from_x[step]) * ours + float(table.from_m[step]) * output
        ours = float(table.keep[step]) * ours + float(table.push[step]) * output
        theirs = moved.prev_sample
        largest = max(1.0, float(moved.pred_original_sample.abs().max()))
        assert (estimate - moved.pred_original_sample).abs().max() / largest < 1e-5
    assert (ours - theirs).abs().max() / max(1.0, float(theirs.abs().max())) < 1e-5


def test_the_embedded_familys_schedule_starts_from_pure_noise() -> None:
    fields = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    table = Sampler(make(DDIMScheduler, "trailing", **fields)).schedule(50)
    assert (table.signal[0], table.noise[0]) == (0, 1)
    assert (table.signal[-1], table.noise[-1]) == (1, 0)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_signal_and_noise_levels_equal_those_of_the_scheduler(kind: type) -> None:
    scheduler = make(kind, "trailing")
    table = Sampler(make(kind, "trailing")).schedule(10)
    scheduler.set_timesteps(10)
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in (0, 4, 9):
        expected = scheduler.add_noise(x0, noise, scheduler.timesteps[step : step + 1])
        made = float(table.signal[step]) * x0 + float(table.noise[step]) * noise
        assert (made - expected).abs().max() < 1e-4


def test_samplers_share_an_id_exactly_if_their_latents_are_interchangeable() -> None:
    ids = [
        Sampler(make(kind, spacing, **fields)).id
        for kind in (DDIMScheduler, EulerDiscreteScheduler)
        for spacing in ("leading", "trailing")
        for fields in ({}, V_PREDICTION, V_PREDICTION | {"rescale_betas_zero_snr": True, "steps_offset": 3})
        if not (spacing == "leading" and "steps_offset" in fields)
    ]
    assert len(set(ids)) == len(ids)
    assert all(a != b for a, b in pairwise(ids))
    assert Sampler(make(DDIMScheduler, "leading")).id == Sampler(make(DDIMScheduler, "leading")).id


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (DPMSolverMultistepScheduler(), "cannot be resumed"),
        (DDIMScheduler(clip_sample=True), "clip_sample: false"),
        (EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "timestep_type"),
    ],
)
def test_a_scheduler_that_cannot_be_resumed_is_refused_by_name(scheduler: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Sampler(scheduler)


def test_noise_prediction_from_pure_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="rescale_betas_zero_snr"):
        Sampler(make(DDIMScheduler, "trailing", rescale_betas_zero_snr=True)).schedule(4)
