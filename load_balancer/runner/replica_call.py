"""Calls to replicas: chooses a replica for a run, sends the request, waits for the image, and returns the outcome."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

from load_balancer.dispatch.dispatcher import Choice, Dispatcher
from load_balancer.pool.pool import Pool, ReplicaLost
from load_balancer.pool.replica_registry import ReplicaRegistry
from load_balancer.runner.dispatch_forecast import DispatchForecast
from load_balancer.runner.images_in_flight import ImagesInFlight
from load_balancer.runner.observation_counters import ObservationCounters
from weir import tracing
from weir.cascade import ImageReady, Reason, Run, RunFailed
from weir.core import ImageRequest, ImageResult
from weir.errors import Blocked, DeadlineExceeded, GenerationFailed, InvalidRequest, NotFinite, RoleChanged, WeirError

log = logging.getLogger(__name__)

#: Called with an intermediate image (PNG), the variant that generates it, and its number of denoising steps so far.
Show = Callable[[bytes, str, int], None]

#: Errors that belong to a single request; anything else is a failure of the worker.
_REASONS: dict[str, tuple[type[WeirError], Reason]] = {
    DeadlineExceeded.code: (DeadlineExceeded, Reason.LATE),
    InvalidRequest.code: (InvalidRequest, Reason.INVALID),
    Blocked.code: (Blocked, Reason.BLOCKED),
    RoleChanged.code: (RoleChanged, Reason.ROLE_CHANGED),
    NotFinite.code: (GenerationFailed, Reason.NOT_FINITE),
}


class QueuePosition(NamedTuple):
    """The position of an image in the queue of its replica.

    Attributes:
        position: 0 while it is generated; 1 for the first waiting image, and so on.
        ready_at: predicted finish time when it was sent to the replica; unix time, seconds.
    """

    position: int
    ready_at: float


class Outcome(NamedTuple):
    """The outcome of a run: the event for the cascade, with the worker's result or the error."""

    event: ImageReady | RunFailed
    result: ImageResult | None = None
    error: WeirError | None = None


class _Failed(Exception):
    """The run has failed."""

    def __init__(self, reason: Reason, error: WeirError):
        super().__init__(error.message)
        self.reason = reason
        self.error = error


