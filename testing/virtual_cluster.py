"""Load balancer, controller and the workers' scheduling as they run on a cluster, on a clock that only they move."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

with warnings.catch_warnings():  # Ray's models warn of pydantic's future at import
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401

from controller.counters import Counters
from controller.loop import TICK_S, Controller
from controller.policies import Policy
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.generation_request import GenerationRequest
from simulator.arrivals import Arrivals
from simulator.outcome import ANSWERED_AT_DEADLINE, ANSWERED_HEAVY, ANSWERED_LIGHT
from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageResult, Path, Plan, Role
from weir.errors import WeirError
from weir.profiles import Profile
from workers.emulated import EmulatedEngine
from workers.engine.scheduling import Task, next_call

PATHS = {Path.LIGHT: ANSWERED_LIGHT, Path.LIGHT_DEADLINE: ANSWERED_AT_DEADLINE, Path.HEAVY: ANSWERED_HEAVY}


class VirtualTime(asyncio.SelectorEventLoop):
    """Where others wait for a timer, its time comes at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def no_wait(timeout: float | None = None) -> Any:
            assert timeout is not None, "everybody waits for ever"
            self._now += timeout
            return select(0)

        self._selector.select = no_wait  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Task):
    request: ImageRequest
    role: Role
    done: asyncio.Future[ImageResult]
    submitted: float
    begun: float = -1.0
    calls: int = 0
    shared: int = 0


class Replica:
    """The step loop (``workers/engine/step_loop.py``) with an engine that takes the profile's time."""

    def __init__(self, rank: int, plan: Plan, profile: Profile):
        self.rank, self.plan, self.profile = rank, plan, profile
        self.engine = EmulatedEngine(profile)
        self.jobs: list[Job] = []
        self.pump: asyncio.Task[None] | None = None
        self.calls = 0
        self.fastest: dict[Role, float] = {}

    def submit(self, role: Role, request: ImageRequest) -> Job:
        clock, variant = asyncio.get_running_loop(), self.profile.variant(role)
        done: asyncio.Future[ImageResult] = clock.create_future()
        job = Job(
            len(self.jobs) + self.calls, role, request.deadline, variant.steps,
            request=request, role=role, done=done, submitted=clock.time(),
        )  # fmt: skip
        self.jobs.append(job)
        if self.pump is None or self.pump.done():
            self.pump = clock.create_task(self._pump())
        return job

    def limit(self, job: Job) -> int:
        own = self.plan.assignment(self.rank)
        of_role = [a.batch_size for a in self.plan.assignments if a.role is job.role]
        return own.batch_size if own.role is job.role or not of_role else max(of_role)

    async def _pump(self) -> None:
        clock = asyncio.get_running_loop()
        while self.jobs:
            self.calls += 1
            call = next_call(
                self.jobs, self.limit, clock.time(), lambda j: self.fastest.get(j.role, 0.0), self.calls
            )  # fmt: skip
            variant = self.profile.variant(call[0].role)
            fresh = [job for job in call if job.begun < 0]
            if variant.fixed and fresh:
                await asyncio.sleep(variant.fixed.text_s * len(fresh))
            for job in fresh:
                job.begun = clock.time()
            steps = 1 if variant.stepwise else variant.steps
            seconds = variant.step_seconds.at(len(call)) if variant.stepwise else variant.latency.at(len(call))
            await asyncio.sleep(seconds)
            self.fastest[call[0].role] = min(seconds / steps, self.fastest.get(call[0].role, seconds))
            for job in call:
                job.left -= steps
                job.calls += 1
                job.shared += len(call)
            through = [job for job in call if job.left <= 0]
            self.jobs = [job for job in self.jobs if job not in through and not job.done.cancelled()]
            if variant.fixed and through:
                await asyncio.sleep((variant.fixed.decode_s + variant.fixed.discriminator_s) * len(through))
            for job in through:
                if not job.done.done():
                    job.done.set_result(self._result(job, clock.time(), len(through)))

    def _result(self, job: Job, now: float, together: int) -> ImageResult:
        return ImageResult(
            id=job.request.id,
            image=b"png",
            confidence=self.engine.confidence(job.request) if job.role is Role.LIGHT else None,
            steps=job.calls,
            queue_s=job.begun - job.submitted,
            compute_s=now - job.begun,
            batch_size=round(job.shared / job.calls),
            plan_version=self.plan.version,
            queued=sum(other.begun < 0 for other in self.jobs),
            left_together=together,
        )


