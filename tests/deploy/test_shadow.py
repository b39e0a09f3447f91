"""Tests of the check of a level head with a real service of the embedded family, without Ray."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import numpy as np
from prometheus_client import CollectorRegistry

from cache.encoder import family_encoder
from deploy.shadow import ShadowLoop
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from load_balancer.runner.generation_request import GenerationRequest
from testing.toy_family import with_variants
from tests.load_balancer.local_service import LocalPool
from training.evaluate import held_out
from training.scenes import caption
from training.shadow import ENOUGH
from weir import metrics
from weir.config import load_service
from weir.core import ImageSize
from weir.plan import Plan
from weir.prompt_levels import LevelAbout, LevelHead, LevelRecord
from weir.telemetry import PrometheusMetrics
from workers.replica import Worker

SERVICE = "deploy/configs/weir-tiny.yaml"
REQUEST = GenerationRequest("a red circle left of a blue star", ImageSize(64, 64), n=10)


def head_that_lost(lost: float, encoder: str, dim: int) -> LevelHead:
    """A level head that predicts the easiest level for every prompt and has this recorded loss of the light variant."""
    record = LevelRecord(share=0.5, confidences=(0.2, 0.8), quality=(1.0, 1.0 - lost))
    about = LevelAbout(
        encoder=encoder,
        family="weir-tiny",
        rungs=("heavy-4", "light"),
        alpha=0.95,
        prompts=100,
        records=(record, record),
        quality=(1.0, 1.0 - lost),
        accuracy=0.5,
        mean_level_error=0.5,
        confusion=((25, 25), (25, 25)),
    )
    return LevelHead(np.zeros(dim), np.array([-1.0]), about)


async def test_idle_time_is_used_for_samples_and_a_wrong_head_is_replaced(tmp_path):
    service, family = load_service(SERVICE)
    family = with_variants(family, heavy={"steps": 4})
    encoder, file = family_encoder(family), tmp_path / "head.safetensors"
    wrong = head_that_lost(0.9, encoder.version, encoder.dim)
    wrong.save(file)
    service = service.model_copy(
        update={"cache": service.cache.model_copy(update={"levels": str(file), "shadow": 0.2, "encoder": None})}
    )
    plan = Plan.split(1, 1, 0, light_batch=4, heavy_batch=4, threshold=0)
    worker = Worker(family.model_dump(), plan.to_dict())
    balancer = Balancer(LocalPool([worker]), plan, family, BalancerSettings(slo_s=60, queued=64, shadow=0.2))
    running = asyncio.get_running_loop()

    def generated(levels):
        sample = asyncio.run_coroutine_threadsafe(balancer.shadow_sample(levels), running).result(120)
        return None if sample is None else asdict(sample)

    registry = CollectorRegistry()
    beside = ShadowLoop(service, family, generated, PrometheusMetrics(registry))
    watching = asyncio.create_task(balancer.registry.watch())
    while not balancer.readiness()["ready"]:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(beside.step)
    assert len(beside.check) == 0, "no request came yet"

    await balancer.generate(REQUEST)
    await asyncio.to_thread(beside.step)
    assert len(beside.check) == 1
    for scene in held_out(ENOUGH, 7):  # two prompts of three lose nothing, the others all
        beside.check.take(text := caption(scene), [1.0, float(len(text) % 3 > 0)], 0.5)
    assert beside.check.drifted

    await balancer.generate(REQUEST)
    await asyncio.to_thread(beside.step)
    fitted = LevelHead.load(file)
    assert fitted.version != wrong.version
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"head.safetensors", *(f"head-{it.version}.safetensors" for it in (wrong, fitted))}
    recorded = [registry.get_sample_value(it.name) for it in (metrics.SHADOW_SAMPLES, metrics.LEVELS_REFITTED)]
    assert recorded == [2, 1]
    await asyncio.to_thread(beside.step)
    assert (beside.check.head.version, len(beside.check)) == (fitted.version, 0)
    watching.cancel()
