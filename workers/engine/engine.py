"""What the step loop drives: something that begins images, advances them step by step and finishes them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from weir.config import FamilyConfig
from weir.core import ImageRequest
from weir.errors import GenerationFailed, InvalidRequest, WeirError
from weir.states import State
from workers.engine.scheduling import Recipe

#: Steps that an override may ask for, and guidance likewise; the HTTP API has tighter limits of its own.
MAX_STEPS = 1000
MAX_GUIDANCE = 30.0


class OutOfMemory(GenerationFailed):
    """The batch did not fit the device; a smaller one may."""

    code = "out_of_memory"


@dataclass(frozen=True, slots=True)
class DenoiseJob:
    """One image to generate.

    Attributes:
        start: the latent to go on from; None starts from noise.
        warm: ``start`` is another variant's finished latent, to be re-noised to the level of the request's
            ``warm_start.step``; else it is a state of this very variant.
        role: what the request was dispatched for; nothing to an engine, but batch limits go by it.
    """

    recipe: Recipe
    request: ImageRequest
    start: State | None = None
    warm: bool = False
    role: str = ""

    @property
    def first(self) -> int:
        """The first step that runs, of the recipe's."""
        if self.start is None:
            return 0
        if self.warm:
            assert self.request.warm_start is not None
            return self.request.warm_start.step
        return self.start.step // self.stride

    @property
    def stride(self) -> int:
        """Steps of a whole run that one of the recipe's stands for."""
        resume = self.request.resume
        return 1 if self.start is None or self.warm or resume is None else resume.stride


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """One picture, or the reason why this one failed.

    Attributes:
        image: PNG, or b"" when ``error`` is set.
        confidence: the discriminator's, 0…1; None for an image of the last variant that it was not to judge, and where
            no discriminator follows the variant.
        steps: denoising steps that ran.
        error: None, or (code, message).
        first: the first step that ran, of a whole run.
        states: what was captured on the way, if the request asked for it.
        latent: the finished latent, if the request asked to keep it.
        seen: what the discriminator saw in a picture whose states were captured, float16 (``Discriminator.see``).
    """

    image: bytes
    confidence: float | None
    steps: int
    error: tuple[str, str] | None = None
    first: int = 0
    states: tuple[State, ...] = ()
    latent: State | None = None
    seen: bytes | None = None


def failed(error: BaseException) -> EngineOutput:
    """The answer for an image that ``error`` stopped."""
    if not isinstance(error, WeirError):
        error = GenerationFailed(f"{type(error).__name__}: {error}")
    return EngineOutput(b"", None, 0, (error.code, error.message))


class Sample(Protocol):
    """An image in the making; what else is inside only its engine knows, which alone gets it back."""

    order: DenoiseJob
    step: int  #: the next step to run; the recipe's number of steps when all have run


class Engine(Protocol):
    """Generates images, several at a time. A picture never depends on who shared its calls, to numerical noise.

    One thread at a time may call :meth:`begin`, :meth:`step` and :meth:`finish`; :attr:`beat` may be read from any.
    """

    @property
    def emulated(self) -> bool:
        """Whether no model runs."""
        ...

    @property
    def beat(self) -> float:
        """``time.monotonic()`` of the last sign of progress; a watcher tells a hang from a long call by it."""
        ...

    def call_of(self, order: DenoiseJob) -> Hashable:
        """Images whose orders give equal values here can share a call of :meth:`step`."""
        ...

    def check(self, order: DenoiseJob) -> None:
        """Whether the order can start where it says.

        Raises:
            StateRefused: its latent does not fit; the message says in what.
        """
        ...

    def begin(self, orders: Sequence[DenoiseJob]) -> Sequence[Sample | WeirError]:
        """Encodes the prompts and makes the first latents. An order that cannot be begun gives its error instead."""
        ...

    def step(self, samples: Sequence[Any]) -> Sequence[WeirError | None]:
        """Advances samples of one :meth:`call_of` in one call of the denoiser; answers what broke which of them.

        Raises:
            OutOfMemory: no sample moved; try fewer.
            Exception: no sample moved.
        """
        ...

    def finish(self, samples: Sequence[Any]) -> Sequence[Future[EngineOutput]]:
        """Decodes samples of one :meth:`call_of` whose steps have all run. Never raises: a failure is an answer.

        What is off the critical path (encoding the picture, on CUDA the decoder too) may go on when this returns.
        """
        ...

    def preview(self, sample: Any) -> bytes | None:
        """A small PNG of what the sample is becoming, at next to no cost; None when there is no telling yet."""
        ...

    def warm_up(self, batch_size: int, variants: Sequence[str] = ()) -> None:
        """Runs these variants once (none named: all), so that the first request does not pay for it."""
        ...

    def probe(self) -> None:
        """Touches the device; raises when it is lost."""
        ...

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[EngineOutput]:
        """Generates requests of one variant and size together, all steps in this thread.

        Args:
            starts: the states that the requests resume from, one each; none: as :func:`order_for` has it.

        Raises:
            InvalidRequest: names the field and the accepted range.
            OutOfMemory: nothing was generated; try fewer.
            Exception: the whole batch failed.
        """
        ...


