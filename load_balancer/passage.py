"""The way of one image: what the cache has for it, then the cascade; and what became of it is told to both."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from load_balancer import cascade
from load_balancer.drawing import Drawn, Partial
from load_balancer.meter import Meter
from load_balancer.order import CacheMode, Order
from load_balancer.provenance import made_with
from load_balancer.reuse import Cache
from load_balancer.stage import Show, Stage
from load_balancer.tally import Tally
from load_balancer.terms import Terms
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageResult, Path, Role
from weir.errors import DeadlineExceeded, WeirError

log = logging.getLogger(__name__)

#: The ways on which the heavy variant drew the image.
_HEAVY = (Path.HEAVY, Path.CACHE)


class Passage:
    """Takes images from their admission to their answer.

    Args:
        families: the service's own, then those of its further light variants, which differ in the light one alone.
        mode: what requests do with the cache that do not say themselves.
        direct: the least share of steps saved for which a hit skips the light variant.
        clock: unix time, seconds.
    """

    def __init__(
        self,
        stage: Stage,
        tally: Tally,
        meter: Meter,
        families: Sequence[FamilyConfig],
        *,
        cache: Cache | None = None,
        mode: CacheMode = "off",
        direct: float = 0.0,
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
        self._clock = clock

    async def take(
        self, request: ImageRequest, order: Order, terms: Terms, index: int, tell: Callable[[Partial], None]
    ) -> Drawn:
        """Draws one image of an order.

        Args:
            index: which one.
            tell: called with every picture that a better one may still replace.

        Raises:
            DeadlineExceeded, GenerationFailed: there is no image, and none stands in for it.
        """
        self._tally.admitted(request.id, terms.admitted_at)

        def show(image: bytes, role: Role, step: int) -> None:
            tell(Partial(index, image, role, step))

        drawn = await self._reused(request, order, terms, show)
        return replace(drawn, index=index)

    async def _reused(self, request: ImageRequest, order: Order, terms: Terms, show: Show) -> Drawn:
        """The image, from what the cache has for it where that is something."""
        mode = order.cache or self._mode
        from_noise = cascade.noise_steps(terms.plan, order.role, order.steps)
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

    async def _cascade(self, request: ImageRequest, order: Order, terms: Terms, show: Show) -> Drawn:
        """The image by the rules of the plan that the order was admitted under; a deferred light one is shown first."""
        request = replace(request, previews=order.partial_images)
        role, rules, patience = terms.role, terms.plan.rules, terms.patience
        stages: list[ImageResult] = []
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
            stages.append(result)
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

    def _drawn_anew(self, request: ImageRequest, terms: Terms, confidence: float | None) -> bool:
        heavy_at = self._stage.heavy_finish_at(_from_noise(request), self._clock())
        return cascade.is_drawn_anew(request.accept, confidence, heavy_finish_at=heavy_at, latest=terms.latest)

    def _better(self, request: ImageRequest, terms: Terms, stages: list[ImageResult]) -> Drawn:
        """Of a resumed image that was doubted and the one that was drawn anew, the one with more confidence."""
        *before, doubted, anew = stages
        if (doubted.confidence or 0.0) > (anew.confidence or 0.0):
            return replace(self._drawn(request, terms, Path.CACHE, [*before, anew, doubted]), anew=anew)
        return replace(self._drawn(request, terms, Path.HEAVY, stages), anew=anew)

    def _light_in_time(self, terms: Terms) -> bool:
        now = self._clock()
        ready_at = self._stage.finish_at(Role.LIGHT, None, now)
        return ready_at is not None and ready_at <= terms.latest

    def _judged(self, request: ImageRequest, forced: Role | None, terms: Terms, confidence: float | None) -> Path:
        """Where a request goes whose light image is there."""
        plan = terms.plan
        if forced is None:
            deferred = plan.count(Role.HEAVY) > 0 and cascade.is_deferred(confidence, plan.threshold)
            self._tally.judge(request.id, confidence, deferred)
            self._meter.judged(confidence, deferred)
        heavy_at = self._stage.heavy_finish_at(request, self._clock())
        return cascade.after_light(plan, confidence, forced=forced, heavy_finish_at=heavy_at, latest=terms.latest)

    def _drawn(self, request: ImageRequest, terms: Terms, path: Path, stages: list[ImageResult]) -> Drawn:
        now = self._clock()
        self._tally.answered(request.id, now)
        model = self._family.heavy.name if path in _HEAVY else request.light or self._family.light.name
        return Drawn(
            result=stages[-1],
            path=path,
            model=model,
            seed=request.seed,
            confidence=next((s.confidence for s in reversed(stages) if s.confidence is not None), None),
            queue_s=sum(s.queue_s for s in stages),
            compute_s=sum(s.compute_s for s in stages),
            latency_s=now - terms.admitted_at,
            plan_version=terms.plan.version,
            made_with=self._made_with[model],
        )


def _from_noise(request: ImageRequest) -> ImageRequest:
    return replace(request, resume_key=None, resume_step=0, resume_stride=1)
