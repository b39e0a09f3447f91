"""From an order to its images: admission, and everything that a request needs on its way, put together."""

from __future__ import annotations

import math
import random
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from load_balancer.admission.admission import Admission
from load_balancer.admission.admission_context import AdmissionContext
from load_balancer.admission.quotas import Quotas
from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.service_times import ServiceTimes
from load_balancer.pool.pool import Pool
from load_balancer.pool.replica_registry import ReplicaRegistry
from load_balancer.runner import cascade_rules as cascade
from load_balancer.runner.cache_client import CacheClient
from load_balancer.runner.generation_request import CacheMode, GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage, GenerationTask, PartialImage
from load_balancer.runner.metrics_recorder import MetricsRecorder
from load_balancer.runner.observation_counters import ObservationCounters
from load_balancer.runner.replica_call import QueuePosition, ReplicaCalls
from load_balancer.runner.request_runner import RequestRunner
from load_balancer.runner.shadow_samples import QUIET, ShadowSample, ShadowSamples
from weir.config import FamilyConfig, RedrawConfig
from weir.core import ImageRequest, Plan, Role
from weir.errors import WeirError
from weir.profiles import Profile
from weir.telemetry import Metrics

#: A controller counts an image as lost when it is not answered within so many times the SLO.
EXPIRY = 2.0
#: Requests of the priority ``batch`` have so many times the SLO, and let all others go first meanwhile.
BATCH_SLACK = 10.0
#: How many seeds there are; PyTorch's generators take 64 bits.
SEEDS = 2**64
#: Of the images that may be in flight at all, the share that they may take.
BATCH_SHARE = 0.5


