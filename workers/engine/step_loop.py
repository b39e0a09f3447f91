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
from workers.engine.engine import DenoiseJob, Engine, EngineOutput, OutOfMemory, Sample, failed
from workers.engine.scheduling import Task, next_call

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of a job.

    Attributes:
        queue_s, compute_s: seconds until it was begun, and from then to the finished picture.
        batch_size: images that shared its calls, itself included; mean over the calls, rounded. 0: it never ran.
        left_together: images that were finished at the same step, itself included.
        queued: jobs that waited to be begun when it was finished.
    """

    drawn: EngineOutput
    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_size: int = 0
    left_together: int = 0
    queued: int = 0


class Progress(NamedTuple):
    """A step was made. ``preview`` gives a small PNG of what is becoming, or None; call it before returning."""

    step: int
    steps: int
    preview: Callable[[], bytes | None]


def preview_steps(first: int, steps: int, previews: int) -> frozenset[int]:
    """The steps after which to make so many previews of a run: evenly apart, and none of the finished image."""
    left = steps - first
    at = {first + round(left * number / (previews + 1)) for number in range(1, previews + 1)}
    return frozenset(at - {first, steps})


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Task):
    """An order with the one who waits for it.

    Attributes:
        answer: called once, from any thread; not after :meth:`StepLoop.cancel`.
        on_step: called after every step, from the loop's thread; what it raises is logged.
    """

    order: DenoiseJob
    answer: Callable[[Outcome], object]
    on_step: Callable[[Progress], object] | None = None
    cancelled: bool = False
    sample: Sample | None = None
    submitted: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    calls: int = 0
    shared: int = 0  # the sizes of its calls, summed


class StepLoop:
    """Drives an engine from one thread, for as long as there is something to draw.

        loop = StepLoop(engine, limit=lambda order: 8)
        loop.submit(order, answer=print)

    Before every call of the denoiser it looks anew: who was cancelled leaves, who is most urgent goes
    (:func:`.scheduling.next_call`), at most ``limit`` at a time. A call that fails is halved until it fits, or
    the one image that breaks it is alone; every job is answered.

    Args:
        limit: the most images of one call that a plan allows an order.
        clock: unix time, seconds.
    """

    def __init__(self, engine: Engine, limit: Callable[[DenoiseJob], int], clock: Callable[[], float] = time.time):
        self.engine = engine
        self._planned = limit
        self._clock = clock
        self._jobs: list[Job] = []
        self._fits: dict[Hashable, int] = {}  # by kind of call: the most images that memory allows
        self._step_s: dict[Hashable, float] = {}  # by kind of call: the least seconds that a step took lately
        self._lock = threading.Lock()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._pumping = False
        self._tickets = 0
        self._calls = 0
        #: ``time.monotonic()`` at which the device began what it is at; None when it is idle.
        self.busy_since: float | None = None

    # ------------------------------------------------------------------------------- from any thread

    def submit(
        self,
        order: DenoiseJob,
        answer: Callable[[Outcome], object],
        on_step: Callable[[Progress], object] | None = None,
    ) -> Job:
        """The job joins at the next step, if it is urgent enough for a place."""
        call, left = self.engine.call_of(order), order.recipe.steps - order.first
        with self._lock:
            self._tickets += 1
            job = Job(self._tickets, call, order.request.deadline, left, order=order, answer=answer, on_step=on_step)
            self._jobs.append(job)
            if not self._pumping:
                self._pumping = True
                self._device.submit(self._pump)
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits any more: the job leaves before the next step, unanswered."""
        job.cancelled = True

    def on_device(self, work: Callable[[], None]) -> Future[None]:
        """Runs ``work`` on the device's thread as soon as that is idle."""
        return self._device.submit(work)

    def waiting(self) -> list[Job]:
        """The jobs that are not begun yet."""
        with self._lock:
            return [job for job in self._jobs if job.sample is None and not job.cancelled]

    @property
    def running(self) -> int:
        """How many jobs are begun and not finished."""
        with self._lock:
            return sum(job.sample is not None and not job.cancelled for job in self._jobs)

    def forget_memory(self) -> None:
        """Tries the planned sizes again: memory may be free by now; one halved call finds out if not."""
        self._fits.clear()

    # ----------------------------------------------------------------------------- on its own thread

    def _pump(self) -> None:
        while True:
            with self._lock:
                self._jobs = [job for job in self._jobs if not job.cancelled]
                jobs = list(self._jobs)
                if not jobs:
                    self._pumping, self.busy_since = False, None
                    return
            self._calls += 1
            call = next_call(jobs, self._limit, self._clock(), lambda t: self._step_s.get(t.call, 0.0), self._calls)
            self.busy_since = time.monotonic()
            try:
                self._begin([job for job in call if job.sample is None])
                self._advance([job for job in call if job.sample is not None])
            except Exception as error:  # an engine that breaks its contract: nobody may wait for ever
                log.exception("the step loop failed")
                self._leave([(job, failed(error)) for job in call])

    def _limit(self, job: Job) -> int:
        planned = self._planned(job.order)
        return min(planned, self._fits.get(job.call, planned))

    def _begin(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            samples = self.engine.begin([job.order for job in jobs])
        except Exception as error:
            for part in self._halves(jobs, error):
                self._begin(part)
            return
        refused = []
        for job, sample in zip(jobs, samples, strict=True):
            if isinstance(sample, WeirError):
                refused.append((job, failed(sample)))
            else:
                job.sample, job.begun = sample, time.monotonic()
        self._leave(refused)

    def _advance(self, jobs: list[Job]) -> None:
        """One step of all jobs; those that are through are finished."""
        if not jobs:
            return
        samples = [job.sample for job in jobs if job.sample is not None]
        started, before = time.monotonic(), samples[0].step
        try:
            errors = self.engine.step(samples)
        except Exception as error:
            for part in self._halves(jobs, error):
                self._advance(part)
            return
        self._note_time(jobs[0].call, (time.monotonic() - started) / max(1, samples[0].step - before))
        self._leave([(job, failed(error)) for job, error in zip(jobs, errors, strict=True) if error is not None])
        fine = [(job, s) for job, s, error in zip(jobs, samples, errors, strict=True) if error is None]
        for job, sample in fine:
            job.left = job.order.recipe.steps - sample.step
            job.calls += 1
            job.shared += len(jobs)
            self._tell(job, sample)
        if through := [(job, sample) for job, sample in fine if job.left <= 0]:
            self._finish([job for job, _ in through], [sample for _, sample in through])

    def _finish(self, jobs: list[Job], samples: list[Sample]) -> None:
        self._remove(jobs)
        queued = len(self.waiting())
        for job, future in zip(jobs, self.engine.finish(samples), strict=True):
            future.add_done_callback(partial(self._finished, job, len(jobs), queued))

    def _finished(self, job: Job, together: int, queued: int, done: Future[EngineOutput]) -> None:
        error = done.exception()
        drawn = done.result() if error is None else failed(error)
        self._answer(job, drawn, together=together, queued=queued)

    def _halves(self, jobs: list[Job], error: Exception) -> list[list[Job]]:
        """What is left to try after a failed call: both halves, or nothing, and the one job gets its answer."""
        log.warning("a call for %d images failed: %s: %s", len(jobs), type(error).__name__, error)
        if len(jobs) == 1:
            self._leave([(jobs[0], failed(error))])
            return []
        middle = (len(jobs) + 1) // 2
        if isinstance(error, OutOfMemory):
            self._fits[jobs[0].call] = middle
        return [jobs[:middle], jobs[middle:]]

    def _note_time(self, call: Hashable, step_s: float) -> None:
        """The least is what a job alone would take; it forgets slowly, for devices slow down."""
        known = self._step_s.get(call, step_s)
        self._step_s[call] = min(step_s, known + 0.02 * (step_s - known))

    def _leave(self, ended: list[tuple[Job, EngineOutput]]) -> None:
        if ended:
            self._remove([job for job, _ in ended])
            queued = len(self.waiting())
            for job, drawn in ended:
                self._answer(job, drawn, together=1, queued=queued)

    def _remove(self, jobs: list[Job]) -> None:
        with self._lock:
            self._jobs = [job for job in self._jobs if job not in jobs]

    def _answer(self, job: Job, drawn: EngineOutput, *, together: int, queued: int) -> None:
        if job.cancelled:
            return
        now = time.monotonic()
        begun = job.begun or now
        size = round(job.shared / job.calls) if job.calls else 0
        try:
            job.answer(Outcome(drawn, begun - job.submitted, now - begun, size, together, queued))
        except Exception:
            log.exception("nobody took the answer to %s", job.order.request.id)

    def _tell(self, job: Job, sample: Sample) -> None:
        if job.on_step is None:
            return
        try:
            job.on_step(Progress(sample.step, job.order.recipe.steps, lambda: self.engine.preview(sample)))
        except Exception:
            log.exception("nobody took the progress of %s", job.order.request.id)
