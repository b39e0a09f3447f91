"""Generates one image from one prompt in this process, without a cluster (``weir generate``)."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Protocol

from weir.adapters import AdapterUse
from weir.cascade import (
    Action,
    Admitted,
    Answer,
    Cancelled,
    CascadeSettings,
    Event,
    Fail,
    ImageReady,
    ImageTask,
    LookUp,
    LookupAnswered,
    Progress,
    Reason,
    Run,
    RunFailed,
    TellCache,
    advance,
)
from weir.config import FamilyConfig
from weir.core import CacheLookup, Edit, ImageRequest, ImageSize, Overrides
from weir.errors import Blocked, GenerationFailed, NotFinite, StateRefused
from weir.plan import Assignment, Plan
from weir.prompts import PromptSyntax
from weir.states import State
from workers.engine.engine import Engine, EngineOutput, denoise_job, recipe

#: SLO of an image without a deadline, seconds.
_NO_DEADLINE_S = 1e9
#: Name of the only replica.
_HERE = "here"
_REASONS = {NotFinite.code: Reason.NOT_FINITE, Blocked.code: Reason.BLOCKED}


class Cache(Protocol):
    """Earlier runs to resume from; :class:`cache.local.LocalCache` implements it and documents the methods."""

    def lookup(self, request: ImageRequest) -> CacheLookup: ...

    def state(self, key: str) -> State | None: ...

    def finished(
        self, request: ImageRequest, run: EngineOutput | None, sought: int = 0, refused: bool = False
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Generated:
    """An image, and how it was generated.

    Attributes:
        image: PNG.
        path: as in :class:`weir.cascade.Answer`.
        model: name of the variant that generated ``image``.
        steps: number of steps that ran for ``image``.
        confidences: confidence of the judges in the generated images, by variant.
        seconds: run time of each variant that ran.
        resumed_at: the first step that ran; above 0 if it resumed from an earlier run's state, or edits a picture.
        unused_tokens, unused_negative_tokens: number of tokens at the end of the prompt and of the negative prompt that
            did not fit the text encoder and were left out.
    """

    image: bytes
    path: str
    model: str
    seed: int
    steps: int
    confidences: dict[str, float]
    seconds: dict[str, float]
    resumed_at: int = 0
    unused_tokens: int = 0
    unused_negative_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LocalRequest:
    """A request for one image.

    Attributes:
        threshold: threshold of every judge of the ladder.
        variant: variant to run instead of the cascade.
        size: of the image; None: the family's own.
        overrides: for the last variant.
        adapters: LoRA adapters of every variant, each name once.
        edit: the picture to start from; None: from noise.
    """

    prompt: str
    seed: int
    threshold: float = 0.5
    variant: str | None = None
    size: ImageSize | None = None
    negative_prompt: str = ""
    prompt_syntax: PromptSyntax = "plain"
    overrides: Overrides = field(default_factory=Overrides)
    adapters: tuple[AdapterUse, ...] = ()
    edit: Edit | None = None

    def of_worker(self, family: FamilyConfig) -> ImageRequest:
        """The request as workers take it."""
        return ImageRequest(
            f"generate-{uuid.uuid4().hex}",
            self.prompt,
            self.seed,
            self.size or family.size,
            float("inf"),
            negative_prompt=self.negative_prompt,
            prompt_syntax=self.prompt_syntax,
            overrides=self.overrides,
            moderation="auto",
            adapters=self.adapters,
            edit=self.edit,
        )


def generate(
    family: FamilyConfig,
    request: LocalRequest,
    *,
    engine: Engine | None = None,
    threads: int | None = None,
    cache: Cache | None = None,
) -> Generated:
    """Runs the cascade of :mod:`weir.cascade` for one request. Equal requests give the same image.

    With a cache, a prompt similar to an earlier one starts with the last variant, resumed from the earlier run.

    Args:
        engine: a loaded family to reuse; None loads it.
        threads: number of torch's threads on the CPU; None: torch's default.
        cache: earlier runs; not used if the variant is not the last one, nor by an edit.

    Raises:
        ConfigError: the family or an adapter cannot be loaded.
        InvalidRequest: names the field and the accepted range; raised before anything is loaded.
        PlanError: the threshold is out of range.
        GenerationFailed: no variant generated an image.
    """
    ladder, asked = family.keys, request.of_worker(family)
    thresholds = (request.threshold,) * (len(ladder) - 1)
    plan = Plan(0, tuple(Assignment(key, 1) for key in ladder), thresholds, ladder)
    recipe(family, request.variant or ladder[-1], asked)
    if engine is None:
        from workers.models.family import Family

        engine = Family.load(family, threads=threads)
    task = ImageTask(
        plan,
        admitted_at=0.0,
        slo_s=_NO_DEADLINE_S,
        variant=request.variant,
        steps=request.overrides.steps,
        seeded=True,
        cache="off" if cache is None else "read-write",
        cache_named=True,
        strength=None if request.edit is None else request.edit.strength,
    )
    return _Execution(family, engine, cache, asked, task).run()


class _LocalForecast:
    """Forecast for a single idle engine: every run is in time, and a failed run is not tried again."""

    def now(self) -> float:
        return 0.0

    def finish_at(self, run: Run) -> float | None:
        return None if _HERE in run.avoid else 0.0


class _Execution:
    """Executes the actions of one cascade sequentially."""

    def __init__(
        self, family: FamilyConfig, engine: Engine, cache: Cache | None, request: ImageRequest, task: ImageTask
    ):
        self._family, self._engine, self._cache, self._request = family, engine, cache, request
        settings = CascadeSettings({key: variant.steps for key, variant in family.variants.items()})
        self._progress = Progress(task, settings)
        self._images: list[tuple[ImageRequest, EngineOutput]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._refused = False
        self._failure = ""

    def run(self) -> Generated:
        event: Event = Admitted()
        try:
            while True:
                self._progress, actions = advance(self._progress, event, _LocalForecast())
                for action in actions:
                    match action:
                        case LookUp():
                            assert self._cache is not None
                            event = LookupAnswered(self._cache.lookup(self._request))
                        case Run():
                            event = self._generate(action)
                        case TellCache():
                            self._tell_cache(action)
                        case Answer(number, path):
                            return self._answer(number, path)
                        case Fail():
                            raise GenerationFailed(self._failure)
        except BaseException:
            self._cancel()
            raise

    def _generate(self, run: Run) -> ImageReady | RunFailed:
        last, partition = self._family.keys[-1], self._progress.lookup.partition
        request = replace(
            self._request,
            overrides=replace(self._request.overrides, steps=run.steps) if run.variant == last else Overrides(),
            resume=run.resume,
            capture=partition if run.capture else None,
            judge=run.judge,
        )
        state = self._state(run, request)
        started = time.monotonic()
        [output] = self._engine.generate(run.variant, [request], [state])
        self._seconds[run.variant] += time.monotonic() - started
        if output.error is not None:
            code, self._failure = output.error
            return RunFailed(_REASONS.get(code, Reason.FAILED), _HERE)
        self._images.append((request, output))
        return ImageReady(run.variant, output.confidence, output.first)

    def _state(self, run: Run, request: ImageRequest) -> State | None:
        """The state to resume from, if it exists and fits; a state of other weights with the same name does not fit."""
        if run.resume is None or self._cache is None or (state := self._cache.state(run.resume.key)) is None:
            return None
        try:
            self._engine.check(denoise_job(self._family, run.variant, request, state))
        except StateRefused:
            self._refused = True
            return None
        return state

    def _tell_cache(self, action: TellCache) -> None:
        assert self._cache is not None
        request, output = (self._request, None) if action.image is None else self._images[action.image]
        self._cache.finished(request, output, action.sought, self._refused)

    def _cancel(self) -> None:
        """Ends the cascade, so that the cache gets the end of its lookup."""
        actions: tuple[Action, ...] = ()
        if self._progress.looked_up:
            self._progress, actions = advance(self._progress, Cancelled(), _LocalForecast())
        for action in actions:
            if isinstance(action, TellCache):
                self._tell_cache(action)

    def _answer(self, number: int, path: str) -> Generated:
        _, output = self._images[number]
        images = self._progress.images
        return Generated(
            image=output.image,
            path=path,
            model=self._family.variants[images[number].variant].name,
            seed=self._request.seed,
            steps=output.steps,
            confidences={it.variant: it.confidence for it in images if it.confidence is not None},
            seconds=dict(self._seconds),
            resumed_at=output.first,
            unused_tokens=output.unused_tokens,
            unused_negative_tokens=output.unused_negative_tokens,
        )
