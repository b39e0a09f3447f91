"""A service of emulated workers that lists two light variants: the plan has the one in use that the load asks for."""

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
from deploy.state import Service
from testing.toy_family import FAMILY, PROFILE
from tests.deploy.conftest import toy_service
from weir.config import load_pairs, load_service
from weir.errors import ConfigError

pytestmark = pytest.mark.timeout(550)
#: The first light variant is good, and two replicas of it cannot carry ten requests per second, nor can the heavy one.
GOOD = {**PROFILE["light"], "latency_s": [0.4, 1.0]}
HEAVY = {**PROFILE["heavy"], "latency_s": [0.4, 1.2]}
QUICK = {**PROFILE["light"], "name": "toy-quick", "latency_s": [0.02, 0.05]}
FEW, MANY = 1, 10
#: Nothing takes so long, however busy the machine.
LONGEST_S = 200.0


def profile(light: dict[str, Any], mixes: list[float]) -> str:
    quality = {"values": mixes, "smaller_is_better": False}
    sure = [i / 100 for i in range(100)]
    return json.dumps({**PROFILE, "light": light, "heavy": HEAVY, "confidences": sure, "quality": quality})


def two_lights(folder: Path, **other: Any) -> Path:
    config = toy_service(folder, pairs=[{"family": "quick.yaml", "profile": "quick.json"}])
    (folder / "profile.json").write_text(profile(GOOD, [1.0, 1.03, 1.02, 1.0, 0.95]))
    (folder / "quick.json").write_text(profile(QUICK, [1.0, 0.9, 0.8, 0.7, 0.6]))
    light = {**FAMILY["light"], "name": "toy-quick"}
    (folder / "quick.yaml").write_text(yaml.safe_dump({**FAMILY, "light": light, **other}))
    return config


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("pairs")
    found = up(two_lights(folder), detach=True, folder=folder / "state")
    assert found is not None
    try:
        yield found
    finally:
        down(folder=folder / "state")


async def load(url: str, rps: float, model: str) -> int:
    """Open loop, until an answer is the light variant's; how many requests failed."""
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


async def test_a_load_that_the_better_one_cannot_carry_brings_the_quicker_one_and_calm_the_better_one(service):
    assert await load(service.url, FEW, "toy-light") == 0
    await load(service.url, MANY, "toy-quick")  # what is too much before the plan changes may be refused
    assert await load(service.url, FEW, "toy-light") == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"size": 128}, "size is not that of toy; a pair shares all but light"),
        ({"light": FAMILY["light"]}, "have the names toy-light, toy-light"),
    ],
)
def test_a_family_that_shares_too_little_or_too_much_is_refused(tmp_path, other, message):
    with pytest.raises(ConfigError, match=message):
        load_pairs(*load_service(two_lights(tmp_path, **other)))


def test_a_file_that_is_not_there_is_named(tmp_path):
    config = two_lights(tmp_path)
    (tmp_path / "quick.json").unlink()
    with pytest.raises(ConfigError, match=r"pairs.0.profile: there is no file .*quick.json"):
        load_service(config)
