"""The samplers by name, and which schedulers of pipelines they reproduce, by their settings. Pure: no diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from weir.samplers import DISTILLED_STEPS, Scheduler

_DDPM = "use a pipeline with DDPM's noise schedule (beta_schedule)"
_FLOW = "the noise levels of flow matching"
#: Settings of other noise schedules, which these samplers would ignore.
_OTHER_SCHEDULES = {
    "sigma_data": "EDM's noise levels",
    "shift": _FLOW,
    "use_flow_sigmas": _FLOW,
    "use_dynamic_shifting": _FLOW,
    "shift_terminal": _FLOW,
    "snr_shift_scale": "CogVideoX's noise schedule",
}
#: Beginnings of diffusers' classes with other noise schedules; their files may leave out the settings above.
_OTHER_CLASSES = {
    "EDM": "EDM's noise levels",
    "CosineDPM": "EDM's noise levels",
    "FlowMatch": _FLOW,
    "CogVideoX": "CogVideoX's noise schedule",
}
_FLOW_CLASS = "FlowMatchEulerDiscreteScheduler"
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
#: The values that diffusers' schedulers compute.
_VALUES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "timestep_type": ("discrete",),
}
#: Settings with which a step is no linear function of the latent and of the model's output, or not of one image alone.
_NOT_LINEAR = {
    "clip_sample": "for pixels and not for latents",
    "thresholding": "for pixels and not for latents",
    "variance_type": "for models that predict a variance",
    "solver_p": "another scheduler inside this one",
}
#: What a setting means when it is absent. A sampler that does not know the setting can only follow this value.
_DEFAULTS: dict[str, object] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "rescale_betas_zero_snr": False,
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": float("-inf"),
    "sigma_min": None,
    "sigma_max": None,
}
_SPACINGS = frozenset({"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"})
_KARRAS = {"use_karras_sigmas": True, "use_exponential_sigmas": False, "use_beta_sigmas": False}


class SamplerKind(NamedTuple):
    """What the name of a sampler stands for.

    Attributes:
        scheduler: diffusers' class.
        fixed: settings that the name determines, whatever the pipeline's scheduler says.
        follows: the settings of :data:`_DEFAULTS` that the class follows.
        of_flows: whether it is for flow matching (Lipman et al. 2023); the others are for DDPM's noise schedule.
    """

    scheduler: str
    fixed: Mapping[str, Any] = {}
    follows: frozenset[str] = frozenset()
    of_flows: bool = False


class Spacing(NamedTuple):
    """What the spacing of a run's noise levels needs besides the scheduler's settings. Pipelines pass it.

    Attributes:
        linear: whether the N levels before the shift fall evenly from 1 to 1/N; otherwise they are the scheduler's own.
        mu: the shift that ``use_dynamic_shifting`` needs, which depends on the size of the image; None without it.
    """

    linear: bool = False
    mu: float | None = None

    def arguments(self, steps: int) -> dict[str, Any]:
        """The arguments of a scheduler's ``set_timesteps`` for a run of N = ``steps`` steps."""
        levels = {"sigmas": np.linspace(1, 1 / steps, steps).tolist()} if self.linear else {}
        return {"num_inference_steps": steps, **levels, **({} if self.mu is None else {"mu": self.mu})}


#: That of a scheduler whose settings say all.
OWN_SPACING = Spacing()


_DPM = _SPACINGS | {"final_sigmas_type", "lambda_min_clipped"}
_DPM_2M = SamplerKind(
    "DPMSolverMultistepScheduler",
    {"algorithm_type": "dpmsolver++", "solver_order": 2},
    _DPM | {"use_lu_lambdas", "rescale_betas_zero_snr"},
)
_DPM_2M_SDE = _DPM_2M._replace(fixed={**_DPM_2M.fixed, "algorithm_type": "sde-dpmsolver++"})
# Its class spaces timesteps in one way, and sets lower_order_final itself where the last noise level is zero.
_DPM_SDE = SamplerKind(
    "DPMSolverSinglestepScheduler",
    {
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 2,
        "lower_order_final": True,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    },
    _DPM,
)
_EULER = SamplerKind(
    "EulerDiscreteScheduler",
    {},
    _SPACINGS | {"final_sigmas_type", "interpolation_type", "sigma_min", "sigma_max", "rescale_betas_zero_snr"},
)
_UNIPC = SamplerKind(
    "UniPCMultistepScheduler",
    {},
    _SPACINGS | {"final_sigmas_type", "sigma_min", "sigma_max", "rescale_betas_zero_snr"},
)


