"""The balancer: admits requests, and assembles the parts that serve them."""

from __future__ import annotations

import math
import random
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from load_balancer.adapter_catalog import AdapterCatalog
from load_balancer.admin_controls import AdminControls
from load_balancer.admission.admission import Admission
from load_balancer.admission.tenant_shares import TenantShares
from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.peers import PeerBooks
from load_balancer.dispatch.service_times import ServiceTimes
from load_balancer.pool.pool import Pool
from load_balancer.pool.replica_registry import ReplicaRegistry
from load_balancer.runner.balancer_settings import BalancerSettings, Connections, Sources
from load_balancer.runner.dispatch_forecast import DispatchForecast
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage, GenerationTask, PartialImage
from load_balancer.runner.images_in_flight import ImagesInFlight
from load_balancer.runner.metrics_recorder import MetricsRecorder
from load_balancer.runner.observation_counters import EXPIRY, ObservationCounters
from load_balancer.runner.replica_call import QueuePosition, ReplicaCalls
from load_balancer.runner.request_runner import RequestRunner
from load_balancer.runner.shadow_samples import QUIET, ShadowSample, ShadowSamples
from weir import __version__, tracing
from weir.cascade import CacheMode, CascadeSettings, ImageTask, Run, first_run
from weir.config import BATCH_SLACK, FamilyConfig
from weir.core import ImageRequest, ImageSize, Overrides, steps_of_edit
from weir.errors import WeirError
from weir.logs import REQUEST_ID
from weir.plan import Plan
from weir.profiles import Profile

#: Number of seeds, which have 64 bits.
SEEDS = 2**64
#: Share of the limit on images in flight that is available to requests of low priority.
BATCH_SHARE = 0.5