class Balancer:
    """Serves orders from a pool under the plan in force. Lives on one event loop.

    Args:
        drain_s: how long a replica that is told to stop may go on with what it has begun.
        cache_mode: what requests do with the cache that do not say themselves.
        direct: the least share of steps saved for which a hit skips the light variant.
        pairs: families and profiles of further light variants before the same heavy one.
        shadow: share of the images that may be drawn again as shadow samples.
        redraw: which heavy images are drawn again.
        metrics: where it shows what it does.
        clock: unix time, seconds.
    """

    def __init__(
        self,
        pool: Pool,
        plan: Plan,
        family: FamilyConfig,
        *,
        slo_s: float,
        queued: int,
        drain_s: float = 60.0,
        profile: Profile | None = None,
        pairs: Sequence[tuple[FamilyConfig, Profile]] = (),
        cache: CacheClient | None = None,
        cache_mode: CacheMode = "off",
        direct: float = 0.0,
        shadow: float = 0.0,
        redraw: RedrawConfig = RedrawConfig(),
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.slo_s = slo_s
        self.admission = Admission(queued)
        self.quotas = Quotas()
        self.dispatcher = Dispatcher(plan, ServiceTimes(profile, {it.light.name: measured for it, measured in pairs}))
        #: Names of the light variants, the family's own first.
        self.lights = (family.light.name, *(it.light.name for it, _ in pairs))
        self.tally = ObservationCounters(EXPIRY * slo_s)
        self.meter = MetricsRecorder(slo_s, metrics)
        self.roster = ReplicaRegistry(pool, plan, self.dispatcher, clock, drain_s=drain_s)
        self._stage = ReplicaCalls(pool, self.roster, self.dispatcher, self.tally, self.meter, family, clock)
        self._passage = RequestRunner(
            self._stage,
            self.tally,
            self.meter,
            (family, *(it for it, _ in pairs)),
            cache=cache,
            mode=cache_mode,
            direct=direct,
            redraw=redraw,
            clock=clock,
        )
        self._shadow = ShadowSamples(shadow, family.size, random.Random())
        self._cache = cache
        self._heavy_steps = family.heavy.steps
        self._clock = clock

    def readiness(self) -> dict[str, Any]:
        """Whether it can serve, what is still missing, and how many images are in flight."""
        return {**self.roster.readiness(), "in_flight": self.admission.in_flight}

    def counters(self, judged: int = 0, batches: int = 0, fetched: int = 0) -> dict[str, Any]:
        """What a controller observes, JSON-ready: the plan in force, the live replicas, and counts since the start.

        Args:
            judged, batches, fetched: the counts of the look before; what it told is not told again.
        """
        return {
            "plan": self.roster.plan.to_dict(),
            "ranks": self.dispatcher.ranks,
            "queued": {role.value: self.dispatcher.queued(role) for role in Role},
            **self.tally.since(judged, batches, self._clock(), fetched=fetched),
        }

    def show(self) -> None:
        """Tells the metrics what there is now; call it once a second."""
        self.meter.tell(
            self.roster.plan,
            self.dispatcher,
            now=self._clock(),
            plan_since=self.roster.plan_since,
            light=self.lights.index(light) if (light := self.roster.plan.rules.light) in self.lights else 0,
            in_flight=self.admission.in_flight,
            unanswered={} if self._cache is None else self._cache.failures,
        )

    def live(self) -> dict[str, Any]:
        """What somebody wants to see who looks once a second; two looks make rates."""
        state, plan, tally = self.readiness(), self.roster.plan, self.tally
        return {
            "time": self._clock(),
            "ready": state["ready"],
            "pending": state["pending"],
            "roles": state["replicas"],
            "plan_version": plan.version,
            "threshold": plan.threshold,
            "in_flight": state["in_flight"],
            "queued": {role.value: self.dispatcher.queued(role) for role in Role},
            "arrivals": tally.arrivals,
            "judged": tally.judged,
            "deferred": tally.deferred,
            "cache": self._cache is not None,
            "looked_up": tally.looked_up,
            "hits": sum(tally.reused.values()),
        }

    async def draw(self, order: GenerationRequest) -> list[GeneratedImage]:
        """Draws all images of an order, or none; cancelling the call cancels the work.

        Raises:
            RateLimited: the caller has used up what its key allows.
            Overloaded, NotReady: not admitted; no work was done.
            DeadlineExceeded, GenerationFailed: an image failed; the work on the others is cancelled.
        """
        drawing = self.begin(order)
        try:
            return await drawing.images()
        finally:
            await drawing.close()

    def begin(self, order: GenerationRequest) -> GenerationTask:
        """Admits an order and begins to draw it. Who does not want it any more has to close it.

        Raises:
            RateLimited, Overloaded, NotReady: not admitted; no work was done.
        """
        terms = self._admitted(order)
        self._shadow.note(order)
        first_seed = secrets.randbelow(2**32) if order.seed is None else order.seed
        name = uuid.uuid4().hex
        images = tuple(f"{name}-{index}" for index in range(order.n))

        async def draw(index: int, tell: Callable[[PartialImage], None]) -> GeneratedImage:
            request = ImageRequest(
                id=images[index],
                prompt=order.prompt,
                seed=(first_seed + index) % SEEDS,
                width=order.width,
                height=order.height,
                deadline=terms.deadline,
                negative_prompt=order.negative_prompt,
                steps=order.steps,
                guidance=order.guidance,
                tenant=order.caller.tenant,
                light=terms.plan.rules.light if order.role is None else None,
                patient=_is_patient(order),
            )
            try:
                drawn = await self._passage.take(request, order, terms, index, tell)
            except WeirError as error:
                self.meter.failed(error)
                raise
            self.meter.answered(drawn)
            return drawn

        def ended() -> None:
            self._stage.forget(images)
            self.admission.release(order.n)
            self.quotas.give_back(order.caller, order.n)

        self._stage.expect(images, terms.role)
        return GenerationTask(order, images, draw, ended)

    async def shadow_sample(self, levels: Sequence[tuple[Role, int]]) -> ShadowSample | None:
        """:meth:`ShadowSamples.sample` on this pool, while hardly any replica has anything to do."""

        def quiet() -> bool:
            return self.admission.in_flight < max(1.0, QUIET * len(self.dispatcher.ranks))

        return await self._shadow.sample(levels, self.draw, quiet)

    def place(self, drawing: GenerationTask) -> QueuePosition | None:
        """Where the image of a drawing stands that will be ready last; None when none of them is at a replica."""
        places = [self._stage.place(image) for image in drawing.ids]
        return max(filter(None, places), key=lambda place: place.ready_at, default=None)

    def _admitted(self, order: GenerationRequest) -> AdmissionContext:
        """The terms that the order is drawn under.

        Raises:
            RateLimited, Overloaded, NotReady: it is not admitted.
        """
        now, plan, patient = self._clock(), self.roster.plan, _is_patient(order)
        slo_s = self.slo_s * (BATCH_SLACK if patient else 1.0)
        self.quotas.take(order.caller, order.n, now)
        try:
            self.tally.arrived(order.n)
            self.meter.asked(order.n)
            role = cascade.first_role(plan, order.role, random.random())
            terms = AdmissionContext(plan, role, now, slo_s)
            steps = cascade.noise_steps(plan, order.role, order.steps, self._heavy_steps)
            self.admission.admit(
                order.n,
                now=now,
                # What is dropped before it runs costs nothing, so the rule decides later and knows better.
                deadline=terms.latest if plan.rules.drop_after_s is None else math.inf,
                finish_at=self._stage.finish_at(role, steps, now, order.n, patient=patient),
                rps=plan.admitted_rps,
                share=BATCH_SHARE if patient else 1.0,
            )
        except BaseException as error:
            if isinstance(error, WeirError):
                self.meter.refused(order.n, error)
            self.quotas.give_back(order.caller, order.n)
            raise
        self.meter.admitted(order.n)
        return terms


def _is_patient(order: GenerationRequest) -> bool:
    return order.caller.priority == "batch"
