"""A simulated replica: the step loop of a worker (``workers/engine/step_loop.py``) on virtual time.

Where steps were measured, images join and leave at the boundaries of single steps; where only whole batches were, a
batch is one call and nothing joins it. Which images a call advances is decided by the workers' own
:func:`workers.engine.scheduling.next_call`. As long as all images fit into one call, its steps need no events of their
own: the next one is when the first image is through, or at the boundary behind whatever happens before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

from weir.core import ImageSize
from weir.plan import Plan
from weir.profiles import Profile, VariantProfile
from workers.engine.scheduling import BatchLimits, Task, next_call

#: Calls event handlers later: ``later(at, handler, payload)`` leads to ``handler(payload, now)``.
Later = Callable[[float, Callable[[Any, float], None], Any], None]
#: A boundary of steps that is this close, as a share of a step, is now.
_ROUNDING = 1e-9
#: What a step time that is no longer reached forgets with each call, as in the workers' step loop.
_FORGET = 0.98


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Task):
    """One image at a replica.

    Attributes:
        image: whatever the caller knows it by.
        resumed_at: K, the denoising step that it resumes at; 0: from noise.
        fetch_s: seconds that the worker waited for the state; None: it asked for none.
        size: of the image; None: the family's own.
        submitted, begun: when it arrived and when its first step began; below 0: not yet.
        others_s: seconds of calls of other images since it began.
        calls, shared: steps that it took part in, and the sizes of their calls, summed.
    """

    image: Any
    variant: str
    role: str
    resumed_at: int = 0
    fetch_s: float | None = None
    size: ImageSize | None = None
    submitted: float = 0.0
    begun: float = -1.0
    calls: int = 0
    shared: int = 0
    others_s: float = 0.0
    cancelled: bool = False


class Reply(NamedTuple):
    """What comes back with an image; see :class:`weir.core.ImageResult`."""

    queue_s: float
    compute_s: float
    device_s: float
    batch_size: int
    left_together: int
    queued: int


class VariantTimes:
    """Seconds that one variant takes the device, by batch size."""

    def __init__(self, profile: VariantProfile):
        self.stepwise, self.steps = profile.stepwise, profile.steps
        fixed = profile.fixed
        self.text_s = 0.0 if fixed is None else fixed.text_s
        self.leave_s = 0.0 if fixed is None else fixed.decode_s + fixed.discriminator_s
        self._curve = profile.step_seconds if profile.stepwise else profile.latency
        self._table = [0.0]

    def call_s(self, images: int, left: int) -> float:
        """One step; of a whole batch, all ``left`` steps."""
        table = self._table
        while len(table) <= images:
            table.append(self._curve.at(len(table)))
        return table[images] if self.stepwise else table[images] * left / self.steps


class Device:
    """What all replicas have in common.

    Attributes:
        slower: every step that begins from now on takes this many times what was measured.
        limits: the largest batch by role, under the plans so far.
    """

    def __init__(self, profile: Profile, plan: Plan):
        self._profile = profile
        self._times: dict[tuple[str, ImageSize | None], VariantTimes] = {}
        self.slower = 1.0
        self.limits = BatchLimits(plan)

    def times(self, variant: str, size: ImageSize | None) -> VariantTimes:
        """Times of a variant at a size; None: the family's own."""
        found = self._times.get((variant, size))
        if found is None:
            found = self._times[variant, size] = VariantTimes(self._profile.variant(variant, size))
        return found

    def set_plan(self, plan: Plan) -> None:
        self.limits.follow(plan)


