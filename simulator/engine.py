"""The fast simulator: the code of the load balancer and of the controller on a heap of events.

Every request goes through :func:`weir.cascade.advance`; admission, dispatch, the prediction of finish times, counting
and the controller are the load balancer's and the controller's own classes. Only the replicas are simulated
(``simulator/replica.py``), and what the judges and the cache say is given. A run is a function of its arguments.

``simulator/exact.py`` runs the asyncio load balancer itself on virtual time, which takes longer and says how far this
simulator can be trusted.
"""

from __future__ import annotations

import gc
import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from controller.counters import Counters
from controller.loop import TICK_S, Controller, ServiceLink
from controller.policy import Policy
from load_balancer.admission.admission import Admission
from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import BatchReport
from load_balancer.dispatch.service_times import ServiceTimes
from load_balancer.runner.dispatch_forecast import DispatchForecast
from load_balancer.runner.observation_counters import EXPIRY, ObservationCounters
from simulator.conditions import Conditions
from simulator.device import setting_profile
from simulator.outcome import UNANSWERED, Outcome, PlanInForce
from simulator.replica import Device, Job, Reply, SimulatedReplica
from simulator.request_stream import RequestStream
from weir import metrics as metrics_of
from weir.cascade import (
    Admitted,
    Answer,
    CascadeSettings,
    Event,
    Fail,
    ImageReady,
    ImageTask,
    LookUp,
    LookupAnswered,
    Progress,
    Reason,
    Run,
    RunFailed,
    advance,
    first_run,
)
from weir.clocks import Clocks
from weir.errors import NotReady, Overloaded
from weir.metrics import Metric
from weir.plan import Plan
from weir.profiles import Profile
from weir.telemetry import NoMetrics

#: A worker waits no longer for a state (``cache.fetch_s`` of a service), seconds.
FETCH_WAIT_S = 0.02
#: Of the time before the first arrival the controller sees this many seconds at most.
IDLE_S = 60.0
#: Images that may be in flight. No service has that many places; the deadline refuses before.
PLACES = 10**6

#: Runs that will have to be given up are looked at once this many seconds before.
_WATCH_S = 1.0
#: What happens within this time is simultaneous, as in asyncio: first waits end, then images are ready, then others
#: are asked for.
_FIRST_S = 1e-9
#: Takes the place of the plan in force where a dictionary is read: one of a thousand replicas takes milliseconds.
_SOME_PLAN = Plan.split(0, 1, 0, light_batch=1, heavy_batch=1, threshold=0.0).to_dict()

Handler = Callable[[Any, float], None]


