"""The Ray Serve deployment class of the pool: the step loop of one device, and the plan."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psutil
import ray
from ray import serve

from weir import metrics as metrics_of
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageResult, Overrides
from weir.errors import GenerationFailed, InvalidRequest, NotFinite, PlanError, RoleChanged, StateRefused, WeirError
from weir.loopback import keep_to_loopback
from weir.plan import Assignment, Plan
from weir.profiles import load_profile
from weir.states import State, StateStore
from weir.telemetry import Metrics, NoMetrics
from workers.emulated import EmulatedEngine
from workers.engine.engine import DenoiseJob, Engine, EngineOutput, OutOfMemory, failed, order_for, recipe
from workers.engine.step_loop import Job, Outcome, Progress, StepLoop, preview_steps

log = logging.getLogger(__name__)

#: Failures of a replica, and not of what it was asked for.
_OWN_FAILURES = frozenset(error.code for error in (GenerationFailed, NotFinite, OutOfMemory))
#: Of the images that a doubted replica has to generate.
_TRIAL_STEPS = 2


class Worker:
    """One replica: all variants resident, the role taken from the plan by rank.

    Bind it with ``serve.deployment(Worker)``. Every public method is async, for Serve runs plain ones in threads of
    their own: all state belongs to the replica's event loop, and only the engine runs on the step loop's thread. A
    request is served by the variant it asks for, whatever the replica's role is: the role says what a dispatcher
    should send here, so a stale view costs speed and never an answer.

    Args:
        family: ``FamilyConfig.model_dump()``.
        plan: ``Plan.to_dict()`` to start with; later ones come as ``user_config``.
        emulate: profile file whose latencies are slept instead of running models.
        states: makes the store where states to resume from are found, and captured ones are kept; called in the
            replica's process, so that no connection travels. None: every request runs from noise.
        fetch_s: a state that is not here by then is a miss: the cache may only help.
        metrics: where the worker says what went wrong; all else of a request comes back with its result.

    Raises:
        ConfigError: the family's folders or the profile are not what they should be.
        PlanError: the first plan is wrong.
    """

    #: A call without a sign of progress for so long is hung. The longest single step has to be shorter.
    stall_s = 120.0
    #: An idle device has to answer a probe within this time.
    probe_s = 10.0
    #: Images whose captured states are being stored at a time; those of a further one are let go.
    most_storing = 8

    def __init__(
        self,
        family: dict[str, Any],
        plan: dict[str, Any],
        emulate: str | None = None,
        states: Callable[[], StateStore] | None = None,
        fetch_s: float = 0.02,
        metrics: Metrics | None = None,
    ):
        keep_to_loopback()
        self.family = FamilyConfig.model_validate(family)
        self.plan = Plan.from_dict(plan).check(self.family.keys)
        self.replica, self.rank = _identity()
        self.process = _process()
        self.states = None if states is None else states()
        self.fetch_s = fetch_s
        #: What went wrong with single images and states, by error code.
        self.failures: Counter[str] = Counter()
        self._metrics = metrics or NoMetrics()
        # Apart, so that no state that an image waits for stands behind those that nobody waits for.
        self._reading = ThreadPoolExecutor(4, thread_name_prefix="read-states")
        self._storing = ThreadPoolExecutor(2, thread_name_prefix="store-states")
        self._stores: set[asyncio.Task[None]] = set()
        self._waiters: dict[int, asyncio.Future[Outcome]] = {}  # of jobs, by ticket
        self._trial: asyncio.Task[None] | None = None
        self.engine = _engine(self.family, emulate)
        self.engine.warm_up(self._assigned().batch_size)
        self.ready = True

    @property
    def engine(self) -> Engine:
        return self._loop.engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._loop = StepLoop(engine, self._limit)

    # ------------------------------------------------------------------------------------------ requests

    async def generate(self, variant: str, request: dict[str, Any], role: str = "") -> dict[str, Any]:
        """Generates one image; ``ImageResult.to_dict()`` comes back.

        What is wrong with one request comes back in its ``error``, never as an exception. Cancelling the call takes the
        request out before the next step.

        Args:
            role: what the request was dispatched for; "": the variant. When this replica gives the role up, the request
                is sent away if it still waits.
        """
        return await self._generated(variant, request, role, None)

    async def stream(self, variant: str, request: dict[str, Any], role: str = "") -> AsyncIterator[dict[str, Any]]:
        """As :meth:`generate`, and before the result as many previews as the request asks for and can be had: of each
        its ``preview`` (a small PNG) and the ``step`` it was made after."""
        parts: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        generating = asyncio.create_task(self._generated(variant, request, role, parts.put_nowait))
        generating.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            while (part := await parts.get()) is not None:
                yield part
            yield await generating
        finally:
            generating.cancel()

    async def _generated(
        self, variant: str, request: dict[str, Any], role: str, show: Callable[[dict[str, Any]], None] | None
    ) -> dict[str, Any]:
        try:
            wanted = ImageRequest.from_dict(request)
            state, fetch_s = await self._fetch(variant, wanted)
            ordered, refused = self._ordered(variant, wanted, state, role)
        except (TypeError, ValueError) as error:
            return self._refused(request, InvalidRequest(f"not a request for a worker: {error}"))
        except WeirError as error:
            return self._refused(request, error)
        outcome = await self._drawn(ordered, show)
        self._doubt(outcome.drawn)
        captured = self._keep(wanted, outcome.drawn.states)
        return self._result(wanted.id, outcome, captured, fetch_s, refused).to_dict()

    def _ordered(self, variant: str, request: ImageRequest, state: State | None, role: str) -> tuple[DenoiseJob, bool]:
        """The order for the engine, and whether it does not fit the state: one whose start is missing or unfit starts
        from noise instead.

        Raises:
            InvalidRequest: names the field.
        """
        try:
            ordered = order_for(self.family, variant, request, state, role)
            self.engine.check(ordered)
            return ordered, False
        except StateRefused as error:
            self._failed(error.code)
            log.warning("%s runs from step 0: %s", request.id, error.message)
            cold = replace(request, warm_start=None)
            return order_for(self.family, variant, cold, role=role), state is not None

    async def _fetch(self, variant: str, request: ImageRequest) -> tuple[State | None, float | None]:
        """The state to resume from, if it comes in time, and the seconds that this took; None where there is none to
        fetch. The device is busy with other images meanwhile.

        Raises:
            InvalidRequest: names the field; nothing is fetched for a wrong request.
        """
        recipe(self.family, variant, request)
        if self.states is None or request.resume is None:
            return None, None
        fetched = asyncio.get_running_loop().run_in_executor(self._reading, self.states.get, request.resume.key)
        begun, state = time.monotonic(), None
        try:
            state = await asyncio.wait_for(fetched, self.fetch_s)
        except Exception as error:  # whatever a store does, it costs speed and nothing else
            self._failed("state_fetch")
            log.warning("%s runs from step 0: no state in time: %s: %s", request.id, type(error).__name__, error)
        return state, time.monotonic() - begun

    async def _drawn(self, ordered: DenoiseJob, show: Callable[[dict[str, Any]], None] | None) -> Outcome:
        events = asyncio.get_running_loop()
        done: asyncio.Future[Outcome] = events.create_future()
        wanted = preview_steps(ordered.first, ordered.recipe.steps, ordered.request.previews)

        def on_step(progress: Progress) -> None:
            if show and progress.step in wanted and (image := progress.preview()):
                events.call_soon_threadsafe(show, {"preview": image, "step": progress.step})

        def resolve(outcome: Outcome) -> None:
            if not done.done():  # a cancelled caller's future is done
                done.set_result(outcome)

        watched = on_step if wanted else None
        job = self._loop.submit(ordered, lambda outcome: events.call_soon_threadsafe(resolve, outcome), watched)
        self._waiters[job.ticket] = done
        try:
            return await done
        except asyncio.CancelledError:
            self._loop.cancel(job)
            raise
        finally:
            del self._waiters[job.ticket]

    def _keep(self, request: ImageRequest, states: tuple[State, ...]) -> tuple[int, ...]:
        """Begins to store what was captured; the steps whose states will be there. The image does not wait for it."""
        if self.states is None or not states:
            return ()
        if len(self._stores) >= self.most_storing:
            self._not_kept(request, "the store is slow")
            return ()
        task = asyncio.create_task(self._put(self.states, request, states))
        self._stores.add(task)
        task.add_done_callback(self._stores.discard)
        return tuple(state.step for state in states)

    async def _put(self, store: StateStore, request: ImageRequest, states: tuple[State, ...]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._storing, store.put, request, states)
        except Exception as error:
            self._not_kept(request, f"{type(error).__name__}: {error}")

    def _not_kept(self, request: ImageRequest, why: str) -> None:
        self._failed("state_store")
        log.warning("the states of %s are not kept: %s", request.id, why)

    def _refused(self, request: object, error: WeirError) -> dict[str, Any]:
        name = str(request.get("id", "")) if isinstance(request, Mapping) else ""
        waiting = Outcome(failed(error), queued=len(self._loop.waiting()))
        return self._result(name, waiting).to_dict()

    def _result(
        self,
        name: str,
        outcome: Outcome,
        captured: tuple[int, ...] = (),
        fetch_s: float | None = None,
        refused: bool = False,
    ) -> ImageResult:
        drawn = outcome.drawn
        if drawn.error is not None:
            self._failed(drawn.error[0])
        return ImageResult(
            id=name,
            image=drawn.image,
            confidence=drawn.confidence,
            steps=drawn.steps,
            queue_s=outcome.queue_s,
            compute_s=outcome.compute_s,
            batch_size=outcome.batch_size,
            plan_version=self.plan.version,
            error=drawn.error,
            emulated=self.engine.emulated,
            replica=self.replica,
            queued=outcome.queued,
            left_together=outcome.left_together,
            resumed_at=drawn.first,
            captured=captured,
            latent=None if drawn.latent is None else drawn.latent.to_bytes(),
            fetch_s=fetch_s,
            seen=drawn.seen if captured else None,
            refused=refused,
        )

    def _doubt(self, drawn: EngineOutput) -> None:
        """A replica that failed at an image has to prove that it can still generate any; one trial at a time."""
        if drawn.error is not None and drawn.error[0] in _OWN_FAILURES and (self._trial is None or self._trial.done()):
            self._trial = asyncio.create_task(self._try())

    async def _try(self) -> None:
        """Generates an image of an empty prompt with each variant, as every replica does at its start: it may be the
        prompt that failed. A replica that cannot is broken: no image goes there any more, and Serve replaces it."""
        for variant in self.family.keys:
            size, now = self.family.size, time.time()
            request = ImageRequest("trial", "", 0, size, size, now, overrides=Overrides(steps=_TRIAL_STEPS))
            outcome = await self._drawn(order_for(self.family, variant, request), None)
            if outcome.drawn.error is not None:
                self.ready = False
                log.error("this replica cannot generate any more: %s", outcome.drawn.error[1])
                return

    def _failed(self, code: str) -> None:
        self.failures[code] += 1
        self._metrics.add(metrics_of.WORKER_FAILURES, code=code)

    def _limit(self, ordered: DenoiseJob) -> int:
        """The plan's batch size for the role; of a role that the plan does not know, this replica's own."""
        own, role = self._assigned(), ordered.role
        return own.batch_size if own.role == role or not self.plan.count(role) else self.plan.batch_size(role)

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
            plan = Plan.from_dict(user_config).check(self.family.keys)
            if plan.version <= self.plan.version:
                return
            before, self.plan = self._assigned().role, plan
            self._loop.forget_memory()
            if self._assigned().role != before:
                self._send_away(before)
        except Exception as error:
            log.warning("kept plan %d: %s", self.plan.version, error)

    def _send_away(self, role: str) -> None:
        """Answers the queued requests of a role that this replica gave up, so that they are dispatched again.

        They would wait behind other work here; those that are begun stay. If no replica has the role now, all stay:
        every variant is resident.
        """
        if self.plan.count(role) == 0:
            return
        moved = RoleChanged(f"replica {self.replica} is no longer {role}; send the request to another one")
        waiting = self._loop.waiting()
        for job in waiting:
            if job.order.role == role:
                self._loop.cancel(job)
                self._waiters[job.ticket].set_result(_sent_away(job, moved, len(waiting)))

    def _assigned(self) -> Assignment:
        return self.plan.assignment(self.rank)

    # -------------------------------------------------------------------------------------------- watching

    async def describe(self) -> dict[str, Any]:
        """What a dispatcher has to know; ask every replica with ``handle.broadcast("describe")``. Once a second it is
        asked, and that is the clock of what the worker shows of itself."""
        own = self._assigned()
        if self.states is not None:
            self.states.show()
        return {
            "replica": self.replica,
            "process": self.process,
            "rank": self.rank,
            "role": own.role,
            "batch_size": own.batch_size,
            "plan_version": self.plan.version,
            "queued": len(self._loop.waiting()),
            "running": self._loop.running,
            "ready": self.ready,
            "failures": dict(self.failures),
        }

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises.

        A busy device has to show progress (a denoising step within :attr:`stall_s`), an idle one has to answer a probe.

        Raises:
            RuntimeError: the device hangs, is lost, or does not generate any more.
        """
        if not self.ready:
            raise RuntimeError("the replica cannot generate any more")
        busy_since = self._loop.busy_since
        if busy_since is not None:
            still_s = time.monotonic() - max(busy_since, self.engine.beat)
            if still_s > self.stall_s:
                raise RuntimeError(f"the device made no progress for {still_s:.0f} s")
            return
        probe = asyncio.wrap_future(self._loop.on_device(self.engine.probe))
        done, _ = await asyncio.wait({probe}, timeout=self.probe_s)
        if done:
            probe.result()
        elif self._loop.busy_since is None:
            raise RuntimeError(f"the idle device did not answer within {self.probe_s:.0f} s")


def _sent_away(job: Job, error: WeirError, queued: int) -> Outcome:
    return Outcome(failed(error), queue_s=time.monotonic() - job.submitted, queued=queued)


def _identity() -> tuple[str, int]:
    """The replica's unique id, as a request router sees it, and its rank; outside of Serve a made-up one and 0."""
    try:
        context = serve.get_replica_context()
    except Exception:
        return f"local-{os.getpid()}", 0
    return context.replica_id.unique_id, 0 if context.rank is None else context.rank.rank


def _process() -> dict[str, Any] | None:
    """What somebody has to know who is to end this replica; None outside of a cluster."""
    if not ray.is_initialized() or (actor := ray.get_runtime_context().get_actor_name()) is None:
        return None
    pid, started = os.getpid(), psutil.Process().create_time()
    return {"actor": actor, "node": ray.get_runtime_context().get_node_id(), "pid": pid, "started": started}


def _engine(family: FamilyConfig, emulate: str | None) -> Engine:
    if emulate is not None:
        return EmulatedEngine(load_profile(emulate, family.keys))
    from workers.models.family import Family  # an emulated replica never pays for torch

    return Family.load(family, threads=1)
