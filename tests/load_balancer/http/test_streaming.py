"""``stream: true`` in process: the images of a stream, their order, and its end."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from load_balancer.admission import repetition
from load_balancer.http import image_encoding
from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys, Caller
from load_balancer.http.openapi import GENERATIONS
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from load_balancer.runner.generation_request import GenerationRequest
from tests.load_balancer.malformed_requests import GOOD
from weir.core import ImageSize
from weir.plan import HEAVY, LIGHT, Rules


class Named(ApiKeys):
    """Takes the key for the name of the caller."""

    def identify(self, authorization: str | None) -> Caller:
        return Caller(str(authorization), str(authorization))


PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


@pytest.fixture
async def balancer(pool, plan, family, profile) -> Balancer:
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=8), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    return balancer


@pytest.fixture
async def client(balancer, family) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(balancer, family)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        yield client


async def streamed(client: httpx.AsyncClient, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of every event."""
    answer = await client.post(GENERATIONS, json={**GOOD, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    events = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in events)
    return events


def image_of(data: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data["b64_json"])))


async def test_a_doubtful_light_image_is_the_partial_one_and_the_heavy_one_completes_it(client, pool):
    pool.confidence = 0.1
    (first, partial), (last, completed) = await streamed(client, partial_images=1, seed=7, output_format="jpeg")
    assert (first, last) == (PARTIAL, COMPLETED)
    assert partial.pop("b64_json")
    assert partial.pop("created_at")
    assert partial == {
        "type": PARTIAL,
        "partial_image_index": 0,
        "output_format": "jpeg",
        "size": "64x64",
        "quality": "auto",
        "background": "opaque",
        "weir": {"image": 0, "role": "light", "step": 2},
    }
    assert image_of(completed).format == "JPEG"
    about = completed["weir"]
    assert (about["path"], about["seed"], about["confidence"], about["image"]) == ("heavy", 7, 0.1, 0)


async def test_a_confident_light_image_has_no_partial_images(client):
    ((name, data),) = await streamed(client, partial_images=3)
    assert (name, data["weir"]["path"]) == (COMPLETED, "light")


async def test_no_partial_images_are_sent_unless_requested(client, pool):
    pool.confidence = 0.1
    assert [name for name, _ in await streamed(client)] == [COMPLETED]


async def test_more_partial_images_are_previews_of_the_heavy_run_in_the_size_of_the_image(client, pool):
    pool.confidence = 0.1
    *partials, (last, _) = await streamed(client, partial_images=3)
    assert last == COMPLETED
    reported = [(data["partial_image_index"], data["weir"]["role"], data["weir"]["step"]) for _, data in partials]
    assert reported == [(0, "light", 2), (1, "heavy", 10), (2, "heavy", 20)]
    assert all(image_of(data).size == (64, 64) for _, data in partials)


async def test_where_the_heavy_variant_begins_all_partial_images_are_previews(client):
    *partials, _ = await streamed(client, partial_images=2, model="toy/heavy")
    assert [data["weir"]["role"] for _, data in partials] == ["heavy", "heavy"]


async def test_every_image_of_several_has_partial_images_and_an_end_of_its_own(client, pool):
    pool.confidence = 0.1
    events = await streamed(client, partial_images=1, n=3, seed=5)
    completed = {data["weir"]["image"]: data["weir"]["seed"] for name, data in events if name == COMPLETED}
    assert completed == {0: 5, 1: 6, 2: 7}
    for image in range(3):
        assert [name for name, data in events if data["weir"]["image"] == image] == [PARTIAL, COMPLETED]


async def test_the_completed_image_equals_the_answer_without_a_stream(client):
    ((_, data),) = await streamed(client, seed=1)
    whole = (await client.post(GENERATIONS, json={**GOOD, "seed": 1})).json()
    assert data["b64_json"] == whole["data"][0]["b64_json"]


async def test_the_light_image_does_not_wait_for_the_heavy_one(balancer, pool):
    pool.confidence = 0.1
    pool.delay_s[HEAVY] = 60
    generation = balancer.begin(GenerationRequest("a", ImageSize(64, 64), stream=True, partial_images=1))
    first = await anext(generation.events())
    assert (first.variant, generation.over) == (LIGHT, False)
    await generation.close()
    assert (generation.over, pool.cancelled) == (True, 1)