def _karras(kind: SamplerKind) -> SamplerKind:
    return kind._replace(fixed={**kind.fixed, **_KARRAS})


#: Noise levels and timesteps come from the pipeline's scheduler, except for what a name fixes.
SAMPLERS: dict[Scheduler, SamplerKind] = {
    "ddim": SamplerKind("DDIMScheduler", {}, frozenset({"rescale_betas_zero_snr"})),
    "euler": _EULER,
    "euler-trailing": _EULER._replace(fixed={"timestep_spacing": "trailing"}),
    "euler-ancestral": SamplerKind("EulerAncestralDiscreteScheduler", {}, frozenset({"rescale_betas_zero_snr"})),
    "dpmpp-2m": _DPM_2M,
    "dpmpp-2m-karras": _karras(_DPM_2M),
    "dpmpp-2m-sde": _DPM_2M_SDE,
    "dpmpp-2m-sde-karras": _karras(_DPM_2M_SDE),
    "dpmpp-sde": _DPM_SDE,
    "dpmpp-sde-karras": _karras(_DPM_SDE),
    "unipc": _UNIPC,
    "unipc-karras": _karras(_UNIPC),
    "lcm": SamplerKind("LCMScheduler", {}, frozenset({"rescale_betas_zero_snr"})),
    "tcd": SamplerKind("TCDScheduler", {}, frozenset({"rescale_betas_zero_snr"})),
    "flow-euler": SamplerKind(_FLOW_CLASS, {}, _SPACINGS, of_flows=True),
}
#: Ways of ``use_dynamic_shifting``.
_TIME_SHIFTS = ("exponential", "linear")
#: Settings of UniPC with which diffusers' last step divides by zero, unless the last noise level is sigma_min.
_UNIPC_DIVIDES: dict[str, object] = {"solver_type": "bh1", "lower_order_final": False, "predict_x0": False}
#: Samplers whose first step divides a noise prediction by the signal, of which pure noise has none.
_DIVIDE_BY_SIGNAL = ("ddim", "lcm", "tcd")


class Unsupported(NamedTuple):
    """A setting that a sampler does not support; ``what`` names its key."""

    what: str
    remedy: str


