"""What a replica drives: something that draws one batch of images. Real models and the emulation both do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weir.config import FamilyConfig
from weir.core import ImageRequest, Role
from weir.errors import GenerationFailed, InvalidRequest
from workers.batching import Recipe

#: Steps that an override may ask for, and guidance likewise; the HTTP API has tighter limits of its own.
MAX_STEPS = 1000
MAX_GUIDANCE = 30.0


class OutOfMemory(GenerationFailed):
    """The batch did not fit the device; a smaller one may."""

    code = "out_of_memory"


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture of a batch, or the reason why this one failed.

    Attributes:
        image: PNG, or b"" when ``error`` is set.
        confidence: the discriminator's, 0…1; None for a heavy image or a family without a discriminator.
        steps: denoising steps that ran.
        error: None, or (code, message).
    """

    image: bytes
    confidence: float | None
    steps: int
    error: tuple[str, str] | None = None


class Engine(Protocol):
    """Draws batches. One thread at a time may call :meth:`generate`; :attr:`beat` may be read from any."""

    emulated: bool
    #: ``time.monotonic()`` of the last sign of progress inside a batch; a watcher tells a hang from a long batch by it.
    beat: float

    def generate(self, role: Role, requests: Sequence[ImageRequest]) -> list[Drawn]:
        """Draws requests of one :class:`Recipe`, in order. A picture never depends on who shared its batch.

        Raises:
            OutOfMemory: nothing was drawn; halve the batch.
            Exception: the whole batch failed.
        """

    def warm_up(self, batch_size: int) -> None:
        """Runs both roles once, so that the first request does not pay for it."""

    def probe(self) -> None:
        """Touches the device; raises when it is lost."""


def recipe(family: FamilyConfig, role: Role, request: ImageRequest) -> Recipe:
    """What has to be equal for two requests to share a batch; overrides count for the heavy variant only.

    Raises:
        InvalidRequest: names the field and the accepted range.
    """
    if request.width != request.height or request.width not in family.allowed_sizes:
        allowed = ", ".join(f"{s}x{s}" for s in family.allowed_sizes)
        raise InvalidRequest(f"size is {request.width}x{request.height}; {family.name} draws {allowed}", param="size")
    variant = family.light if role is Role.LIGHT else family.heavy
    steps, guidance = variant.steps, variant.guidance
    if role is Role.HEAVY:
        steps = steps if request.steps is None else request.steps
        guidance = guidance if request.guidance is None else request.guidance
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidRequest(f"steps is {steps}; it must lie in 1…{MAX_STEPS}", param="num_inference_steps")
    if not 0 <= guidance <= MAX_GUIDANCE:  # also refuses NaN
        raise InvalidRequest(f"guidance is {guidance}; it must lie in 0…{MAX_GUIDANCE:g}", param="guidance_scale")
    return Recipe(role, request.width, request.height, steps, float(guidance))
