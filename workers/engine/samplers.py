"""Tables of the steps of samplers, read from diffusers' schedulers.

Every step of these samplers is linear. Let S_k be the S latents that a run keeps between two steps: the latent x_k, and
what a multistep solver remembers of earlier steps. With the model's output m_k and noise z_k ~ N(0, I):

    model input = scale_k · x_k                 S_{k+1} = mix_k · S_k + push_k · m_k + churn_k · z_k
    x̂_0 = from_x_k · x_k + from_m_k · m_k

The coefficients are what diffusers' scheduler makes of unit vectors. So a table follows every setting of the scheduler,
and samples at different steps of different samplers advance in one vectorised operation.

A run that starts at step K begins there without a history, as diffusers' ``denoising_start`` does: the first step of a
multistep solver is then of first order. Stored states have no history; it would gain little for another prompt.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch

from weir.errors import ConfigError, InvalidRequest
from weir.samplers import Scheduler
from workers.engine.scheduler_settings import OWN_SPACING, SAMPLERS, Spacing, settings_for, unsupported

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
    "use_lu_lambdas",
    "lambda_min_clipped",
    "sigma_min",
    "sigma_max",
    # of flow matching
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "shift_terminal",
    "time_shift_type",
    "stochastic_sampling",
)
#: Stands for the prediction type of flow matching, which has one: the velocity ε − x_0.
_VELOCITY = "velocity"
#: Length of the unit vectors. A scheduler adds noise of length 1 to them, which rounds them by a millionth of it.
_LENGTH = 2.0**20
#: A coefficient below this is a zero that was rounded.
_NOTHING = 1e-12
#: γ of TCD (Zheng et al. 2024, section 4.2), the default of diffusers' scheduler.
TCD_GAMMA = 0.3
#: Number of schedules that a sampler keeps.
_KEPT = 256


@dataclass(frozen=True)
class Schedule:
    """Coefficients of one run of N steps that keeps S latents between steps; float64.

    Attributes:
        timesteps: the timestep that the model is given at each step, [N].
        scale, from_x, from_m: the coefficients in the module's formulas, [N].
        mix: [N, S, S].
        push, churn: [N, S].
        signal, noise: the latent that enters step k is signal_k · x_0 + noise_k · ε; [N].
        initial: standard deviation of the latent that enters step 0.
    """

    timesteps: Array
    scale: Array
    from_x: Array
    from_m: Array
    mix: Array
    push: Array
    churn: Array
    signal: Array
    noise: Array
    initial: float
    _rows: dict[int, list[list[float]]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def kept(self) -> int:
        """S, the number of latents that a run keeps between steps."""
        return self.push.shape[1]

    @cached_property
    def stochastic(self) -> bool:
        """Whether steps add noise."""
        return bool(self.churn.any())

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        """A finished latent at the noise level of the latent that enters a step; after the last one, as it is."""
        if step == len(self):
            return latent
        return latent * float(self.signal[step]) + noise * float(self.noise[step])

    def rows(self, kept: int) -> list[list[float]]:
        """(timestep, scale, mix, push, churn) of every step, flattened and padded with zeros to ``kept`` latents."""
        if kept not in self._rows:
            none, more = (0, 0), (0, kept - self.kept)
            mix = np.pad(self.mix, (none, more, more)).reshape(len(self), -1)
            push, churn = np.pad(self.push, (none, more)), np.pad(self.churn, (none, more))
            self._rows[kept] = np.column_stack([self.timesteps, self.scale, mix, push, churn]).tolist()
        return self._rows[kept]


class Sampler:
    """The schedules of one sampler with the noise schedule of one pipeline.

    Args:
        name: the sampler.
        config: configuration of the pipeline's own scheduler.

    Raises:
        ConfigError: the configuration has a setting that the sampler does not support; names it.
    """

    def __init__(self, name: Scheduler, config: Mapping[str, Any]):
        for what, remedy in unsupported(name, config):
            raise ConfigError(f"{what}; {remedy}")
        self.name = name
        made = scheduler_for(name, config)
        self._kind, self._config = type(made), made.config
        meaning = {key: made.config[key] for key in _MEANING if made.config.get(key) is not None}
        digest = hashlib.blake2b(json.dumps(meaning, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()
        kind = SAMPLERS[name].scheduler.removesuffix("Scheduler")
        #: Samplers of equal id give a latent at step k of N the same meaning.
        self.id = f"{kind}-{made.config.get('prediction_type', _VELOCITY)}-{digest}"
        self._table = lru_cache(_KEPT)(self._read)

    def schedule(self, steps: int, first: int = 0, spacing: Spacing = OWN_SPACING) -> Schedule:
        """The schedule of a run of ``steps`` steps that starts at step ``first``; what it has of earlier steps means
        nothing.

        Args:
            spacing: of the noise levels, as the pipeline has it for an image of one size.

        Raises:
            InvalidRequest: the sampler has no run of that many steps.
        """
        whole = self._table(steps, 0, spacing)
        # A sampler without a history takes the same steps wherever a run starts, and reading a table takes time.
        return whole if whole.kept == 1 else self._table(steps, first, spacing)

    def _read(self, steps: int, first: int, spacing: Spacing) -> Schedule:
        scheduler = self._kind.from_config(self._config)
        try:
            with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite is refused below
                scheduler.set_timesteps(**spacing.arguments(steps))
            table = _table(scheduler, first)
        except (ValueError, IndexError, AssertionError) as error:
            raise self._impossible(steps, str(error).partition("\n")[0][:200]) from error
        if len(table) != steps:
            raise self._impossible(steps, f"its noise schedule has {len(table)} of them")
        if not all(np.isfinite(it).all() for it in (table.mix, table.push, table.from_x, table.from_m)):
            raise self._impossible(steps, "a coefficient is not a finite number")
        return table

    def _impossible(self, steps: int, why: str) -> InvalidRequest:
        return InvalidRequest(
            f"{self.name} has no run of {steps} steps: {why}; choose another number of steps or another sampler",
            param="num_inference_steps",
        )


def scheduler_for(name: Scheduler, config: Mapping[str, Any]) -> Any:
    """Creates the diffusers scheduler that ``name`` stands for, with the noise schedule of ``config``."""
    return getattr(diffusers, SAMPLERS[name].scheduler).from_config(settings_for(name, config))


def _table(scheduler: Any, first: int) -> Schedule:
    """Reads a table from a diffusers scheduler whose timesteps are set."""
    timesteps = scheduler.timesteps
    steps = len(timesteps)
    levels = np.array([_level(scheduler, k) for k in range(steps)]).reshape(steps, 2)
    signal, noise = levels.T
    _begin_at(scheduler, first)
    rows = [_step(scheduler, k) for k in range(first, steps)]
    size = len(rows[0].push)
    used = _used([row.mix for row in rows], size)
    scale = np.array([1.0] * first + [row.scale for row in rows])
    from_x, from_m = _estimate(scheduler.config.get("prediction_type", _VELOCITY), scale * signal, scale * noise)
    mix, push, churn = np.zeros((steps, size, size)), np.zeros((steps, size)), np.zeros((steps, size))
    for k, row in enumerate(rows, first):
        mix[k], push[k], churn[k] = row.mix, row.push, row.churn
    return Schedule(
        timesteps=timesteps.double().numpy(),
        scale=scale,
        from_x=from_x * scale,
        from_m=from_m,
        mix=mix[:, used][:, :, used],
        push=push[:, used],
        churn=churn[:, used],
        signal=signal,
        noise=noise,
        initial=float(getattr(scheduler, "init_noise_sigma", 1)),  # flow matching starts from noise itself
    )


@dataclass(frozen=True)
class _Step:
    """Coefficients of one step, for all latents that the scheduler keeps."""

    scale: float
    mix: Array
    push: Array
    churn: Array


def _step(scheduler: Any, k: int) -> _Step:
    """Lets the scheduler take step k with unit vectors in place of its latents and of the model's output.

    The first row of every tensor is zeros, of which the scheduler leaves nothing but the noise that it adds.
    """
    history = _history(scheduler)
    size = 1 + len(history)
    units = [torch.stack([torch.zeros(size + 1), _LENGTH * it]) for it in torch.eye(size + 1)]
    _remember(scheduler, [None if known is None else units[1 + i] for i, known in enumerate(history)])
    timestep, takes = scheduler.timesteps[k], inspect.signature(scheduler.step).parameters
    scaled = hasattr(scheduler, "scale_model_input")
    scale = float(scheduler.scale_model_input(torch.ones(()), timestep)) if scaled else 1.0
    how: dict[str, Any] = {"eta": TCD_GAMMA} if isinstance(scheduler, diffusers.TCDScheduler) else {}
    if "generator" in takes:
        how["generator"] = torch.Generator().manual_seed(0)
    moved = scheduler.step(units[size], timestep, units[0], **how, return_dict=False)[0]
    noise = torch.randn((2, size + 1), generator=torch.Generator().manual_seed(0)).double().numpy()
    rows, churn = np.zeros((size, size + 1)), np.zeros(size)
    for i, vector in enumerate([moved, *_history(scheduler)]):
        if vector is not None:
            of_zeros, of_units = vector.double().numpy()
            churn[i] = of_zeros @ noise[0] / (noise[0] @ noise[0])
            row = (of_units - churn[i] * noise[1]) / _LENGTH
            rows[i] = np.where(np.abs(row) < _NOTHING, 0, row)
    return _Step(scale, rows[:, :size], rows[:, size], churn)


def _history(scheduler: Any) -> list[torch.Tensor | None]:
    """What a scheduler remembers of earlier steps; None for what it does not have yet."""
    single = [getattr(scheduler, name) for name in ("last_sample", "sample") if name in vars(scheduler)]
    return [*vars(scheduler).get("model_outputs", ()), *single]


def _remember(scheduler: Any, history: list[torch.Tensor | None]) -> None:
    """Replaces what :func:`_history` returns."""
    names = [name for name in ("last_sample", "sample") if name in vars(scheduler)]
    outputs = len(history) - len(names)
    if outputs:
        scheduler.model_outputs = history[:outputs]
    for name, vector in zip(names, history[outputs:], strict=True):
        setattr(scheduler, name, vector)


def _begin_at(scheduler: Any, step: int) -> None:
    """Sets the step at which a run begins; schedulers without this method read it from the timestep."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(step)


def _level(scheduler: Any, k: int) -> tuple[float, float]:
    """Signal and noise of the latent that enters step k."""
    _begin_at(scheduler, k)
    one, zero = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    timestep = scheduler.timesteps[k : k + 1]
    if hasattr(scheduler, "scale_noise"):
        signal, noise = scheduler.scale_noise(one, timestep, zero).tolist()
    else:
        signal, noise = scheduler.add_noise(one, zero, timestep).tolist()
    return signal, noise


def _used(mixes: list[Array], size: int) -> list[int]:
    """Indices of the latents on which the latent x depends, sooner or later; it is the first of them."""
    used = {0}
    while more := {j for i in used for j in range(size) if any(mix[i, j] for mix in mixes)} - used:
        used |= more
    return sorted(used)


def _estimate(kind: str, signal: Array, noise: Array) -> tuple[Array, Array]:
    """The factors of x and m in x̂_0, for the model's input x = signal · x_0 + noise · ε and its output m."""
    if kind == "epsilon":
        return 1 / signal, -noise / signal
    if kind == "v_prediction":
        return signal, -noise
    if kind == _VELOCITY:
        return np.ones_like(noise), -noise
    return np.zeros_like(signal), np.ones_like(signal)