def settings_for(name: Scheduler, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the diffusers scheduler that a sampler's name stands for.

    Args:
        config: configuration of the pipeline's own scheduler.
    """
    kind = SAMPLERS[name]
    # diffusers' schedulers of DDPM clip by default, which is only right for pixels
    return {**({} if kind.of_flows else {"clip_sample": False}), **config, **kind.fixed}


def unsupported(name: Scheduler, config: Mapping[str, Any]) -> Iterator[Unsupported]:
    """The settings of a pipeline's scheduler with which a run would differ from diffusers', or fail.

    Args:
        name: the sampler that the family file names; it takes noise schedule and prediction type from ``config``.
    """
    kind, made_by = SAMPLERS[name], str(config.get("_class_name", ""))
    if kind.of_flows:
        yield from _unsupported_flow(name, config)
        return
    others = {key: meaning for key, meaning in _OTHER_SCHEDULES.items() if config.get(key)}
    if not others:
        meaning = next((it for begin, it in _OTHER_CLASSES.items() if made_by.startswith(begin)), None)
        others = {"_class_name": meaning} if meaning else {}
    for key, schedule in others.items():
        remedy = "use flow-euler" if schedule == _FLOW else _DDPM
        yield Unsupported(f"{key} is {config[key]}: {schedule}, which {name} does not follow", remedy)
    predictions = _PREDICTIONS[:2] if name == "euler-ancestral" else _PREDICTIONS
    for key, values in {**_VALUES, "prediction_type": predictions}.items():
        if config.get(key) not in (None, *values):
            yield Unsupported(f"{key} is {config[key]}", f"{name} supports {', '.join(values)}")
    for key, purpose in _NOT_LINEAR.items():
        if given := config.get(key):
            off = "false" if given is True else "null"
            yield Unsupported(f"{key} is {given}, which is {purpose}", f"set {key}: {off}")
    if name in ("lcm", "tcd") and config.get("original_inference_steps", DISTILLED_STEPS) != DISTILLED_STEPS:
        given = config["original_inference_steps"]
        yield Unsupported(f"original_inference_steps is {given}", f"{name} supports {DISTILLED_STEPS}")
    yield from _not_followed(name, kind, config)
    for key in ("algorithm_type", "solver_order") if made_by == kind.scheduler else ():
        fixed, given = kind.fixed.get(key), config.get(key)
        if fixed is not None and given not in (None, fixed):
            yield Unsupported(f"{key} is {given}, and {name} stands for {fixed}", f"set {key}: {fixed}")
    if kind.scheduler == made_by == _UNIPC.scheduler and config.get("final_sigmas_type", "zero") == "zero":
        for key, value in _UNIPC_DIVIDES.items():
            if config.get(key) == value:
                yield Unsupported(f"{key} is {value}, with which the last step divides by zero", f"leave {key} out")
    spacing = {**config, **kind.fixed}.get("timestep_spacing", "leading")
    noisy_start = config.get("rescale_betas_zero_snr") and (spacing != "leading" or name in ("lcm", "tcd"))
    if name in _DIVIDE_BY_SIGNAL and noisy_start and config.get("prediction_type", "epsilon") == "epsilon":
        yield Unsupported(
            "rescale_betas_zero_snr is True, and a model that predicts noise cannot start from pure noise",
            "use euler, or set rescale_betas_zero_snr: false",
        )


def _not_followed(name: Scheduler, kind: SamplerKind, config: Mapping[str, Any]) -> Iterator[Unsupported]:
    """The settings that change the noise levels and that the sampler's class does not know."""
    for key, default in _DEFAULTS.items():
        given = kind.fixed.get(key, config.get(key))
        if key in kind.follows or given is None or given == default:
            continue
        able = ", ".join(
            other for other, it in SAMPLERS.items() if key in it.follows and key not in it.fixed and not it.of_flows
        )
        yield Unsupported(f"{key} is {given}, which {name} does not follow", f"use one of {able}")
    yield from _several_spacings(kind, config)


def _several_spacings(kind: SamplerKind, config: Mapping[str, Any]) -> Iterator[Unsupported]:
    if sum(bool(kind.fixed.get(key, config.get(key))) for key in _SPACINGS) > 1:
        both = " and ".join(sorted(key for key in _SPACINGS if config.get(key)))
        yield Unsupported(f"{both} are both True", "set all but one of them to false")


def _unsupported_flow(name: Scheduler, config: Mapping[str, Any]) -> Iterator[Unsupported]:
    """The settings with which a run of flow matching would differ from diffusers', or fail."""
    made_by = config.get("_class_name", _FLOW_CLASS if "shift" in config else "a scheduler of another noise schedule")
    if made_by != _FLOW_CLASS:
        yield Unsupported(
            f"_class_name is {made_by}, which {name} does not follow",
            f"use a pipeline with {_FLOW_CLASS}, or another sampler",
        )
        return
    if config.get("invert_sigmas"):
        yield Unsupported("invert_sigmas is True, for models whose noise levels rise", "set invert_sigmas: false")
    if (given := config.get("time_shift_type", _TIME_SHIFTS[0])) not in _TIME_SHIFTS:
        yield Unsupported(f"time_shift_type is {given}", f"{name} supports {', '.join(_TIME_SHIFTS)}")
    yield from _several_spacings(SAMPLERS[name], config)
