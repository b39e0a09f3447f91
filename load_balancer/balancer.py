"""From an order to its images: admission, the cascade path, dispatch, one retry. The plan in force lives here."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from load_balancer import cascade
from load_balancer.admission import Admission
from load_balancer.dispatch import Choice, Dispatcher, Kind
from load_balancer.lateness import Lateness
from load_balancer.order import CacheMode, Order
from load_balancer.pool import Pool, ReplicaLost
from load_balancer.quotas import Quotas
from load_balancer.reuse import NOTHING, Cache, Reuse
from load_balancer.service_times import ServiceTimes
from load_balancer.tally import Tally
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageResult, Path, Plan, Role, Rules, margin_s
from weir.errors import DeadlineExceeded, GenerationFailed, InvalidRequest, PlanError, RoleChanged, WeirError
from weir.profiles import Profile

log = logging.getLogger(__name__)

#: How often the replicas are asked who they are.
REFRESH_S = 1.0
#: Nobody waits for an image longer than so many times the SLO.
PATIENCE = 3.0
#: A controller counts an image as lost when it is not answered within so many times the SLO.
EXPIRY = 2.0

#: The ways on which the heavy variant drew the image.
_HEAVY = (Path.HEAVY, Path.CACHE)
_WORKER_ERRORS: dict[str, type[WeirError]] = {e.code: e for e in (DeadlineExceeded, InvalidRequest, RoleChanged)}


@dataclass(frozen=True, slots=True)
class Drawn:
    """One finished image and how it came about. ``queue_s`` and ``compute_s`` sum over the stages it went through.

    ``reuse`` is what the cache had for it; None where it was not asked.
    """

    result: ImageResult
    path: Path
    model: str
    seed: int
    confidence: float | None
    queue_s: float
    compute_s: float
    latency_s: float
    plan_version: int
    reuse: Reuse | None = None


class Balancer:
    """Serves orders from a pool under the plan in force. Lives on one event loop.

    Args:
        cache_mode: what requests do with the cache that do not say themselves.
        direct: the least share of steps saved for which a hit skips the light variant.
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
        profile: Profile | None = None,
        cache: Cache | None = None,
        cache_mode: CacheMode = "off",
        direct: float = 0.0,
        clock: Callable[[], float] = time.time,
    ):
        self.plan = plan
        self.slo_s = slo_s
        self.admission = Admission(queued)
        self.quotas = Quotas()
        self.dispatcher = Dispatcher(plan, ServiceTimes(profile))
        self.tally = Tally(EXPIRY * slo_s)
        self.lateness = Lateness()
        self._pool = pool
        self._cache = cache
        self._cache_mode: CacheMode = cache_mode
        self._direct = direct
        self._family = family
        self._clock = clock
        self._plan_since = clock()
        self._refreshed = asyncio.Event()
        self._hurry = asyncio.Event()

    # ------------------------------------------------------------------------------------------ plan and replicas

    def apply(self, fields: Any) -> None:
        """Takes the next plan. Never raises: a wrong or older one changes nothing."""
        try:
            plan = Plan.from_dict(fields)
        except (PlanError, TypeError, AttributeError) as error:
            log.warning("kept plan %d: %s", self.plan.version, error)
            return
        if plan.version <= self.plan.version:
            return
        self.plan = plan
        self._plan_since = self._clock()
        self.dispatcher.set_plan(plan)
        self._hurry.set()

    async def watch(self) -> None:
        """Keeps the book of replicas true; runs until cancelled, off every request's path."""
        while True:
            self._hurry.clear()
            try:
                self.dispatcher.sync(await self._pool.describe())
                self._refreshed.set()
                self._refreshed.clear()
            except TimeoutError:
                log.warning("a replica does not say who it is; keeping what was known")
            except Exception:
                log.exception("could not ask the replicas who they are; keeping what was known")
            wait = REFRESH_S if any(self.dispatcher.ready(role) for role in Role) else REFRESH_S / 5
            try:
                await asyncio.wait_for(self._hurry.wait(), wait)
            except TimeoutError:
                continue

    def readiness(self) -> dict[str, Any]:
        """Ready as soon as every role of the plan has a live replica; ``pending`` says what is still missing."""
        replicas, pending, ready = {}, [], True
        for role in Role:
            planned, live = self.plan.count(role), self.dispatcher.ready(role)
            replicas[role.value] = {"planned": planned, "ready": live}
            if live < planned:
                pending.append(f"{role.value}: {live} of {planned} replicas ready")
            ready = ready and (live > 0 or planned == 0)
        age_s = round(self._clock() - self._plan_since, 3)
        return {
            "ready": ready,
            "pending": pending,
            "replicas": replicas,
            "plan": {"version": self.plan.version, "age_s": age_s, "threshold": self.plan.threshold},
            "in_flight": self.admission.in_flight,
        }

    def counters(self, judged: int = 0, batches: int = 0) -> dict[str, Any]:
        """What a controller observes, JSON-ready: the plan in force, the live replicas, and counts since the start.

        Args:
            judged, batches: the counts of the look before; what it told is not told again.
        """
        return {
            "plan": self.plan.to_dict(),
            "ranks": self.dispatcher.ranks,
            "queued": {role.value: self.dispatcher.queued(role) for role in Role},
            **self.tally.since(judged, batches, self._clock()),
        }

    # -------------------------------------------------------------------------------------------------- requests

    async def draw(self, order: Order) -> list[Drawn]:
        """Draws all images of an order, or none.

        Raises:
            RateLimited: the caller has used up what its key allows.
            Overloaded, NotReady: not admitted; no work was done.
            DeadlineExceeded, GenerationFailed: an image failed; the work on the others is cancelled.
        """
        now = self._clock()
        self.quotas.take(order.caller, order.n, now)
        try:
            return await self._admitted(order, now)
        finally:
            self.quotas.give_back(order.caller, order.n)

    async def _admitted(self, order: Order, now: float) -> list[Drawn]:
        """Draws an order, unless there is too much to do."""
        plan = self.plan
        self.tally.arrived(order.n)
        role = cascade.first_role(plan, order.role, random.random())
        drop_after_s = plan.rules.drop_after_s
        finish_at = self.dispatcher.finish_at(self._kind_of(role, order.steps), now, order.n)
        self.admission.admit(
            order.n,
            now=now,
            # What is dropped before it runs costs nothing, so the rule decides later and knows better.
            deadline=now + self.slo_s if drop_after_s is None else math.inf,
            finish_at=finish_at,
            rps=plan.admitted_rps,
        )
        try:
            first_seed = secrets.randbelow(2**32) if order.seed is None else order.seed
            name = uuid.uuid4().hex
            requests = [
                ImageRequest(
                    id=f"{name}-{i}",
                    prompt=order.prompt,
                    seed=(first_seed + i) % 2**32,
                    width=order.width,
                    height=order.height,
                    deadline=now + (drop_after_s or self.slo_s),
                    negative_prompt=order.negative_prompt,
                    steps=order.steps,
                    guidance=order.guidance,
                )
                for i in range(order.n)
            ]
            if len(requests) == 1:
                return [await self._one(requests[0], plan, order, role, now)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(request, plan, order, role, now)) for request in requests]
            return [task.result() for task in tasks]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.admission.release(order.n)

    async def _one(self, request: ImageRequest, plan: Plan, order: Order, role: Role, admitted_at: float) -> Drawn:
        """One image: what the cache has for it, then the cascade; and what became of it is told to the cache."""
        self.tally.admitted(request.id, admitted_at)
        mode = order.cache or self._cache_mode
        if self._cache is None or mode == "off" or order.role is Role.LIGHT:
            return await self._cascade(request, plan, order.role, role, admitted_at)
        reuse = await self._cache.find(request, order.caller.tenant)
        if mode == "read":
            reuse = replace(reuse, capture=False)
        request = reuse.of(request)
        if order.role is None:
            now = self._clock()
            role = cascade.after_lookup(
                plan,
                role,
                reuse.k / (request.steps or self._family.heavy.steps),
                direct=self._direct,
                heavy_finish_at=self._heavy_finish_at(request, now),
                latest=self._latest(admitted_at),
            )
        drawn = None
        try:
            drawn = await self._cascade(request, plan, order.role, role, admitted_at)
            return replace(drawn, reuse=reuse)
        finally:
            heavy = drawn.result if drawn is not None and drawn.path in _HEAVY else None
            resumed_at = heavy.resumed_at if heavy else 0
            self.tally.reuse(resumed_at / (request.steps or self._family.heavy.steps))
            self._cache.finished(request, resumed_at, heavy.captured if heavy else (), heavy is not None)

    async def _cascade(
        self, request: ImageRequest, plan: Plan, forced: Role | None, role: Role, admitted_at: float
    ) -> Drawn:
        """One image by the rules of the plan that the request was admitted under."""
        latest = self._latest(admitted_at)
        patience = request.deadline + (PATIENCE - 1) * self.slo_s
        stages: list[ImageResult] = []
        while True:
            fallback = bool(stages) and plan.rules.light_fallback
            try:
                role, result = await self._stage(role, request, plan.rules, until=latest if fallback else patience)
            except WeirError as error:
                if not fallback:
                    raise
                # A finished light image is never thrown away.
                log.info("%s falls back to its light image: %s", request.id, error.message)
                return self._drawn(request, plan, Path.LIGHT_DEADLINE, admitted_at, stages)
            stages.append(result)
            if role is Role.HEAVY:
                resumed = request.resume_step and result.resumed_at == request.resume_step
                return self._drawn(request, plan, Path.CACHE if resumed else Path.HEAVY, admitted_at, stages)
            path = self._judged(request, plan, forced, result.confidence, latest)
            if path is not Path.HEAVY:
                return self._drawn(request, plan, path, admitted_at, stages)
            role = Role.HEAVY
            if plan.rules.light_fallback:  # nobody waits for it longer, so the worker should not begin it later
                request = replace(request, deadline=latest)

    def _judged(
        self, request: ImageRequest, plan: Plan, forced: Role | None, confidence: float | None, latest: float
    ) -> Path:
        """Where a request goes whose light image is there."""
        if forced is None:
            deferred = plan.count(Role.HEAVY) > 0 and cascade.is_deferred(confidence, plan.threshold)
            self.tally.judge(request.id, confidence, deferred)
        heavy_at = self._heavy_finish_at(request, self._clock())
        return cascade.after_light(plan, confidence, forced=forced, heavy_finish_at=heavy_at, latest=latest)

    def _heavy_finish_at(self, request: ImageRequest, now: float) -> float | None:
        """When the heavy image would be ready, by the book and how late the last ones were."""
        ready_at = self.dispatcher.finish_at(self._kind(Role.HEAVY, request), now)
        return None if ready_at is None else ready_at + self.lateness.seconds(now)

    def _latest(self, admitted_at: float) -> float:
        """When the answer has to leave."""
        return admitted_at + self.slo_s - margin_s(self.slo_s)

    async def _stage(
        self, role: Role, request: ImageRequest, rules: Rules, *, until: float
    ) -> tuple[Role, ImageResult]:
        """One variant's image, from another replica if the first one dies; and the variant, for a replica that takes
        its queue along into another role changes it.

        Raises:
            DeadlineExceeded: not there by ``until``, or dropped by the rules.
            GenerationFailed: the worker could not draw it, or two replicas died of it.
        """
        stay, ready_at = "", math.inf
        try:
            async with asyncio.timeout(max(0.0, until - self._clock())):
                lost: list[str] = []
                while len(lost) < 2:
                    if stay:
                        replica, ready_at = stay, math.inf
                    else:
                        replica, ready_at = await self._choose(role, request, avoid=frozenset(lost))
                    try:
                        result = await self._send(replica, role, request, rules)
                        self._note_lateness(role, ready_at)
                        return role, result
                    except ReplicaLost as error:
                        log.warning("%s lost its replica: %s", request.id, error)
                        lost.append(error.replica)
                        stay = ""
                    except RoleChanged:  # it never began; the book knows the new roles by now
                        await asyncio.sleep(0)
                        if not rules.dispatch_again:
                            stay = replica
                            role = Role.HEAVY if role is Role.LIGHT else Role.LIGHT
        except TimeoutError:
            self._note_lateness(role, ready_at)
            raise DeadlineExceeded(f"the {role.value} image was not ready in time") from None
        raise GenerationFailed(f"{len(lost)} replicas died while they drew the image; it is not tried again")

    def _note_lateness(self, role: Role, ready_at: float) -> None:
        if role is Role.HEAVY and ready_at < math.inf:
            now = self._clock()
            self.lateness.observe(now - ready_at, now)

    async def _choose(self, role: Role, request: ImageRequest, *, avoid: frozenset[str]) -> Choice:
        """The replica for an image, as soon as there is any."""
        kind = self._kind(role, request)
        while (choice := self.dispatcher.pick(kind, self._clock(), avoid=avoid)) is None:
            await self._refreshed.wait()
        return choice

    async def _send(self, replica: str, role: Role, request: ImageRequest, rules: Rules) -> ImageResult:
        kind = self._kind(role, request)
        self.dispatcher.assign(replica, request.id, kind, self._clock())
        try:
            wanted = request if role is Role.HEAVY else NOTHING.of(request)
            drawing = self._pool.generate(replica, role, wanted.to_dict())
            if rules.drop_after_s is not None:
                drawing = self._or_dropped(drawing, replica, kind, request)
            result = ImageResult.from_dict(await drawing)
        except ReplicaLost:
            self.dispatcher.remove(replica)
            self._hurry.set()
            raise
        except WeirError:
            raise
        except Exception as error:
            log.exception("%s failed on %s", request.id, replica)
            raise GenerationFailed(f"the worker failed: {type(error).__name__}") from error
        else:
            if result.batch_size > 0:
                batch = self.dispatcher.finished(
                    replica,
                    request.id,
                    self._clock(),
                    batch_size=result.batch_size,
                    compute_s=result.compute_s,
                    queued=result.queued,
                )
                if batch is not None and batch.work == 1:
                    self.tally.batch(batch.role, result.batch_size, result.compute_s)
        finally:
            self.dispatcher.forget(replica, request.id, self._clock())
        if result.error is not None:
            code, message = result.error
            raise _WORKER_ERRORS.get(code, GenerationFailed)(message)
        return result

    async def _or_dropped(
        self, drawing: Awaitable[dict[str, Any]], replica: str, kind: Kind, request: ImageRequest
    ) -> dict[str, Any]:
        """The reply, unless the image is still queued when a batch that began now would end after its deadline.

        Raises:
            DeadlineExceeded: it is, and was taken out of the queue.
        """
        task = asyncio.ensure_future(drawing)
        try:
            last_start = request.deadline - self.dispatcher.batch_s(replica, kind)
            await asyncio.wait({task}, timeout=max(0.0, last_start - self._clock()))
            if not task.done() and not self.dispatcher.begun(replica, request.id):
                raise DeadlineExceeded("the image could not be ready in time and was dropped")
            return await task
        finally:
            task.cancel()

    def _kind(self, role: Role, request: ImageRequest) -> Kind:
        return self._kind_of(role, request.steps, request.resume_step)

    def _kind_of(self, role: Role, steps: int | None, skipped: int = 0) -> Kind:
        own = self._family.heavy.steps
        return Kind(role) if role is Role.LIGHT else Kind(role, ((steps or own) - skipped) / own)

    def _drawn(
        self, request: ImageRequest, plan: Plan, path: Path, admitted_at: float, stages: list[ImageResult]
    ) -> Drawn:
        now = self._clock()
        self.tally.answered(request.id, now)
        variant = self._family.heavy if path in _HEAVY else self._family.light
        return Drawn(
            result=stages[-1],
            path=path,
            model=variant.name,
            seed=request.seed,
            confidence=next((s.confidence for s in reversed(stages) if s.confidence is not None), None),
            queue_s=sum(s.queue_s for s in stages),
            compute_s=sum(s.compute_s for s in stages),
            latency_s=now - admitted_at,
            plan_version=plan.version,
        )
