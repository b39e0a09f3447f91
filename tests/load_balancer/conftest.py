"""Fixtures: a family, and a fake pool without Ray whose answers, delays and failures a test sets."""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from PIL import Image

from load_balancer.pool.pool import ReplicaLost
from load_balancer.runner.cache_client import CacheClient
from simulator.exact import VirtualTime
from testing.toy_family import FAMILY, PROFILE
from weir.clocks import Clocks
from weir.config import FamilyConfig
from weir.plan import HEAVY, LIGHT, Plan
from weir.profiles import Profile

with warnings.catch_warnings():  # Ray's models warn of pydantic's future at import
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401


def png(side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(out, "png")
    return out.getvalue()


class FakePool:
    """A pool of the replicas of a plan. Tests may replace ``answer``, which creates the reply of a call."""

    def __init__(self, plan: Plan):
        self.alive = {f"replica-{rank}": rank for rank in range(len(plan.assignments))}
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.cancelled = 0
        self.confidence = 0.9
        self.heavy_confidences: list[float] = []  # of the next heavy images that are to be judged
        self.delay_s: dict[str, float] = {LIGHT: 0.0, HEAVY: 0.0}
        self.fail: Callable[[str, str], tuple[str, str] | None] = lambda replica, role: None
        self.nodes: dict[str, str] = {}

    async def describe(self) -> list[dict[str, Any]]:
        described = ({"replica": r, "rank": rank, "ready": True, "queued": 0} for r, rank in self.alive.items())
        return [it | {"process": {"node": self.nodes.get(it["replica"])}} for it in described]

    async def generate(self, replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        self.calls.append((replica, variant, request))
        if replica not in self.alive:
            raise ReplicaLost(replica, "it is dead")
        try:
            await asyncio.sleep(self.delay_s.get(variant, 0.0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {
            "id": request["id"],
            "image": png(),
            "confidence": self._confidence(variant, request),
            "steps": 2 if variant == LIGHT else request["overrides"]["steps"] or 50,
            "queue_s": 0.001,
            "compute_s": 0.01,
            "device_s": 0.01,
            "batch_size": 1,
            "plan_version": 1,
            "error": self.fail(replica, variant),
            "emulated": True,
            "replica": replica,
            "queued": 0,
        }

    def _confidence(self, variant: str, request: dict[str, Any]) -> float | None:
        if variant != HEAVY:
            return self.confidence
        return self.heavy_confidences.pop(0) if request["judge"] and self.heavy_confidences else None

    async def stream(
        self, replica: str, variant: str, request: dict[str, Any], role: str
    ) -> AsyncGenerator[dict[str, Any]]:
        for number in range(request["previews"]):
            yield {"preview": png(4), "step": 10 * (number + 1)}
        yield await self.generate(replica, variant, request, role)


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Runs tests of a balancer with fake replicas on virtual time, so that sleeping takes no time and a busy machine
    makes no image late."""
    virtual = "running" in getattr(item, "fixturenames", ())
    return {"virtual": VirtualTime} if virtual else {"real": asyncio.new_event_loop}


@pytest.fixture
def running(pool: FakePool, plan: Plan, family: FamilyConfig, profile: Profile) -> Callable[..., Any]:
    """``async with running(plan, …) as balancer``: a balancer with ready replicas; other options are its settings.

    By default its clock is the loop's, which is virtual: see :func:`pytest_asyncio_loop_factories`.
    """
    from load_balancer.runner.balancer import Balancer
    from load_balancer.runner.balancer_settings import BalancerSettings, Connections, Sources

    @asynccontextmanager
    async def start(
        plan: Plan = plan, cache: CacheClient | None = None, clocks: Clocks | None = None, **more: Any
    ) -> AsyncIterator[Balancer]:
        balancer = Balancer(
            pool,
            plan,
            family,
            BalancerSettings(**{"slo_s": 5.0, "queued": 16, **more}),
            profile=profile,
            connections=Connections(cache=cache),
            sources=Sources(clocks or Clocks(monotonic=asyncio.get_running_loop().time)),
        )
        watching = asyncio.create_task(balancer.registry.watch())
        while not balancer.readiness()["ready"]:
            await asyncio.sleep(0)
        try:
            yield balancer
        finally:
            watching.cancel()

    return start


@pytest.fixture
def family() -> FamilyConfig:
    return FamilyConfig.model_validate(FAMILY)


@pytest.fixture
def profile() -> Profile:
    return Profile.model_validate(PROFILE)


@pytest.fixture
def plan() -> Plan:
    return Plan.split(1, 1, 2, light_batch=4, heavy_batch=4, threshold=0.5)


@pytest.fixture
def pool(plan: Plan) -> FakePool:
    return FakePool(plan)
