"""The registry while replicas hang: their processes are alive and do not answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.failure_detector import MISSED_PROBES, UNROUTED_S
from load_balancer.dispatch.service_times import ServiceTimes
from load_balancer.pool import replica_registry
from load_balancer.pool.pool import ReplicaLost
from load_balancer.pool.replica_registry import GRACE_S, ReplicaRegistry
from load_balancer.pool.serve_pool import ServePool
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from load_balancer.runner.generation_request import GenerationRequest
from weir.core import ImageSize
from weir.plan import HEAVY, LIGHT


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_registry, "REFRESH_S", 0.001)


class Hanging:
    """Wraps the fake pool: the replicas in ``hung`` are silent, those in ``gone`` are not routed to, and images sent to
    them never finish."""

    def __init__(self, pool: Any):
        self.pool = pool
        self.hung: set[str] = set()
        self.gone: set[str] = set()
        self.ended: list[str] = []

    async def describe(self) -> list[dict[str, Any]]:
        there = [it for it in await self.pool.describe() if it["replica"] not in self.gone]
        return [it | {"silent": True} if it["replica"] in self.hung else it for it in there]

    async def end(self, described: Mapping[str, Any]) -> None:
        self.ended.append(described["replica"])

    async def generate(self, replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        if replica in self.hung | self.gone:
            self.pool.calls.append((replica, variant, request))
            await asyncio.Event().wait()
        return await self.pool.generate(replica, variant, request, role)

    def stream(self, replica: str, variant: str, request: dict[str, Any], role: str) -> AsyncGenerator[dict[str, Any]]:
        return self.pool.stream(replica, variant, request, role)


@pytest.fixture
def hanging(pool: Any) -> Hanging:
    return Hanging(pool)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def watched(
    hanging: Hanging, plan: Any, profile: Any
) -> AsyncIterator[tuple[ReplicaRegistry, Dispatcher, Clock]]:
    dispatcher = Dispatcher(plan, ServiceTimes(profile), random.Random(1))
    clock = Clock()
    registry = ReplicaRegistry(hanging, plan, dispatcher, (LIGHT, HEAVY), clock, drain_s=0)
    task = asyncio.create_task(registry.watch())
    await registry.refreshed()
    yield registry, dispatcher, clock
    task.cancel()


async def for_ever(registry: ReplicaRegistry, replica: str) -> None:
    async with registry.waits.on(replica):
        await asyncio.Event().wait()


async def test_a_replica_that_missed_some_probes_gets_no_images_and_the_others_stay(hanging, plan, profile):
    async with watched(hanging, plan, profile) as (registry, dispatcher, _):
        hanging.hung.add("replica-1")
        for _ in range(MISSED_PROBES - 1):
            await registry.refreshed()
            assert dispatcher.replicas.ranks == [0, 1, 2]
        await registry.refreshed()
        assert dispatcher.replicas.ranks == [0, 2]
        hanging.hung.clear()
        await registry.refreshed()
        assert dispatcher.replicas.ranks == [0, 1, 2]


async def test_an_answer_resets_the_count_of_missed_probes(hanging, plan, profile):
    async with watched(hanging, plan, profile) as (registry, dispatcher, _):
        for _ in range(2 * MISSED_PROBES):
            hanging.hung ^= {"replica-1"}
            await registry.refreshed()
            assert dispatcher.replicas.ranks == [0, 1, 2]


async def test_a_wait_for_a_silent_replica_ends_with_replica_lost(hanging, plan, profile):
    async with watched(hanging, plan, profile) as (registry, _, _):
        hanging.hung.add("replica-1")
        with pytest.raises(ReplicaLost, match="replica-1"):
            await for_ever(registry, "replica-1")


async def test_a_wait_for_an_unrouted_replica_ends_after_a_while(hanging, plan, profile):
    async with watched(hanging, plan, profile) as (registry, _, clock):
        hanging.gone.add("replica-1")
        for _ in range(2 * MISSED_PROBES):
            await registry.refreshed()
        waiting = asyncio.create_task(for_ever(registry, "replica-1"))
        await registry.refreshed()
        await registry.refreshed()
        assert not waiting.done()
        clock.now = UNROUTED_S
        with pytest.raises(ReplicaLost, match="replica-1"):
            await waiting


@pytest.mark.parametrize("how", ["hung", "gone"])
async def test_a_replica_that_is_silent_for_longer_than_a_drain_is_killed_once(hanging, plan, profile, how):
    async with watched(hanging, plan, profile) as (registry, _, clock):
        getattr(hanging, how).add("replica-1")
        await registry.refreshed()
        await registry.refreshed()
        assert hanging.ended == []
        clock.now = GRACE_S
        for _ in range(4):
            await registry.refreshed()
        assert hanging.ended == ["replica-1"]


async def test_a_time_limit_of_the_caller_stays_a_timeout_error(hanging, plan, profile):
    async with watched(hanging, plan, profile) as (registry, _, _):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(for_ever(registry, "replica-1"), 0.01)


async def test_images_at_a_hung_replica_are_generated_by_another(hanging, plan, family, profile):
    balancer = Balancer(hanging, plan, family, BalancerSettings(slo_s=5.0, queued=16), profile=profile)
    watching = asyncio.create_task(balancer.registry.watch())
    while not balancer.readiness()["ready"]:
        await asyncio.sleep(0)
    hanging.pool.confidence = 0.1
    hanging.hung.add("replica-1")
    (image,) = await balancer.generate(GenerationRequest("a red circle", ImageSize(64, 64)))
    watching.cancel()
    assert image.model == "toy-heavy"
    assert [replica for replica, role, _ in hanging.pool.calls if role == HEAVY] == ["replica-1", "replica-2"]


class Result:
    """One replica's part of a broadcast, or of an image."""

    def __init__(self, replica: str, error: BaseException | None, hangs: bool, ahead_s: float):
        self.replica, self.error, self.hangs, self.ahead_s = replica, error, hangs, ahead_s
        self.cancelled = False

    async def get_async(self) -> dict[str, Any]:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return {"replica": self.replica, "rank": 0, "unix_time": time.time() + self.ahead_s}

    def __await__(self) -> Any:
        return self.get_async().__await__()

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A handle of a deployment, of whose replicas some hang and some fail."""

    def __init__(self, *replicas: str):
        self.replicas = replicas
        self.hung: set[str] = set()
        self.failing: dict[str, BaseException] = {}
        self.ahead_s: dict[str, float] = {}
        self.results: list[Result] = []
        self.routes_nothing = False
        self._chosen = ""

    def broadcast(self, method: str) -> Handle:
        self.results = [self._result(name) for name in self.replicas]
        return self

    async def _fetch_replica_results_async(self) -> list[Result]:
        if self.routes_nothing:
            await asyncio.Event().wait()
        return self.results

    def options(self, *, method_name: str, session_id: str) -> Handle:
        self._chosen = session_id
        return self

    def remote(self, variant: str, request: dict[str, Any], role: str) -> Result:
        return self._result(self._chosen)

    def _result(self, name: str) -> Result:
        return Result(name, self.failing.get(name), name in self.hung, self.ahead_s.get(name, 0.0))


async def silent(pool: ServePool) -> dict[str, bool]:
    return {it["replica"]: it.get("silent", False) for it in await pool.describe()}


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load_balancer.pool.serve_pool.DESCRIBE_TIMEOUT_S", 0.01)


@pytest.mark.usefixtures("_impatient")
async def test_a_replica_whose_host_has_another_clock_is_described_with_the_skew():
    handle = Handle("a", "b")
    handle.ahead_s = {"b": 100.0}
    skews = {it["replica"]: it["clock_skew_s"] for it in await ServePool(handle).describe()}  # type: ignore[arg-type]
    assert skews["a"] == 0
    assert 99 < skews["b"] <= 100


@pytest.mark.usefixtures("_impatient")
async def test_each_replica_has_its_own_time_limit_to_describe_itself():
    handle = Handle("a", "b")
    pool = ServePool(handle)  # type: ignore[arg-type]
    assert await silent(pool) == {"a": False, "b": False}
    handle.hung = {"b"}
    handle.replicas = ("a", "b", "c")
    assert await silent(pool) == {"a": False, "b": True, "c": False}
    assert [it.cancelled for it in handle.results] == [False, True, False]
    handle.replicas = ("a", "c")
    assert await silent(pool) == {"a": False, "c": False}


@pytest.mark.usefixtures("_impatient")
async def test_a_router_that_hangs_holds_no_probe_up():
    handle = Handle("a")
    handle.routes_nothing = True
    with pytest.raises(TimeoutError):
        await ServePool(handle).describe()  # type: ignore[arg-type]


@pytest.mark.usefixtures("_impatient")
async def test_a_dead_replica_is_removed_and_not_silent_while_another_one_hangs():
    handle = Handle("a", "b", "c")
    pool = ServePool(handle)  # type: ignore[arg-type]
    await pool.describe()
    handle.failing = {"b": ActorDiedError()}
    with pytest.raises(ReplicaLost):
        await pool.generate("b", LIGHT, {}, LIGHT)
    handle.replicas = ("a", "c")
    handle.hung = {"c"}
    assert await silent(pool) == {"a": False, "c": True}


@pytest.mark.parametrize("error", [ActorDiedError(), asyncio.CancelledError(), RuntimeError("broken")], ids=type)
async def test_a_failed_description_does_not_affect_other_replicas(error):
    handle = Handle("a", "b")
    handle.failing = {"b": error}
    assert await silent(ServePool(handle)) == {"a": False}  # type: ignore[arg-type]
