"""From an order to its images: admission, the cascade path, dispatch, one retry. The plan in force lives here."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from load_balancer import cascade
from load_balancer.admission import Admission
from load_balancer.dispatch import Dispatcher, Kind
from load_balancer.order import Order
from load_balancer.pool import Pool, ReplicaLost
from load_balancer.service_times import ServiceTimes
from load_balancer.tally import Tally
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageResult, Path, Plan, Role, margin_s
from weir.errors import DeadlineExceeded, GenerationFailed, InvalidRequest, PlanError, RoleChanged, WeirError
from weir.profiles import Profile

log = logging.getLogger(__name__)

#: How often the replicas are asked who they are.
REFRESH_S = 1.0
#: Nobody waits for an image longer than so many times the SLO.
PATIENCE = 3.0

_WORKER_ERRORS: dict[str, type[WeirError]] = {e.code: e for e in (DeadlineExceeded, InvalidRequest, RoleChanged)}


@dataclass(frozen=True, slots=True)
class Drawn:
    """One finished image and how it came about. ``queue_s`` and ``compute_s`` sum over the stages it went through."""

    result: ImageResult
    path: Path
    model: str
    seed: int
    confidence: float | None
    queue_s: float
    compute_s: float
    latency_s: float
    plan_version: int


class Balancer:
    """Serves orders from a pool under the plan in force. Lives on one event loop.

    Args:
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
        clock: Callable[[], float] = time.time,
    ):
        self.plan = plan
        self.slo_s = slo_s
        self.admission = Admission(queued)
        self.dispatcher = Dispatcher(plan, ServiceTimes(profile))
        self.tally = Tally()
        self._pool = pool
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

    def counters(self, judged: int = 0) -> dict[str, Any]:
        """What a controller observes, JSON-ready: the plan in force, the live replicas, and counts since the start.

        Args:
            judged: the count of the look before; its confidences are not told again.
        """
        return {
            "plan": self.plan.to_dict(),
            "ranks": self.dispatcher.ranks,
            "queued": {role.value: self.dispatcher.queued(role) for role in Role},
            "in_flight": self.admission.in_flight,
            **self.tally.since(judged),
        }

    # -------------------------------------------------------------------------------------------------- requests

    async def draw(self, order: Order) -> list[Drawn]:
        """Draws all images of an order, or none.

        Raises:
            Overloaded, NotReady: not admitted; no work was done.
            DeadlineExceeded, GenerationFailed: an image failed; the work on the others is cancelled.
        """
        now = self._clock()
        plan = self.plan
        self.tally.arrived(order.n)
        role = cascade.first_role(plan, order.role)
        deadline = now + self.slo_s
        finish_at = self.dispatcher.finish_at(self._kind(role, order.steps), now, order.n)
        self.admission.admit(order.n, now=now, deadline=deadline, finish_at=finish_at, rps=plan.admitted_rps)
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
                    deadline=deadline,
                    negative_prompt=order.negative_prompt,
                    steps=order.steps,
                    guidance=order.guidance,
                )
                for i in range(order.n)
            ]
            if len(requests) == 1:
                return [await self._cascade(requests[0], plan, order.role, role, now)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._cascade(request, plan, order.role, role, now)) for request in requests]
            return [task.result() for task in tasks]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.admission.release(order.n)

    async def _cascade(
        self, request: ImageRequest, plan: Plan, forced: Role | None, role: Role, admitted_at: float
    ) -> Drawn:
        patience = request.deadline + (PATIENCE - 1) * self.slo_s
        first = await self._stage(role, request, until=patience)
        if role is Role.HEAVY:
            return self._drawn(request, plan, Path.HEAVY, admitted_at, first)
        if forced is None:
            cascades = plan.count(Role.HEAVY) > 0
            self.tally.judge(first.confidence, cascades and cascade.is_deferred(first.confidence, plan.threshold))
        heavy = self._kind(Role.HEAVY, request.steps)
        latest = request.deadline - margin_s(self.slo_s)
        path = cascade.after_light(
            plan,
            first.confidence,
            forced=forced,
            heavy_finish_at=self.dispatcher.finish_at(heavy, self._clock()),
            latest=latest,
        )
        if path is Path.HEAVY:
            try:
                second = await self._stage(Role.HEAVY, request, until=latest)
                return self._drawn(request, plan, path, admitted_at, first, second)
            except WeirError as error:  # the finished light image is never thrown away
                log.info("%s falls back to its light image: %s", request.id, error.message)
                path = Path.LIGHT_DEADLINE
        return self._drawn(request, plan, path, admitted_at, first)

    async def _stage(self, role: Role, request: ImageRequest, *, until: float) -> ImageResult:
        """One variant's image, from another replica if the first one dies.

        Raises:
            DeadlineExceeded: not there by ``until``.
            GenerationFailed: the worker could not draw it, or two replicas died of it.
        """
        try:
            async with asyncio.timeout(max(0.0, until - self._clock())):
                lost: list[str] = []
                while len(lost) < 2:
                    try:
                        return await self._send(role, request, avoid=frozenset(lost))
                    except ReplicaLost as error:
                        log.warning("%s lost its replica: %s", request.id, error)
                        lost.append(error.replica)
                    except RoleChanged:  # it never began; the book knows the new roles by now
                        await asyncio.sleep(0)
        except TimeoutError:
            raise DeadlineExceeded(f"the {role.value} image was not ready in time") from None
        raise GenerationFailed(f"{len(lost)} replicas died while they drew the image; it is not tried again")

    async def _send(self, role: Role, request: ImageRequest, *, avoid: frozenset[str]) -> ImageResult:
        kind = self._kind(role, request.steps)
        choice = self.dispatcher.pick(kind, self._clock(), avoid=avoid)
        while choice is None:
            await self._refreshed.wait()
            choice = self.dispatcher.pick(kind, self._clock(), avoid=avoid)
        replica = choice.replica
        self.dispatcher.assign(replica, request.id, kind, self._clock())
        try:
            reply = await self._pool.generate(replica, role, request.to_dict())
            result = ImageResult.from_dict(reply)
        except ReplicaLost:
            self.dispatcher.remove(replica)
            self._hurry.set()
            raise
        except Exception as error:
            log.exception("%s failed on %s", request.id, replica)
            raise GenerationFailed(f"the worker failed: {type(error).__name__}") from error
        else:
            if result.batch_size > 0:
                self.dispatcher.finished(
                    replica,
                    request.id,
                    self._clock(),
                    batch_size=result.batch_size,
                    compute_s=result.compute_s,
                    queued=result.queued,
                )
        finally:
            self.dispatcher.forget(replica, request.id, self._clock())
        if result.error is not None:
            code, message = result.error
            raise _WORKER_ERRORS.get(code, GenerationFailed)(message)
        return result

    def _kind(self, role: Role, steps: int | None) -> Kind:
        if role is Role.LIGHT or steps is None:
            return Kind(role)
        return Kind(role, steps / self._family.heavy.steps)

    def _drawn(self, request: ImageRequest, plan: Plan, path: Path, admitted_at: float, *stages: ImageResult) -> Drawn:
        variant = self._family.heavy if path is Path.HEAVY else self._family.light
        return Drawn(
            result=stages[-1] if path is Path.HEAVY else stages[0],
            path=path,
            model=variant.name,
            seed=request.seed,
            confidence=stages[0].confidence,
            queue_s=sum(s.queue_s for s in stages),
            compute_s=sum(s.compute_s for s in stages),
            latency_s=self._clock() - admitted_at,
            plan_version=plan.version,
        )