class VirtualPool:
    """A pool whose calls take one of ``transit_s`` each way."""

    def __init__(self, profile: Profile, plan: Plan, transit_s: Sequence[float]):
        self.replicas = {f"r{rank}": Replica(rank, plan, profile) for rank in range(len(plan.assignments))}
        self._transit_s, self._chance = transit_s, random.Random(5)

    async def describe(self) -> list[dict[str, Any]]:
        return [
            {"replica": name, "rank": it.rank, "queued": sum(job.begun < 0 for job in it.jobs)}
            for name, it in self.replicas.items()
        ]

    async def generate(self, replica: str, role: Role, request: dict[str, Any]) -> dict[str, Any]:
        await self._way()
        result = await self.replicas[replica].submit(role, ImageRequest.from_dict(request)).done
        await self._way()
        return result.to_dict()

    def stream(self, replica: str, role: Role, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        raise NotImplementedError("nothing is streamed in virtual time")

    async def end(self, described: Mapping[str, Any]) -> None:
        pass

    async def _way(self) -> None:
        if self._transit_s:
            await asyncio.sleep(self._chance.choice(self._transit_s))


def serve(
    make_policy: Callable[[], Policy],
    profile: Profile,
    family: FamilyConfig,
    arrivals: Arrivals,
    transit_s: Sequence[float] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Serves all requests, prompt and seed by number; paths in the simulator's terms, and latencies."""
    policy = make_policy()
    slo_s = policy.setting.slo_s
    paths, latencies = np.zeros(len(arrivals), dtype=np.int8), np.full(len(arrivals), np.inf)

    async def run() -> None:
        clock = asyncio.get_running_loop()
        plan = replace(policy.first_plan(), version=1)
        pool = VirtualPool(profile, plan, transit_s)
        balancer = Balancer(pool, plan, family, slo_s=slo_s, queued=10**6, profile=profile, clock=clock.time)

        def look(before: Counters | None) -> Counters:
            told = (before.judged, before.batches_run, before.fetched) if before else (0, 0, 0)
            return Counters.from_dict(balancer.counters(*told))

        def publish(plan: Plan, running: Plan) -> None:
            balancer.roster.apply(plan.to_dict())
            for replica in pool.replicas.values():
                replica.plan = plan

        controller = Controller(
            make_policy, len(plan.assignments), look=look, publish=publish, clock=clock.time
        )  # fmt: skip

        async def control() -> None:
            while True:
                await asyncio.sleep(TICK_S)
                controller.step()

        async def ask(number: int, start: float) -> None:
            await asyncio.sleep(start + float(arrivals.times_s[number]) - clock.time())
            order = GenerationRequest(f"prompt {number}", width=family.size, height=family.size, seed=number)
            try:
                (drawn,) = await balancer.draw(order)
            except WeirError:
                return
            paths[number] = PATHS[drawn.path]
            latencies[number] = clock.time() - start - arrivals.times_s[number]

        background = [clock.create_task(balancer.roster.watch()), clock.create_task(control())]
        await asyncio.sleep(0.1)
        await asyncio.gather(*(ask(number, clock.time()) for number in range(len(arrivals))))
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(run())
    return paths, latencies


def confidences(profile: Profile, count: int) -> np.ndarray:
    """What the workers answer to :func:`serve`'s requests."""
    engine = EmulatedEngine(profile)
    requests = (ImageRequest("", f"prompt {n}", n, width=0, height=0, deadline=0) for n in range(count))
    return np.array([engine.confidence(request) for request in requests])
