"""The metrics of the load balancer."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry

from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings, Connections, Sources
from load_balancer.runner.generation_request import GenerationRequest
from weir.clocks import Clocks
from weir.core import ImageSize
from weir.errors import NotReady, WeirError
from weir.plan import HEAVY, LIGHT, Plan
from weir.telemetry import PrometheusMetrics


class Seen:
    """A balancer over a fake pool, and its scraped metrics."""

    def __init__(self, pool, plan, family, profile, slo_s: float = 10.0):
        self.registry = CollectorRegistry()
        self.now = 1000.0
        metrics = PrometheusMetrics(self.registry)
        self.balancer = Balancer(
            pool,
            plan,
            family,
            BalancerSettings(slo_s=slo_s, queued=64),
            profile=profile,
            connections=Connections(metrics=metrics),
            sources=Sources(Clocks(monotonic=lambda: self.now)),
        )

    async def up(self) -> None:
        self.balancer.dispatcher.sync(await self.balancer.registry._pool.describe())

    async def draw(self, **more: object) -> None:
        order = GenerationRequest(prompt="a red circle", n=1, size=ImageSize(64, 64), **more)  # type: ignore[arg-type]
        with suppress(WeirError):
            await self.balancer.generate(order)

    def value(self, name: str, **labels: str) -> float:
        self.balancer.record_metrics()
        return self.registry.get_sample_value(f"weir_{name}", labels) or 0.0


@pytest.fixture
def seen(pool, plan, family, profile) -> Seen:
    return Seen(pool, plan, family, profile)


async def test_demand_is_admitted_plus_refused_images(seen, pool):
    with suppress(NotReady):
        await seen.draw()  # no replica yet
    await seen.up()
    await seen.draw()
    assert seen.value("images_asked_total") == 2
    assert seen.value("images_admitted_total") == 1
    assert seen.value("images_refused_total", code="not_ready") == 1
    assert seen.value("violations_total", kind="refused") == 1


async def test_answers_are_counted_by_path_with_their_time_and_quality(seen, pool):
    await seen.up()
    await seen.draw()
    pool.confidence = 0.25
    await seen.draw()
    assert seen.value("images_answered_total", path="light") == 1
    assert seen.value("images_answered_total", path="heavy") == 1
    assert seen.value("latency_seconds_count", path="heavy") == 1
    assert seen.value("answers_good_total") == pytest.approx(0.9 + 1)
    assert seen.value("light_judged_total") == 2
    assert seen.value("light_deferred_total") == 1
    assert seen.value("confidence_sum") == pytest.approx(0.9 + 0.25)
    assert seen.value("violations_total", kind="late") == 0


async def test_every_run_is_counted_with_its_steps_queue_and_service_time(seen, pool):
    await seen.up()
    pool.confidence = 0.25
    await seen.draw()
    assert (seen.value("steps_total", role="light"), seen.value("steps_total", role="heavy")) == (2, 50)
    for role in (LIGHT, HEAVY):
        assert seen.value("queue_seconds_count", role=role) == 1
        assert seen.value("service_seconds_sum", role=role) == pytest.approx(0.01)
        assert seen.value("busy_seconds_total", role=role) == pytest.approx(0.01)
        assert seen.value("batch_size_count", role=role) == 1


async def test_a_failed_image_is_a_failure_and_an_slo_violation(seen, pool):
    await seen.up()
    pool.fail = lambda *_: ("not_finite", "broken")
    await seen.draw()
    assert seen.value("images_failed_total", code="generation_failed") == 1
    assert seen.value("violations_total", kind="failed") == 1


async def test_a_late_answer_is_a_violation(seen, pool):
    await seen.up()
    pool.delay_s = dict.fromkeys((LIGHT, HEAVY), 0.01)
    generation = asyncio.create_task(seen.draw())
    await asyncio.sleep(0)
    seen.now += 11
    await generation
    assert seen.value("violations_total", kind="late") == 1


async def test_a_dead_replica_is_counted_as_a_retry(seen, pool):
    await seen.up()
    del pool.alive["replica-0"]
    await seen.draw()
    assert seen.value("retries_total", cause="replica_lost") == 1
    assert seen.value("images_answered_total", path="light") == 1


async def test_the_plan_in_force_and_the_capacity_are_published(seen, profile):
    await seen.up()
    seen.now += 5
    seen.balancer.registry.apply(Plan.split(7, 2, 1, light_batch=4, heavy_batch=2, threshold=0.25).to_dict())
    seen.now += 3
    assert seen.value("plan_version") == 7
    assert seen.value("plan_age_seconds") == 3
    assert seen.value("plan_threshold") == 0.25
    assert seen.value("plan_admitted_rps") == -1
    assert seen.value("plan_replicas", role="light") == seen.value("replicas_ready", role="light") == 2
    assert seen.value("plan_batch_size", role="heavy") == 2
    assert seen.value("capacity_rps", role="light") == pytest.approx(2 * 4 / profile.light.latency.at(4))
    assert seen.value("deadline_seconds") == 10


async def test_the_metrics_show_how_long_the_controller_is_silent(seen):
    await seen.up()
    assert seen.registry.get_sample_value("weir_controller_silent_seconds") is None  # there is none under `static`
    seen.balancer.metrics.counters_read(seen.now)
    seen.now += 42
    assert seen.value("controller_silent_seconds") == 42
