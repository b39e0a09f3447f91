"""Tests of a service of emulated workers with a ladder of three variants: the chain in use follows the load."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.local import down, up
from deploy.policy import policy_of, stored_states
from deploy.state import Service
from testing.toy_family import FAMILY, PROFILE
from tests.deploy.conftest import toy_service
from weir.config import ControllerConfig, load_service
from weir.errors import ConfigError

pytestmark = pytest.mark.timeout(600)
#: Two replicas of the good variant cannot carry ten requests per second, nor can the heavy one.
LATENCIES = {"quick": [0.02, 0.05], "good": [0.4, 1.0], "heavy": [0.4, 1.2]}
#: Quality of mixes with the heavy variant, from all heavy to all of the other.
MIXES = {"quick": [1.0, 0.9, 0.8, 0.7, 0.6], "good": [1.0, 1.03, 1.02, 1.0, 0.95]}
FEW, MANY = 1, 10
#: Nothing takes so long, however busy the machine.
LONGEST_S = 200.0
TINY = "deploy/configs/weir-tiny.yaml"


def three_variants(folder: Path, mixes: dict[str, list[float]]) -> Path:
    """Writes the service file; a variant without an entry in ``mixes`` has no measured quality."""
    service = toy_service(folder, plan={"replicas": {"quick": 1, "heavy": 1}})
    family = {key: value for key, value in FAMILY.items() if key not in ("light", "heavy")}
    lights = {key: {**FAMILY["light"], "name": f"toy-{key}"} for key in ("quick", "good")}
    (folder / "family.yaml").write_text(
        yaml.safe_dump({**family, "variants": {**lights, "heavy": FAMILY["heavy"]}}, sort_keys=False)
    )
    variants: dict[str, dict[str, Any]] = {}
    for key, seconds in LATENCIES.items():
        variants[key] = {**PROFILE["heavy" if key == "heavy" else "light"], "name": f"toy-{key}", "latency_s": seconds}
        if key != "heavy":
            variants[key]["confidences"] = [i / 100 for i in range(100)]
        if key in mixes:
            variants[key]["quality"] = {"values": mixes[key], "smaller_is_better": False}
    (folder / "profile.json").write_text(json.dumps({"family": "toy", "device": "none", "variants": variants}))
    return service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("ladder")
    found = up(three_variants(folder, MIXES), detach=True, folder=folder / "state")
    assert found is not None
    try:
        yield found
    finally:
        down(folder=folder / "state")


async def load(url: str, rps: float, model: str) -> int:
    """Sends requests open loop until a variant answers; returns the number of failed requests."""
    failed, seen = 0, asyncio.Event()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        nonlocal failed
        answer = await client.post("/v1/images/generations", json={"prompt": f"{number}", "seed": number})
        failed += answer.status_code != 200
        if answer.status_code == 200 and answer.json()["data"][0]["weir"]["model"] == model:
            seen.set()

    end, asked = time.monotonic() + LONGEST_S, []
    async with httpx.AsyncClient(base_url=url, timeout=LONGEST_S) as client:
        while not seen.is_set() and time.monotonic() < end:
            asked.append(asyncio.create_task(ask(client, len(asked))))
            await asyncio.sleep(1 / rps)
        await asyncio.gather(*asked)
    assert seen.is_set(), f"no answer by {model}"
    return failed


@pytest.mark.ray
async def test_high_demand_selects_the_faster_variant_and_low_demand_the_better_one(service):
    assert await load(service.url, FEW, "toy-good") == 0
    await load(service.url, MANY, "toy-quick")  # what is too much before the plan changes may be refused
    assert await load(service.url, FEW, "toy-good") == 0


def test_a_ladder_whose_qualities_were_not_all_measured_is_refused(tmp_path):
    service, _ = load_service(three_variants(tmp_path, {"quick": MIXES["quick"]}))
    with pytest.raises(ConfigError, match="mixes of good with heavy was not measured; `weir calibrate"):
        policy_of(service)


def test_a_policy_for_levels_plans_with_the_cache_profile_of_the_service():
    service, _ = load_service(TINY)
    service = service.model_copy(update={"controller": ControllerConfig(policy="argus")})
    plan = policy_of(service).first_plan()
    assert plan.routing is not None
    assert plan.routing.levels[0].skipped == 0
    assert len(plan.routing.levels) > 1
    states = stored_states(service.cache, 50)
    assert states is None or sum(states.shares.values()) == pytest.approx(1)


def test_a_policy_that_needs_stored_states_is_refused_where_the_cache_is_off():
    service, _ = load_service(TINY)
    off = service.cache.model_copy(update={"mode": "off"})
    service = service.model_copy(update={"controller": ControllerConfig(policy="argus"), "cache": off})
    with pytest.raises(ConfigError, match=r"policy argus needs stored states .*: set cache.mode: read-write"):
        policy_of(service)
