"""The engine interface that the step loop drives: begin images, advance them step by step, finish them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from weir.adapters import AdapterUse
from weir.config import FamilyConfig
from weir.core import ImageRequest, steps_of_edit
from weir.errors import GenerationFailed, InvalidRequest, WeirError
from weir.samplers import check_steps
from weir.states import State
from workers.engine.scheduling import Recipe

#: Largest number of steps and largest guidance that a request may override to. The HTTP API has lower limits.
MAX_STEPS = 1000
MAX_GUIDANCE = 30.0


class OutOfMemory(GenerationFailed):
    """The batch did not fit the device's memory; a smaller one may."""

    code = "out_of_memory"


@dataclass(frozen=True, slots=True)
class DenoiseJob:
    """One image to generate.

    Attributes:
        start: the latent to start from; None starts from noise.
        warm: whether ``start`` is another variant's finished latent, to be re-noised to the level of the request's
            ``warm_start.step``. Otherwise it is a state of this variant.
        role: the role for which the request was dispatched. Batch limits depend on it; the engine ignores it.
    """

    recipe: Recipe
    request: ImageRequest
    start: State | None = None
    warm: bool = False
    role: str = ""

    @property
    def first(self) -> int:
        """The first of the recipe's steps that runs."""
        if self.request.edit is not None:
            return self.recipe.steps - steps_of_edit(self.recipe.steps, self.request.edit.strength)
        if self.start is None:
            return 0
        if self.warm:
            assert self.request.warm_start is not None
            return self.request.warm_start.step
        return self.start.step // self.stride

    @property
    def urgency(self) -> tuple[float, int, str, bool]:
        """Deadline, number of steps that are left, tenant and low priority, as a :class:`.scheduling.Task` has them."""
        return self.request.deadline, self.recipe.steps - self.first, self.request.tenant, self.request.low_priority

    @property
    def stride(self) -> int:
        """Number of steps of a whole run that one step of the recipe replaces."""
        resume = self.request.resume
        return 1 if self.start is None or self.warm or resume is None else resume.stride


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """One image, or the error that prevented it.

    Attributes:
        image: PNG, or b"" when ``error`` is set.
        confidence: confidence of the variant's judge, 0…1; None if the variant has no judge or, for the last variant,
            if the request did not ask for a verdict.
        steps: number of denoising steps that ran.
        error: None, or (code, message).
        first: the first step that ran, counted in steps of a whole run.
        states: captured states, if the request asked for them.
        latent: the finished latent, if the request asked to keep it.
        seen: the judge's features of an image whose states were captured, float16 (``Discriminator.see``).
        unused_tokens, unused_negative_tokens: number of tokens at the end of the prompt and of the negative prompt that
            did not fit a text encoder and were left out.
    """

    image: bytes
    confidence: float | None
    steps: int
    error: tuple[str, str] | None = None
    first: int = 0
    states: tuple[State, ...] = ()
    latent: State | None = None
    seen: bytes | None = None
    unused_tokens: int = 0
    unused_negative_tokens: int = 0


def failed(error: BaseException) -> EngineOutput:
    """The output for an image that failed with ``error``."""
    if not isinstance(error, WeirError):
        error = GenerationFailed(f"{type(error).__name__}: {error}")
    return EngineOutput(b"", None, 0, (error.code, error.message))


class Sample(Protocol):
    """The state of one image between two steps. Other attributes are private to the engine that created it."""

    job: DenoiseJob
    step: int  #: the next step to run; equals the recipe's number of steps when all have run


class Engine(Protocol):
    """Generates images in batches. An image does not depend on the rest of its batch, up to numerical noise.

    One thread at a time may call :meth:`begin`, :meth:`step` and :meth:`finish`; :attr:`beat` may be read from any.
    """

    @property
    def emulated(self) -> bool:
        """Whether the engine runs no model."""
        ...

    @property
    def on_cpu(self) -> bool:
        """Whether the models run on the CPU, which the engine then shares with all else on this machine."""
        ...

    @property
    def beat(self) -> float:
        """``time.monotonic()`` of the last progress; distinguishes a hung call from a long one."""
        ...

    def call_of(self, job: DenoiseJob) -> Hashable:
        """Key of the calls of :meth:`step` that the job can take part in: jobs of equal keys can share a call."""
        ...

    def prepare(self, request: ImageRequest) -> None:
        """Loads the adapters of a request. It may be called from any thread, and no image waits for it.

        Raises:
            ConfigError: an adapter cannot be loaded; names it and the remedy.
        """
        ...

    def check_adapter(self, use: AdapterUse) -> None:
        """Checks an adapter by its file's header. It may be called from any thread.

        Raises:
            ConfigError: it does not fit the models, or cannot be read; names it and the remedy.
        """
        ...

    def check(self, job: DenoiseJob) -> None:
        """Checks that the job can start from its latent.

        Raises:
            StateRefused: the latent does not fit; the message names the property that differs.
        """
        ...

    def begin(self, jobs: Sequence[DenoiseJob]) -> Sequence[Sample | WeirError]:
        """Encodes the prompts and creates the initial latents. A job that cannot begin returns its error instead."""
        ...

    def step(self, samples: Sequence[Any]) -> Sequence[WeirError | None]:
        """Advances samples of one :meth:`call_of` in one call of the denoiser.

        Returns:
            One entry for each sample: its error, or None.

        Raises:
            OutOfMemory: no sample advanced; try fewer samples.
            Exception: no sample advanced.
        """
        ...

    def finish(self, samples: Sequence[Any]) -> Sequence[Future[EngineOutput]]:
        """Decodes samples of one :meth:`call_of` whose steps have all run. Never raises: a failure is an output.

        Work off the critical path (encoding the PNG, on CUDA decoding too) may continue after this returns.
        """
        ...

    def preview(self, sample: Any) -> bytes | None:
        """A small, cheap PNG of the unfinished image; None while no estimate is available."""
        ...

    def warm_up(self, batch_size: int, variants: Sequence[str] = ()) -> None:
        """Generates images with the given variants (all if none is given), so that the first request is not slower.

        Raises:
            ConfigError: an image failed; names the variant and its weights.
        """
        ...

    def probe(self) -> None:
        """Runs a trivial computation on the device; raises if the device is lost."""
        ...

    def generate(
        self, variant: str, requests: Sequence[ImageRequest], starts: Sequence[State | None] = ()
    ) -> list[EngineOutput]:
        """Generates requests of one variant and size together, all steps in this thread.

        Args:
            starts: the state that each request resumes from, or None for it (:func:`denoise_job`); empty: none.

        Raises:
            InvalidRequest: names the field and the accepted range.
            OutOfMemory: nothing was generated; try fewer requests.
            Exception: the whole batch failed.
        """
        ...


