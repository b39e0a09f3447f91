"""Schedules of flow matching equal diffusers' scheduler, whatever its settings are and whatever a pipeline passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from weir.errors import ConfigError, InvalidRequest
from workers.engine.samplers import Sampler, Schedule
from workers.engine.scheduler_settings import OWN_SPACING, Spacing

#: Largest difference of two latents that float32 explains.
ROUNDING = 2e-6
LINEAR, SHIFTED = Spacing(linear=True), Spacing(linear=True, mu=0.8)
DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}


def model(x: torch.Tensor, step: int) -> torch.Tensor:
    """A nonlinear function in place of a denoiser."""
    return torch.tanh(1.3 * x + 0.1 * step)


def scheduler_of(config: dict[str, Any], steps: int, spacing: Spacing) -> Any:
    """Diffusers' scheduler, with its timesteps set as pipelines set them."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    mu = {} if spacing.mu is None else {"mu": spacing.mu}
    if spacing.linear:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **mu)
    else:
        scheduler.set_timesteps(steps, **mu)
    return scheduler


def table(config: dict[str, Any], steps: int, spacing: Spacing, first: int = 0) -> Schedule:
    config = dict(FlowMatchEulerDiscreteScheduler(**config).config)
    return Sampler("flow-euler", config).schedule(steps, first, spacing)


def noise_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("config", "spacing"),
    [
        ({}, LINEAR),
        ({"shift": 3.0}, OWN_SPACING),
        ({"shift": 3.0}, LINEAR),
        (DYNAMIC, SHIFTED),
        (DYNAMIC, Spacing(mu=1.1)),
        (DYNAMIC | {"time_shift_type": "linear"}, SHIFTED),
        (DYNAMIC | {"shift_terminal": 0.02}, SHIFTED),
        ({"shift": 3.0, "shift_terminal": 0.1}, OWN_SPACING),
        ({"use_karras_sigmas": True}, OWN_SPACING),
        ({"use_exponential_sigmas": True}, LINEAR),
        ({"use_beta_sigmas": True}, OWN_SPACING),
        ({"num_train_timesteps": 500, "shift": 2.0}, OWN_SPACING),
        ({"stochastic_sampling": True, "shift": 3.0}, OWN_SPACING),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [2, 5, 28])
@pytest.mark.parametrize("first", [0, 1])
def test_a_schedule_gives_the_schedulers_latents(
    config: dict[str, Any], spacing: Spacing, steps: int, first: int
) -> None:
    made, scheduler = table(config, steps, spacing, first), scheduler_of(config, steps, spacing)
    scheduler.set_begin_index(first)
    noises, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    ours = expected = noise_of()
    for step in range(first, steps):
        push = float(made.push[step, 0]) * model(ours, step)
        churn = float(made.churn[step, 0]) * torch.randn(ours.shape, generator=noises)
        ours = float(made.mix[step, 0, 0]) * ours + push + churn
        timestep = scheduler.timesteps[step]
        expected = scheduler.step(model(expected, step), timestep, expected, generator=theirs).prev_sample
        assert float(made.timesteps[step]) == pytest.approx(float(timestep), rel=1e-6)
    assert float((ours - expected).abs().max()) < ROUNDING
    assert made.kept == 1
    assert made.stochastic == bool(config.get("stochastic_sampling"))


@pytest.mark.parametrize(("config", "spacing"), [({"shift": 3.0}, OWN_SPACING), (DYNAMIC, SHIFTED)], ids=str)
def test_a_picture_is_noised_as_image_to_image_does_it(config: dict[str, Any], spacing: Spacing) -> None:
    """Between picture and noise by σ, and so is the latent that enters the first step."""
    made, picture, noise = table(config, 8, spacing), noise_of(1), noise_of(2)
    for step in (0, 3, 7):
        scheduler = scheduler_of(config, 8, spacing)
        expected = scheduler.scale_noise(picture, scheduler.timesteps[step : step + 1], noise)
        assert float((made.noised(picture, noise, step) - expected).abs().max()) < ROUNDING
    assert (made.initial, made.signal[0], made.noise[0]) == (1, 0, 1)
    assert made.noised(picture, noise, 8) is picture


def test_the_estimate_of_the_finished_latent_is_the_schedulers() -> None:
    """The scheduler computes it with stochastic sampling, whose next latent at σ = 0 it is."""
    scheduler = scheduler_of({"stochastic_sampling": True}, 4, LINEAR)
    made, x = table({"stochastic_sampling": True}, 4, LINEAR), noise_of()
    scheduler.set_begin_index(3)
    expected = scheduler.step(model(x, 3), scheduler.timesteps[3], x).prev_sample
    ours = float(made.from_x[3]) * x + float(made.from_m[3]) * model(x, 3)
    assert float((ours - expected).abs().max()) < ROUNDING


def test_schedules_of_two_sizes_differ_by_the_shift_and_are_kept_apart() -> None:
    sampler = Sampler("flow-euler", dict(FlowMatchEulerDiscreteScheduler(**DYNAMIC).config))
    small, large = (sampler.schedule(4, 0, Spacing(linear=True, mu=mu)) for mu in (0.5, 1.15))
    assert (small.noise[1:] < large.noise[1:]).all()
    assert sampler.schedule(4, 0, Spacing(linear=True, mu=0.5)) is small


@pytest.mark.parametrize(
    "fields",
    [
        {"shift": 6.0},
        DYNAMIC,
        DYNAMIC | {"max_shift": 1.2},
        DYNAMIC | {"base_image_seq_len": 128},
        {"shift_terminal": 0.02},
        {"stochastic_sampling": True},
        {"use_karras_sigmas": True},
    ],
    ids="+".join,
)
def test_states_of_another_shift_are_of_another_sampler(fields: dict[str, Any]) -> None:
    ids = [
        Sampler("flow-euler", dict(FlowMatchEulerDiscreteScheduler(**it).config)).id for it in ({"shift": 3.0}, fields)
    ]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"shift": 1.0, "invert_sigmas": True}, "invert_sigmas is True"),
        ({"shift": 1.0, "time_shift_type": "cubic"}, "time_shift_type is cubic"),
        ({"shift": 1.0, "use_karras_sigmas": True, "use_beta_sigmas": True}, "are both True"),
        ({"shift": 1.0, "_class_name": "FlowMatchLCMScheduler"}, "_class_name is FlowMatchLCMScheduler"),
        (dict(DDIMScheduler().config), "flow-euler does not follow"),
    ],
    ids=["inverted", "shift", "spacings", "class", "ddpm"],
)
def test_a_setting_that_is_not_followed_is_refused_by_its_key(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Sampler("flow-euler", config)


def test_a_run_that_the_settings_do_not_allow_is_refused() -> None:
    sampler = Sampler("flow-euler", dict(FlowMatchEulerDiscreteScheduler(shift_terminal=0.1).config))
    with pytest.raises(InvalidRequest, match="flow-euler has no run of 1 steps"):
        sampler.schedule(1, 0, LINEAR)
