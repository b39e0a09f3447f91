"""Which schedulers of pipelines the samplers reproduce, by their settings. Pure: no diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from weir.config import Scheduler

_DDPM = "use a pipeline with DDPM's noise schedule (beta_schedule)"
#: Settings of other noise schedules, which DDIM and Euler would ignore.
_OTHER_SCHEDULES = {
    "sigma_data": "EDM's noise levels",
    "shift": "the noise levels of flow matching",
    "use_flow_sigmas": "the noise levels of flow matching",
    "snr_shift_scale": "CogVideoX's noise schedule",
}
#: Beginnings of diffusers' classes with other noise schedules; their files may leave out the settings above.
_OTHER_CLASSES = {
    "EDM": "EDM's noise levels",
    "CosineDPM": "EDM's noise levels",
    "FlowMatch": "the noise levels of flow matching",
    "CogVideoX": "CogVideoX's noise schedule",
}
#: The values that diffusers' DDIM and Euler compute.
_VALUES = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "timestep_type": ("discrete",),
}


class Unsupported(NamedTuple):
    """A setting that a sampler does not support; ``what`` names its key."""

    what: str
    remedy: str


def unsupported(name: Scheduler, config: Mapping[str, Any]) -> Iterator[Unsupported]:
    """The settings of a pipeline's scheduler with which a run would differ from diffusers', or fail.

    Args:
        name: the scheduler that the family file names; it takes noise schedule and prediction type from ``config``.
    """
    others = {key: meaning for key, meaning in _OTHER_SCHEDULES.items() if config.get(key)}
    made_by = str(config.get("_class_name", ""))
    if not others:
        meaning = next((it for begin, it in _OTHER_CLASSES.items() if made_by.startswith(begin)), None)
        others = {"_class_name": meaning} if meaning else {}
    for key, schedule in others.items():
        yield Unsupported(f"{key} is {config[key]}: {schedule}, which {name} does not follow", _DDPM)
    for key, values in _VALUES.items():
        if config.get(key) not in (None, *values):
            yield Unsupported(f"{key} is {config[key]}", f"{name} supports {', '.join(values)}")
    for key in ("clip_sample", "thresholding"):
        if config.get(key):
            yield Unsupported(f"{key} is {config[key]}, which is for pixels and not for latents", f"set {key}: false")
    # DDIM divides a noise prediction by the signal, of which the first step has none. Diffusers' Euler leaves some.
    noisy_start = config.get("rescale_betas_zero_snr") and config.get("timestep_spacing", "leading") != "leading"
    if name == "ddim" and noisy_start and config.get("prediction_type", "epsilon") == "epsilon":
        yield Unsupported(
            "rescale_betas_zero_snr is True, and a model that predicts noise cannot start from pure noise",
            "use euler, or set rescale_betas_zero_snr: false",
        )
