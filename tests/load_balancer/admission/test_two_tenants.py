"""A tenant within its share is served nearly as if it were alone, on virtual time."""

from __future__ import annotations

import pytest

from testing.two_tenants import Load, modest_tenant

SECONDS = 100.0


@pytest.mark.parametrize("load", [Load(4, 4), Load(16)], ids=["four requests for four images", "sixteen requests"])
def test_a_modest_tenant_hardly_notices_one_that_always_has_work_in_flight(load: Load) -> None:
    alone, beside = modest_tenant(SECONDS, None), modest_tenant(SECONDS, load)
    assert beside.refused == 0
    assert beside.p50_s <= 1.02 * alone.p50_s
    assert beside.p99_s <= 1.1 * alone.p99_s


def test_requests_of_one_tenant_wait_for_each_other() -> None:
    alone, beside = modest_tenant(SECONDS, None), modest_tenant(SECONDS, Load(16), apart=False)
    assert beside.p99_s > 2 * alone.p99_s