async def test_a_failure_ends_the_stream_with_an_error_event(client, pool, balancer, plan):
    balancer.registry.apply(replace(plan, version=2, rules=Rules(light_fallback=False)).to_dict())
    pool.confidence = 0.1
    pool.fail = lambda _, role: ("generation_failed", "the image is black") if role == HEAVY else None
    (first, _), (last, data) = await streamed(client, partial_images=1)
    assert (first, last) == (PARTIAL, "error")
    assert data["error"] == {
        "message": "the image is black",
        "type": "server_error",
        "param": None,
        "code": "generation_failed",
    }
    assert balancer.admission.in_flight == 0


async def test_an_unexpected_failure_is_an_error_event_without_details(client, monkeypatch):
    monkeypatch.setattr("load_balancer.http.events.about", lambda _: 1 / 0)
    ((name, data),) = await streamed(client)
    assert (name, data["error"]["code"]) == ("error", "internal_error")
    assert "division" not in json.dumps(data)


async def test_a_refusal_before_the_stream_is_a_status_of_its_own(client, balancer):
    balancer.admission.in_flight = 8
    answer = await client.post(GENERATIONS, json={**GOOD, "stream": True})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "overloaded"


async def test_a_client_that_leaves_a_stream_cancels_its_work(balancer, family, pool):
    """Calls the application directly, because the in-process client of the tests cannot disconnect."""
    pool.confidence = 0.1
    pool.delay_s[HEAVY] = 60
    app = create_app(balancer, family)
    body = json.dumps({**GOOD, "stream": True, "partial_images": 1}).encode()
    left = asyncio.Event()
    bodies = [body]

    async def receive() -> dict[str, Any]:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if PARTIAL.encode() in message.get("body", b""):
            left.set()

    headers = [(b"content-type", b"application/json"), (b"host", b"weir")]
    scope = {"type": "http", "method": "POST", "path": GENERATIONS, "headers": headers, "query_string": b""}
    await app({**scope, "asgi": {"version": "3.0", "spec_version": "2.3"}, "scheme": "http"}, receive, send)
    while balancer.admission.in_flight:
        await asyncio.sleep(0)
    assert pool.cancelled == 1
    assert not any(balancer.dispatcher.replicas.outstanding.values())


async def test_a_stream_is_encoded_once_for_all_its_listeners(client, pool, monkeypatch):
    encoded = []
    reencoded = image_encoding.reencoded

    def counted(png: bytes, *more: Any) -> bytes:
        encoded.append(png)
        return reencoded(png, *more)

    monkeypatch.setattr(image_encoding, "reencoded", counted)
    pool.confidence = 0.1
    pool.delay_s[HEAVY] = 0.05
    body = {**GOOD, "stream": True, "n": 2, "partial_images": 1, "output_format": "webp"}
    key = {"idempotency-key": "k"}
    answers = await asyncio.gather(*(client.post(GENERATIONS, json=body, headers=key) for _ in range(20)))
    assert len({answer.content for answer in answers}) == 1
    state = await client.get(f"{GENERATIONS}/{answers[0].headers['x-request-id']}")
    again = await client.post(GENERATIONS, json=body, headers=key)
    assert again.content == answers[0].content
    assert len(state.json()["result"]["data"]) == 2
    assert len(encoded) == 4  # two partial and two finished images


async def test_replays_and_polls_cost_their_caller_and_nobody_else(balancer, family, pool, monkeypatch):
    monkeypatch.setattr(repetition, "BURST_BYTES", 3 * repetition.LEAST_BYTES)
    now = balancer.clock()
    monkeypatch.setattr(balancer, "clock", lambda: now)  # nothing is given back
    app = create_app(balancer, family, callers=Named())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        mine, theirs = ({"authorization": name, "idempotency-key": "k"} for name in ("alice", "bob"))
        codes = [(await client.post(GENERATIONS, json=GOOD, headers=mine)).status_code for _ in range(5)]
        assert codes == [200, 200, 200, 200, 429]
        other = await client.post(GENERATIONS, json=GOOD, headers=theirs)
        status = f"{GENERATIONS}/{other.headers['x-request-id']}"
        polls = [await client.get(status, headers=theirs) for _ in range(4)]
        assert [poll.status_code for poll in polls] == [200, 200, 200, 429]
        assert polls[-1].json()["error"]["code"] == "rate_limit_exceeded"
        assert int(polls[-1].headers["retry-after"]) >= 1
        assert (await client.post(GENERATIONS, json={**GOOD, "seed": 1}, headers={"authorization": "bob"})).is_success