class SimulatedReplica:
    """One GPU.

    Args:
        answer: called with every job that is through.
        later: see :data:`Later`.
    """

    def __init__(
        self,
        name: str,
        rank: int,
        device: Device,
        plan: Plan,
        answer: Callable[[Job, Reply], None],
        later: Later,
    ):
        self.name, self.rank = name, rank
        self.alive = True
        self.busy_s = 0.0
        self.assignment = plan.assignment(rank)
        self._device, self._answer, self._later = device, answer, later
        self._jobs: list[Job] = []
        self._call: tuple[Job, ...] = ()
        self._pending = False  # the next call is about to be decided
        self._epoch = 0  # grows when the end of a call is moved
        self._began = self._steps_from = self._step_s = 0.0
        self._count = 0  # steps of the call
        self._tickets = self._calls = 0
        self._fastest: dict[Hashable, float] = {}

    @property
    def queued(self) -> int:
        """Images that wait to be begun."""
        return len([job for job in self._jobs if job.begun < 0]) if self._jobs else 0

    def submit(self, job: Job, now: float) -> None:
        """The image arrives; it joins at the next step, or waits for the next batch."""
        self._tickets += 1
        job.ticket, job.submitted = self._tickets, now
        self._jobs.append(job)
        if self._call:
            self._interrupt(now)
        elif not self._pending:  # whatever arrives at the same time shares the first call
            self._pending = True
            self._later(now, self._next, None)

    def cancel(self, job: Job, now: float) -> None:
        """Nobody waits for the image any more: it leaves before the next step."""
        job.cancelled = True
        if job in self._call:
            self._interrupt(now)
        elif job in self._jobs:
            self._jobs.remove(job)

    def reassign(self, plan: Plan) -> tuple[bool, list[Job]]:
        """Takes the plan. Whether the role changed, and the waiting jobs that are sent away because of it."""
        before, self.assignment = self.assignment, plan.assignment(self.rank)
        if before.role == self.assignment.role:
            return False, []
        if not plan.count(before.role):
            return True, []
        away = [job for job in self._jobs if job.begun < 0 and job.role == before.role]
        for job in away:
            job.cancelled = True
            self._jobs.remove(job)
        return True, away

    def die(self) -> list[Job]:
        """Nothing ever comes back from here; the jobs that were here."""
        self.alive = False
        self._epoch += 1
        lost = [job for job in self._jobs if not job.cancelled]
        self._jobs, self._call = [], ()
        return lost

    # ------------------------------------------------------------------------------------------------ the step loop

    def _next(self, _: None, now: float) -> None:
        """Decides and begins the next call."""
        self._pending = False
        jobs = self._jobs
        if not jobs or not self.alive:
            return
        self._calls += 1
        call = (jobs[0],) if len(jobs) == 1 else next_call(jobs, self._limit, now, self._least_step_s, self._calls)
        self._call, times, slower = call, self._device.times(call[0].variant, call[0].size), self._device.slower
        self._began = self._steps_from = now
        fresh = [job for job in call if job.begun < 0]
        if fresh:
            self._steps_from += times.text_s * len(fresh)
            for job in fresh:
                job.begun = self._steps_from
        left = min([job.left for job in call])
        self._step_s = slower * times.call_s(len(call), left)
        # With others waiting, who goes next is decided at each step.
        self._count = left if times.stepwise and len(call) == len(jobs) else 1
        self._later(self._steps_from + self._count * self._step_s, self._ended, self._epoch)

    def _interrupt(self, now: float) -> None:
        """The call under way ends with the step that is."""
        if self._count <= 1:
            return
        steps = max(1, math.ceil((now - self._steps_from) / self._step_s - _ROUNDING))
        if steps < self._count:
            self._count = steps
            self._epoch += 1
            self._later(self._steps_from + steps * self._step_s, self._ended, self._epoch)

    def _ended(self, epoch: int, now: float) -> None:
        if epoch != self._epoch:
            return
        call, count, self._call = self._call, self._count, ()
        times = self._device.times(call[0].variant, call[0].size)
        steps = count if times.stepwise else call[0].left  # a whole batch leaves none
        self.busy_s += now - self._began
        self._note_time(call[0], steps)
        self._calls += count - 1
        through, shared = [], count * len(call)
        for job in call:
            job.left -= steps
            job.calls += count
            job.shared += shared
            if job.left <= 0:
                through.append(job)
        if len(through) == len(self._jobs):
            self._jobs = []
        else:
            self._jobs = [job for job in self._jobs if job.left > 0 and not job.cancelled]
        self._pending = True
        leave_s = times.leave_s * len(through)
        if len(self._jobs) + len(through) > len(call):
            took_s = now - self._began + leave_s
            for job in self._jobs:
                if job.begun >= 0 and job not in call:
                    job.others_s += took_s
        if leave_s:
            self.busy_s += leave_s
            self._later(now + leave_s, self._left, (through, self.queued))
        else:
            self._left((through, self.queued), now)

    def _left(self, leaving: tuple[list[Job], int], now: float) -> None:
        """The next call begins, and the finished images go out."""
        if not self.alive:
            return
        through, queued = leaving
        self._next(None, now)
        for job in through:
            if not job.cancelled:
                size = round(job.shared / job.calls)
                queue_s, compute_s = job.begun - job.submitted, now - job.begun
                device_s = compute_s - job.others_s
                self._answer(job, Reply(queue_s, compute_s, device_s, size, len(through), queued))

    def _limit(self, job: Job) -> int:
        return self._device.limits.of(job.role, self.assignment)

    def _least_step_s(self, job: Job) -> float:
        return self._fastest.get(job.call, 0.0)

    def _note_time(self, job: Job, steps: int) -> None:
        """The least is what a job alone would take; it forgets slowly, for devices slow down."""
        whole = not self._device.times(job.variant, job.size).stepwise
        step_s = self._step_s / steps if whole else self._step_s
        known = self._fastest.get(job.call, step_s)
        self._fastest[job.call] = min(step_s, step_s + (known - step_s) * _FORGET ** (1 if whole else steps))
