"""Requests of keys with priority ``batch``: all others precede them, and they are still answered."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import Kind
from load_balancer.dispatch.service_times import ServiceTimes
from load_balancer.http.api_keys import Caller
from load_balancer.runner.balancer import BATCH_SHARE, Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from load_balancer.runner.generation_request import GenerationRequest
from testing.toy_family import PROFILE
from weir.config import BATCH_SLACK
from weir.core import ImageSize
from weir.errors import Overloaded
from weir.plan import HEAVY, LIGHT, Plan
from weir.profiles import Profile

ORDER = GenerationRequest("a", ImageSize(64, 64))
BATCH = replace(ORDER, caller=Caller("nightly", "acme", priority="batch"))
KIND = Kind(LIGHT, LIGHT)
STEPWISE = {
    role: {**PROFILE[role], "step_s": [1e-3, 1e-3], "fixed": {"text_s": 0, "decode_s": 0}}
    for role in ("light", "heavy")
}


@pytest.fixture
async def balancer(pool, plan, family, profile) -> Balancer:
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=8), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    return balancer


async def test_workers_get_a_later_deadline_for_low_priority(balancer, pool):
    await balancer.generate(ORDER)
    await balancer.generate(BATCH)
    (_, _, first), (_, _, second) = pool.calls
    assert second["left_s"] - first["left_s"] > (BATCH_SLACK - 1) * 5.0 - 1
    assert (first["low_priority"], second["low_priority"]) == (False, True)


async def test_batch_requests_leave_room_for_the_others(balancer, pool):
    pool.delay_s = {LIGHT: 60, HEAVY: 60}
    generations = [balancer.begin(BATCH) for _ in range(int(8 * BATCH_SHARE))]
    with pytest.raises(Overloaded, match="at most 4 are allowed"):
        balancer.begin(BATCH)
    generations.append(balancer.begin(ORDER))
    await asyncio.gather(*(generation.close() for generation in generations))
    assert balancer.admission.in_flight == 0


@pytest.mark.parametrize("profile", [PROFILE, {**PROFILE, **STEPWISE}], ids=["whole batches", "single steps"])
def test_the_dispatcher_places_them_behind_all_other_waiting_images(profile):
    plan = Plan.split(1, 1, 0, light_batch=1, heavy_batch=1, threshold=0.5)
    dispatcher = Dispatcher(plan, ServiceTimes(Profile.model_validate(profile)))
    dispatcher.sync([{"replica": "r", "rank": 0, "queued": 0}])
    alone = dispatcher.finish_at(KIND, 0.0)
    for number in range(5):
        dispatcher.assign("r", f"batch-{number}", KIND, 0.0, low_priority=True)
    urgent, patient = dispatcher.finish_at(KIND, 0.0), dispatcher.finish_at(KIND, 0.0, low_priority=True)
    assert alone < urgent < patient
    dispatcher.assign("r", "urgent", KIND, 0.0)
    assert dispatcher.position("batch-0") == 0  # it is being generated
    assert (dispatcher.position("urgent"), dispatcher.position("batch-1")) == (1, 2)
    dispatcher.forget("r", "urgent", 0.0)
    assert dispatcher.position("batch-1") == 1
