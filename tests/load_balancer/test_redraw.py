"""Heavy images that the discriminator doubts are drawn again, while there is time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from load_balancer.runner.cascade_rules import is_drawn_again, next_seed
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.generation_task import GeneratedImage
from weir.config import RedrawConfig
from weir.core import Path, Role

ORDER = GenerationRequest("a red circle", 64, 64)
REDRAW = RedrawConfig(below=0.6, most=2)


@pytest.fixture
def draw(running, pool):
    """Draws one order where every light image is deferred and heavy ones have the given confidences."""
    pool.confidence = 0.1

    async def one(*confidences: float, order: GenerationRequest = ORDER, slo_s: float = 5.0) -> GeneratedImage:
        pool.heavy_confidences[:] = confidences
        async with running(slo_s=slo_s, redraw=REDRAW) as balancer:
            (image,) = await balancer.draw(order)
            assert not any(balancer.dispatcher.outstanding.values())
            assert balancer.counters()["late_answers"] == 0
        return image

    return one


def heavy_calls(pool) -> list[dict]:
    return [request for _, role, request in pool.calls if role is Role.HEAVY]


async def test_a_doubtful_heavy_image_is_drawn_again_and_the_best_one_is_the_answer(draw, pool):
    image = await draw(0.3, 0.8)
    first, second = heavy_calls(pool)
    assert (image.path, image.draws, image.heavy_confidence, image.confidence) == (Path.HEAVY, 2, 0.8, 0.1)
    assert image.seed == second["seed"] == next_seed(first["seed"])
    assert image.compute_s == pytest.approx(0.03)  # with the light one


async def test_the_first_one_is_the_answer_where_the_others_are_worse(draw, pool):
    image = await draw(0.5, 0.2, 0.4)
    assert (image.draws, image.heavy_confidence, image.seed) == (3, 0.5, heavy_calls(pool)[0]["seed"])


async def test_what_the_discriminator_believes_is_not_drawn_again(draw, pool):
    assert (await draw(0.7)).draws == len(heavy_calls(pool)) == 1


@pytest.mark.parametrize("named", [{"seed": 7}, {"role": Role.HEAVY}])
async def test_who_names_a_seed_or_a_variant_gets_it(draw, pool, named):
    image = await draw(0.1, 0.9, order=replace(ORDER, **named))
    (call,) = heavy_calls(pool)
    assert (image.draws, image.heavy_confidence, call["judge"]) == (1, None, False)


async def test_others_go_first(draw, pool):
    await draw(0.3, 0.8)
    first, second = heavy_calls(pool)
    assert (first["patient"], second["patient"]) == (False, True)
    assert second["deadline"] > first["deadline"] + 4.9  # behind what may arrive until then


async def test_a_second_image_that_fails_leaves_the_first(draw, pool):
    pool.fail = lambda replica, role: ("generation_failed", "broken") if len(heavy_calls(pool)) > 1 else None
    image = await draw(0.3, 0.8)
    assert (image.draws, image.heavy_confidence) == (1, 0.3)


async def test_a_second_image_that_is_not_ready_by_the_deadline_is_given_up_for_the_first(draw, pool):
    generate = pool.generate

    async def slow(replica: str, role: Role, request: dict) -> dict:
        if request["patient"]:
            await asyncio.sleep(60)
        return await generate(replica, role, request)

    pool.generate = slow
    image = await draw(0.3, 0.8, slo_s=0.5)  # a heavy image is predicted to take 0.1 s
    assert (image.draws, image.heavy_confidence) == (1, 0.3)
    assert 0.4 < image.latency_s < 0.5


def test_there_has_to_be_time_for_another():
    assert is_drawn_again(REDRAW, 0.3, 1, heavy_finish_at=9.0, latest=9.0)
    assert not is_drawn_again(REDRAW, 0.3, 1, heavy_finish_at=9.1, latest=9.0)
    assert not is_drawn_again(REDRAW, 0.3, 1, heavy_finish_at=None, latest=9.0)
    assert not is_drawn_again(REDRAW, 0.3, 3, heavy_finish_at=1.0, latest=9.0)
    assert not is_drawn_again(REDRAW, None, 1, heavy_finish_at=1.0, latest=9.0)
    assert not is_drawn_again(RedrawConfig(), 0.0, 1, heavy_finish_at=1.0, latest=9.0)
