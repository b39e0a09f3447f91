"""A tenant that takes more than an equal share of the devices lets the others go first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from load_balancer.admission.tenant_shares import MEMORY_S, TOLERANCE, TenantShares
from load_balancer.http.api_keys import Caller
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.generation_request import GenerationRequest
from weir.core import ImageSize

SLO_S = 5.0


@pytest.fixture
def shares() -> TenantShares:
    shares = TenantShares()
    for tenant in ("acme", "globex"):
        shares.asked(tenant, 0.0)
    return shares


def test_a_tenant_without_company_is_never_beyond_its_share() -> None:
    shares = TenantShares()
    shares.asked("acme", 0.0)
    shares.charge("acme", 1000.0, 0.0)
    assert not shares.beyond("acme", 0.0)


def test_the_tenant_that_took_more_than_an_equal_share_is_beyond_it(shares: TenantShares) -> None:
    shares.charge("acme", 1.0, 0.0)
    shares.charge("globex", 2.0, 0.0)
    assert (shares.beyond("acme", 0.0), shares.beyond("globex", 0.0)) == (False, True)


def test_tenants_that_take_nearly_the_same_are_within_their_shares(shares: TenantShares) -> None:
    shares.charge("acme", 1.0, 0.0)
    shares.charge("globex", TOLERANCE, 0.0)
    assert not shares.beyond("acme", 0.0)
    assert not shares.beyond("globex", 0.0)


def test_what_a_tenant_took_long_ago_counts_less(shares: TenantShares) -> None:
    shares.charge("globex", 2.0, 0.0)
    shares.charge("acme", 1.0, MEMORY_S)
    assert (shares.beyond("acme", MEMORY_S), shares.beyond("globex", MEMORY_S)) == (True, False)


def test_a_tenant_that_asks_for_nothing_any_more_has_no_share(shares: TenantShares) -> None:
    shares.asked("globex", MEMORY_S)
    shares.charge("globex", 2.0, MEMORY_S)
    assert shares.beyond("globex", MEMORY_S)
    assert not shares.beyond("globex", MEMORY_S + 1)


def test_work_of_a_caller_without_a_share_is_not_charged(shares: TenantShares) -> None:
    shares.charge("nightly", 1000.0, 0.0)
    assert not shares.beyond("nightly", 0.0)


async def test_workers_take_images_beyond_the_share_after_all_others(pool, plan, family, profile) -> None:
    now = 0.0
    balancer = Balancer(pool, plan, family, slo_s=SLO_S, queued=8, profile=profile, clock=lambda: now)
    balancer.dispatcher.sync(await pool.describe())
    modest = GenerationRequest("a", ImageSize(64, 64), caller=Caller("a", "acme"))
    greedy = replace(modest, caller=Caller("m", "globex"))
    for request in (greedy, greedy, modest, greedy, modest):
        await balancer.generate(request)
    seen = {
        name: [(call["low_priority"], call["left_s"] > SLO_S) for _, _, call in pool.calls if call["tenant"] == name]
        for name in ("acme", "globex")
    }
    assert seen["acme"] == [(False, False)] * 2
    assert seen["globex"] == [(False, False)] * 2 + [(True, True)], "nobody else had asked before"
