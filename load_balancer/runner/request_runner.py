"""Executes the cascade's actions for an image. All decisions are made in :mod:`weir.cascade`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from load_balancer.runner.cache_client import CacheClient
from load_balancer.runner.dispatch_forecast import DispatchForecast
from load_balancer.runner.generation_task import GeneratedImage
from load_balancer.runner.metrics_recorder import MetricsRecorder
from load_balancer.runner.observation_counters import ObservationCounters
from load_balancer.runner.provenance import made_with, made_with_adapters, made_with_inpainting
from load_balancer.runner.replica_call import ReplicaCalls, Show
from weir import cascade, tracing
from weir.cascade import Action, CascadeSettings, Event, ImageTask, Phase, Progress, Run, next_seed
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageResult, Overrides
from weir.errors import WeirError


@dataclass(slots=True)
class _Generation:
    """The state of one image that is being generated.

    Attributes:
        request: the client's request; ``previews`` is the number of intermediate images that the client wants.
        results: results of the finished runs, in the order of :attr:`Progress.images`.
        shown: number of intermediate images that were sent to the client.
        error: error of the last failed run; None if none has failed.
    """

    request: ImageRequest
    show: Show
    progress: Progress
    results: list[ImageResult] = field(default_factory=list)
    shown: int = 0
    error: WeirError | None = None

    def show_client(self, image: bytes, variant: str, step: int) -> None:
        self.shown += 1
        self.show(image, variant, step)


class RequestRunner:
    """Runs images from their admission to their answer."""

    def __init__(
        self,
        calls: ReplicaCalls,
        forecast: DispatchForecast,
        counters: ObservationCounters,
        metrics: MetricsRecorder,
        family: FamilyConfig,
        settings: CascadeSettings,
        cache: CacheClient | None = None,
    ):
        self._calls = calls
        self._forecast = forecast
        self._counters = counters
        self._metrics = metrics
        self._family = family
        self._settings = settings
        self._cache = cache
        self._made_with = {
            (key, sampler): made_with(family, variant, sampler)
            for key, variant in family.variants.items()
            for sampler in family.samplers_of(key)
        }

    async def generate(self, task: ImageTask, request: ImageRequest, show: Show) -> GeneratedImage:
        """Generates one image; cancelling the call cancels the work on it.

        Args:
            request: the client's request, with ``previews`` intermediate images.
            show: called with every image that a better one may replace.

        Raises:
            DeadlineExceeded, GenerationFailed, InvalidRequest: the image failed, and there is no earlier image.
        """
        with tracing.span("image", image=request.id, plan_version=task.plan.version) as span:
            image = await self._generate(task, request, show)
            span.set(
                path=image.path,
                variant=image.variant,
                resumed_at=image.result.resumed_at,
                confidence=image.confidence,
                heavy_confidence=image.heavy_confidence,
            )
            return image

    async def _generate(self, task: ImageTask, request: ImageRequest, show: Show) -> GeneratedImage:
        work = _Generation(request, show, Progress(task, self._settings))
        event: Event = cascade.Admitted()
        try:
            while True:
                for action in self._advance(work, event):
                    match action:
                        case cascade.LookUp():
                            assert self._cache is not None, "tasks without a cache have the mode off"
                            event = cascade.LookupAnswered(await self._cache.find(request))
                        case Run():
                            event = await self._run(work, action)
                        case cascade.Show(image):
                            done = work.results[image]
                            work.show_client(done.image, work.progress.images[image].variant, done.steps)
                        case cascade.TellCache():
                            self._report_to_cache(work, action)
                        case cascade.Answer(image, path):
                            return self._answer(work, image, path)
                        case cascade.Fail():
                            assert work.error is not None, "only a failed run leads to it"
                            raise work.error
        finally:
            if work.progress.phase is not Phase.OVER:  # cancelled
                for action in self._advance(work, cascade.Cancelled()):
                    if isinstance(action, cascade.TellCache):
                        self._report_to_cache(work, action)

    def _advance(self, work: _Generation, event: Event) -> tuple[Action, ...]:
        work.progress, actions = cascade.advance(work.progress, event, self._forecast)
        self._counters.follow(work.request.id, work.progress, event, actions, self._forecast.now())
        self._metrics.follow(work.progress, event, actions)
        return actions

    async def _run(self, work: _Generation, run: Run) -> Event:
        outcome = await self._calls.execute(run, self._request(work, run), work.show_client)
        if outcome.result is not None:
            work.results.append(outcome.result)
            self._metrics.replied(run, outcome.result, run.steps or self._family.variants[run.variant].steps)
        work.error = outcome.error or work.error
        return outcome.event

    def _request(self, work: _Generation, run: Run) -> ImageRequest:
        """The request for the worker of a run."""
        asked, task = work.request, work.progress.task
        best = run.variant == task.plan.last
        own = asked.overrides if best else Overrides()
        return replace(
            asked,
            seed=_seed(asked, run),
            # Workers serve the most urgent first, so this comes behind all of other tenants that may arrive meanwhile.
            deadline=run.deadline + (task.slo_s if task.beyond_share else 0.0),
            overrides=replace(own, steps=run.steps),
            resume=run.resume,
            capture=work.progress.lookup.partition if run.capture else None,
            low_priority=run.low_priority,
            judge=run.judge,
            previews=max(0, asked.previews - work.shown) if best and not run.redraw else 0,
        )

    def _report_to_cache(self, work: _Generation, report: cascade.TellCache) -> None:
        assert self._cache is not None
        result = None if report.image is None else work.results[report.image]
        self._cache.finished(work.request.id, result, report.sought)

    def _answer(self, work: _Generation, number: int, path: str) -> GeneratedImage:
        task, images, best = work.progress.task, work.progress.images, work.progress.images[number]
        last = task.plan.last
        judged = [it.confidence for it in images if it.variant != last and not it.run.redraw]
        variant = self._family.variants[best.variant]
        sampler = variant.scheduler
        if best.variant == last:
            sampler = work.request.overrides.sampler or sampler
        return GeneratedImage(
            result=work.results[number],
            path=path,
            variant=best.variant,
            model=variant.name,
            seed=_seed(work.request, best.run),
            confidence=judged[-1] if judged else None,
            heavy_confidence=best.confidence if best.variant == last else None,
            draws=sum(image.variant == last for image in images),
            queue_s=sum(result.queue_s for result in work.results),
            compute_s=sum(result.compute_s for result in work.results),
            latency_s=self._forecast.now() - task.admitted_at,
            plan_version=task.plan.version,
            made_with=self._made_with[best.variant, sampler]
            | made_with_adapters(work.request.adapters)
            | made_with_inpainting(variant, work.request.edit),
            lookup=work.progress.lookup,
        )


def _seed(asked: ImageRequest, run: Run) -> int:
    seed = asked.seed
    for _ in range(run.redraw):
        seed = next_seed(seed)
    return seed
