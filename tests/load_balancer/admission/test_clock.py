"""Quotas and the plan's rate go on when the wall clock is set back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from load_balancer.admission.quotas import Quotas
from load_balancer.http.api_keys import Caller
from load_balancer.runner.generation_request import GenerationRequest
from weir.clocks import Clocks
from weir.core import ImageSize
from weir.errors import Overloaded, RateLimited, WeirError

ORDER = GenerationRequest("a red circle", ImageSize(64, 64), caller=Caller("alice", "acme", images_per_minute=60))


class Times:
    """A wall clock that is an hour behind after the first second, and a monotonic clock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def unix_time(self) -> float:
        return 1e9 + self.seconds - (3600 if self.seconds >= 1 else 0)


async def refusal(balancer) -> type[WeirError] | None:
    try:
        await balancer.generate(ORDER)
    except WeirError as error:
        return type(error)
    return None


async def test_the_plan_admits_again_after_its_second(running, plan):
    times = Times()
    limited = replace(plan, admitted_rps=1.0)
    async with running(limited, clocks=Clocks(times.monotonic, times.unix_time)) as balancer:
        assert [await refusal(balancer) for _ in range(3)] == [None, Overloaded, Overloaded]
        times.seconds = 1.0
        assert [await refusal(balancer) for _ in range(2)] == [None, Overloaded]


async def test_a_key_is_admitted_again_after_its_second():
    times = Times()
    quotas = Quotas(times.monotonic)
    for _ in range(60):
        await quotas.charge(ORDER.caller, 1, 1.0)
    for times.seconds in (1.0, 2.0):
        await quotas.charge(ORDER.caller, 1, 1.0)
        with pytest.raises(RateLimited):
            await quotas.charge(ORDER.caller, 1, 1.0)
