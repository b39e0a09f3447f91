"""Schedules equal diffusers' schedulers: same timesteps, latents and estimates of the finished latent."""

from __future__ import annotations

import inspect
from itertools import pairwise, product
from typing import Any, get_args

import diffusers
import pytest
import torch

from weir.errors import ConfigError, InvalidRequest
from weir.samplers import DISTILLED_STEPS, Scheduler
from workers.engine.samplers import TCD_GAMMA, Sampler, Schedule, scheduler_for
from workers.engine.scheduler_settings import _DEFAULTS, SAMPLERS

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V_PREDICTION = {"prediction_type": "v_prediction"}
ZERO_SNR = V_PREDICTION | {"rescale_betas_zero_snr": True}
SPACINGS: dict[str, dict[str, Any]] = {"leading": {"steps_offset": 1}, "trailing": {}, "linspace": {}}
#: Samplers of DDPM's noise schedule; the other one has a file of its own.
DDPM = [name for name, it in SAMPLERS.items() if not it.of_flows]
NAMES = pytest.mark.parametrize("name", DDPM)
#: Largest difference of two latents, relative to the largest value, that float32 explains.
ROUNDING = 2e-5


def settings(spacing: str = "leading", **fields: Any) -> dict[str, Any]:
    """The configuration of a pipeline's scheduler."""
    return {**BETAS, "timestep_spacing": spacing, **SPACINGS[spacing], **fields}


