"""The step loop of one device: images join, resume and leave at the boundaries of single denoising steps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from weir.errors import WeirError
from weir.logs import request_ids
from weir.thread_priority import give_way
from workers.engine.engine import DenoiseJob, Engine, EngineOutput, OutOfMemory, Sample, failed
from workers.engine.scheduling import Task, next_call

log = logging.getLogger(__name__)

#: Of a thread that computes on the CPU. Replicas on the CPU share their cores with the load balancer and the proxy: an
#: answer that is ready must not wait behind the denoising steps of other images.
_NICENESS = 10


class TaskOutcome(NamedTuple):
    """Result and timing of a task.

    Attributes:
        queue_s: seconds from submission until the task began.
        compute_s: seconds from its beginning to the finished image.
        device_s: seconds of these without the calls of other tasks that came between.
        batch_size: number of images in the task's calls of the denoiser, itself included; mean over the calls, rounded.
            0 for a task that never ran.
        left_together: number of images that finished at the same step, itself included.
        queued: number of tasks that had not begun when this one finished.
    """

    output: EngineOutput
    queue_s: float = 0.0
    compute_s: float = 0.0
    device_s: float = 0.0
    batch_size: int = 0
    left_together: int = 0
    queued: int = 0


class StepProgress(NamedTuple):
    """Progress after one step of a task.

    ``preview`` returns a small PNG of the unfinished image, or None. It is only valid during the call of ``on_step``.
    """

    step: int
    steps: int
    preview: Callable[[], bytes | None]


def preview_steps(first: int, steps: int, previews: int) -> frozenset[int]:
    """Steps after which to make ``previews`` previews of a run: evenly spaced, without the finished image."""
    left = steps - first
    at = {first + round(left * number / (previews + 1)) for number in range(1, previews + 1)}
    return frozenset(at - {first, steps})


@dataclass(slots=True, eq=False, kw_only=True)
class DenoiseTask(Task):
    """A job in the step loop, with the callbacks that report on it.

    Attributes:
        answer: called once, from any thread; not after :meth:`StepLoop.cancel`.
        on_step: called after every step, from the loop's thread; exceptions that it raises are logged.
        shared: sum of the batch sizes of the task's calls.
        others_s: seconds of calls of other tasks since it began.
    """

    job: DenoiseJob
    answer: Callable[[TaskOutcome], object]
    on_step: Callable[[StepProgress], object] | None = None
    cancelled: bool = False
    sample: Sample | None = None
    submitted: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    calls: int = 0
    shared: int = 0
    others_s: float = 0.0


class StepLoop:
    """Drives an engine from one thread while there are tasks.

        loop = StepLoop(engine, limit=lambda job: 8)
        loop.submit(job, answer=print)

    Before every call of the denoiser, the loop removes cancelled tasks and selects the most urgent ones
    (:func:`.scheduling.next_call`), at most ``limit``. A call that fails is split in halves until it fits the device's
    memory or the failing image is alone. Every task that is not cancelled is answered.

    Args:
        limit: largest batch size that the plan allows for a job.
        clock: the monotonic clock of the deadlines, seconds.
    """

    def __init__(self, engine: Engine, limit: Callable[[DenoiseJob], int], clock: Callable[[], float] = time.monotonic):
        self.engine = engine
        self._plan_limit = limit
        self._clock = clock
        self._jobs: list[DenoiseTask] = []
        self._fits: dict[Hashable, int] = {}  # by kind of call: largest batch size that fits memory
        self._step_s: dict[Hashable, float] = {}  # by kind of call: shortest recent time of a step
        self._lock = threading.Lock()
        self._device = ThreadPoolExecutor(
            1, "device", initializer=partial(give_way, _NICENESS) if engine.on_cpu else None
        )
        self._pumping = False
        self._tickets = 0
        self._calls = 0
        #: ``time.monotonic()`` at the start of the current call; None when the device is idle.
        self.busy_since: float | None = None

    # ------------------------------------------------------------------------------- from any thread

    def submit(
        self,
        job: DenoiseJob,
        answer: Callable[[TaskOutcome], object],
        on_step: Callable[[StepProgress], object] | None = None,
    ) -> DenoiseTask:
        """Adds a task. It joins at the next step if it is urgent enough."""
        call = self.engine.call_of(job)
        with self._lock:
            self._tickets += 1
            task = DenoiseTask(self._tickets, call, *job.urgency, job=job, answer=answer, on_step=on_step)
            self._jobs.append(task)
            if not self._pumping:
                self._pumping = True
                self._device.submit(self._pump)
        return task

    def cancel(self, task: DenoiseTask) -> None:
        """Removes the task before the next step, without an answer."""
        task.cancelled = True

    def on_device(self, work: Callable[[], None]) -> Future[None]:
        """Runs ``work`` on the device's thread as soon as the thread is idle."""
        return self._device.submit(work)

    def waiting(self) -> list[DenoiseTask]:
        """Tasks that have not begun."""
        with self._lock:
            return [task for task in self._jobs if task.sample is None and not task.cancelled]

    @property
    def running(self) -> int:
        """Number of tasks that have begun and not finished."""
        with self._lock:
            return sum(task.sample is not None and not task.cancelled for task in self._jobs)

    def forget_memory(self) -> None:
        """Forgets which batch sizes did not fit memory, so that the planned sizes are tried again."""
        self._fits.clear()

    # ----------------------------------------------------------------------------- on its own thread

    def _pump(self) -> None:
        while True:
            with self._lock:
                self._jobs = [task for task in self._jobs if not task.cancelled]
                tasks = list(self._jobs)
                if not tasks:
                    self._pumping, self.busy_since = False, None
                    return
            self._calls += 1
            call = next_call(tasks, self._limit, self._clock(), lambda t: self._step_s.get(t.call, 0.0), self._calls)
            self.busy_since = began = time.monotonic()
            beside = [task for task in tasks if task.sample is not None and task not in call]
            try:
                self._begin([task for task in call if task.sample is None])
                self._advance([task for task in call if task.sample is not None])
            except Exception as error:  # the engine broke its contract; the tasks must still be answered
                log.exception("The step loop failed", extra=request_ids(task.job.request.request_id for task in call))
                self._leave([(task, failed(error)) for task in call])
            if beside:
                took_s = time.monotonic() - began
                for task in beside:
                    task.others_s += took_s

    def _limit(self, task: DenoiseTask) -> int:
        planned = self._plan_limit(task.job)
        return min(planned, self._fits.get(task.call, planned))

    def _begin(self, tasks: list[DenoiseTask]) -> None:
        if not tasks:
            return
        try:
            samples = self.engine.begin([task.job for task in tasks])
        except Exception as error:
            for part in self._halves(tasks, error):
                self._begin(part)
            return
        refused = []
        for task, sample in zip(tasks, samples, strict=True):
            if isinstance(sample, WeirError):
                refused.append((task, failed(sample)))
            else:
                task.sample, task.begun = sample, time.monotonic()
        self._leave(refused)

    def _advance(self, tasks: list[DenoiseTask]) -> None:
        """Advances the tasks by one step and finishes those whose steps have all run."""
        if not tasks:
            return
        samples = [task.sample for task in tasks if task.sample is not None]
        started, before = time.monotonic(), samples[0].step
        try:
            errors = self.engine.step(samples)
        except Exception as error:
            for part in self._halves(tasks, error):
                self._advance(part)
            return
        self._record_time(tasks[0].call, (time.monotonic() - started) / max(1, samples[0].step - before))
        self._leave([(task, failed(error)) for task, error in zip(tasks, errors, strict=True) if error is not None])
        fine = [(task, s) for task, s, error in zip(tasks, samples, errors, strict=True) if error is None]
        for task, sample in fine:
            task.left = task.job.recipe.steps - sample.step
            task.calls += 1
            task.shared += len(tasks)
            self._report_progress(task, sample)
        if finished := [(task, sample) for task, sample in fine if task.left <= 0]:
            self._finish([task for task, _ in finished], [sample for _, sample in finished])

    def _finish(self, tasks: list[DenoiseTask], samples: list[Sample]) -> None:
        self._remove(tasks)
        queued = len(self.waiting())
        for task, future in zip(tasks, self.engine.finish(samples), strict=True):
            future.add_done_callback(partial(self._finished, task, len(tasks), queued))

    def _finished(self, task: DenoiseTask, together: int, queued: int, done: Future[EngineOutput]) -> None:
        error = done.exception()
        output = done.result() if error is None else failed(error)
        self._answer(task, output, together=together, queued=queued)

    def _halves(self, tasks: list[DenoiseTask], error: Exception) -> list[list[DenoiseTask]]:
        """Both halves of a failed call, to be tried again. A single task is answered with the error instead."""
        of = request_ids(task.job.request.request_id for task in tasks)
        log.warning("A call for %d images failed: %s: %s", len(tasks), type(error).__name__, error, extra=of)
        if len(tasks) == 1:
            self._leave([(tasks[0], failed(error))])
            return []
        middle = (len(tasks) + 1) // 2
        if isinstance(error, OutOfMemory):
            self._fits[tasks[0].call] = middle
        return [tasks[:middle], tasks[middle:]]

    def _record_time(self, call: Hashable, step_s: float) -> None:
        """Updates the shortest time of a step, which is that of a task alone.

        The estimate rises slowly towards longer times, because a device may become slower.
        """
        known = self._step_s.get(call, step_s)
        self._step_s[call] = min(step_s, known + 0.02 * (step_s - known))

    def _leave(self, ended: list[tuple[DenoiseTask, EngineOutput]]) -> None:
        if ended:
            self._remove([task for task, _ in ended])
            queued = len(self.waiting())
            for task, output in ended:
                self._answer(task, output, together=1, queued=queued)

    def _remove(self, tasks: list[DenoiseTask]) -> None:
        with self._lock:
            self._jobs = [task for task in self._jobs if task not in tasks]

    def _answer(self, task: DenoiseTask, output: EngineOutput, *, together: int, queued: int) -> None:
        if task.cancelled:
            return
        now = time.monotonic()
        begun = task.begun or now
        size = round(task.shared / task.calls) if task.calls else 0
        try:
            compute_s, device_s = now - begun, now - begun - task.others_s
            task.answer(TaskOutcome(output, begun - task.submitted, compute_s, device_s, size, together, queued))
        except Exception:
            of = request_ids([task.job.request.request_id])
            log.exception("The callback for the result of %s failed", task.job.request.id, extra=of)

    def _report_progress(self, task: DenoiseTask, sample: Sample) -> None:
        if task.on_step is None:
            return
        try:
            task.on_step(StepProgress(sample.step, task.job.recipe.steps, lambda: self.engine.preview(sample)))
        except Exception:
            of = request_ids([task.job.request.request_id])
            log.exception("The callback for the progress of %s failed", task.job.request.id, extra=of)
