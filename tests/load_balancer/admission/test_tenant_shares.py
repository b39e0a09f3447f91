"""A tenant with more than an equal part of the work in flight lets the others go first."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from load_balancer.admission.tenant_shares import MEMORY_S, TOLERANCE, TenantShares
from load_balancer.http.api_keys import Caller
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings, Sources
from load_balancer.runner.generation_request import GenerationRequest
from weir.clocks import Clocks
from weir.core import ImageSize
from weir.plan import HEAVY, LIGHT

SLO_S = 5.0


@pytest.fixture
def shares() -> TenantShares:
    shares = TenantShares()
    for tenant in ("acme", "globex"):
        shares.asked(tenant, 0.0)
    return shares


def test_a_tenant_without_company_is_never_beyond_its_share() -> None:
    shares = TenantShares()
    shares.begun("acme", ["a", "b"], 1000.0)
    assert not shares.asked("acme", 0.0)


def test_a_tenant_with_more_than_an_equal_part_of_the_work_is_beyond_its_share(shares: TenantShares) -> None:
    shares.begun("acme", ["a"], 1.0)
    shares.begun("globex", ["g"], 2.0)
    assert (shares.asked("acme", 0.0), shares.asked("globex", 0.0)) == (False, True)


def test_tenants_with_nearly_the_same_work_are_within_their_shares(shares: TenantShares) -> None:
    shares.begun("acme", ["a"], 1.0)
    shares.begun("globex", ["g"], TOLERANCE)
    assert not shares.asked("acme", 0.0)
    assert not shares.asked("globex", 0.0)


def test_a_tenant_that_may_come_back_leaves_no_room_to_a_burst_of_another(shares: TenantShares) -> None:
    assert not shares.asked("globex", 1.0)
    shares.begun("globex", ["g"], 1.0)
    assert shares.asked("globex", 1.0)
    assert not shares.asked("globex", MEMORY_S + 1), "the other tenant has asked for nothing since"


def test_work_counts_by_the_run_that_generates_the_image_until_it_ends(shares: TenantShares) -> None:
    shares.begun("acme", ["a"], 1.0)
    shares.begun("globex", ["g"], 1.0)
    shares.runs("g", 9.0)
    assert shares.asked("globex", 0.0)
    shares.runs("g", 0.0)
    assert not shares.asked("globex", 0.0)
    shares.runs("g", 9.0)
    shares.ended(["g"])
    assert not shares.asked("globex", 0.0)


def test_work_without_a_share_is_not_counted(shares: TenantShares) -> None:
    shares.begun("globex", ["g"], 1.0)
    shares.runs("of a nightly job", 1000.0)
    shares.ended(["of a nightly job"])
    assert shares.asked("globex", 0.0)


async def test_workers_take_images_beyond_the_share_after_all_others(pool, plan, family, profile) -> None:
    pool.delay_s = {LIGHT: 60, HEAVY: 60}
    settings, sources = BalancerSettings(slo_s=SLO_S, queued=8), Sources(Clocks(monotonic=lambda: 0.0))
    balancer = Balancer(pool, plan, family, settings, profile=profile, sources=sources)
    balancer.dispatcher.sync(await pool.describe())
    modest = GenerationRequest("a", ImageSize(64, 64), caller=Caller("a", "acme"))
    greedy = replace(modest, caller=Caller("m", "globex"))
    generations = [balancer.begin(request) for request in (greedy, greedy, modest, greedy)]
    waiting = [asyncio.create_task(it.images()) for it in generations]
    while len(pool.calls) < len(generations):
        await asyncio.sleep(0)
    seen = {
        name: [(call["low_priority"], call["left_s"] > SLO_S) for _, _, call in pool.calls if call["tenant"] == name]
        for name in ("acme", "globex")
    }
    assert seen["acme"] == [(False, False)]
    assert seen["globex"] == [(False, False)] * 2 + [(True, True)], "the other tenant had not asked before"
    for it in waiting:
        it.cancel()
    await asyncio.gather(*(it.close() for it in generations), *waiting, return_exceptions=True)
