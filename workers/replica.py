"""The Ray Serve deployment class of the pool: one replica, with a step loop, that follows the plan."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from ray import serve

from weir import metrics as metrics_of
from weir import tracing
from weir.actor_process import own_process
from weir.adapters import AdapterUse
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageResult, Overrides
from weir.errors import (
    ConfigError,
    GenerationFailed,
    InvalidRequest,
    NotFinite,
    PlanError,
    RoleChanged,
    StateRefused,
    WeirError,
)
from weir.logs import configure, logged_as
from weir.loopback import keep_to_loopback
from weir.plan import Assignment, Plan
from weir.profiles import load_profile
from weir.states import State, StateStore
from weir.telemetry import Metrics, NoMetrics
from workers.emulated import EmulatedEngine
from workers.engine.engine import DenoiseJob, Engine, EngineOutput, OutOfMemory, denoise_job, failed, recipe
from workers.engine.scheduling import BatchLimits
from workers.engine.step_loop import StepLoop, StepProgress, TaskOutcome, preview_steps

log = logging.getLogger(__name__)

#: Codes of errors that the replica may have caused, and not the request.
_OWN_FAILURES = frozenset(error.code for error in (GenerationFailed, NotFinite, OutOfMemory))
#: Number of denoising steps of a self-test's images.
_SELF_TEST_STEPS = 2


class Worker:
    """One replica: holds all variants of the family, and takes its role from the plan by its rank.

    Bind it with ``serve.deployment(Worker)``. Every public method is async, because Serve runs plain methods in other
    threads: all state belongs to the replica's event loop, and only the engine runs on the step loop's thread. A
    request is served by the variant that it names, whatever the replica's role is. The role only guides the
    dispatcher, so a stale view of roles costs speed and never an answer.

    Args:
        family: ``FamilyConfig.model_dump()``.
        plan: the first plan, as ``Plan.to_dict()``; later plans arrive as ``user_config``.
        emulate: path of a profile; the replica sleeps for its latencies instead of running models.
        states: creates the store of states; called in the replica's process, because connections cannot be sent to
            another process. None: every request runs from noise.
        fetch_s: time limit for fetching a state, seconds; after that the lookup counts as a miss.
        metrics: records failures; all other measurements of a request are returned with its result.

    Raises:
        ConfigError: the family's folders or the profile are missing or damaged, or a variant generates no images.
        PlanError: the first plan is invalid.
    """

    #: Longest time without progress before a call counts as hung. The longest single step has to be shorter.
    stall_s = 120.0
    #: Time limit for an idle device to answer a probe.
    probe_s = 10.0
    #: Largest number of images whose captured states are being stored at once; states of further images are dropped.
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
        configure("worker")
        tracing.configure("worker")
        self.family = FamilyConfig.model_validate(family)
        self.plan = Plan.from_dict(plan).check(self.family.keys)
        self._limits = BatchLimits(self.plan)
        self.replica, self.rank = _identity()
        self.process = own_process()
        self.states = None if states is None else states()
        self.fetch_s = fetch_s
        #: Number of failures of images and states, by error code.
        self.failures: Counter[str] = Counter()
        self._metrics = metrics or NoMetrics()
        # Several pools, so that reads, which images wait for, do not queue behind writes or large files.
        self._reading = ThreadPoolExecutor(4, thread_name_prefix="read-states")
        self._storing = ThreadPoolExecutor(2, thread_name_prefix="store-states")
        self._loading = ThreadPoolExecutor(2, thread_name_prefix="load-adapters")
        self._stores: set[asyncio.Task[None]] = set()
        self._waiters: dict[int, asyncio.Future[TaskOutcome]] = {}  # by the task's ticket
        self._self_test: asyncio.Task[None] | None = None
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
        """Generates one image.

        Cancelling the call removes the request before the next step.

        Args:
            role: the role for which the request was dispatched; "": the variant. If this replica loses the role, a
                request that still waits is returned with :class:`RoleChanged`.

        Returns:
            ``ImageResult.to_dict()``. A failed request has its ``error``; it never raises.
        """
        return await self._generate(variant, request, role, None)

    async def stream(self, variant: str, request: dict[str, Any], role: str = "") -> AsyncIterator[dict[str, Any]]:
        """Generates one image like :meth:`generate`, and yields previews before the result.

        Yields at most as many previews as the request asks for, each with ``preview`` (a small PNG) and ``step``, the
        step after which it was made; then the result.
        """
        parts: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        generating = asyncio.create_task(self._generate(variant, request, role, parts.put_nowait))
        generating.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            while (part := await parts.get()) is not None:
                yield part
            yield await generating
        finally:
            generating.cancel()

    async def _generate(
        self, variant: str, request: dict[str, Any], role: str, show: Callable[[dict[str, Any]], None] | None
    ) -> dict[str, Any]:
        try:
            parsed = ImageRequest.from_dict(request, time.monotonic())
        except (TypeError, ValueError) as error:
            name = str(request.get("id", "")) if isinstance(request, Mapping) else ""
            return self._error_result(name, InvalidRequest(f"not a request for a worker: {error}")).to_dict()
        with (
            logged_as(parsed.request_id),
            tracing.span("generate", "server", parent=parsed.traceparent, variant=variant) as span,
        ):
            if traceparent := tracing.traceparent():  # the parent of what the engine's threads do for the image
                parsed = replace(parsed, traceparent=traceparent)
            result = await self._run(variant, parsed, role, show)
            span.set(
                replica=self.replica,
                steps=result.steps,
                resumed_at=result.resumed_at,
                batch_size=result.batch_size,
                queue_s=result.queue_s,
                compute_s=result.compute_s,
                fetch_s=result.fetch_s,
            )
            if result.error is not None:
                span.fail(result.error[0])
            return result.to_dict()

    async def _run(
        self, variant: str, request: ImageRequest, role: str, show: Callable[[dict[str, Any]], None] | None
    ) -> ImageResult:
        try:
            state, fetch_s = await self._fetch(variant, request)
            load_s = await self._load_adapters(request)
            job, refused = self._checked_job(variant, request, state, role)
        except (TypeError, ValueError) as error:
            return self._error_result(request.id, InvalidRequest(f"not a request for a worker: {error}"))
        except WeirError as error:
            return self._error_result(request.id, error)
        outcome = await self._denoise(job, show)
        outcome = outcome._replace(queue_s=outcome.queue_s + load_s)
        self._start_self_test(outcome.output)
        captured = self._store_states(request, outcome.output.states)
        return self._result(request.id, outcome, captured, fetch_s, refused)

    def _checked_job(
        self, variant: str, request: ImageRequest, state: State | None, role: str
    ) -> tuple[DenoiseJob, bool]:
        """The engine's job, and whether ``state`` was refused. A job whose start does not fit starts from noise.

        Raises:
            InvalidRequest: names the field.
        """
        try:
            job = denoise_job(self.family, variant, request, state, role)
            self.engine.check(job)
            return job, False
        except StateRefused as error:
            self._count_failure(error.code)
            log.warning("Request %s runs from step 0: %s", request.id, error.message)
            cold = replace(request, warm_start=None)
            return denoise_job(self.family, variant, cold, role=role), state is not None

    async def _fetch(self, variant: str, request: ImageRequest) -> tuple[State | None, float | None]:
        """The state to resume from, or None, and the seconds that fetching it took, or None if there is none to fetch.

        Raises:
            InvalidRequest: names the field; nothing is fetched for an invalid request.
        """
        recipe(self.family, variant, request)
        if self.states is None or request.resume is None:
            return None, None
        fetched = asyncio.get_running_loop().run_in_executor(
            self._reading, copy_context().run, self.states.get, request.resume.key
        )
        begun, state = time.monotonic(), None
        try:
            state = await asyncio.wait_for(fetched, self.fetch_s)
        except Exception as error:  # a failing store may cost speed, never the image
            self._count_failure("state_fetch")
            log.warning(
                "Request %s runs from step 0, its state was not fetched in time: %s: %s",
                request.id,
                type(error).__name__,
                error,
            )
        return state, time.monotonic() - begun

    async def _load_adapters(self, request: ImageRequest) -> float:
        """Loads the request's adapters, while the step loop goes on; returns how long it took, seconds.

        Raises:
            InvalidRequest: an adapter cannot be used.
        """
        if not request.adapters:
            return 0.0
        begun = time.monotonic()
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._loading, copy_context().run, self.engine.prepare, request
            )
        except ConfigError as error:
            log.error("Request %s: %s", request.id, error.message)
            names = ", ".join(it.name for it in request.adapters)
            # Not the message, which has paths of this machine.
            raise InvalidRequest(f"loras: {names}: cannot be loaded; the log of the service says why") from error
        return time.monotonic() - begun

    async def _denoise(self, job: DenoiseJob, show: Callable[[dict[str, Any]], None] | None) -> TaskOutcome:
        """Runs the job in the step loop and waits for its outcome. ``show`` gets the previews.

        Cancelling the wait removes the task from the step loop.
        """
        events = asyncio.get_running_loop()
        done: asyncio.Future[TaskOutcome] = events.create_future()
        wanted = preview_steps(job.first, job.recipe.steps, job.request.previews)

        def on_step(progress: StepProgress) -> None:
            if show and progress.step in wanted and (image := progress.preview()):
                events.call_soon_threadsafe(show, {"preview": image, "step": progress.step})

        def resolve(outcome: TaskOutcome) -> None:
            if not done.done():  # it is done when the caller was cancelled
                done.set_result(outcome)

        watched = on_step if wanted else None
        task = self._loop.submit(job, lambda outcome: events.call_soon_threadsafe(resolve, outcome), watched)
        self._waiters[task.ticket] = done
        try:
            return await done
        except asyncio.CancelledError:
            self._loop.cancel(task)
            raise
        finally:
            del self._waiters[task.ticket]

    def _store_states(self, request: ImageRequest, states: tuple[State, ...]) -> tuple[int, ...]:
        """Starts to store captured states and returns their steps. The image does not wait for the store."""
        if self.states is None or not states:
            return ()
        if len(self._stores) >= self.most_storing:
            self._report_not_stored(request, "the store is slow")
            return ()
        task = asyncio.create_task(self._put(self.states, request, states))
        self._stores.add(task)
        task.add_done_callback(self._stores.discard)
        return tuple(state.step for state in states)

    async def _put(self, store: StateStore, request: ImageRequest, states: tuple[State, ...]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._storing, copy_context().run, store.put, request, states
            )
        except Exception as error:
            self._report_not_stored(request, f"{type(error).__name__}: {error}")

    def _report_not_stored(self, request: ImageRequest, reason: str) -> None:
        self._count_failure("state_store")
        log.warning("The states of request %s were not stored: %s", request.id, reason)

    def _error_result(self, name: str, error: WeirError) -> ImageResult:
        """The result of a request that was refused before it reached the step loop."""
        return self._result(name, TaskOutcome(failed(error), queued=len(self._loop.waiting())))

    def _result(
        self,
        name: str,
        outcome: TaskOutcome,
        captured: tuple[int, ...] = (),
        fetch_s: float | None = None,
        refused: bool = False,
    ) -> ImageResult:
        output = outcome.output
        if output.error is not None:
            self._count_failure(output.error[0])
            log.info("%s: no image: %s: %s", name, *output.error)
        else:
            timing = outcome.batch_size, outcome.queue_s, outcome.compute_s
            log.info("%s: %d steps in a batch of %d, waited %.3f s, ran %.3f s", name, output.steps, *timing)
        return ImageResult(
            id=name,
            image=output.image,
            confidence=output.confidence,
            steps=output.steps,
            queue_s=outcome.queue_s,
            compute_s=outcome.compute_s,
            device_s=outcome.device_s,
            batch_size=outcome.batch_size,
            plan_version=self.plan.version,
            error=output.error,
            emulated=self.engine.emulated,
            replica=self.replica,
            queued=outcome.queued,
            left_together=outcome.left_together,
            resumed_at=output.first,
            captured=captured,
            latent=None if output.latent is None else output.latent.to_bytes(),
            fetch_s=fetch_s,
            seen=output.seen if captured else None,
            refused=refused,
            unused_tokens=output.unused_tokens,
            unused_negative_tokens=output.unused_negative_tokens,
        )

    def _start_self_test(self, output: EngineOutput) -> None:
        """Starts a self-test after a failure that the replica may have caused; at most one runs at a time."""
        if output.error is None or output.error[0] not in _OWN_FAILURES:
            return
        if self._self_test is None or self._self_test.done():
            self._self_test = asyncio.create_task(self._run_self_test())

    async def _run_self_test(self) -> None:
        """Generates one image from an empty prompt with each variant, to find out whether only the prompt failed.

        If an image fails, the replica is no longer ready: it gets no more requests, and Serve replaces it.
        """
        for variant in self.family.keys:
            own, now = Overrides(steps=_SELF_TEST_STEPS), time.monotonic()
            request = ImageRequest("self-test", "", 0, self.family.size, now, overrides=own)
            outcome = await self._denoise(denoise_job(self.family, variant, request), None)
            if outcome.output.error is not None:
                self.ready = False
                log.error("The replica's self-test failed: %s", outcome.output.error[1])
                return

    def _count_failure(self, code: str) -> None:
        self.failures[code] += 1
        self._metrics.add(metrics_of.WORKER_FAILURES, code=code)

    def _limit(self, job: DenoiseJob) -> int:
        return self._limits.of(job.role, self._assigned())

    # ----------------------------------------------------------------------------------------------- plan

    async def reconfigure(self, user_config: Any, rank: Any = None) -> None:
        """Takes the next plan. Serve calls it with the deployment's ``user_config``, and again when the rank changes.

        Never raises, because an exception here would make Serve stop the replica. An invalid or older plan changes
        nothing, and a running batch continues.
        """
        try:
            self.rank = self.rank if rank is None else int(getattr(rank, "rank", rank))
            if user_config is None:
                return
            if not isinstance(user_config, Mapping):
                raise PlanError(f"a plan is a mapping, not {type(user_config).__name__}")
            plan = Plan.from_dict(user_config).check(self.family.keys)
            if not plan.replaces(self.plan.version):
                if plan.version > self.plan.version:
                    raise PlanError(f"version {plan.version} is too far ahead")
                return
            before, self.plan = self._assigned().role, plan
            self._limits.follow(plan)
            self._loop.forget_memory()
            if self._assigned().role != before:
                self._return_queued(before)
        except Exception as error:
            log.warning("Refused a plan and kept plan %d: %s", self.plan.version, error)

    def _return_queued(self, role: str) -> None:
        """Returns the queued requests of a role that this replica lost, so that they are dispatched again.

        They would wait behind other work here. Requests that have begun stay. If no replica has the role now, all of
        them stay, because every replica holds every variant.
        """
        if self.plan.count(role) == 0:
            return
        moved = RoleChanged(f"replica {self.replica} is no longer {role}; send the request to another one")
        waiting = self._loop.waiting()
        for task in waiting:
            if task.job.role == role:
                self._loop.cancel(task)
                queue_s = time.monotonic() - task.submitted
                outcome = TaskOutcome(failed(moved), queue_s=queue_s, queued=len(waiting))
                self._waiters[task.ticket].set_result(outcome)

    def _assigned(self) -> Assignment:
        return self.plan.assignment(self.rank)

    # -------------------------------------------------------------------------------------------- watching

    async def describe(self) -> dict[str, Any]:
        """The replica's state for the dispatcher, which calls ``handle.broadcast("describe")`` once a second.

        Each call also updates the metrics of the store of states.
        """
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
            "unix_time": time.time(),
        }

    async def check_adapter(self, use: dict[str, Any]) -> str:
        """Checks a LoRA adapter for an operator, who may see where its file is.

        Args:
            use: fields of an :class:`weir.adapters.AdapterUse`.

        Returns:
            What is wrong with it, or "".
        """
        wanted, events = AdapterUse.from_dict(use), asyncio.get_running_loop()
        try:
            await events.run_in_executor(self._loading, self.engine.check_adapter, wanted)
        except ConfigError as error:
            return error.message
        return ""

    async def check_health(self) -> None:
        """Checks the device. Serve replaces a replica for which this raises.

        A busy device has to make progress (a denoising step within :attr:`stall_s`); an idle one has to answer a probe.

        Raises:
            RuntimeError: the device hangs or is lost, or the self-test failed.
        """
        if not self.ready:
            raise RuntimeError("the replica's self-test failed")
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


def _identity() -> tuple[str, int]:
    """The replica's unique id, as a request router sees it, and its rank; outside Serve ``local-<pid>`` and 0."""
    try:
        context = serve.get_replica_context()
    except Exception:
        return f"local-{os.getpid()}", 0
    return context.replica_id.unique_id, 0 if context.rank is None else context.rank.rank


def _engine(family: FamilyConfig, emulate: str | None) -> Engine:
    if emulate is not None:
        return EmulatedEngine(load_profile(emulate, family.keys, family.size))
    from workers.models.family import Family  # not at the top: an emulated replica does not import torch

    return Family.load(family, threads=1)
