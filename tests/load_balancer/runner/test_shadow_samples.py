"""Shadow samples use recent prompts only, while the service is idle, within their share, and with low priority."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.shadow_samples import RECENT, ShadowSamples
from weir.core import ImageSize
from weir.plan import HEAVY, LIGHT

ORDER = GenerationRequest("a red circle", ImageSize(64, 64))
LEVELS = ((HEAVY, 50), (HEAVY, 5), (LIGHT, 0))


@pytest.fixture
async def balancer(pool, plan, family, profile) -> Balancer:
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=16, shadow=0.2), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    return balancer


async def after(balancer: Balancer, count: int, order: GenerationRequest = ORDER) -> None:
    for _ in range(count):
        await balancer.generate(order)


async def test_a_prompt_is_generated_at_every_level_with_one_seed_and_low_priority(balancer, pool):
    await after(balancer, 15)
    pool.calls.clear()
    sample = await balancer.shadow_sample(LEVELS)
    assert (sample.prompt, len(sample.images), sample.confidence) == ("a red circle", 3, 0.9)
    generated = [request for _, _, request in pool.calls]
    assert [(role, request["overrides"]["steps"]) for _, role, request in pool.calls] == [
        (HEAVY, 50),
        (HEAVY, 5),
        (LIGHT, None),
    ]
    assert len({request["seed"] for request in generated}) == 1
    assert all(request["low_priority"] and request["capture"] is None for request in generated)


async def test_samples_take_no_more_than_their_share(balancer):
    await after(balancer, 14)
    assert await balancer.shadow_sample(LEVELS) is None, "14 images at a fifth allow two"
    await after(balancer, 1)
    assert await balancer.shadow_sample(LEVELS) is not None
    assert await balancer.shadow_sample(LEVELS) is None


async def test_a_sample_starts_only_while_the_service_is_idle_and_stops_for_others(balancer, pool):
    await after(balancer, 30)
    pool.delay_s = {role: 0.05 for role in (LIGHT, HEAVY)}
    generation = balancer.begin(ORDER)
    pool.calls.clear()
    assert await balancer.shadow_sample(LEVELS) is None
    await generation.images()
    await generation.close()
    assert len(pool.calls) == 1, "the request's own"
    generate = pool.generate

    async def and_somebody_comes(replica, variant, request, role):
        answer = await generate(replica, variant, request, role)
        balancer.admission.in_flight += 1
        return answer

    pool.generate = and_somebody_comes
    pool.calls.clear()
    assert await balancer.shadow_sample(LEVELS) is None
    assert len(pool.calls) == 1


async def test_a_failed_image_gives_no_sample(balancer, pool):
    await after(balancer, 30)
    pool.fail = lambda replica, role: ("generation_failed", "no") if role == LIGHT else None
    assert await balancer.shadow_sample(LEVELS) is None


async def test_no_prompt_is_kept_unless_shadow_samples_are_configured(pool, plan, family, profile):
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=16), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    await after(balancer, 30)
    assert await balancer.shadow_sample(LEVELS) is None
    assert not balancer._shadow._prompts


@pytest.mark.parametrize(
    "other",
    [{"variant": LIGHT}, {"steps": 7}, {"guidance": 1.5}, {"negative_prompt": "blue"}, {"size": ImageSize(32, 32)}],
)
def test_requests_with_settings_that_levels_change_are_not_sampled(other):
    shadow = ShadowSamples(0.2, ImageSize(64, 64), Random(0))
    shadow.note(replace(ORDER, **other))
    assert not shadow._prompts


def test_the_oldest_prompt_is_removed_first():
    shadow = ShadowSamples(0.2, ImageSize(64, 64), Random(0))
    for i in range(RECENT + 1):
        shadow.note(replace(ORDER, prompt=str(i)))
    assert shadow._prompts == [str(i) for i in range(1, RECENT + 1)]
