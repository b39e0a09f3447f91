"""Tables of one-step solvers: every step of DDIM and of Euler is linear in the latent and in the model's output.

    model input = scale_k · x_k      x_{k+1} = keep_k · x_k + push_k · m_k      x̂_0 = from_x_k · x_k + from_m_k · m_k

The solver state of a sample is therefore its step number, and samples at different steps of different schedules
advance in one vectorised operation. Multistep solvers (DPM++2M, UniPC) do not have this form, and would lose their
history when a run resumes. The schedules are those of diffusers; DDIM is formula (12) of Song et al. 2021 with η = 0,
Euler is algorithm 2 of Karras et al. 2022 without churn.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from weir.errors import ConfigError
from workers.engine.scheduler_settings import unsupported

Array = npt.NDArray[np.float64]
#: Scheduler settings that change the noise level of step k or the meaning of a latent at step k.
_MEANING = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "interpolation_type",
    "final_sigmas_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)


@dataclass(frozen=True)
class Schedule:
    """Coefficients of one run of N steps; every column is float64 [N].

    Attributes:
        timesteps: the timestep that the model is given at each step.
        scale, keep, push, from_x, from_m: the coefficients in the module's formulas.
        signal, noise: the latent that enters step k is signal_k · x_0 + noise_k · ε; [N + 1], the last entry is that of
            the finished latent.
        initial: standard deviation of the latent that enters step 0.
    """

    timesteps: Array
    scale: Array
    keep: Array
    push: Array
    from_x: Array
    from_m: Array
    signal: Array
    noise: Array
    initial: float

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def rows(self) -> list[tuple[float, float, float, float]]:
        """(timestep, scale, keep, push) of every step, as Python floats."""
        return list(zip(*(c.tolist() for c in (self.timesteps, self.scale, self.keep, self.push)), strict=True))


class Sampler:
    """The schedules of one variant, by number of steps.

    Raises:
        ConfigError: the scheduler is not a one-step solver that this module supports, or names a setting of it that it
            does not support.
    """

    def __init__(self, scheduler: DDIMScheduler | EulerDiscreteScheduler):
        config: Any = scheduler.config
        if not isinstance(scheduler, DDIMScheduler | EulerDiscreteScheduler):
            raise ConfigError(
                f"scheduler {type(scheduler).__name__} cannot be resumed; use ddim, euler or euler-trailing"
            )
        for what, remedy in unsupported("ddim" if isinstance(scheduler, DDIMScheduler) else "euler", config):
            raise ConfigError(f"{what}; {remedy}")
        meaning = {key: config[key] for key in _MEANING if config.get(key) is not None}
        digest = hashlib.blake2b(json.dumps(meaning, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()
        #: Samplers of equal id give a latent at step k of N the same meaning.
        self.id = f"{type(scheduler).__name__.removesuffix('Scheduler')}-{config.prediction_type}-{digest}"
        self._scheduler = scheduler
        self._schedules: dict[int, Schedule] = {}

    def schedule(self, steps: int) -> Schedule:
        """The schedule of a run of ``steps`` steps; computed once."""
        if steps not in self._schedules:
            table = _ddim if isinstance(self._scheduler, DDIMScheduler) else _euler
            self._schedules[steps] = table(self._scheduler, steps)
        return self._schedules[steps]


def _ddim(scheduler: Any, steps: int) -> Schedule:
    config = scheduler.config
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.numpy()
    alphas = scheduler.alphas_cumprod.double().numpy()
    before = timesteps - config.num_train_timesteps // steps
    now = alphas[timesteps]
    after = np.where(before >= 0, alphas[before], float(scheduler.final_alpha_cumprod))
    from_x, from_m, noise_x, noise_m = _prediction(config.prediction_type, np.sqrt(now), np.sqrt(1 - now))
    signal, noise = np.sqrt(after), np.sqrt(1 - after)
    return Schedule(
        timesteps=timesteps.astype(float),
        scale=np.ones(steps),
        keep=signal * from_x + noise * noise_x,
        push=signal * from_m + noise * noise_m,
        from_x=from_x,
        from_m=from_m,
        signal=np.append(np.sqrt(now), signal[-1]),
        noise=np.append(np.sqrt(1 - now), noise[-1]),
        initial=float(scheduler.init_noise_sigma),
    )


def _euler(scheduler: Any, steps: int) -> Schedule:
    """Euler's schedule for latents x = x_0 + σ ε, as in diffusers; the model's input is x / √(σ² + 1)."""
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().numpy()
    now, after = sigmas[:-1], sigmas[1:]
    scale = 1 / np.sqrt(now**2 + 1)
    # the prediction is of the scaled latent, whose signal and noise amplitudes are scale and σ · scale
    from_x, from_m, noise_x, noise_m = _prediction(scheduler.config.prediction_type, scale, now * scale)
    return Schedule(
        timesteps=scheduler.timesteps.double().numpy(),
        scale=scale,
        keep=(from_x + after * noise_x) * scale,
        push=from_m + after * noise_m,
        from_x=from_x * scale,
        from_m=from_m,
        signal=np.ones(steps + 1),
        noise=sigmas,
        initial=float(scheduler.init_noise_sigma),
    )


def _prediction(kind: str, signal: Array, noise: Array) -> tuple[Array, Array, Array, Array]:
    """x̂_0 and ε̂ as combinations of the latent x = signal · x_0 + noise · ε and the model's output m.

    Returns:
        The factors of x and m in x̂_0, then those in ε̂.
    """
    zero, one = np.zeros_like(signal), np.ones_like(signal)
    if kind == "epsilon":
        return 1 / signal, -noise / signal, zero, one
    if kind == "v_prediction":
        return signal, -noise, noise, signal
    return zero, one, 1 / noise, -signal / noise