def recipe(family: FamilyConfig, variant: str, request: ImageRequest) -> Recipe:
    """What the request asks of the variant.

    Raises:
        InvalidRequest: names the field and the accepted range.
    """
    if variant not in family.variants:
        raise InvalidRequest(f"variant is {variant}; {family.name} has {', '.join(family.keys)}", param="model")
    if request.width != request.height or request.width not in family.allowed_sizes:
        allowed = ", ".join(f"{s}x{s}" for s in family.allowed_sizes)
        raise InvalidRequest(
            f"size is {request.width}x{request.height}; {family.name} generates {allowed}", param="size"
        )
    own, asked = family.variants[variant], request.overrides
    steps = own.steps if asked.steps is None else asked.steps
    guidance = own.guidance if asked.guidance is None else asked.guidance
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidRequest(f"steps is {steps}; it must lie in 1…{MAX_STEPS}", param="num_inference_steps")
    if not 0 <= guidance <= MAX_GUIDANCE:  # also refuses NaN
        raise InvalidRequest(f"guidance is {guidance}; it must lie in 0…{MAX_GUIDANCE:g}", param="guidance_scale")
    resume = request.resume
    if resume is not None and (resume.stride < 1 or steps % resume.stride or resume.step % resume.stride):
        raise InvalidRequest(
            f"resume.stride is {resume.stride}; it must divide resume.step and the {steps} steps",
            param="resume.stride",
        )
    for name, start in (("resume.step", resume), ("warm_start.step", request.warm_start)):
        if start is not None and not 1 <= start.step < steps:
            raise InvalidRequest(
                f"{name} is {start.step}; in a run of {steps} steps it must lie in 1…{steps - 1}", param=name
            )
    return Recipe(variant, request.width, request.height, steps, float(guidance))


def order_for(
    family: FamilyConfig, variant: str, request: ImageRequest, state: State | None = None, role: str = ""
) -> DenoiseJob:
    """What the engine is asked for.

    Args:
        state: what was found under the key of the request's ``resume``; without it the request starts warm, or from
            noise.
        role: what the request was dispatched for; "": the variant.

    Raises:
        InvalidRequest: names the field and the accepted range.
        StateRefused: the warm start is not a state.
    """
    made, role = recipe(family, variant, request), role or variant
    if state is not None and request.resume is not None:
        return DenoiseJob(made._replace(steps=made.steps // request.resume.stride), request, state, role=role)
    if request.warm_start is not None:
        return DenoiseJob(made, request, State.from_bytes(request.warm_start.latent), warm=True, role=role)
    return DenoiseJob(made, request, role=role)


def wants_judge(request: ImageRequest) -> bool:
    """Whether an image of the last variant is judged as well."""
    return request.judge or (request.resume is not None and request.resume.min_confidence > 0)


def run_to_end(engine: Engine, orders: Sequence[DenoiseJob]) -> list[EngineOutput]:
    """Generates the orders of one call together, all steps in this thread; what breaks one of them is in its answer.

    Raises: as :meth:`Engine.step`.
    """
    answers: dict[int, EngineOutput | Future[EngineOutput]] = {}
    live: dict[int, Sample] = {}
    for i, begun in enumerate(engine.begin(orders)):
        if isinstance(begun, WeirError):
            answers[i] = failed(begun)
        else:
            live[i] = begun
    while running := {i: s for i, s in live.items() if s.step < orders[i].recipe.steps}:
        for i, error in zip(running, engine.step(list(running.values())), strict=True):
            if error is not None:
                answers[i] = failed(error)
                del live[i]
    if live:
        answers |= zip(live, engine.finish(list(live.values())), strict=True)
    return [a.result() if isinstance(a := answers[i], Future) else a for i in range(len(orders))]
