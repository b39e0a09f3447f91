"""The way of one image: what the cache has for it, then the cascade; and what became of it is told to both."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from load_balancer.admission.admission_context import AdmissionContext
from load_balancer.runner import cascade_rules as cascade
from load_balancer.runner.cache_client import CacheClient
from load_balancer.runner.generation_request import CacheMode, GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage, PartialImage
from load_balancer.runner.metrics_recorder import MetricsRecorder
from load_balancer.runner.observation_counters import ObservationCounters
from load_balancer.runner.provenance import made_with
from load_balancer.runner.replica_call import ReplicaCalls, Show
from weir.config import FamilyConfig, RedrawConfig
from weir.core import ImageRequest, ImageResult, Path, Role
from weir.errors import DeadlineExceeded, WeirError

log = logging.getLogger(__name__)

#: The ways on which the heavy variant drew the image.
_HEAVY = (Path.HEAVY, Path.CACHE)
#: What was drawn for one image, in this order, and by which variant.
Stages = list[tuple[Role, ImageResult]]


class RequestRunner:
    """Takes images from their admission to their answer.

    Args:
        families: the service's own, then those of its further light variants, which differ in the light one alone.
        mode: what requests do with the cache that do not say themselves.
        direct: the least share of steps saved for which a hit skips the light variant.
        redraw: which heavy images are drawn again.
        clock: unix time, seconds.
    """

    def __init__(
        self,
        stage: ReplicaCalls,
        tally: ObservationCounters,
        meter: MetricsRecorder,
        families: Sequence[FamilyConfig],
        *,
        cache: CacheClient | None = None,
        mode: CacheMode = "off",
        direct: float = 0.0,
        redraw: RedrawConfig = RedrawConfig(),
        clock: Callable[[], float] = time.time,
    ):
        self._stage = stage
        self._tally = tally
        self._meter = meter
        self._family = families[0]
        self._made_with = {v.name: made_with(it, v) for it in reversed(families) for v in (it.light, it.heavy)}
        self._cache = cache
        self._mode: CacheMode = mode
        self._direct = direct
        self._redraw = redraw
        self._clock = clock

    async def take(
        self,
        request: ImageRequest,
        order: GenerationRequest,
        terms: AdmissionContext,
        index: int,
        tell: Callable[[PartialImage], None],
    ) -> GeneratedImage:
        """Draws one image of an order.

        Args:
            index: which one.
            tell: called with every picture that a better one may still replace.

        Raises:
            DeadlineExceeded, GenerationFailed: there is no image, and none stands in for it.
        """
        self._tally.admitted(request.id, terms.admitted_at)

        def show(image: bytes, role: Role, step: int) -> None:
            tell(PartialImage(index, image, role, step))

        # Who names a seed or a variant gets what he names.
        request = replace(request, judge=self._redraw.below > 0 and order.seed is None and order.role is None)
        drawn = await self._reused(request, order, terms, show)
        if request.judge and drawn.draws:
            drawn = await self._best(drawn, request, order, terms)
        return replace(drawn, index=index)

    async def _reused(
        self, request: ImageRequest, order: GenerationRequest, terms: AdmissionContext, show: Show
    ) -> GeneratedImage:
        """The image, from what the cache has for it where that is something."""
        mode = order.cache or self._mode
        from_noise = cascade.noise_steps(terms.plan, order.role, order.steps, self._family.heavy.steps)
        if self._cache is None or mode == "off" or order.role is Role.LIGHT:
            return await self._cascade(replace(request, steps=from_noise), order, terms, show)
        reuse = await self._cache.find(request, order.caller.tenant)
        if mode == "read":
            reuse = replace(reuse, capture=False)
        steps = request.steps or self._family.heavy.steps
        self._tally.lookup(request.id, reuse.saved(steps), reuse.level)
        left_alone = not terms.plan.rules.reuse or (from_noise is not None and reuse.left(steps) > from_noise)
        if order.cache is None and left_alone:
            reuse = replace(reuse, key=None, k=0)
        if not reuse.k and from_noise != request.steps:  # the states of such a run are none that others look for
            request, reuse = replace(request, steps=from_noise), replace(reuse, capture=False)
        request, saved = reuse.of(request), reuse.saved(steps)
        if order.role is None:
            now = self._clock()
            role = cascade.after_lookup(
                terms.plan,
                terms.role,
                saved,
                direct=self._direct,
                heavy_finish_at=self._stage.heavy_finish_at(request, now),
                latest=terms.latest,
                level=reuse.level,
            )
            terms = replace(terms, role=role)
        drawn = None
        try:
            drawn = await self._cascade(request, order, terms, show)
            return replace(drawn, reuse=reuse)
        finally:
            anew = None if drawn is None else drawn.anew
            heavy = anew or (drawn.result if drawn is not None and drawn.path in _HEAVY else None)
            self._tally.reuse(saved if heavy is not None and heavy.resumed_at else 0.0)
            self._cache.finished(request, heavy, anew is None)

    async def _cascade(
        self, request: ImageRequest, order: GenerationRequest, terms: AdmissionContext, show: Show
    ) -> GeneratedImage:
        """The image by the rules of the plan that the order was admitted under; a deferred light one is shown first."""
        request = replace(request, previews=order.partial_images)
        role, rules, patience = terms.role, terms.plan.rules, terms.patience
        stages: Stages = []
        doubted: ImageResult | None = None
        or_light = cascade.may_turn_light(terms.plan, order.role) and role is Role.HEAVY
        if or_light:
            request = replace(request, deadline=terms.latest)
        while True:
            fallback = doubted is not None or (bool(stages) and rules.light_fallback)
            try:
                until = terms.latest if fallback else patience
                role, result = await self._stage.draw(role, request, rules, until=until, show=show, or_light=or_light)
            except WeirError as error:
                if or_light and isinstance(error, DeadlineExceeded) and self._light_in_time(terms):
                    role, or_light = Role.LIGHT, False
                    continue
                if not fallback:
                    raise
                # A finished image is never thrown away.
                log.info("%s falls back to the image that it has: %s", request.id, error.message)
                path = Path.LIGHT_DEADLINE if doubted is None else Path.CACHE
                return self._drawn(request, terms, path, stages)
            stages.append((role, result))
            or_light = False
            if role is Role.HEAVY and doubted is not None:
                return self._better(request, terms, stages)
            if role is Role.HEAVY:
                resumed = request.resume_step and result.resumed_at == request.resume_step
                if not resumed or not self._drawn_anew(request, terms, result.confidence):
                    return self._drawn(request, terms, Path.CACHE if resumed else Path.HEAVY, stages)
                show(result.image, role, result.steps)
                doubted, request = result, _from_noise(request)
                continue
            path = self._judged(request, order.role, terms, result.confidence)
            if path is not Path.HEAVY:
                return self._drawn(request, terms, path, stages)
            show(result.image, role, result.steps)
            request = replace(request, previews=max(0, order.partial_images - 1))
            role = Role.HEAVY
            if rules.light_fallback:  # nobody waits for it longer, so the worker should not begin it later
                request = replace(request, deadline=terms.latest)

    def _drawn_anew(self, request: ImageRequest, terms: AdmissionContext, confidence: float | None) -> bool:
        heavy_at = self._stage.heavy_finish_at(_from_noise(request), self._clock())
        return cascade.is_drawn_anew(request.accept, confidence, heavy_finish_at=heavy_at, latest=terms.latest)

    def _better(self, request: ImageRequest, terms: AdmissionContext, stages: Stages) -> GeneratedImage:
        """Of a resumed image that was doubted and the one that was drawn anew, the one with more confidence."""
        *before, doubted, anew = stages
        path = Path.HEAVY
        if (doubted[1].confidence or 0.0) > (anew[1].confidence or 0.0):
            path, stages = Path.CACHE, [*before, anew, doubted]
        return replace(self._drawn(request, terms, path, stages), anew=anew[1])

    async def _best(
        self, first: GeneratedImage, request: ImageRequest, order: GenerationRequest, terms: AdmissionContext
    ) -> GeneratedImage:
        """The heavy image that the discriminator believes most: the first one, or another from other noise, drawn while
        the best is doubted and time is left. Everybody else goes first meanwhile."""
        best, draws, queue_s, compute_s = first, first.draws, first.queue_s, first.compute_s
        again = replace(
            request,
            steps=cascade.noise_steps(terms.plan, order.role, order.steps, self._family.heavy.steps),
            patient=True,
            # A worker draws first what is due first: so this comes behind all that may arrive while it is waited for.
            deadline=terms.latest + terms.slo_s,
        )
        while cascade.is_drawn_again(
            self._redraw,
            best.heavy_confidence,
            draws,
            heavy_finish_at=self._stage.heavy_finish_at(again, self._clock()),
            latest=terms.latest,
        ):
            again = replace(again, seed=cascade.next_seed(again.seed))
            try:
                role, result = await self._stage.draw(
                    Role.HEAVY, again, terms.plan.rules, until=terms.latest, show=_to_nobody
                )
            except WeirError as error:
                log.info("%s stays as it is: %s", request.id, error.message)
                break
            if role is Role.LIGHT:  # its replica took it along into another role
                break
            draws, queue_s, compute_s = draws + 1, queue_s + result.queue_s, compute_s + result.compute_s
            if (result.confidence or 0.0) > (best.heavy_confidence or 0.0):
                best = replace(
                    best, result=result, path=Path.HEAVY, seed=again.seed, heavy_confidence=result.confidence
                )
        latency_s = self._clock() - terms.admitted_at
        return replace(best, draws=draws, queue_s=queue_s, compute_s=compute_s, latency_s=latency_s)

    def _light_in_time(self, terms: AdmissionContext) -> bool:
        now = self._clock()
        ready_at = self._stage.finish_at(Role.LIGHT, None, now)
        return ready_at is not None and ready_at <= terms.latest

    def _judged(
        self, request: ImageRequest, forced: Role | None, terms: AdmissionContext, confidence: float | None
    ) -> Path:
        """Where a request goes whose light image is there."""
        plan = terms.plan
        if forced is None:
            deferred = plan.count(Role.HEAVY) > 0 and cascade.is_deferred(confidence, plan.threshold)
            self._tally.judge(request.id, confidence, deferred)
            self._meter.judged(confidence, deferred)
        heavy_at = self._stage.heavy_finish_at(request, self._clock())
        return cascade.after_light(plan, confidence, forced=forced, heavy_finish_at=heavy_at, latest=terms.latest)

    def _drawn(self, request: ImageRequest, terms: AdmissionContext, path: Path, stages: Stages) -> GeneratedImage:
        now = self._clock()
        self._tally.answered(request.id, now)
        heavy, results = path in _HEAVY, [result for _, result in stages]
        light = next((result for role, result in stages if role is Role.LIGHT), None)
        model = self._family.heavy.name if heavy else request.light or self._family.light.name
        return GeneratedImage(
            result=results[-1],
            path=path,
            model=model,
            seed=request.seed,
            confidence=None if light is None else light.confidence,
            queue_s=sum(r.queue_s for r in results),
            compute_s=sum(r.compute_s for r in results),
            latency_s=now - terms.admitted_at,
            plan_version=terms.plan.version,
            made_with=self._made_with[model],
            draws=sum(role is Role.HEAVY for role, _ in stages),
            heavy_confidence=results[-1].confidence if heavy else None,
        )


def _from_noise(request: ImageRequest) -> ImageRequest:
    return replace(request, resume_key=None, resume_step=0, resume_stride=1)


def _to_nobody(image: bytes, role: Role, step: int) -> None:
    """A preview that nobody waits for."""
