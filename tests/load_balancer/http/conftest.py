"""A balancer with fake replicas, and a client of its API without keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys
from load_balancer.http.api_settings import ApiSettings
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from weir.config import FamilyConfig


@pytest.fixture
async def balancer(pool, plan, family, profile) -> Balancer:
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=64), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    return balancer


@pytest.fixture
async def client(balancer, family) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(balancer, family)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        yield client


@pytest.fixture
def serving(pool, plan, family, profile):
    """``async with serving(…) as client``: a client of an application with these settings."""

    @asynccontextmanager
    async def start(
        family: FamilyConfig = family,
        callers: ApiKeys | None = None,
        **settings: Any,
    ):
        balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=64), profile=profile)
        balancer.dispatcher.sync(await pool.describe())
        app = create_app(balancer, family, ApiSettings(**settings), callers=callers)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
            yield client

    return start
