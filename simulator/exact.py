"""The exact simulator: the load balancer itself, with its controller, on an event loop whose time is virtual.

Where ``simulator/engine.py`` calls the deciding parts of the load balancer from a heap of events, this runs the load
balancer as it is: every request is a task, and every call to a replica can be late, lost or cancelled. Only the
replicas are simulated, step by step by the rules of ``workers/engine/step_loop.py`` and ``workers/emulated.py``, and
the cache answers from arrays. It takes longer, and says how far the fast simulator can be trusted.
"""

from __future__ import annotations

import asyncio
import math
import random
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from controller.counter_sum import CounterSum
from controller.counters import Counters
from controller.loop import TICK_S, Controller, ServiceLink
from controller.policy import Policy
from simulator.conditions import Conditions
from simulator.device import setting_profile
from simulator.engine import FETCH_WAIT_S, IDLE_S, PLACES, FailuresAreErrors
from simulator.outcome import UNANSWERED, Outcome, PlanInForce
from simulator.request_stream import RequestStream
from weir.clocks import Clocks
from weir.config import FamilyConfig
from weir.core import CacheLookup, ImageRequest, ImageResult, ImageSize
from weir.errors import RoleChanged, WeirError
from weir.image_sizes import LEAST_SIDE, MOST_SIDE, SizeRange
from weir.plan import Plan
from weir.profiles import Profile
from weir.states import State
from workers.emulated import EmulatedEngine
from workers.engine.engine import DenoiseJob, denoise_job, wants_judge
from workers.engine.scheduling import BatchLimits, Task, next_call

