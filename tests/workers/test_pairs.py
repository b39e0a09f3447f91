"""Several light variants on one worker: each request is drawn by the one that it names, and no two share a call."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from testing.toy_family import FAMILY, PROFILE
from tests.workers.samples import image_request
from weir.config import load_family
from weir.core import Plan, Role
from weir.errors import ConfigError
from workers.engine.engine import order_for
from workers.models.family import Family
from workers.replica import Worker

PLAN = Plan.split(1, 1, 0, light_batch=4, heavy_batch=4, threshold=0.5)
QUICK = {**FAMILY, "light": {**FAMILY["light"], "name": "toy-quick", "steps": 1}}


@pytest.fixture
def worker(tmp_path) -> Worker:
    """Its own light variant is sure of nothing, the other one of everything."""
    quick = {**PROFILE, "light": {**PROFILE["light"], "name": "toy-quick", "steps": 1}, "confidences": [1.0]}
    for name, profile in (("own", {**PROFILE, "confidences": [0.0]}), ("quick", quick)):
        (tmp_path / f"{name}.json").write_text(json.dumps(profile))
    pairs = [(QUICK, str(tmp_path / "quick.json"))]
    return Worker(FAMILY, PLAN.to_dict(), str(tmp_path / "own.json"), pairs=pairs)


async def drawn(worker: Worker, role: str, *lights: str | None) -> list[dict[str, Any]]:
    asked = [replace(image_request(str(i)), light=light).to_dict() for i, light in enumerate(lights)]
    return list(await asyncio.gather(*(worker.generate(role, request) for request in asked)))


async def test_a_request_is_drawn_by_the_light_variant_that_it_names(worker):
    own, quick, other = await drawn(worker, "light", None, "toy-quick", "toy-light")
    assert (own["confidence"], own["steps"]) == (other["confidence"], other["steps"]) == (0.0, 2)
    assert (quick["confidence"], quick["steps"]) == (1.0, 1)


async def test_variants_do_not_share_a_call(worker):
    results = await drawn(worker, "light", None, "toy-quick", None, "toy-quick")
    assert max(result["batch_size"] for result in results) <= 2


async def test_heavy_images_are_the_same_whatever_the_light_variant(worker):
    own, quick = await drawn(worker, "heavy", None, "toy-quick")
    assert own["steps"] == quick["steps"] == 50
    orders = [order_for(worker.family, Role.HEAVY, replace(image_request(), light=light)) for light in (None, "x")]
    assert len({worker.engine.call_of(order) for order in orders}) == 1


async def test_a_variant_that_the_worker_does_not_hold_is_refused_by_name(worker):
    [result] = await drawn(worker, "light", "toy-slow")
    assert tuple(result["error"]) == ("invalid_value", "light is toy-slow; this worker holds toy-light, toy-quick")


def test_a_real_family_with_another_light_variant_shares_all_else():
    config = load_family("deploy/families/weir-tiny.yaml")
    own = Family.load(config)
    more = config.light.model_copy(update={"name": "weir-tiny-light-4", "steps": 4})
    other = own.with_light(config.model_copy(update={"light": more}))
    assert other.pipelines[Role.HEAVY] is own.pipelines[Role.HEAVY]
    assert other.pipelines[Role.LIGHT].vae is own.pipelines[Role.HEAVY].vae
    asked = [image_request(prompt="a red circle", width=64, height=64)]
    [mine], [theirs] = own.generate(Role.LIGHT, asked), other.generate(Role.LIGHT, asked)
    assert (mine.steps, theirs.steps) == (2, 4)
    assert mine.image != theirs.image
    whole = config.light.model_copy(update={"unet": None, "pipeline": config.pipeline})
    with pytest.raises(ConfigError, match="a further light variant shares the parts of its family"):
        own.with_light(config.model_copy(update={"light": whole}))
