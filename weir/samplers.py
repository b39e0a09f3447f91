"""The names of samplers, and the steps that they can run."""

from __future__ import annotations

from typing import Literal

from weir.errors import InvalidRequest

#: A sampler, with its spacing of noise levels where the name says it. ``workers/engine/scheduler_settings.py`` says
#: which of diffusers' schedulers each one is.
Scheduler = Literal[
    "ddim",
    "euler",
    "euler-trailing",
    "euler-ancestral",
    "dpmpp-2m",
    "dpmpp-2m-karras",
    "dpmpp-2m-sde",
    "dpmpp-2m-sde-karras",
    "dpmpp-sde",
    "dpmpp-sde-karras",
    "unipc",
    "unipc-karras",
    "lcm",
    "tcd",
    "flow-euler",
]
#: Number of steps of the schedule from which LCM and TCD choose theirs (``original_inference_steps``).
DISTILLED_STEPS = 50
_DISTILLED: tuple[Scheduler, ...] = ("lcm", "tcd")


def most_steps(sampler: Scheduler) -> int | None:
    """Largest number of steps of a sampler; None: any."""
    return DISTILLED_STEPS if sampler in _DISTILLED else None


def check_steps(sampler: Scheduler, steps: int) -> None:
    """Checks that a sampler has a run of ``steps`` steps.

    Raises:
        InvalidRequest: names the accepted range.
    """
    most = most_steps(sampler)
    if most is not None and steps > most:
        raise InvalidRequest(
            f"num_inference_steps is {steps}; {sampler} accepts 1 to {most}", param="num_inference_steps"
        )
