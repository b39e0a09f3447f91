"""The Ray Serve deployment class of the pool: a queue, one thread for the device, and the plan."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from weir.config import FamilyConfig
from weir.core import Assignment, ImageRequest, ImageResult, Plan, Role
from weir.errors import GenerationFailed, InvalidRequest, PlanError, RoleChanged, WeirError
from weir.profiles import load_profile
from workers.batching import Recipe, Waiting, next_batch
from workers.emulated import EmulatedEngine
from workers.engine import Drawn, Engine, OutOfMemory, recipe

log = logging.getLogger(__name__)


class _Job(Waiting):
    """A queued request with the future that its caller awaits."""

    __slots__ = ("answer", "arrived", "request")

    def __init__(self, ticket: int, shared: Recipe, request: ImageRequest, answer: asyncio.Future[ImageResult]):
        super().__init__(ticket, shared, request.deadline)
        self.request = request
        self.answer = answer
        self.arrived = time.monotonic()


class Worker:
    """One replica: both variants resident, the role taken from the plan by rank.

    Bind it with ``serve.deployment(Worker)``. Every public method is async, for Serve runs plain ones in threads of
    their own: all state belongs to the replica's event loop, and only the engine runs on the device thread. A request
    is served in the role it asks for, whatever the replica's own role is: the role says what a dispatcher should send
    here, so a stale view costs speed and never an answer.

    Args:
        family: ``FamilyConfig.model_dump()``.
        plan: ``Plan.to_dict()`` to start with; later ones come as ``user_config``.
        emulate: profile file whose latencies are slept instead of running models.

    Raises:
        ConfigError: the family's folders or the profile are not what they should be.
        PlanError: the first plan is wrong.
    """

    #: A batch without a sign of progress for so long is hung. The longest single step has to be shorter.
    stall_s = 120.0
    #: An idle device has to answer a probe within this time.
    probe_s = 10.0

    def __init__(self, family: dict[str, Any], plan: dict[str, Any], emulate: str | None = None):
        self.family = FamilyConfig.model_validate(family)
        self.plan = Plan.from_dict(plan)
        self.replica, self.rank = _identity()
        self._queue: list[_Job] = []
        self._tickets = 0
        self._running: tuple[_Job, ...] = ()
        self._fits: dict[tuple[Role, int], int] = {}  # by role and width: the largest batch that memory allows
        self._step_s: dict[Role, float] = {}  # seconds of the last batch over its steps
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._busy_since: float | None = None
        self.engine = _engine(self.family, emulate)
        self.engine.warm_up(self._assigned().batch_size)
        self.ready = True

    # ------------------------------------------------------------------------------------------ requests

    async def generate(self, role: str, request: dict[str, Any]) -> dict[str, Any]:
        """Draws one image; ``ImageResult.to_dict()`` comes back.

        What is wrong with one request comes back in its ``error``, never as an exception. Cancelling the call takes the
        request out of the queue; a batch that already runs goes on for its other members.
        """
        try:
            wanted = ImageRequest.from_dict(request)
            shared = recipe(self.family, Role(role), wanted)
        except (TypeError, ValueError) as error:
            return self._refused(request, InvalidRequest(f"not a request for a worker: {error}"))
        except WeirError as error:
            return self._refused(request, error)
        self._tickets += 1
        job = _Job(self._tickets, shared, wanted, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._serve_queue())
        self._wake.set()
        try:
            result = await job.answer
        except asyncio.CancelledError:
            job.cancelled = True
            self._wake.set()
            raise
        return result.to_dict()

    def _refused(self, request: object, error: WeirError) -> dict[str, Any]:
        name = str(request.get("id", "")) if isinstance(request, Mapping) else ""
        return self._result(name, _failed(error)).to_dict()

    def _result(
        self, name: str, drawn: Drawn, *, queue_s: float = 0.0, compute_s: float = 0.0, batch: int = 0
    ) -> ImageResult:
        return ImageResult(
            id=name,
            image=drawn.image,
            confidence=drawn.confidence,
            steps=drawn.steps,
            queue_s=queue_s,
            compute_s=compute_s,
            batch_size=batch,
            plan_version=self.plan.version,
            error=drawn.error,
            emulated=self.engine.emulated,
            replica=self.replica,
            queued=self._queued(),
        )

    # ---------------------------------------------------------------------------------------------- queue

    async def _serve_queue(self) -> None:
        """Runs batch after batch for as long as the replica lives."""
        loop = asyncio.get_running_loop()
        while True:
            batch = self._take()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            shared, started = batch[0].recipe, time.monotonic()
            self._running, self._busy_since = batch, started
            try:
                drawn = await loop.run_in_executor(self._device, self._draw, batch)
            finally:
                self._running, self._busy_since = (), None
            compute_s = time.monotonic() - started
            self._step_s[shared.role] = compute_s / shared.steps
            for job, (image, size) in zip(batch, drawn, strict=True):
                self._answer(job, image, queue_s=started - job.arrived, compute_s=compute_s, batch=size)

    def _take(self) -> tuple[_Job, ...]:
        decision = next_batch(self._queue, self._limit, time.time(), self._service_s)
        self._queue = list(decision.waiting)
        return decision.batch

    def _service_s(self, shared: Recipe) -> float:
        return self._step_s.get(shared.role, 0.0) * shared.steps

    def _queued(self) -> int:
        return sum(not job.cancelled for job in self._queue)

    def _answer(self, job: _Job, drawn: Drawn, *, queue_s: float, compute_s: float = 0.0, batch: int = 0) -> None:
        if not job.answer.done():  # a cancelled caller's future is done
            result = self._result(job.request.id, drawn, queue_s=queue_s, compute_s=compute_s, batch=batch)
            job.answer.set_result(result)

    def _limit(self, shared: Recipe) -> int:
        """The plan's batch size for the role; what a replica draws beside its own role goes by a plan neighbour's."""
        own = self._assigned()
        of_role = [a.batch_size for a in self.plan.assignments if a.role is shared.role]
        planned = own.batch_size if own.role is shared.role or not of_role else max(of_role)
        return min(planned, self._fits.get((shared.role, shared.width), planned))

    def _draw(self, batch: tuple[_Job, ...]) -> list[tuple[Drawn, int]]:
        """On the device thread: each job's picture and the size of the batch it came from.

        A batch that fails is halved until it fits or the one request that breaks it is alone.
        """
        shared = batch[0].recipe
        try:
            drawn = self.engine.generate(shared.role, [job.request for job in batch])
            if len(drawn) != len(batch):
                raise GenerationFailed(f"{len(drawn)} pictures came back for {len(batch)} requests")
            return [(image, len(batch)) for image in drawn]
        except Exception as error:
            log.warning("a batch of %d failed: %s: %s", len(batch), type(error).__name__, error)
            if len(batch) == 1:
                known = error if isinstance(error, WeirError) else None
                return [(_failed(known or GenerationFailed(f"{type(error).__name__}: {error}")), 1)]
            if isinstance(error, OutOfMemory):
                self._fits[shared.role, shared.width] = (len(batch) + 1) // 2
        middle = (len(batch) + 1) // 2
        return [*self._draw(batch[:middle]), *self._draw(batch[middle:])]

    # ----------------------------------------------------------------------------------------------- plan

    async def reconfigure(self, user_config: Any, rank: Any = None) -> None:
        """Takes the next plan (Serve calls it with the deployment's ``user_config``, and again when the rank changes).

        Never raises: an exception here would be an outage. A wrong or older plan changes nothing, and a running batch
        goes on.
        """
        try:
            self.rank = self.rank if rank is None else int(getattr(rank, "rank", rank))
            if user_config is None:
                return
            if not isinstance(user_config, Mapping):
                raise PlanError(f"a plan is a mapping, not {type(user_config).__name__}")
            plan = Plan.from_dict(user_config)
            if plan.version <= self.plan.version:
                return
            before, self.plan = self._assigned().role, plan
            self._fits.clear()  # memory may be free again; one failed batch finds out if not
            if self._assigned().role is not before:
                self._send_away(before)
            self._wake.set()
        except Exception as error:
            log.warning("kept plan %d: %s", self.plan.version, error)

    def _send_away(self, role: Role) -> None:
        """Answers the queued requests of a role that this replica gave up, so that they are dispatched again.

        They would wait behind other work here. If nobody has the role now, they stay: both variants are resident.
        """
        if self.plan.count(role) == 0:
            return
        moved = RoleChanged(f"replica {self.replica} is no longer {role}; send the request to another one")
        for job in self._queue:
            if job.recipe.role is role:
                job.cancelled = True
                self._answer(job, _failed(moved), queue_s=time.monotonic() - job.arrived)

    def _assigned(self) -> Assignment:
        return self.plan.assignment(self.rank)

    # -------------------------------------------------------------------------------------------- watching

    async def describe(self) -> dict[str, Any]:
        """What a dispatcher has to know; ask every replica with ``handle.broadcast("describe")``."""
        own = self._assigned()
        return {
            "replica": self.replica,
            "rank": self.rank,
            "role": own.role.value,
            "batch_size": own.batch_size,
            "plan_version": self.plan.version,
            "queued": self._queued(),
            "running": len(self._running),
            "ready": self.ready,
        }

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises.

        A busy device has to show progress (a denoising step within :attr:`stall_s`), an idle one has to answer a probe.

        Raises:
            RuntimeError: the device hangs, or is lost.
        """
        if self._busy_since is not None:
            still_s = time.monotonic() - max(self._busy_since, self.engine.beat)
            if still_s > self.stall_s:
                raise RuntimeError(f"the device made no progress for {still_s:.0f} s")
            return
        probe = asyncio.get_running_loop().run_in_executor(self._device, self.engine.probe)
        done, _ = await asyncio.wait({probe}, timeout=self.probe_s)
        if done:
            probe.result()
        elif self._busy_since is None:
            raise RuntimeError(f"the idle device did not answer within {self.probe_s:.0f} s")


def _failed(error: WeirError) -> Drawn:
    return Drawn(b"", None, 0, (error.code, error.message))


def _identity() -> tuple[str, int]:
    """The replica's unique id, as a request router sees it, and its rank; outside of Serve a made-up one and 0."""
    try:
        context = serve.get_replica_context()
    except Exception:
        return f"local-{os.getpid()}", 0
    return context.replica_id.unique_id, 0 if context.rank is None else context.rank.rank


def _engine(family: FamilyConfig, emulate: str | None) -> Engine:
    if emulate is not None:
        return EmulatedEngine(load_profile(emulate))
    from workers.family import Family  # an emulated replica never pays for torch

    return Family.load(family, threads=1)
