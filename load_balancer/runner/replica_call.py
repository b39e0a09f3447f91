"""One variant's image: from the replica that would finish it first, and once more from another where that one dies."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NamedTuple

from load_balancer.dispatch.dispatcher import Choice, Dispatcher
from load_balancer.dispatch.finish_time import Kind
from load_balancer.dispatch.lateness import Lateness
from load_balancer.pool.pool import Pool, ReplicaLost
from load_balancer.pool.replica_registry import ReplicaRegistry
from load_balancer.runner.cache_client import NO_REUSE
from load_balancer.runner.metrics_recorder import MetricsRecorder
from load_balancer.runner.observation_counters import ObservationCounters
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageResult, Role, Rules
from weir.errors import DeadlineExceeded, GenerationFailed, InvalidRequest, RoleChanged, WeirError

log = logging.getLogger(__name__)

#: Takes a picture (PNG) on the way, the variant that draws it, and the denoising steps behind it.
Show = Callable[[bytes, Role, int], None]

_WORKER_ERRORS: dict[str, type[WeirError]] = {e.code: e for e in (DeadlineExceeded, InvalidRequest, RoleChanged)}


class QueuePosition(NamedTuple):
    """Where an image stands at its replica.

    Attributes:
        position: 0 while it is drawn; else 1 for the first of those that wait.
        ready_at: when it should be ready, as it was predicted when it was sent there; unix time, seconds.
    """

    position: int
    ready_at: float


class ReplicaCalls:
    """Sends images to replicas and keeps the dispatcher's book of them.

    Args:
        clock: unix time, seconds.
    """

    def __init__(
        self,
        pool: Pool,
        roster: ReplicaRegistry,
        dispatcher: Dispatcher,
        tally: ObservationCounters,
        meter: MetricsRecorder,
        family: FamilyConfig,
        clock: Callable[[], float] = time.time,
    ):
        self.lateness = Lateness()
        self._pool = pool
        self._roster = roster
        self._dispatcher = dispatcher
        self._tally = tally
        self._meter = meter
        self._heavy_steps = family.heavy.steps
        self._clock = clock
        self._promised: dict[str, float] = {}  # when the images that are at replicas should be ready
        self._expected: dict[str, Role] = {}  # admitted images that are not in the book yet

    def expect(self, images: Iterable[str], role: Role) -> None:
        """Images of the role are admitted: the next ones will have them in front. Each :meth:`draw` takes its own off;
        :meth:`forget` those that never came to it."""
        self._expected.update(dict.fromkeys(images, role))

    def forget(self, images: Iterable[str]) -> None:
        for image in images:
            self._expected.pop(image, None)

    def finish_at(
        self, role: Role, steps: int | None, now: float, images: int = 1, *, patient: bool = False
    ) -> float | None:
        """When the last of so many new images would be ready, by the book; None when there is no replica."""
        ahead = sum(it is role for it in self._expected.values())
        return self._dispatcher.finish_at(self._kind_of(role, steps), now, images + ahead, patient=patient)

    def place(self, image: str) -> QueuePosition | None:
        """Where an image stands; None while it is on its way to a replica, and afterwards."""
        position, ready_at = self._dispatcher.position(image), self._promised.get(image)
        return (
            None if position is None or ready_at is None or ready_at == math.inf else QueuePosition(position, ready_at)
        )

    def heavy_finish_at(self, request: ImageRequest, now: float) -> float | None:
        """When the heavy image would be ready, by the book and how late the last ones were."""
        ready_at = self._dispatcher.finish_at(self._kind(Role.HEAVY, request), now, patient=request.patient)
        return None if ready_at is None else ready_at + self.lateness.seconds(now)

    async def draw(
        self, role: Role, request: ImageRequest, rules: Rules, *, until: float, show: Show, or_light: bool = False
    ) -> tuple[Role, ImageResult]:
        """The image, and the variant that drew it: a replica that takes its queue along into another role changes it.

        Args:
            show: called with the previews that the request asks for.
            or_light: a light image could be drawn instead, so one that still waits when it would have to begin to be
                ready by the request's deadline is given up then.

        Raises:
            DeadlineExceeded: not there by ``until``, dropped by the rules, or given up for a light one.
            GenerationFailed: two replicas could not draw it or died of it, or the only one could not.
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
                    self._promised[request.id] = ready_at
                    try:
                        result = await self._send(
                            replica, role, request, rules.drop_after_s is not None or or_light, show
                        )
                        self._note_lateness(role, request, ready_at)
                        return role, result
                    except ReplicaLost as error:
                        log.warning("%s lost its replica: %s", request.id, error)
                        self._meter.retried("replica_lost")
                        lost.append(error.replica)
                        stay = ""
                    except GenerationFailed:  # the replica may be broken: another one shows
                        lost.append(replica)
                        if len(lost) == 2 or not self._other(role, request, lost):
                            raise
                        self._meter.retried("failed")
                        stay = ""
                    except RoleChanged:  # it never began; the book knows the new roles by now
                        self._meter.retried("role_changed")
                        await asyncio.sleep(0)
                        if not rules.dispatch_again:
                            stay = replica
                            role = Role.HEAVY if role is Role.LIGHT else Role.LIGHT
        except TimeoutError:
            self._note_lateness(role, request, ready_at)
            raise DeadlineExceeded(f"the {role.value} image was not ready in time") from None
        raise GenerationFailed(f"{len(lost)} replicas died or failed as they drew the image; it is not tried again")

    def _note_lateness(self, role: Role, request: ImageRequest, ready_at: float) -> None:
        # Whoever lets others go first is late because of them, which says nothing about the book.
        if role is Role.HEAVY and ready_at < math.inf and not request.patient:
            now = self._clock()
            self.lateness.observe(now - ready_at, now)

    def _other(self, role: Role, request: ImageRequest, lost: list[str]) -> bool:
        """Whether there is a replica that has not tried yet."""
        return self._dispatcher.pick(self._kind(role, request), self._clock(), avoid=frozenset(lost)) is not None

    async def _choose(self, role: Role, request: ImageRequest, *, avoid: frozenset[str]) -> Choice:
        """The replica for an image, as soon as there is any."""
        kind = self._kind(role, request)
        while (choice := self._dispatcher.pick(kind, self._clock(), avoid=avoid, patient=request.patient)) is None:
            await self._roster.refreshed()
        return choice

    async def _send(self, replica: str, role: Role, request: ImageRequest, droppable: bool, show: Show) -> ImageResult:
        kind = self._kind(role, request)
        self._dispatcher.assign(replica, request.id, kind, self._clock(), patient=request.patient)
        self._expected.pop(request.id, None)
        try:
            wanted = request if role is Role.HEAVY else replace(NO_REUSE.of(request), previews=0)
            drawing = self._reply(replica, role, wanted, show)
            if droppable:
                drawing = self._or_dropped(drawing, replica, kind, request)
            async with self._roster.while_heard(replica):
                result = ImageResult.from_dict(await drawing)
        except ReplicaLost:
            self._dispatcher.remove(replica)
            self._roster.hurry()
            raise
        except WeirError:
            raise
        except Exception as error:
            log.exception("%s failed on %s", request.id, replica)
            raise GenerationFailed(f"the worker failed: {type(error).__name__}") from error
        else:
            if result.fetch_s is not None:
                self._tally.fetch(result.fetch_s)
            if result.batch_size > 0:
                batch = self._dispatcher.finished(
                    replica,
                    request.id,
                    self._clock(),
                    batch_size=result.batch_size,
                    compute_s=result.compute_s,
                    together=result.left_together,
                    # An image that waited for its states to be stored says nothing of the way.
                    queue_s=None if result.captured else result.queue_s + (result.fetch_s or 0.0),
                    queued=result.queued,
                )
                if batch is not None and not result.resumed_at:
                    whole_s = self._dispatcher.whole_s(batch, result.batch_size, result.compute_s)
                    self._tally.batch(batch.role, result.batch_size, whole_s)
        finally:
            self._dispatcher.forget(replica, request.id, self._clock())
            self._promised.pop(request.id, None)
        if result.error is not None:
            code, message = result.error
            raise _WORKER_ERRORS.get(code, GenerationFailed)(message)
        self._meter.replied(role, result, request.steps or self._heavy_steps)
        return result

    async def _reply(self, replica: str, role: Role, request: ImageRequest, show: Show) -> dict[str, Any]:
        if not request.previews:
            return await self._pool.generate(replica, role, request.to_dict())
        async with aclosing(self._pool.stream(replica, role, request.to_dict())) as parts:
            async for part in parts:
                if "preview" not in part:
                    return part
                show(part["preview"], role, part["step"])
        raise ReplicaLost(replica, "it ended without a result")

    async def _or_dropped(
        self, drawing: Awaitable[dict[str, Any]], replica: str, kind: Kind, request: ImageRequest
    ) -> dict[str, Any]:
        """The reply, unless the image is still queued when a batch that began now would end after its deadline.

        Raises:
            DeadlineExceeded: it is, and was taken out of the queue.
        """
        task = asyncio.ensure_future(drawing)
        try:
            last_start = request.deadline - self._dispatcher.batch_s(replica, kind)
            await asyncio.wait({task}, timeout=max(0.0, last_start - self._clock()))
            if not task.done() and not self._dispatcher.begun(replica, request.id):
                raise DeadlineExceeded("the image could not be ready in time and was dropped")
            return await task
        finally:
            task.cancel()

    def _kind(self, role: Role, request: ImageRequest) -> Kind:
        return self._kind_of(role, request.steps, request.resume_step, request.resume_stride)

    def _kind_of(self, role: Role, steps: int | None, skipped: int = 0, stride: int = 1) -> Kind:
        own = self._heavy_steps
        return Kind(role) if role is Role.LIGHT else Kind(role, ((steps or own) - skipped) / stride / own)