class Balancer:
    """Serves requests from a pool under the plan in force. Lives on one event loop."""

    def __init__(
        self,
        pool: Pool,
        plan: Plan,
        family: FamilyConfig,
        settings: BalancerSettings,
        *,
        profile: Profile | None = None,
        connections: Connections = Connections(),
        sources: Sources = Sources(),
    ):
        self.slo_s = settings.slo_s
        self.clock = sources.clocks.monotonic
        self.admission = Admission(settings.queued)
        self.dispatcher = Dispatcher(plan, ServiceTimes(profile, family.size), sources.chance)
        self.peers = PeerBooks(self.dispatcher, "" if connections.peering is None else connections.peering.name)
        self.observations = ObservationCounters(EXPIRY * self.slo_s)
        self.metrics = MetricsRecorder(self.slo_s, family.keys, connections.metrics)
        self.registry = ReplicaRegistry(pool, plan, self.dispatcher, family.keys, self.clock, drain_s=settings.drain_s)
        self.adapters = AdapterCatalog(family.adapter_weights)
        self.controls = AdminControls(
            self.registry, plan, family.keys, self.adapters, connections.targets, clocks=sources.clocks
        )
        self._cascade = CascadeSettings(
            {key: variant.steps for key, variant in family.variants.items()},
            direct=settings.direct,
            redraw_below=settings.redraw.below,
            redraw_most=settings.redraw.most,
        )
        self._shares = TenantShares()
        self._forecast = DispatchForecast(self.dispatcher, self._cascade.steps, self.clock)
        tell = None if connections.peering is None else connections.peering.tell
        in_flight = ImagesInFlight(self.dispatcher, self._shares, self._forecast, self.clock, tell)
        self._calls = ReplicaCalls(
            pool, self.registry, self.dispatcher, self._forecast, in_flight, self.observations, self.clock
        )
        self._runner = RequestRunner(
            self._calls, self._forecast, self.observations, self.metrics, family, self._cascade, connections.cache
        )
        self._family = family
        #: What the service is, for reports of measurements.
        self._about = {
            "family": family.name,
            "slo_s": self.slo_s,
            "version": __version__,
            "device": profile.device if profile else None,
        }
        self._shadow = ShadowSamples(settings.shadow, family.size, random.Random())
        self._cache = connections.cache
        #: Cache mode of requests that do not set one; None without a cache.
        self.cache_mode: CacheMode | None = None if self._cache is None else settings.cache_mode
        self._unix_time = sources.clocks.unix
        self._draw = sources.draw

    # ---------------------------------------------------------------------------------------------- requests

    async def generate(self, request: GenerationRequest) -> list[GeneratedImage]:
        """Generates all images of a request, or none; cancelling the call cancels the work.

        Raises:
            Overloaded, NotReady: not admitted; no work was done.
            DeadlineExceeded, GenerationFailed: an image failed; the work on the others is cancelled.
        """
        generation = self.begin(request)
        try:
            return await generation.images()
        finally:
            await generation.close()

    def begin(self, request: GenerationRequest, *, again: bool = False) -> GenerationTask:
        """Admits a request and begins to generate its images. Closing the task cancels the work.

        Args:
            again: whether the request was admitted before, by a load balancer that is lost; it is not refused then.

        Raises:
            Overloaded, NotReady: not admitted; no work was done.
        """
        with tracing.span("admission", images=request.n) as span:
            task, first = self._admit(request, again)
            span.set(plan_version=task.plan.version)
        self._shadow.note(request)
        first_seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        name = uuid.uuid4().hex
        images = tuple(f"{name}-{index}" for index in range(request.n))

        async def generate(index: int, show: Callable[[PartialImage], None]) -> GeneratedImage:
            REQUEST_ID.set(request.id)
            # Images that resume from one state are nearly the same, and a request for several wants different ones.
            own = task if index == 0 else task._replace(cache="off")
            wanted = self._image_request(request, images[index], (first_seed + index) % SEEDS, task.deadline)
            try:
                self.observations.admitted(wanted.id, task.admitted_at)
                image = await self._runner.generate(own, wanted, lambda *shown: show(PartialImage(index, *shown)))
            except WeirError as error:
                self.metrics.failed(error)
                raise
            self.metrics.answered(image)
            return replace(image, index=index)

        def ended() -> None:
            self._forecast.forget(images)
            self._shares.ended(images)
            self.admission.release(request.n)

        self._forecast.expect(images, first.role)
        if request.caller.priority != "batch":
            self._shares.begun(request.caller.tenant, images, self.dispatcher.times.run_s(self._forecast.kind(first)))
        return GenerationTask(request, images, generate, ended)

    def _image_request(self, request: GenerationRequest, image: str, seed: int, deadline: float) -> ImageRequest:
        """The request for one image of a request."""
        checked = self._family.safety_checker is not None and request.level != "off"
        return ImageRequest(
            id=image,
            request_id=request.id,
            prompt=request.prompt,
            seed=seed,
            size=request.size,
            deadline=deadline,
            negative_prompt=request.negative_prompt,
            prompt_syntax=request.prompt_syntax,
            overrides=Overrides(request.steps, request.guidance, request.sampler),
            adapters=request.adapters,
            edit=request.edit,
            tenant=request.caller.tenant,
            moderation=request.level,
            # The checker looks at finished images only.
            previews=0 if checked else request.partial_images,
        )

    def price(self, request: GenerationRequest) -> float:
        """Number of images of the family's own size and steps that take the work of a request; at least its number of
        images, because each costs more than its steps."""
        own = self._family.heavy.steps
        steps = request.steps or own
        if request.edit is not None:
            steps = steps_of_edit(steps, request.edit.strength)
        whole = self.dispatcher.times.price(self._size(request))
        return request.n * max(1.0, whole * max(1.0, steps / own))

    def _price(self, request: GenerationRequest) -> float:
        """Cost of an image of a request's size, with the steps that an edit runs, in images of the family's own size
        and steps (:meth:`weir.profiles.Profile.price`)."""
        own, edit = self._family.heavy.steps, request.edit
        work = 1.0 if edit is None else steps_of_edit(own, edit.strength) / own
        return self.dispatcher.times.price(self._size(request), work)

    def _size(self, request: GenerationRequest) -> ImageSize | None:
        """The size of a request's images; None is the family's own."""
        return None if request.size == self._family.size else request.size

    def position(self, generation: GenerationTask) -> QueuePosition | None:
        """The position of the request's image that will be ready last; None when none of them is at a replica."""
        positions = [self._calls.position(image) for image in generation.ids]
        return max(filter(None, positions), key=lambda it: it.ready_at, default=None)

    def _admit(self, request: GenerationRequest, again: bool) -> tuple[ImageTask, Run]:
        """Returns the task of each image of the request, and its first run, for which admission predicts the finish
        time.

        Args:
            again: whether the request was admitted before, by a load balancer that is lost.

        Raises:
            Overloaded, NotReady: the request is not admitted.
        """
        now, plan, caller = self.clock(), self.registry.plan, request.caller
        batch = caller.priority == "batch"
        beyond_share = not batch and self._shares.asked(caller.tenant, now)
        price = self._price(request)
        self.observations.arrived(request.n, price)
        self.metrics.asked(request.n)
        task = ImageTask(
            plan=plan,
            admitted_at=now,
            slo_s=self.slo_s * (BATCH_SLACK if batch else 1.0),
            variant=request.variant,
            steps=request.steps,
            seeded=request.seed is not None,
            cache="off" if self.cache_mode is None else request.cache or self.cache_mode,
            cache_named=request.cache is not None,
            low_priority=batch or beyond_share,
            beyond_share=beyond_share,
            draw=self._draw(),
            size=self._size(request),
            strength=None if request.edit is None else request.edit.strength,
        )
        first = first_run(task, self._cascade)
        if again:
            self.admission.admit_again(request.n)
        else:
            self._admit_first(request, task, first, price)
        self.metrics.admitted(request.n)
        return task, first

    def _admit_first(self, request: GenerationRequest, task: ImageTask, first: Run, price: float) -> None:
        """Admits a request, within this load balancer's share of the limits.

        Raises:
            Overloaded, NotReady: the request is not admitted.
        """
        rules, rps, share = task.plan.rules, task.plan.admitted_rps, self.peers.share
        try:
            self.admission.admit(
                request.n,
                now=task.admitted_at,
                # A run that is dropped before it starts costs nothing, so the decision waits until the image is queued.
                deadline=task.latest if rules.drop_after_s is None else math.inf,
                finish_at=self._forecast.admission_finish_at(first, request.n),
                rps=None if rps is None else rps * share,
                share=(BATCH_SHARE if task.low_priority else 1.0) * share,
                price=request.n * price,
            )
        except WeirError as error:
            self.metrics.refused(request.n, error)
            raise

    async def shadow_sample(self, levels: Sequence[tuple[str, int]]) -> ShadowSample | None:
        """Runs :meth:`ShadowSamples.sample` on this pool while nearly all replicas are idle."""

        def quiet() -> bool:
            return self.admission.in_flight < max(1.0, QUIET * len(self.dispatcher.replicas.ranks))

        return await self._shadow.sample(levels, self.generate, quiet)

    # ----------------------------------------------------------------------------------------------- reports

    def readiness(self) -> dict[str, Any]:
        """The readiness report, with the number of images in flight."""
        return {**self.registry.readiness(), "in_flight": self.admission.in_flight}

    def counters(self, judged: int = 0, batches: int = 0, fetched: int = 0, verdicts: int = 0) -> dict[str, Any]:
        """The observations of a controller, as JSON: the plan in force, the live replicas, and counts since the start.

        Args:
            judged, batches, fetched, verdicts: the counts of the reader's last call; older samples are left out.
        """
        return {
            "plan": self.registry.plan.to_dict(),
            "ranks": self.dispatcher.replicas.ranks,
            "queued": self._queued(),
            **self.controls.orders(),
            **self.observations.since(judged, batches, self.clock(), fetched=fetched, verdicts=verdicts),
        }

    def record_metrics(self) -> None:
        """Records the current state and the counts; to be called once a second."""
        self.metrics.record(
            self.registry.plan,
            [self.registry.plan.assignment(rank) for rank in self.registry.undrained_ranks],
            self.dispatcher,
            now=self.clock(),
            plan_since=self.registry.plan_since,
            in_flight=self.admission.in_flight,
            unanswered={} if self._cache is None else self._cache.failures,
        )
        pinned = self.controls.pins.current is not None
        self.metrics.record_clock_skew(self.registry.clock_skew_s)
        self.metrics.record_controls(pinned, len(self.registry.drained), self.controls.log.counts)

    def live(self) -> dict[str, Any]:
        """The state for the web page, which polls it once a second and computes rates from two answers."""
        state, plan, seen = self.readiness(), self.registry.plan, self.observations
        timed = self.controls.pins.current
        return {
            "time": self._unix_time(),
            "ready": state["ready"],
            "pending": state["pending"],
            "roles": state["replicas"],
            "plan_version": plan.version,
            "threshold": plan.threshold,
            "thresholds": list(plan.thresholds),
            "reason": plan.reason,
            "policy": self.controls.policy,
            "service": self._about,
            "pinned_until": None if timed is None else timed.until,
            "drained": len(self.registry.drained),
            "in_flight": state["in_flight"],
            "queued": self._queued(),
            "arrivals": seen.arrivals,
            "judged": seen.judged,
            "deferred": seen.deferred,
            "cache": self.cache_mode is not None,
            "looked_up": seen.looked_up,
            "hits": sum(seen.reused.values()),
            **self.metrics.totals(self.clock()),
        }

    def admin_state(self) -> dict[str, Any]:
        """The plan in force and the controls, for the routes of operators."""
        plan, readiness = self.registry.plan, self.registry.readiness()
        described = {
            "version": plan.version,
            "age_s": readiness["plan"]["age_s"],
            "origin": plan.origin,
            "reason": plan.reason,
            "chain": list(plan.chain),
            "thresholds": dict(zip(plan.chain, plan.thresholds, strict=False)),
            "replicas": {role: counts["planned"] for role, counts in readiness["replicas"].items()},
            "batch": {role: plan.batch_size(role) for role in plan.roles},
            "admitted_rps": plan.admitted_rps,
        }
        return {"plan": described, **self.controls.state()}

    def _queued(self) -> dict[str, int]:
        return {role: self.dispatcher.replicas.queued(role) for role in self.registry.plan.roles}