class FailuresAreErrors(NoMetrics):
    """A controller whose policy fails goes on with its last plan; a simulation of that is worth nothing."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        if metric is metrics_of.FAILURES:
            raise RuntimeError("the policy failed; the log says how")


class _Image:
    """A request between its admission and its answer.

    Attributes:
        run: under way; each is an object of its own.
        replica, ready_at: where it was sent, and when it should be ready.
        job: at the replica or on its way there.
    """

    __slots__ = ("job", "number", "progress", "ready_at", "replica", "run")

    def __init__(self, number: int, progress: Progress):
        self.number, self.progress = number, progress
        self.run: Run | None = None
        self.job: Job | None = None
        self.replica: SimulatedReplica | None = None
        self.ready_at = math.inf


class Simulation:
    """One run of one policy over one stream of requests; see :func:`simulate`.

    Times are seconds from shortly before the first arrival.
    """

    def __init__(
        self,
        policy: Policy,
        requests: RequestStream,
        profile: Profile | None = None,
        conditions: Conditions = Conditions(),
    ):
        self.policy, self.requests = policy, requests
        self.profile = profile or setting_profile(policy.setting)
        self.slo_s = policy.setting.slo_s
        self.plan: Plan = replace(policy.first_plan(), version=1)
        self.now = 0.0
        self._zero_s = max(0.0, float(requests.arrivals.times_s[0]) - IDLE_S) if len(requests) else 0.0
        self._arrivals: list[float] = (requests.arrivals.times_s - self._zero_s).tolist()
        self._draws: list[float] = requests.draws.tolist()
        self._steps = {key: self.profile.variant(key).steps for key in self.profile.keys}
        redraw = conditions.redraw
        self._settings = CascadeSettings(self._steps, conditions.direct, redraw.below, redraw.most)
        self._last = self.profile.keys[-1]
        self._cache: Any = "read" if requests.lookups else "off"
        self._actuation_s, self._transit_s = conditions.actuation_s, tuple(conditions.transit_s)
        self._chance = random.Random(5)

        self.dispatcher = Dispatcher(self.plan, ServiceTimes(self.profile), random.Random(conditions.seed))
        self.admission = Admission(PLACES)
        self.counters = ObservationCounters(EXPIRY * self.slo_s)
        self.forecast = DispatchForecast(self.dispatcher, self._steps, self._clock)
        self._device = Device(self.profile, self.plan)
        self.replicas = {
            f"r{rank}": SimulatedReplica(f"r{rank}", rank, self._device, self.plan, self._finished, self._later)
            for rank in range(len(self.plan.assignments))
        }

        self._events: list[tuple[float, int, Handler, Any]] = []  # the number keeps ties in their order
        self._sequence = 0
        self._watched: dict[int, list[tuple[float, Handler, _Image, Run]]] = {}
        self._open: dict[int, _Image] = {}
        self._without_replica: list[tuple[_Image, Run]] = []
        self._fetch_s: float | None = None
        self._plans: list[PlanInForce] = []
        self._role_changes = 0
        count = len(requests)
        self._finished_s, self._paths = [math.inf] * count, [UNANSWERED] * count
        self._resumed_at, self._loss = [0] * count, [0.0] * count
        self._short_runs = {run.steps: run.loss for run in policy.setting.short_runs}

        for at, rank in conditions.deaths:
            self._later(at - self._zero_s, self._die, f"r{rank}")
        for at, factor in conditions.slowdowns:
            self._later(at - self._zero_s, self._slow_down, factor)
        for at, seconds in conditions.fetches:
            self._later(at - self._zero_s, self._fetch_in, seconds)

    def run(self) -> Outcome:
        """Runs until every request is answered or lost."""
        collects = gc.isenabled()
        gc.disable()  # what a run makes has no cycles, so looking for them only takes time
        try:
            return self._outcome()
        finally:
            if collects:
                gc.enable()

    def _outcome(self) -> Outcome:
        self._note(self.plan, 0.0)
        self._look_at_replicas()
        self._controller = Controller(
            lambda name, size: self.policy,
            len(self.replicas),
            ServiceLink(self._observed, self._publish),
            metrics=FailuresAreErrors(),
            clocks=Clocks(monotonic=self._clock),
        )
        self._controller.step()
        self._later(TICK_S, self._tick, 1)
        arrivals, events, count, number = self._arrivals, self._events, len(self.requests), 0
        while number < count or self._open:
            if number < count and (not events or arrivals[number] < events[0][0] - _FIRST_S):
                self.now = arrivals[number]
                self._arrive(number)
                number += 1
            else:
                self.now, _, handle, payload = heapq.heappop(events)
                handle(payload, self.now)
        return Outcome(
            policy=self.policy.name,
            slo_s=self.slo_s,
            ladder=self.profile.keys,
            arrivals_s=self.requests.arrivals.times_s,
            finished_s=np.array(self._finished_s) + self._zero_s,
            paths=np.array(self._paths, dtype=str),
            resumed_at=np.array(self._resumed_at, dtype=int),
            loss=np.array(self._loss, dtype=float),
            busy_s=sum(replica.busy_s for replica in self.replicas.values()),
            role_changes=self._role_changes,
            plans=tuple(self._plans),
            replicas=len(self.replicas),
        )

    def _clock(self) -> float:
        return self.now

    def _later(self, at: float, handle: Handler, payload: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at, self._sequence, handle, payload))

    def _watch(self, at: float, handle: Handler, image: _Image, run: Run) -> None:
        """As :meth:`_later` for a run that will be over by then, most likely: it is looked at a second before."""
        if at - self.now < _WATCH_S:
            self._later(max(at, self.now), handle, (image, run))
            return
        second = int(at / _WATCH_S)
        if second not in self._watched:
            self._watched[second] = []
            self._later(second * _WATCH_S, self._second, second)
        self._watched[second].append((at, handle, image, run))

    def _second(self, second: int, now: float) -> None:
        for at, handle, image, run in self._watched.pop(second):
            if image.run is run:
                self._later(max(at, now), handle, (image, run))

    # --------------------------------------------------------------------- a request, as in load_balancer/runner

    def _arrive(self, number: int) -> None:
        """Admission, as :meth:`load_balancer.runner.balancer.Balancer.begin`.

        No time passes between the admission of an image and its first dispatch, so none has to be expected.
        """
        now, plan = self.now, self.plan
        size = self.requests.size(number)
        if size == self.profile.size:
            size = None
        price = self.dispatcher.times.price(size)
        self.counters.arrived(1, price)
        task = ImageTask(plan, now, self.slo_s, cache=self._cache, draw=self._draws[number], size=size)
        first = first_run(task, self._settings)
        try:
            self.admission.admit(
                1,
                now=now,
                deadline=task.latest if plan.rules.drop_after_s is None else math.inf,
                finish_at=self.forecast.admission_finish_at(first, 1),
                rps=plan.admitted_rps,
                price=price,
            )
        except (NotReady, Overloaded):
            return
        self.counters.admitted(number, now)
        image = self._open[number] = _Image(number, Progress(task, self._settings))
        self._follow(image, Admitted(first))

    def _follow(self, image: _Image, event: Event) -> None:
        """One step of an image, as :class:`load_balancer.runner.request_runner.RequestRunner`."""
        image.progress, actions = advance(image.progress, event, self.forecast)
        self.counters.follow(image.number, image.progress, event, actions, self.now)
        for action in actions:
            if type(action) is Run:
                self._run(image, action)
            elif type(action) is Answer:
                self._answer(image, action)
            elif type(action) is LookUp:
                self._follow(image, LookupAnswered(self.requests.lookup(image.number)))
            elif type(action) is Fail:
                self._close(image)

    def _answer(self, image: _Image, answer: Answer) -> None:
        number, best = image.number, image.progress.images[answer.image]
        self._finished_s[number], self._paths[number] = self.now, answer.path
        self._resumed_at[number] = best.resumed_at
        if answer.path == self._last and best.run.steps is not None:
            self._loss[number] = self._short_runs.get(best.run.steps, 0.0)
        self._close(image)

    def _close(self, image: _Image) -> None:
        del self._open[image.number]
        self.admission.release(1)

    # ------------------------------------------------------- a run, as load_balancer/runner/replica_call.py has it

    def _run(self, image: _Image, run: Run) -> None:
        image.run, image.job, image.replica, image.ready_at = run, None, None, math.inf
        self._watch(run.until - _FIRST_S, self._late, image, run)
        self._send(image, run)

    def _send(self, image: _Image, run: Run) -> None:
        """To the replica that is best now; waits for one where there is none."""
        now, kind = self.now, self.forecast.kind(run)
        name = run.stay
        if not name:
            choice = self.dispatcher.pick(kind, now, avoid=run.avoid, low_priority=run.low_priority)
            if choice is None:
                self._without_replica.append((image, run))
                return
            name, image.ready_at = choice
        replica = image.replica = self.replicas[name]
        self.dispatcher.assign(name, image.number, kind, now, low_priority=run.low_priority)
        if run.droppable:
            last_start = run.deadline - self.dispatcher.batch_s(name, kind)
            self._watch(last_start, self._drop, image, run)
        job = image.job = self._job(image, run)
        waits_s = self._way_s() + (self._fetched(job, run) if run.resume is not None else 0.0)
        if waits_s:
            self._later(now + waits_s, self._reach, job)
        elif replica.alive:
            replica.submit(job, now)
        else:
            self._later(now, self._lost, job)

    def _job(self, image: _Image, run: Run) -> Job:
        steps, resume = run.steps or self._steps[run.variant], run.resume
        stride, first = 1, 0
        if resume is not None:
            stride, first = resume.stride, resume.step // resume.stride
        stepwise = self.profile.variant(run.variant).stepwise
        return Job(
            0,
            (run.variant, run.size) if stepwise else (run.variant, run.size, steps // stride, first),
            run.deadline,
            steps // stride - first,
            image=image,
            variant=run.variant,
            role=run.role,
            resumed_at=first * stride,
            size=run.size,
        )

    def _fetched(self, job: Job, run: Run) -> float:
        """Seconds that the worker waits for the state to resume from; one that does not come saves nothing."""
        if self._fetch_s is None:
            return 0.0
        job.fetch_s = min(self._fetch_s, FETCH_WAIT_S)
        if self._fetch_s > FETCH_WAIT_S:
            steps = run.steps or self._steps[run.variant]
            job.left, job.resumed_at = steps, 0
            if not self.profile.variant(run.variant).stepwise:
                job.call = (run.variant, run.size, steps, 0)
        return job.fetch_s

    def _way_s(self) -> float:
        return self._chance.choice(self._transit_s) if self._transit_s else 0.0

    def _reach(self, job: Job, now: float) -> None:
        """The call arrives at the replica."""
        replica = job.image.replica
        if job.cancelled or job.image.job is not job:
            return
        if replica.alive:
            replica.submit(job, now)
        else:
            self._lost(job, now)

    def _finished(self, job: Job, reply: Reply) -> None:
        """The replica has finished the image."""
        if self._transit_s:
            self._later(self.now + self._way_s(), self._replied, (job, reply))
        else:
            self._replied((job, reply), self.now)

    def _replied(self, came: tuple[Job, Reply], now: float) -> None:
        job, reply = came
        image: _Image = job.image
        run, replica = image.run, image.replica
        if image.job is not job or run is None or replica is None:
            return  # it was given up
        if job.fetch_s is not None:
            self.counters.fetch(job.fetch_s)
        report = BatchReport(
            reply.batch_size,
            reply.compute_s,
            reply.device_s,
            reply.left_together,
            queue_s=reply.queue_s + (job.fetch_s or 0.0),
            queued=reply.queued,
        )
        batch = self.dispatcher.finished(replica.name, image.number, now, report)
        if batch is not None and not job.resumed_at:
            whole_s = self.dispatcher.times.whole_s(batch, reply.batch_size, reply.device_s)
            self.counters.batch(batch.variant, reply.batch_size, whole_s)
        image.run = image.job = image.replica = None
        self.forecast.observe(run, image.ready_at)
        self._follow(image, ImageReady(run.variant, self._confidence(image.number, run, job), job.resumed_at))

    def _confidence(self, number: int, run: Run, job: Job) -> float | None:
        judged = run.variant != self._last or run.judge or (run.resume is not None and run.resume.min_confidence > 0)
        if not judged:
            return None
        return self.requests.confidence(number, run.variant, resumed_at=job.resumed_at, redraw=run.redraw)

    def _late(self, waited: tuple[_Image, Run], now: float) -> None:
        image, run = waited
        if image.run is run:
            self._give_up(image, now)
            self.forecast.observe(run, image.ready_at)
            self._fail(image, Reason.LATE)

    def _drop(self, waited: tuple[_Image, Run], now: float) -> None:
        """The image is dropped if it still waits when a batch that starts now would end after its deadline."""
        image, run = waited
        if image.run is not run or image.replica is None:
            return
        if not self.dispatcher.begun(image.replica.name, image.number):
            self._give_up(image, now)
            self._fail(image, Reason.DROPPED)

    def _give_up(self, image: _Image, now: float) -> None:
        """Takes the image out of its replica's queue."""
        job, replica = image.job, image.replica
        if job is not None and replica is not None:
            replica.cancel(job, now)
            self.dispatcher.forget(replica.name, image.number, now)

    def _lost(self, job: Job, now: float) -> None:
        """The replica of an image died."""
        image: _Image = job.image
        if image.job is job and image.replica is not None:
            self.dispatcher.remove(image.replica.name)
            self._fail(image, Reason.LOST)

    def _sent_away(self, job: Job, now: float) -> None:
        """The replica of an image that waited there has another role now."""
        image: _Image = job.image
        if image.job is job and image.run is not None and image.replica is not None:
            self.dispatcher.forget(image.replica.name, image.number, now)
            role = self.dispatcher.replicas.role_of(image.replica.name)
            self._fail(image, Reason.ROLE_CHANGED, role if role != image.run.role else "")

    def _fail(self, image: _Image, reason: Reason, new_role: str = "") -> None:
        replica = image.replica.name if image.replica is not None else ""
        image.run = image.job = image.replica = None
        self._follow(image, RunFailed(reason, replica, new_role))

    # ------------------------------------------------------------------------------- the controller and the replicas

    def _tick(self, ticks: int, now: float) -> None:
        self._later((ticks + 1) * TICK_S, self._tick, ticks + 1)
        self._look_at_replicas()
        self._controller.step()

    def _look_at_replicas(self) -> None:
        """As :meth:`load_balancer.pool.replica_registry.ReplicaRegistry.watch`."""
        self.dispatcher.sync(
            {"replica": name, "rank": it.rank, "queued": it.queued} for name, it in self.replicas.items() if it.alive
        )
        self.dispatcher.times.forgive(self.now)
        waiting, self._without_replica = self._without_replica, []
        for image, run in waiting:
            if image.run is run:
                self._send(image, run)

    def _observed(self, before: Counters | None) -> Counters:
        """As :meth:`load_balancer.runner.balancer.Balancer.counters`."""
        judged, batches, fetched, verdicts = (
            (before.judged, before.batches_run, before.fetched, before.verdicts) if before else (0, 0, 0, 0)
        )
        counted = Counters.from_dict(
            {
                "plan": _SOME_PLAN,
                "ranks": self.dispatcher.replicas.ranks,
                "queued": {role: self.dispatcher.replicas.queued(role) for role in self.plan.roles},
                **self.counters.since(judged, batches, self.now, fetched=fetched, verdicts=verdicts),
            }
        )
        return replace(counted, plan=self.plan)

    def _publish(self, plan: Plan, running: Plan) -> None:
        if self._actuation_s:
            self._later(self.now + self._actuation_s, self._apply, plan)
        else:
            self._apply(plan, self.now)

    def _apply(self, plan: Plan, now: float) -> None:
        """The load balancer takes the plan, then the replicas do."""
        self.plan = plan
        self.dispatcher.set_plan(plan)
        self._device.set_plan(plan)
        away: list[Job] = []
        for replica in self.replicas.values():
            if replica.alive:
                changed, jobs = replica.reassign(plan)
                self._role_changes += changed
                away += jobs
        for job in away:
            self._later(now + self._way_s(), self._sent_away, job)
        self._note(plan, now)

    def _note(self, plan: Plan, now: float) -> None:
        live = Counter(plan.assignment(it.rank).role for it in self.replicas.values() if it.alive)
        self._plans.append(PlanInForce(now + self._zero_s, live, plan.chain, plan.thresholds))

    def _die(self, name: str, now: float) -> None:
        replica = self.replicas[name]
        for job in replica.die():
            self._lost(job, now)
        self.dispatcher.remove(name)
        self._look_at_replicas()

    def _slow_down(self, factor: float, now: float) -> None:
        self._device.slower = factor

    def _fetch_in(self, seconds: float, now: float) -> None:
        self._fetch_s = seconds


def simulate(
    policy: Policy,
    requests: RequestStream,
    profile: Profile | None = None,
    conditions: Conditions = Conditions(),
) -> Outcome:
    """One policy over one stream of requests.

    Args:
        profile: of the replicas, which are all of one type; None: what the policy's setting says of them.

    Raises:
        RuntimeError: the policy failed.
    """
    return Simulation(policy, requests, profile, conditions).run()