class ReplicaCalls:
    """Executes runs on the pool.

    Args:
        in_flight: is told what is sent to replicas and what they answer.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        pool: Pool,
        registry: ReplicaRegistry,
        dispatcher: Dispatcher,
        forecast: DispatchForecast,
        in_flight: ImagesInFlight,
        counters: ObservationCounters,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._pool = pool
        self._registry = registry
        self._dispatcher = dispatcher
        self._forecast = forecast
        self._in_flight = in_flight
        self._counters = counters
        self._clock = clock
        self._predicted: dict[str, float] = {}  # predicted finish times of the images at replicas

    def position(self, image: str) -> QueuePosition | None:
        """The position of an image; None before it is sent to a replica, and after it has ended."""
        position, ready_at = self._dispatcher.position(image), self._predicted.get(image, math.inf)
        return None if position is None or ready_at == math.inf else QueuePosition(position, ready_at)

    async def execute(self, run: Run, request: ImageRequest, show: Show) -> Outcome:
        """Executes one attempt; the cascade decides whether there is another one.

        Args:
            request: the request for the worker.
            show: called with the previews that the request asks for.
        """
        with tracing.span("run", "client", variant=run.variant, role=run.role, redraw=run.redraw) as span:
            outcome = await self._execute(run, request, show)
            if isinstance(outcome.event, RunFailed):
                span.set(replica=outcome.event.replica)
                span.fail(outcome.event.reason.value)
            elif outcome.result is not None:
                span.set(replica=outcome.result.replica, confidence=outcome.result.confidence)
            return outcome

    async def _execute(self, run: Run, request: ImageRequest, show: Show) -> Outcome:
        replica, ready_at = run.stay, math.inf
        try:
            async with asyncio.timeout(max(0.0, run.until - self._clock())):
                if not replica:
                    replica, ready_at = await self._choose(run)
                self._predicted[request.id] = ready_at
                result = await self._result(run, request, replica, show)
        except TimeoutError:
            self._forecast.observe(run, ready_at)
            log.info("%s: the %s image was not ready in time on %s", request.id, run.variant, replica or "any replica")
            error = DeadlineExceeded(f"the {run.variant} image was not ready in time")
            return Outcome(RunFailed(Reason.LATE, replica), error=error)
        except _Failed as failure:
            log.info("%s: no %s image: %s", request.id, run.variant, failure)
            new_role = ""
            if failure.reason is Reason.ROLE_CHANGED:
                await asyncio.sleep(0)  # repeated refusals of one replica must not block the event loop
                new_role = self._new_role(replica, run.role)
            return Outcome(RunFailed(failure.reason, replica, new_role), error=failure.error)
        finally:
            self._predicted.pop(request.id, None)
        self._forecast.observe(run, ready_at)
        log.info("%s: %s image from %s, confidence %s", request.id, run.variant, replica, result.confidence)
        return Outcome(ImageReady(run.variant, result.confidence, result.resumed_at), result)

    async def _choose(self, run: Run) -> Choice:
        """Chooses the replica for an image; waits until there is one."""
        kind, avoid = self._forecast.kind(run), frozenset(run.avoid)
        # A node that dies takes its replicas with it, and a second attempt on one of them would be lost as well.
        beside = self._registry.on_nodes_of(run.avoid) if run.avoid else frozenset()
        while True:
            choice = self._dispatcher.pick(
                kind, self._clock(), avoid=avoid, doubtful=beside, low_priority=run.low_priority
            )
            if choice is not None:
                return choice
            await self._registry.refreshed()

    def _new_role(self, replica: str, old: str) -> str:
        """The role that a replica has after it gave up ``old``; "" while it is unknown."""
        known = self._dispatcher.replicas.role_of(replica)
        if known not in ("", old):
            return known
        others = [role for role in self._registry.plan.roles if role != old]
        return others[0] if len(others) == 1 else ""

    async def _result(self, run: Run, request: ImageRequest, replica: str, show: Show) -> ImageResult:
        """Calls the worker and returns its image.

        Raises:
            _Failed: the run has no image.
        """
        self._in_flight.sent(replica, request.id, run)
        try:
            reply = self._reply(run, request, replica, show)
            if run.droppable:
                reply = self._or_dropped(reply, replica, run, request.id)
            async with self._registry.waits.on(replica):
                result = ImageResult.from_dict(await reply)
            self._count(replica, request.id, result)
        except ReplicaLost as error:
            log.warning("%s lost its replica: %s", request.id, error)
            self._dispatcher.remove(replica)
            self._registry.probe_now()
            tried = len(run.avoid) + 1
            raise _Failed(
                Reason.LOST, GenerationFailed(f"{tried} replicas died or failed while they generated the image")
            ) from error
        except _Failed:
            raise
        except Exception as error:
            log.exception("%s failed on %s", request.id, replica)
            raise _Failed(Reason.FAILED, GenerationFailed(f"the worker failed: {type(error).__name__}")) from error
        finally:
            self._in_flight.left(replica, request.id)
        if result.error is not None:
            code, message = result.error
            kind_of_error, reason = _REASONS.get(code, (GenerationFailed, Reason.FAILED))
            raise _Failed(reason, kind_of_error(message))
        return result

    async def _reply(self, run: Run, request: ImageRequest, replica: str, show: Show) -> dict[str, Any]:
        fields = {**request.to_dict(self._clock()), "traceparent": tracing.traceparent()}
        if not request.previews:
            return await self._pool.generate(replica, run.variant, fields, run.role)
        async with aclosing(self._pool.stream(replica, run.variant, fields, run.role)) as parts:
            async for part in parts:
                if "preview" not in part:
                    return part
                show(part["preview"], run.variant, part["step"])
        raise ReplicaLost(replica, "it ended without a result")

    async def _or_dropped(self, reply: Awaitable[dict[str, Any]], replica: str, run: Run, image: str) -> dict[str, Any]:
        """Waits for the reply; drops the image if it still waits when a batch that starts then would miss the deadline.

        Raises:
            _Failed: the image was removed from the queue.
        """
        task = asyncio.ensure_future(reply)
        try:
            last_start = run.deadline - self._dispatcher.batch_s(replica, self._forecast.kind(run))
            await asyncio.wait({task}, timeout=max(0.0, last_start - self._clock()))
            if not task.done() and not self._dispatcher.begun(replica, image):
                error = DeadlineExceeded("the image could not be ready in time and was dropped")
                raise _Failed(Reason.DROPPED, error)
            return await task
        finally:
            task.cancel()

    def _count(self, replica: str, image: str, result: ImageResult) -> None:
        """Takes in what a reply says of the run."""
        if result.fetch_s is not None:
            self._counters.fetch(result.fetch_s)
        if result.batch_size < 1:
            return
        kind = self._in_flight.replied(replica, image, result)
        if kind is not None and not result.resumed_at:
            whole_s = self._dispatcher.times.whole_s(kind, result.batch_size, result.device_s)
            self._counters.batch(kind.variant, result.batch_size, whole_s)
