"""Heavy images that the discriminator doubts are generated again, while there is time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage
from weir.cascade import next_seed
from weir.config import RedrawConfig
from weir.core import ImageSize
from weir.plan import HEAVY

ORDER = GenerationRequest("a red circle", ImageSize(64, 64))
REDRAW = RedrawConfig(below=0.6, most=2)


@pytest.fixture
def generate(running, pool):
    """Generates one image where every light image is deferred and heavy ones have the given confidences."""
    pool.confidence = 0.1

    async def one(*confidences: float, wanted: GenerationRequest = ORDER, slo_s: float = 5.0) -> GeneratedImage:
        pool.heavy_confidences[:] = confidences
        async with running(slo_s=slo_s, redraw=REDRAW) as balancer:
            (image,) = await balancer.generate(wanted)
            assert not any(balancer.dispatcher.replicas.outstanding.values())
            assert balancer.counters()["late_answers"] == 0
        return image

    return one


def heavy_calls(pool) -> list[dict]:
    return [request for _, role, request in pool.calls if role == HEAVY]


async def test_a_doubtful_heavy_image_is_generated_again_and_the_best_one_is_the_answer(generate, pool):
    image = await generate(0.3, 0.8)
    first, second = heavy_calls(pool)
    assert (image.path, image.draws, image.heavy_confidence, image.confidence) == ("heavy", 2, 0.8, 0.1)
    assert image.seed == second["seed"] == next_seed(first["seed"])
    assert image.compute_s == pytest.approx(0.03)  # with the light one


async def test_the_first_one_is_the_answer_where_the_others_are_worse(generate, pool):
    image = await generate(0.5, 0.2, 0.4)
    assert (image.draws, image.heavy_confidence, image.seed) == (3, 0.5, heavy_calls(pool)[0]["seed"])


async def test_a_confident_heavy_image_is_not_generated_again(generate, pool):
    assert (await generate(0.7)).draws == len(heavy_calls(pool)) == 1


@pytest.mark.parametrize("named", [{"seed": 7}, {"variant": HEAVY}])
async def test_requests_with_a_seed_or_a_variant_are_not_redrawn(generate, pool, named):
    image = await generate(0.1, 0.9, wanted=replace(ORDER, **named))
    (call,) = heavy_calls(pool)
    assert (image.draws, image.heavy_confidence, call["judge"]) == (1, None, False)


async def test_other_images_precede_a_redraw(generate, pool):
    await generate(0.3, 0.8)
    first, second = heavy_calls(pool)
    assert (first["low_priority"], second["low_priority"]) == (False, True)
    assert second["left_s"] > first["left_s"] + 4.9  # behind what may arrive until then


async def test_a_second_image_that_fails_leaves_the_first(generate, pool):
    pool.fail = lambda replica, role: ("generation_failed", "broken") if len(heavy_calls(pool)) > 1 else None
    image = await generate(0.3, 0.8)
    assert (image.draws, image.heavy_confidence) == (1, 0.3)


async def test_a_redraw_that_is_not_ready_by_the_deadline_is_given_up_for_the_first_image(generate, pool):
    quick = pool.generate

    async def slow(replica: str, variant: str, request: dict, role: str) -> dict:
        if request["low_priority"]:
            await asyncio.sleep(60)
        return await quick(replica, variant, request, role)

    pool.generate = slow
    image = await generate(0.3, 0.8, slo_s=0.5)  # a heavy image is predicted to take 0.1 s
    assert (image.draws, image.heavy_confidence) == (1, 0.3)
    assert 0.4 < image.latency_s < 0.5
