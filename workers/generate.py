"""One prompt to one picture, in this process and without a cluster: what ``weir generate`` does."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from typing import Protocol

from weir.config import FamilyConfig
from weir.core import ImageRequest, Path, Plan, Role
from weir.errors import GenerationFailed, StateRefused
from weir.states import State
from workers.engine.engine import Engine, EngineOutput, order_for, recipe


class Cache(Protocol):
    """Earlier heavy runs to go on from (:class:`cache.local.LocalCache`)."""

    def find(self, request: ImageRequest) -> tuple[ImageRequest, State | None]:
        """The request for the heavy variant, and the state that it resumes from."""
        ...

    def finished(self, request: ImageRequest, run: EngineOutput | None, sought: bool, refused: bool) -> None:
        """Follows every :meth:`find`, with the last heavy run if there was one; ``sought``: it should have resumed;
        ``refused``: the state does not fit the weights that are here."""
        ...


@dataclass(frozen=True, slots=True)
class Generated:
    """A picture and the way it went.

    Attributes:
        image: PNG.
        confidence: of the light image; None when none was drawn or the family has no discriminator.
        steps: of the variant that drew ``image``.
        light_s, heavy_s: seconds each variant took; 0 when it did not run.
        resumed_at: the first step that ran; above 0 when an earlier run's state was gone on from.
    """

    image: bytes
    path: Path
    model: str
    seed: int
    steps: int
    confidence: float | None
    light_s: float
    heavy_s: float
    resumed_at: int = 0


def generate(
    family: FamilyConfig,
    prompt: str,
    *,
    seed: int,
    threshold: float = 0.5,
    role: Role | None = None,
    size: int | None = None,
    negative_prompt: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
    cache: Cache | None = None,
) -> Generated:
    """The cascade for one prompt: light image, confidence, threshold, heavy image. Seed and parameters fix the picture.

    With a cache, a prompt that resembles an earlier one goes to the heavy variant at once and on from there.

    Args:
        role: forces one variant instead of the cascade.
        size: side in pixels; None takes the family's.
        steps, guidance: of the heavy variant; None takes the family's.
        engine: a loaded family to reuse; None loads it.
        threads: of torch on the CPU; None leaves torch's choice.
        cache: is not asked where the light variant is forced.

    Raises:
        ConfigError: the family cannot be loaded.
        InvalidRequest: names the field and the accepted range; nothing was loaded yet.
        PlanError: the threshold is out of range.
        GenerationFailed: the model drew no picture.
    """
    plan = Plan.split(0, 1, 1, light_batch=1, heavy_batch=1, threshold=threshold)
    side = family.size if size is None else size
    request = ImageRequest(
        id=f"generate-{uuid.uuid4().hex}",
        prompt=prompt,
        seed=seed,
        width=side,
        height=side,
        deadline=float("inf"),
        negative_prompt=negative_prompt,
        steps=steps,
        guidance=guidance,
    )
    for each in Role:
        recipe(family, each, request)
    if engine is None:
        from workers.models.family import Family

        engine = Family.load(family, threads=threads)
    cached = cache if role is not Role.LIGHT else None
    state, run, doubted, refused = None, None, None, False
    if cached is not None:
        request, state = cached.find(request)
    try:
        if state is not None and (refused := not _fits(engine, family, request, state)):
            request, state = _from_noise(request), None
        seconds = {Role.LIGHT: 0.0, Role.HEAVY: 0.0}
        confidence = None
        drawing = Role.HEAVY if state is not None else role or Role.LIGHT
        while True:
            started = time.monotonic()
            [drawn] = engine.generate(drawing, [request], [state] if drawing is Role.HEAVY else [])
            seconds[drawing] += time.monotonic() - started
            if drawn.error is not None:
                raise GenerationFailed(drawn.error[1])
            if drawing is Role.LIGHT:
                confidence = drawn.confidence
            else:
                run = drawn
                if state is not None and drawn.first and (drawn.confidence or 0.0) < request.accept:
                    doubted, state = drawn, None
                    request = _from_noise(request)
                    continue
                if doubted is not None and (doubted.confidence or 0.0) > (drawn.confidence or 0.0):
                    drawn = doubted
            if role is not None or drawing is Role.HEAVY or not plan.defers(confidence):
                break
            drawing = Role.HEAVY
    finally:
        if cached is not None:
            cached.finished(request, run, doubted is None, refused)
    variant = family.light if drawing is Role.LIGHT else family.heavy
    return Generated(
        image=drawn.image,
        path=Path.LIGHT if drawing is Role.LIGHT else Path.CACHE if drawn.first else Path.HEAVY,
        model=variant.name,
        seed=seed,
        steps=drawn.steps,
        confidence=confidence,
        light_s=seconds[Role.LIGHT],
        heavy_s=seconds[Role.HEAVY],
        resumed_at=drawn.first,
    )


def _fits(engine: Engine, family: FamilyConfig, request: ImageRequest, state: State) -> bool:
    """Whether the engine goes on from the state; one of other weights under the same name it does not."""
    try:
        engine.check(order_for(family, Role.HEAVY, request, state))
    except StateRefused:
        return False
    return True


def _from_noise(request: ImageRequest) -> ImageRequest:
    return replace(request, resume_key=None, resume_step=0, resume_stride=1)