def recipe(family: FamilyConfig, variant: str, request: ImageRequest) -> Recipe:
    """The recipe of a request for a variant: the request's overrides, and the variant's own values for the rest.

    Raises:
        InvalidRequest: names the field and the accepted range.
    """
    if variant not in family.variants:
        raise InvalidRequest(f"variant is {variant}; {family.name} has {', '.join(family.keys)}", param="model")
    if request.size not in family.allowed_sizes:
        raise InvalidRequest(f"size is {request.size}; accepted: {family.allowed_sizes}", param="size")
    own, asked = family.variants[variant], request.overrides
    steps = own.steps if asked.steps is None else asked.steps
    guidance = own.guidance if asked.guidance is None else asked.guidance
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidRequest(f"steps is {steps}; it must lie in 1…{MAX_STEPS}", param="num_inference_steps")
    if not 0 <= guidance <= MAX_GUIDANCE:  # also refuses NaN
        raise InvalidRequest(f"guidance is {guidance}; it must lie in 0…{MAX_GUIDANCE:g}", param="guidance_scale")
    sampler = asked.sampler or own.scheduler
    if sampler not in family.samplers_of(variant):
        allowed = ", ".join(family.samplers_of(variant))
        raise InvalidRequest(f"sampler is {sampler}; {variant} of {family.name} has {allowed}", param="sampler")
    check_steps(sampler, steps)
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
    if request.edit is not None:
        _check_edit(request, request.edit.strength)
    return Recipe(variant, request.size, steps, float(guidance), sampler)


def _check_edit(request: ImageRequest, strength: float) -> None:
    if not 0 < strength <= 1:  # also refuses NaN
        raise InvalidRequest(f"strength is {strength}; it must lie above 0, up to 1", param="strength")
    if request.resume is not None or request.warm_start is not None:
        raise InvalidRequest("an edit starts from its picture, and cannot resume or start from a latent", param="edit")


def denoise_job(
    family: FamilyConfig, variant: str, request: ImageRequest, state: State | None = None, role: str = ""
) -> DenoiseJob:
    """The engine's job for a request.

    Args:
        state: the state stored under the key of the request's ``resume``; None starts from the request's
            ``warm_start``, or from noise.
        role: the role for which the request was dispatched; "": the variant.

    Raises:
        InvalidRequest: names the field and the accepted range.
        StateRefused: the warm start is not a state.
    """
    whole, role = recipe(family, variant, request), role or variant
    if state is not None and request.resume is not None:
        return DenoiseJob(whole._replace(steps=whole.steps // request.resume.stride), request, state, role=role)
    if request.warm_start is not None:
        return DenoiseJob(whole, request, State.from_bytes(request.warm_start.latent), warm=True, role=role)
    return DenoiseJob(whole, request, role=role)


def wants_judge(request: ImageRequest) -> bool:
    """Whether the request asks for a verdict on an image of the last variant."""
    return request.judge or (request.resume is not None and request.resume.min_confidence > 0)


def run_to_end(engine: Engine, jobs: Sequence[DenoiseJob]) -> list[EngineOutput]:
    """Generates jobs, those of one :meth:`Engine.call_of` together, in this thread. A job's failure is in its output.

    Raises:
        OutOfMemory: a batch does not fit the device (:meth:`Engine.step`).
        Exception: a whole batch failed.
    """
    calls = [engine.call_of(job) for job in jobs]
    outputs = {
        call: iter(_run_call(engine, [job for job, own in zip(jobs, calls, strict=True) if own == call]))
        for call in dict.fromkeys(calls)
    }
    return [next(outputs[it]) for it in calls]


def _run_call(engine: Engine, jobs: Sequence[DenoiseJob]) -> list[EngineOutput]:
    answers: dict[int, EngineOutput | Future[EngineOutput]] = {}
    live: dict[int, Sample] = {}
    for i, begun in enumerate(engine.begin(jobs)):
        if isinstance(begun, WeirError):
            answers[i] = failed(begun)
        else:
            live[i] = begun
    while running := {i: s for i, s in live.items() if s.step < jobs[i].recipe.steps}:
        for i, error in zip(running, engine.step(list(running.values())), strict=True):
            if error is not None:
                answers[i] = failed(error)
                del live[i]
    if live:
        answers |= zip(live, engine.finish(list(live.values())), strict=True)
    return [a.result() if isinstance(a := answers[i], Future) else a for i in range(len(jobs))]