with warnings.catch_warnings():  # Ray's models warn of pydantic's future at import
    warnings.simplefilter("ignore")
    from load_balancer.dispatch.peers import Entry, Peering
    from load_balancer.pool.pool import ReplicaLost
    from load_balancer.runner.balancer import Balancer
    from load_balancer.runner.balancer_settings import BalancerSettings, Connections, Sources
    from load_balancer.runner.generation_request import GenerationRequest


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when there is nothing to do before it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector.select = self._jump  # type: ignore[attr-defined]

    def _jump(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer is set")
        self._now += max(0.0, timeout)
        return []

    def time(self) -> float:
        return self._now


class Timeline:
    """A value that changes at given times."""

    def __init__(self, changes: Sequence[tuple[float, float]], start: float | None):
        ordered = sorted(changes)
        self._times = [at for at, _ in ordered]
        self._values = [start, *(value for _, value in ordered)]

    def at(self, now: float) -> float | None:
        """The value of the last change until now."""
        return self._values[bisect_right(self._times, now)]


@dataclass(slots=True, eq=False, kw_only=True)
class _Job(Task):
    """An image at a replica (:class:`workers.engine.step_loop.DenoiseTask`)."""

    order: DenoiseJob
    done: asyncio.Future[ImageResult]
    submitted: float
    begun: float = -1.0
    calls: int = 0
    shared: int = 0
    others_s: float = 0.0


class SimulatedReplica:
    """A worker's step loop, with an engine that takes the profile's time.

    Attributes:
        busy_s: seconds of its calls so far.
    """

    def __init__(self, name: str, rank: int, plan: Plan, engine: EmulatedEngine, slowness: Timeline):
        self.name, self.rank, self.plan, self.engine = name, rank, plan, engine
        self._limits = BatchLimits(plan)
        self.alive = True
        self.busy_s = 0.0
        self._slowness = slowness
        self._jobs: list[_Job] = []
        self._pumping = False
        self._tickets = self._calls = 0
        self._step_s: dict[Any, float] = {}
        self._call: tuple[_Job, ...] = ()
        self._call_at = 0.0

    @property
    def waiting(self) -> list[_Job]:
        """Jobs that are not begun."""
        return [job for job in self._jobs if job.begun < 0 and not job.done.done()]

    def submit(self, order: DenoiseJob) -> asyncio.Future[ImageResult]:
        """Takes an image; cancelling the future takes it out before the next call."""
        clock = asyncio.get_running_loop()
        self._tickets += 1
        call, done = self.engine.call_of(order), clock.create_future()
        job = _Job(self._tickets, call, *order.urgency, order=order, done=done, submitted=clock.time())
        self._jobs.append(job)
        if not self._pumping:
            self._pumping = True
            clock.call_soon(self._next)
        return done

    def follow(self, plan: Plan) -> None:
        """Takes the next plan (:meth:`workers.replica.Worker.reconfigure`)."""
        before, self.plan = self.plan.assignment(self.rank).role, plan
        self._limits.follow(plan)
        if plan.assignment(self.rank).role == before or not plan.count(before):
            return
        moved = RoleChanged(f"replica {self.name} is no longer {before}; send the request to another one")
        waiting, now = self.waiting, asyncio.get_running_loop().time()
        for job in waiting:
            if job.order.role == before:
                error = (moved.code, moved.message)
                job.done.set_result(self._result(job, now - job.submitted, 0.0, 0, 0, len(waiting), error=error))

    def die(self) -> None:
        """Whatever runs or waits here is lost."""
        self.alive = False
        for job in self._jobs:
            if not job.done.done():
                job.done.set_exception(ReplicaLost(self.name, "it died"))
        self._jobs = []

    def _limit(self, job: _Job) -> int:
        return self._limits.of(job.order.role, self.plan.assignment(self.rank))

    def _next(self) -> None:
        """Begins the next call, if there is anything to do."""
        self._jobs = [job for job in self._jobs if not job.done.done()]
        if not self._jobs:
            self._pumping = False
            return
        clock = asyncio.get_running_loop()
        self._calls += 1
        call = next_call(self._jobs, self._limit, clock.time(), lambda t: self._step_s.get(t.call, 0.0), self._calls)
        self._call_at, self._call = clock.time(), call
        fixed = self.engine.times(call[0].order.recipe).fixed
        fresh = [job for job in call if job.begun < 0]
        self._after(fixed.text_s * len(fresh) if fixed else 0.0, self._step, call, fresh)

    def _step(self, call: tuple[_Job, ...], fresh: list[_Job]) -> None:
        clock = asyncio.get_running_loop()
        for job in fresh:
            job.begun = clock.time()
        variant = self.engine.times(call[0].order.recipe)
        if variant.stepwise:
            steps, seconds = 1, variant.step_seconds.at(len(call))
        else:
            steps = call[0].left
            seconds = variant.latency.at(len(call)) * steps / variant.steps
        seconds *= self._slowness.at(clock.time()) or 1.0
        self._after(seconds, self._stepped, call, steps, seconds)

    def _stepped(self, call: tuple[_Job, ...], steps: int, seconds: float) -> None:
        known = self._step_s.get(call[0].call, seconds / steps)
        self._step_s[call[0].call] = min(seconds / steps, known + 0.02 * (seconds / steps - known))
        for job in call:
            job.left -= steps
            job.calls += 1
            job.shared += len(call)
        through = [job for job in call if job.left <= 0]
        if not through:
            self._call_over()
            self._next()
            return
        self._jobs = [job for job in self._jobs if job not in through]
        fixed = self.engine.times(call[0].order.recipe).fixed
        decode_s = (fixed.decode_s + fixed.discriminator_s) * len(through) if fixed else 0.0
        self._after(decode_s, self._finished, through, len(self.waiting))

    def _finished(self, through: list[_Job], queued: int) -> None:
        now = asyncio.get_running_loop().time()
        for job in through:
            if not job.done.done():
                size = round(job.shared / job.calls)
                queue_s, compute_s = job.begun - job.submitted, now - job.begun
                job.done.set_result(self._result(job, queue_s, compute_s, size, len(through), queued))
        self._call_over()
        self._next()

    def _call_over(self) -> None:
        """Counts the time of the call for the images that had begun and were not in it."""
        took_s = asyncio.get_running_loop().time() - self._call_at
        for job in self._jobs:
            if job.begun >= 0 and job not in self._call:
                job.others_s += took_s

    def _after(self, seconds: float, do: Any, *arguments: Any) -> None:
        if not self.alive:
            return
        self.busy_s += seconds
        if seconds:
            asyncio.get_running_loop().call_later(seconds, do, *arguments)
        else:
            do(*arguments)

    def _result(
        self,
        job: _Job,
        queue_s: float,
        compute_s: float,
        batch_size: int,
        together: int,
        queued: int,
        error: tuple[str, str] | None = None,
    ) -> ImageResult:
        order = job.order
        return ImageResult(
            id=order.request.id,
            image=b"" if error else b"png",
            confidence=None,
            steps=0 if error else order.recipe.steps - order.first,
            queue_s=queue_s,
            compute_s=compute_s,
            device_s=compute_s - job.others_s,
            batch_size=batch_size,
            plan_version=self.plan.version,
            error=error,
            emulated=True,
            replica=self.name,
            queued=queued,
            left_together=together,
            resumed_at=0 if error else order.first * order.stride,
        )


class SimulatedPool:
    """A :class:`load_balancer.pool.pool.Pool` of simulated replicas.

    Args:
        transit_s: a call takes one of these on its way to a replica, and another one on its way back; empty: no time.
        fetch_s: seconds that a worker needs to fetch a state; None: no time, and nothing is reported.
    """

    def __init__(
        self,
        family: FamilyConfig,
        profile: Profile,
        plan: Plan,
        requests: RequestStream,
        transit_s: Sequence[float],
        slowness: Timeline,
        fetch_s: Timeline,
    ):
        engine = EmulatedEngine(profile)
        self.replicas = {
            f"r{rank}": SimulatedReplica(f"r{rank}", rank, plan, engine, slowness)
            for rank in range(len(plan.assignments))
        }
        self._family, self._requests, self._profile = family, requests, profile
        self._transit_s, self._fetch_s, self._chance = transit_s, fetch_s, random.Random(5)
        self._seeds: dict[int, list[int]] = {}  # by request, in the order of their first use

    async def describe(self) -> list[dict[str, Any]]:
        return [
            {"replica": name, "rank": it.rank, "ready": True, "queued": len(it.waiting)}
            for name, it in self.replicas.items()
            if it.alive
        ]

    async def generate(self, replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        wanted, it = ImageRequest.from_dict(request, asyncio.get_running_loop().time()), self.replicas[replica]
        await self._way()
        state, fetch_s = await self._fetched(wanted, variant)
        if not it.alive:
            raise ReplicaLost(replica, "it is dead")
        result = await it.submit(denoise_job(self._family, variant, wanted, state, role))
        await self._way()
        result = replace(result, confidence=self._confidence(wanted, variant, result.resumed_at), fetch_s=fetch_s)
        return {name: getattr(result, name) for name in result.__slots__}

    def stream(self, replica: str, variant: str, request: dict[str, Any], role: str) -> AsyncGenerator[dict[str, Any]]:
        raise NotImplementedError("nothing is streamed in a simulation")

    async def end(self, described: Mapping[str, Any]) -> None:
        pass

    async def _way(self) -> None:
        if self._transit_s:
            await asyncio.sleep(self._chance.choice(self._transit_s))

    async def _fetched(self, request: ImageRequest, variant: str) -> tuple[State | None, float | None]:
        """The state to resume from, if it comes in time, and how long the worker waited for it."""
        if request.resume is None:
            return None, None
        steps = request.overrides.steps or self._profile.variant(variant).steps
        state = State(_NO_LATENT, request.resume.step, steps, "simulated", self._profile.variant(variant).name)
        fetch_s = self._fetch_s.at(asyncio.get_running_loop().time())
        if fetch_s is None:
            return state, None
        await asyncio.sleep(min(fetch_s, FETCH_WAIT_S))
        return (state if fetch_s <= FETCH_WAIT_S else None), min(fetch_s, FETCH_WAIT_S)

    def _confidence(self, request: ImageRequest, variant: str, resumed_at: int) -> float | None:
        if variant == self._family.keys[-1] and not wants_judge(request):
            return None
        number = int(request.prompt)
        seeds = self._seeds.setdefault(number, [])
        if request.seed not in seeds:
            seeds.append(request.seed)
        redraw = seeds.index(request.seed)
        return self._requests.confidence(number, variant, resumed_at=resumed_at, redraw=redraw)


_NO_LATENT = np.zeros((1, 1, 1), np.float16)


class SimulatedCache:
    """A :class:`load_balancer.runner.cache_client.CacheClient` that answers from a stream of requests."""

    def __init__(self, requests: RequestStream):
        self.failures: Counter[str] = Counter()
        self._requests = requests

    async def find(self, request: ImageRequest) -> CacheLookup:
        return self._requests.lookup(int(request.prompt))

    def finished(self, image: str, result: ImageResult | None, sought: int) -> None:
        pass


def family_of(profile: Profile) -> FamilyConfig:
    """A family of a profile's variants, for a simulation: it has no weights."""
    variants = {
        key: {"name": it.name, "scheduler": "ddim", "steps": it.steps, "guidance": 0}
        for key, it in profile.variants.items()
    }
    size = profile.size or ImageSize(64, 64)
    every = SizeRange(multiple=1, least_side=LEAST_SIDE, most_side=MOST_SIDE)
    fields = {"name": profile.family, "pipeline": "none", "size": size, "any_size": every, "variants": variants}
    return FamilyConfig.model_validate(fields)


def simulate_exactly(
    policy: Policy,
    requests: RequestStream,
    profile: Profile | None = None,
    conditions: Conditions = Conditions(),
) -> Outcome:
    """One policy over one stream of requests; as :func:`simulator.engine.simulate` does, with the load balancer itself.

    Args:
        profile: of the replicas, which are all of one type; None: what the policy's setting knows of them.

    Raises:
        RuntimeError: the policy failed.
    """
    profile = profile or setting_profile(policy.setting)
    run = _Run(policy, requests, profile, conditions)
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(run.outcome())


class _Run:
    """One run; times of the trace are those of the loop's clock, which begins shortly before the first arrival."""

    def __init__(self, policy: Policy, requests: RequestStream, profile: Profile, conditions: Conditions):
        self._policy, self._requests, self._profile, self._conditions = policy, requests, profile, conditions
        first = float(requests.arrivals.times_s[0]) if len(requests) else 0.0
        self._zero_s = max(0.0, first - IDLE_S)
        self._slowness = Timeline([(at - self._zero_s, factor) for at, factor in conditions.slowdowns], 1.0)
        self._fetch_s = Timeline([(at - self._zero_s, seconds) for at, seconds in conditions.fetches], None)
        self._family, count = family_of(profile), len(requests)
        self._chance = random.Random(conditions.seed)
        self._counters = CounterSum()
        self._plans: list[PlanInForce] = []
        self._role_changes = 0
        self._draw = 0.0
        self._paths = np.full(count, UNANSWERED, dtype="U32")
        self._finished_s = np.full(count, np.inf)
        self._resumed_at, self._loss = np.zeros(count, int), np.zeros(count)
        self._short_runs = {run.steps: run.loss for run in policy.setting.short_runs}

    async def outcome(self) -> Outcome:
        clock, requests = asyncio.get_running_loop(), self._requests
        background = await self._start()
        asked = []
        for number, at in enumerate((requests.arrivals.times_s - self._zero_s).tolist()):
            if at > clock.time():
                await asyncio.sleep(at - clock.time())
            asked.append(clock.create_task(self._ask(number)))
            self._fail_early(background)
        for task in asked:
            await task
        self._fail_early(background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        return Outcome(
            policy=self._policy.name,
            slo_s=self._policy.setting.slo_s,
            ladder=self._family.keys,
            arrivals_s=requests.arrivals.times_s,
            finished_s=self._finished_s,
            paths=self._paths,
            resumed_at=self._resumed_at,
            loss=self._loss,
            busy_s=sum(it.busy_s for it in self._pool.replicas.values()),
            role_changes=self._role_changes,
            plans=tuple(self._plans),
            replicas=len(self._pool.replicas),
        )

    async def _start(self) -> list[asyncio.Task[None]]:
        """Starts the replicas, the load balancers and the controller; returns the tasks that go on until the end."""
        clock = asyncio.get_running_loop()
        plan = replace(self._policy.first_plan(), version=1)
        transit_s = self._conditions.transit_s
        self._pool = SimulatedPool(
            self._family, self._profile, plan, self._requests, transit_s, self._slowness, self._fetch_s
        )
        names = [f"b{number}" for number in range(self._conditions.balancers)]
        self._balancers = {name: self._balancer(name, plan, number) for number, name in enumerate(names)}
        for name, it in self._balancers.items():
            it.peers.follow(self._balancers.keys() - {name}, clock.time())
        self._note(plan)
        watching = [clock.create_task(it.registry.watch()) for it in self._balancers.values()]
        await asyncio.sleep(0)  # the replicas are known from now on
        self._controller = Controller(
            lambda name, size: self._policy,
            len(plan.assignments),
            ServiceLink(self._look, self._publish),
            metrics=FailuresAreErrors(),
            clocks=Clocks(monotonic=clock.time),
        )
        self._controller.step()
        return [*watching, clock.create_task(self._control()), clock.create_task(self._die())]

    def _balancer(self, name: str, plan: Plan, number: int) -> Balancer:
        requests, conditions = self._requests, self._conditions
        settings = BalancerSettings(
            slo_s=self._policy.setting.slo_s,
            queued=PLACES,
            cache_mode="read",
            direct=conditions.direct,
            redraw=conditions.redraw,
        )
        return Balancer(
            self._pool,
            plan,
            self._family,
            settings,
            profile=self._profile,
            connections=Connections(
                cache=SimulatedCache(requests) if requests.lookups else None,
                peering=Peering(name, partial(self._tell, name)),
            ),
            sources=Sources(
                Clocks(monotonic=asyncio.get_running_loop().time),
                draw=lambda: self._draw,
                chance=random.Random(conditions.seed + number),
            ),
        )

    @staticmethod
    def _fail_early(background: list[asyncio.Task[None]]) -> None:
        for task in background:
            if task.done():
                task.result()

    async def _ask(self, number: int) -> None:
        clock = asyncio.get_running_loop()
        self._draw = float(self._requests.draws[number])
        try:
            balancer = self._chance.choice(list(self._balancers.values()))
            size = self._requests.size(number) or self._family.size
            [image] = await balancer.generate(GenerationRequest(str(number), size))
        except WeirError:
            return
        self._finished_s[number] = clock.time() + self._zero_s
        self._paths[number] = image.path
        self._resumed_at[number] = image.result.resumed_at
        if image.path == self._profile.keys[-1]:
            self._loss[number] = self._short_runs.get(image.result.steps, 0.0)

    async def _control(self) -> None:
        clock = asyncio.get_running_loop()
        ticks = 0
        while True:
            ticks += 1
            await asyncio.sleep(ticks * TICK_S - clock.time())
            self._controller.step()

    async def _die(self) -> None:
        clock = asyncio.get_running_loop()
        for at, rank in sorted(self._conditions.deaths):
            await asyncio.sleep(at - self._zero_s - clock.time())
            self._pool.replicas[f"r{rank}"].die()
        await asyncio.sleep(math.inf if not self._conditions.deaths else 1e9)

    def _look(self, before: Counters | None) -> Counters:
        cursors = self._counters.cursors()
        return self._counters.add(
            {name: Counters.from_dict(it.counters(*cursors.get(name, ()))) for name, it in self._balancers.items()}
        )

    def _tell(self, teller: str, entry: Entry) -> None:
        """Tells all other load balancers of an entry of one's book."""
        told_s, clock = self._conditions.told_s, asyncio.get_running_loop()
        if told_s is not None and len(self._balancers) > 1:
            clock.call_later(told_s, self._told, teller, entry)

    def _told(self, teller: str, entry: Entry) -> None:
        now = asyncio.get_running_loop().time()
        for name, it in self._balancers.items():
            if name != teller:
                it.peers.hear(teller, [entry], now)

    def _publish(self, plan: Plan, running: Plan) -> None:
        if self._conditions.actuation_s:
            asyncio.get_running_loop().call_later(self._conditions.actuation_s, self._apply, plan)
        else:
            self._apply(plan)

    def _apply(self, plan: Plan) -> None:
        for it in self._balancers.values():
            running = it.registry.plan
            it.registry.apply(plan.to_dict())
        for replica in self._pool.replicas.values():
            self._role_changes += plan.assignment(replica.rank).role != running.assignment(replica.rank).role
            replica.follow(plan)
        self._note(plan)

    def _note(self, plan: Plan) -> None:
        now = asyncio.get_running_loop().time() + self._zero_s
        self._plans.append(PlanInForce(now, dict(plan.counts), plan.chain, plan.thresholds))
