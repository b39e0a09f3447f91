"""Fixtures: several load balancers over one fake pool, which share their state in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest

from cache.store.redis_server import RedisServer
from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings, Connections
from load_balancer.shared.shared_state import SharedState
from load_balancer.shared.store import SharedStore
from weir.config import StateConfig


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[SharedStore]:
    # Longer than what serving waits: a busy machine may stall.
    store = SharedStore(server.url, timeout_s=10)
    yield store
    await store.close()


@dataclass
class Member:
    """One of several load balancers."""

    name: str
    balancer: Balancer
    shared: SharedState
    client: httpx.AsyncClient
    following: asyncio.Task[None]

    def stop_following(self) -> None:
        """Gives no more signs of life, as after a kill."""
        self.following.cancel()


@pytest.fixture
async def join(server, pool, plan, family, profile):
    """``await join("a")`` adds a load balancer of this name; ``keys`` is the file of API keys that it reads."""
    async with AsyncExitStack() as stack:

        async def add(name: str, keys: ApiKeys | None = None) -> Member:
            store = SharedStore(server.url, timeout_s=10)
            stack.push_async_callback(store.close)
            shared = SharedState(store, name, StateConfig())
            balancer = Balancer(
                pool,
                plan,
                family,
                BalancerSettings(slo_s=30.0, queued=64),
                profile=profile,
                connections=Connections(peering=shared.peering),
            )
            watching = asyncio.create_task(balancer.registry.watch())
            stack.callback(watching.cancel)
            await balancer.registry.refreshed()
            app = create_app(balancer, family, callers=keys, shared=shared)
            transport = httpx.ASGITransport(app)
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://weir"))
            following = asyncio.create_task(shared.run(balancer.peers, balancer.controls))
            stack.callback(following.cancel)
            return Member(name, balancer, shared, client, following)

        yield add


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that others do."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)
