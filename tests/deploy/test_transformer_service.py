"""A service of a pair of diffusion transformers with small random weights: real workers, the cascade and the cache."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from deploy.local import down, up
from deploy.state import StateFile
from testing.tiny_models import SIZE
from testing.tiny_transformers import flux_family
from weir.assets import WEIGHTS
from weir.config import load_family
from weir.core import ImageRequest, ImageSize
from weir.plan import LIGHT
from workers.models.family import Family

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]
PROMPTS = [f"a {colour} circle" for colour in ("red", "blue", "green", "yellow")]


def confidences(family: Path) -> dict[str, float]:
    """The judge's confidence in the light image of each prompt, in one process."""
    engine = Family.load(load_family(family), threads=1)
    requests = [ImageRequest(it, it, 1, ImageSize(SIZE, SIZE), deadline=float("inf")) for it in PROMPTS]
    outputs = engine.generate(LIGHT, requests)
    return {it: float(output.confidence or 0) for it, output in zip(PROMPTS, outputs, strict=True)}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("flux")
    family = flux_family(folder, discriminator=str(WEIGHTS / "discriminator"))
    return folder, confidences(family)


@pytest.fixture(scope="module")
def url(judged: tuple[Path, dict[str, float]]) -> Iterator[str]:
    folder, confident = judged
    lowest, *_, highest = sorted(confident.values())
    service = {
        "family": "family.yaml",
        "slo_s": 120,
        "plan": {"light_replicas": 1, "heavy_replicas": 1, "threshold": (lowest + highest) / 2},
        "controller": {"policy": "static"},
        "pool": {"cpus_per_replica": 0.1},
        "cache": {"mode": "read-write", "encoder": "words", "fetch_s": 0.5, "lookup_s": 5},
        "http": {"port": 0},
    }
    config, states = folder / "flux.yaml", folder / "state"
    config.write_text(yaml.safe_dump(service))
    assert up(config, detach=True, folder=states)
    running = StateFile("flux", states).read()
    assert running
    yield running.url
    down(folder=states)


def ask(url: str, prompt: str, **more: Any) -> httpx.Response:
    body = {"prompt": prompt, "model": "flux", "seed": 1, "cache": "off", **more}
    return httpx.post(f"{url}/v1/images/generations", json=body, timeout=240)


def about(response: httpx.Response) -> dict[str, Any]:
    """What an answer says of its image, which has the family's size."""
    assert response.status_code == 200, response.text
    [image] = response.json()["data"]
    assert Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).size == (SIZE, SIZE)
    return image["weir"]


def test_the_cascade_answers_with_the_light_image_or_defers_it(url: str, judged: tuple[Path, dict[str, float]]) -> None:
    confident = judged[1]
    unsure, sure = min(confident, key=confident.__getitem__), max(confident, key=confident.__getitem__)
    light, heavy = about(ask(url, sure)), about(ask(url, unsure))
    assert (light["path"], heavy["path"]) == ("light", "heavy")
    assert light["confidence"] == pytest.approx(confident[sure], abs=1e-3)
    assert heavy["steps"] == 10


def test_a_repeated_prompt_resumes_from_the_cache(url: str) -> None:
    first = about(ask(url, "a purple square", model="flux/heavy", cache="read-write"))
    assert first["path"] == "heavy"
    end = time.monotonic() + 120
    while (again := about(ask(url, "a purple square", model="flux/heavy", cache="read-write")))["path"] != "cache":
        assert time.monotonic() < end
    assert again["cache"]["k"] == 5
    assert again["steps"] == 5


def test_what_the_architecture_cannot_do_is_refused_in_a_sentence(url: str) -> None:
    refused = ask(url, "a red circle", negative_prompt="blur")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("negative_prompt has no effect in Flux")
    weighted = ask(url, "a (red:1.4) circle", prompt_syntax="weighted")
    assert weighted.status_code == 400
    assert weighted.json()["error"]["message"].startswith("prompt has weights")