def model(x: torch.Tensor, step: int) -> torch.Tensor:
    """A nonlinear function in place of a denoiser."""
    return torch.tanh(1.3 * x + 0.1 * step)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def by_diffusers(name: Scheduler, config: dict[str, Any], steps: int, first: int, x: torch.Tensor) -> torch.Tensor:
    """The finished latent of diffusers' scheduler, begun at step ``first`` as ``denoising_start`` does."""
    scheduler = scheduler_for(name, config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    how: dict[str, Any] = {"eta": TCD_GAMMA} if name == "tcd" else {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        how["generator"] = generator()
    for step in range(first, steps):
        timestep = scheduler.timesteps[step]
        output = model(scheduler.scale_model_input(x, timestep), step)
        x = scheduler.step(output, timestep, x, **how).prev_sample
    return x


def by_table(table: Schedule, x: torch.Tensor, first: int = 0) -> torch.Tensor:
    kept, noises = torch.stack([x, *[torch.zeros_like(x)] * (table.kept - 1)]), generator()
    for step in range(first, len(table)):
        output = model(kept[0] * float(table.scale[step]), step)
        noise = torch.randn(x.shape, generator=noises)
        mix, push, churn = (torch.tensor(it[step]).float() for it in (table.mix, table.push, table.churn))
        kept = torch.einsum("ij,j...->i...", mix, kept)
        kept += torch.einsum("i,...->i...", push, output) + torch.einsum("i,...->i...", churn, noise)
    return kept[0]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max()) / max(1.0, float(b.abs().max()))


def check(name: Scheduler, config: dict[str, Any], steps: int, first: int = 0) -> None:
    table = Sampler(name, config).schedule(steps, first)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    entering = noise * (float(table.noise[first]) if first else table.initial)
    assert apart(by_table(table, entering, first), by_diffusers(name, config, steps, first, entering)) < ROUNDING


# ------------------------------------------------------------------------------------------- equality


@pytest.mark.parametrize(
    ("name", "prediction"),
    # What diffusers does not implement is refused, see below.
    sorted({*product(DDPM, ["epsilon", "v_prediction", "sample"])} - {("euler-ancestral", "sample")}),
)
@pytest.mark.parametrize("spacing", list(SPACINGS))
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_a_schedule_gives_the_schedulers_latents(name: Scheduler, spacing: str, prediction: str, steps: int) -> None:
    check(name, settings(spacing, prediction_type=prediction), steps)


@NAMES
@pytest.mark.parametrize("first", [1, 2, 5, 9])
def test_a_run_from_a_later_step_gives_the_latents_of_denoising_start(name: Scheduler, first: int) -> None:
    check(name, settings(), 10, first)
    check(name, settings("trailing", **V_PREDICTION), 10, first)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("euler", {"use_karras_sigmas": True}),
        ("euler", {"use_exponential_sigmas": True}),
        ("euler", {"use_beta_sigmas": True}),
        ("euler", {"interpolation_type": "log_linear"}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
        ("euler", ZERO_SNR),
        ("euler-ancestral", ZERO_SNR),
        ("ddim", ZERO_SNR),
        ("ddim", {"set_alpha_to_one": False}),
        ("dpmpp-2m", {"use_lu_lambdas": True}),
        ("dpmpp-2m", {"use_exponential_sigmas": True}),
        ("dpmpp-2m", {"solver_type": "heun"}),
        ("dpmpp-2m", {"solver_type": "bh2"}),
        ("dpmpp-2m", {"lower_order_final": False}),
        ("dpmpp-2m", {"euler_at_final": True}),
        ("dpmpp-2m", {"lambda_min_clipped": -5.1}),
        ("dpmpp-2m", {"final_sigmas_type": "sigma_min"}),
        ("dpmpp-2m", ZERO_SNR),
        ("dpmpp-2m-sde", {"solver_type": "heun"}),
        ("dpmpp-sde", {"use_beta_sigmas": True}),
        ("unipc", {"solver_order": 3}),
        ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
        ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
        ("unipc", {"disable_corrector": [0, 1]}),
        ("unipc", ZERO_SNR),
        ("lcm", {"timestep_scaling": 5.0}),
        ("lcm", ZERO_SNR),
        ("tcd", ZERO_SNR),
        ("ddim", {"trained_betas": [0.001 * (1 + i / 100) for i in range(1000)]}),
        ("dpmpp-2m-karras", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=lambda it: it if isinstance(it, str) else "+".join(it),
)
def test_a_setting_of_the_pipelines_scheduler_is_followed(name: Scheduler, fields: dict[str, Any]) -> None:
    config = settings("trailing" if "rescale_betas_zero_snr" in fields else "leading", **fields)
    check(name, config, 12)
    check(name, config, 12, 5)


@pytest.mark.parametrize("name", [name for name in DDPM if name not in ("lcm", "tcd")])
def test_estimates_of_the_finished_latent_are_the_schedulers(name: Scheduler) -> None:
    """Every scheduler that says what it predicted is asked; x̂_0 of LCM and TCD follows from the same formula."""
    scheduler, table = scheduler_for(name, settings()), Sampler(name, settings()).schedule(10)
    scheduler.set_timesteps(10)
    x = torch.randn(1, 4, 8, 8) * table.initial
    timestep = scheduler.timesteps[0]
    output = model(scheduler.scale_model_input(x, timestep), 0)
    moved = scheduler.step(output, timestep, x)
    kept = getattr(moved, "pred_original_sample", None)
    if kept is None and getattr(scheduler, "model_outputs", None):
        kept = scheduler.model_outputs[-1]
    estimate = float(table.from_x[0]) * x + float(table.from_m[0]) * output
    assert apart(estimate, kept) < ROUNDING


@NAMES
def test_signal_and_noise_levels_equal_those_of_the_scheduler(name: Scheduler) -> None:
    table = Sampler(name, settings("trailing")).schedule(10)
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in (0, 4, 9):
        scheduler = scheduler_for(name, settings("trailing"))
        scheduler.set_timesteps(10)
        expected = scheduler.add_noise(x0, noise, scheduler.timesteps[step : step + 1])
        made = float(table.signal[step]) * x0 + float(table.noise[step]) * noise
        assert (made - expected).abs().max() < 1e-4


def test_the_embedded_familys_schedule_starts_from_pure_noise() -> None:
    table = Sampler("ddim", settings("trailing", **ZERO_SNR)).schedule(50)
    assert (table.signal[0], table.noise[0]) == (0, 1)


def test_one_step_samplers_keep_nothing_and_multistep_samplers_what_they_need() -> None:
    kept = {name: Sampler(name, settings()).schedule(10).kept for name in DDPM}
    assert {kept[name] for name in ("ddim", "euler", "euler-ancestral", "lcm", "tcd")} == {1}
    assert (kept["dpmpp-2m"], kept["dpmpp-2m-sde"], kept["dpmpp-sde"], kept["unipc"]) == (2, 2, 3, 4)


def test_the_samplers_that_add_noise_are_known() -> None:
    stochastic = {name for name in DDPM if Sampler(name, settings()).schedule(10).stochastic}
    assert stochastic == {
        "euler-ancestral",
        "dpmpp-2m-sde",
        "dpmpp-2m-sde-karras",
        "dpmpp-sde",
        "dpmpp-sde-karras",
        "lcm",
        "tcd",
    }


# ------------------------------------------------------------------------------------- names and settings


def test_every_name_has_a_sampler() -> None:
    assert set(SAMPLERS) == set(get_args(Scheduler))


@NAMES
def test_what_a_sampler_follows_is_what_its_class_knows(name: Scheduler) -> None:
    kind = SAMPLERS[name]
    known = set(inspect.signature(getattr(diffusers, kind.scheduler).__init__).parameters)
    assert kind.follows == known & _DEFAULTS.keys()


def test_samplers_share_an_id_exactly_if_their_latents_are_interchangeable() -> None:
    names: tuple[Scheduler, ...] = ("ddim", "euler", "dpmpp-2m", "dpmpp-2m-karras", "unipc", "lcm")
    ids = [
        Sampler(name, settings(spacing, **fields)).id
        for name in names
        for spacing in ("leading", "trailing")
        for fields in ({}, V_PREDICTION)
    ]
    assert len(set(ids)) == len(ids)
    assert all(a != b for a, b in pairwise(ids))
    assert Sampler("ddim", settings()).id == Sampler("ddim", settings()).id


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        ("ddim", {"clip_sample": True}, "clip_sample is True"),
        ("dpmpp-2m", {"thresholding": True}, "thresholding is True"),
        ("dpmpp-2m", {"variance_type": "learned_range"}, "variance_type is learned_range"),
        ("euler", {"timestep_type": "continuous", **V_PREDICTION}, "timestep_type is continuous"),
        ("euler-ancestral", {"prediction_type": "sample"}, "prediction_type is sample"),
        ("ddim", {"use_karras_sigmas": True}, "use_karras_sigmas is True, which ddim does not follow"),
        ("euler-ancestral", {"use_beta_sigmas": True}, "use_beta_sigmas is True"),
        ("unipc", {"use_lu_lambdas": True}, "use_lu_lambdas is True, which unipc does not follow; use one of dpmpp-2m"),
        ("dpmpp-sde", ZERO_SNR, "rescale_betas_zero_snr is True, which dpmpp-sde does not follow"),
        ("dpmpp-2m", {"sigma_max": 10.0}, "sigma_max is 10.0"),
        ("tcd", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type is sigma_min"),
        ("unipc", {"interpolation_type": "log_linear"}, "interpolation_type is log_linear"),
        ("euler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1"),
        ("euler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "are both True"),
        ("unipc", {"use_flow_sigmas": True}, "use_flow_sigmas is True.*use flow-euler"),
        ("unipc", {"solver_p": {"_class_name": "DPMSolver"}}, "solver_p is"),
        ("unipc", {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "solver_type is bh1"),
        ("lcm", {"original_inference_steps": 20}, "original_inference_steps is 20; lcm supports 50"),
        ("lcm", ZERO_SNR | {"prediction_type": "epsilon"}, "rescale_betas_zero_snr is True"),
        (
            "dpmpp-2m",
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
            "solver_order is 3, and dpmpp-2m stands for 2",
        ),
        (
            "dpmpp-2m-sde",
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"},
            r"algorithm_type is dpmsolver\+\+, and dpmpp-2m-sde stands for sde-dpmsolver\+\+",
        ),
    ],
    ids=lambda it: it if isinstance(it, str) and len(it) < 20 else "",
)
def test_a_setting_that_a_sampler_does_not_follow_is_refused_by_its_key(
    name: Scheduler, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        Sampler(name, settings(**fields))


def test_karras_in_the_name_replaces_the_spacing_of_the_pipeline() -> None:
    plain = Sampler("dpmpp-2m-karras", settings())
    assert plain.id == Sampler("dpmpp-2m-karras", settings(use_beta_sigmas=True)).id
    assert plain.id == Sampler("dpmpp-2m", settings(use_karras_sigmas=True)).id


@pytest.mark.parametrize("name", ["ddim", "lcm", "tcd"])
def test_noise_prediction_from_pure_noise_is_refused(name: Scheduler) -> None:
    with pytest.raises(ConfigError, match="rescale_betas_zero_snr"):
        Sampler(name, settings("trailing", rescale_betas_zero_snr=True))


@pytest.mark.parametrize(
    ("name", "fields", "steps"),
    [
        ("lcm", {}, DISTILLED_STEPS + 1),
        ("ddim", {}, 1001),
        ("unipc", {"lower_order_final": False}, 20),
    ],
)
def test_a_run_that_a_sampler_does_not_have_is_refused(name: Scheduler, fields: dict[str, Any], steps: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} has no run of {steps} steps"):
        Sampler(name, settings(**fields)).schedule(steps)
