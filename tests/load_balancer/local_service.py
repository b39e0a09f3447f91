"""A service in this process without Ray: the real API on a real port, over real workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings, Connections
from load_balancer.runner.cache_client import CacheClient
from weir.config import FamilyConfig
from weir.plan import Plan
from weir.profiles import Profile
from workers.replica import Worker


class LocalPool:
    """The workers of a plan, by rank."""

    def __init__(self, workers: Sequence[Worker]):
        self.workers = {f"local-{rank}": worker for rank, worker in enumerate(workers)}
        for rank, (name, worker) in enumerate(self.workers.items()):
            worker.replica, worker.rank = name, rank

    async def generate(self, replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        return await self.workers[replica].generate(variant, request, role)

    async def stream(
        self, replica: str, variant: str, request: dict[str, Any], role: str
    ) -> AsyncGenerator[dict[str, Any]]:
        async for part in self.workers[replica].stream(variant, request, role):
            yield part

    async def describe(self) -> list[dict[str, Any]]:
        return [await worker.describe() for worker in self.workers.values()]


@dataclass
class LocalService:
    url: str
    balancer: Balancer
    stop: threading.Event


@contextmanager
def serving(
    workers: Sequence[Worker],
    plan: Plan,
    family: FamilyConfig,
    *,
    slo_s: float = 60.0,
    profile: Profile | None = None,
    callers: ApiKeys | None = None,
    cache: CacheClient | None = None,
) -> Iterator[LocalService]:
    """Serves on a free port of this machine until the block ends or ``stop`` is set."""
    up, stop = threading.Event(), threading.Event()
    made: list[LocalService] = []

    async def run() -> None:
        settings, connections = (
            BalancerSettings(slo_s=slo_s, queued=64, cache_mode="read-write"),
            Connections(cache=cache),
        )
        balancer = Balancer(LocalPool(workers), plan, family, settings, profile=profile, connections=connections)
        app = create_app(balancer, family, callers=callers)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        tasks = [asyncio.create_task(balancer.registry.watch()), asyncio.create_task(server.serve())]
        while not (server.started and balancer.readiness()["ready"]):
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        made.append(LocalService(f"http://127.0.0.1:{port}", balancer, stop))
        up.set()
        await asyncio.to_thread(stop.wait)
        server.should_exit = True
        tasks[0].cancel()
        await asyncio.wait(tasks)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert up.wait(60), "the service did not start"
        yield made[0]
    finally:
        stop.set()
        thread.join(30)
