"""Authentication of the API over HTTP, in process: which key gives access to which route; keys are never quoted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys, append_key, digest, new_key
from load_balancer.http.openapi import FILES, GENERATIONS
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from tests.load_balancer.malformed_requests import GOOD
from weir.config import KeyConfig
from weir.plan import HEAVY, LIGHT

ALICE, ADMIN = new_key(), new_key()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
async def balancer(pool, plan, family, profile) -> Balancer:
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=64), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    return balancer


@pytest.fixture
async def client(balancer, family, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    keys = tmp_path / "keys.yaml"
    alice = {"tenant": "acme", "concurrent_images": 4, "images_per_minute": 30}
    append_key(keys, KeyConfig(name="alice", sha256=digest(ALICE), **alice))
    append_key(keys, KeyConfig(name="root", sha256=digest(ADMIN), tenant="ops", admin=True))
    app = create_app(balancer, family, callers=ApiKeys(keys))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        yield client


@pytest.mark.parametrize("path", [GENERATIONS, "/v1/models", "/v1", "/anything", "/V1"])
@pytest.mark.parametrize("key", [None, new_key()], ids=["no key", "a wrong key"])
async def test_without_a_known_key_every_route_is_refused_and_names_the_command_to_create_one(client, pool, path, key):
    answer = await client.post(path, json=GOOD, headers=bearer(key) if key else {})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert pool.calls == []


async def test_a_caller_without_a_key_is_refused_before_the_body_is_read(client):
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"x"

    answer = await client.post(GENERATIONS, content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 401
    assert read == 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
async def test_health_and_the_description_are_open(client, path):
    assert (await client.get(path)).status_code == 200


async def test_a_known_key_generates_for_its_tenant(client, balancer, monkeypatch):
    seen = []
    begin = Balancer.begin

    def watched(self, order, **more):
        seen.append(order.caller)
        return begin(self, order, **more)

    monkeypatch.setattr(Balancer, "begin", watched)
    assert (await client.post(GENERATIONS, json=GOOD, headers=bearer(ALICE))).status_code == 200
    assert [(caller.name, caller.tenant) for caller in seen] == [("alice", "acme")]


async def test_no_request_can_name_another_tenant(client):
    for field in ("tenant", "caller", "cache_partition", "partition"):
        answer = await client.post(GENERATIONS, json={**GOOD, field: "ops"}, headers=bearer(ALICE))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field


async def test_more_than_a_key_allows_is_a_429_of_its_own_with_seconds_to_wait(client, pool, balancer):
    pool.delay_s = {LIGHT: 0.2, HEAVY: 0.2}
    answers = await asyncio.gather(
        *(client.post(GENERATIONS, json={**GOOD, "n": 2}, headers=bearer(ALICE)) for _ in range(5)),
        client.post(GENERATIONS, json=GOOD, headers=bearer(ADMIN)),
    )
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429, 429]
    assert answers[-1].status_code == 200, "another key's flood is not its problem"
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refused} == {"rate_limit_exceeded"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    pool.delay_s = {LIGHT: 0.0, HEAVY: 0.0}
    answers += [await client.post(GENERATIONS, json={**GOOD, "n": 2}, headers=bearer(ALICE)) for _ in range(40)]
    assert answers[-1].status_code == 429
    assert answers[-1].json()["error"]["message"] == "this key may ask for 30 images per minute"
    generated = sum(len(answer.json()["data"]) for answer in answers if answer.status_code == 200)
    assert balancer.counters()["arrivals"] == generated, "what a key may not ask for is no demand to plan for"


async def test_an_image_url_needs_no_key_and_cannot_be_guessed(client):
    answer = await client.post(GENERATIONS, json={**GOOD, "response_format": "url"}, headers=bearer(ALICE))
    (item,) = answer.json()["data"]
    assert (await client.get(item["url"])).status_code == 200
    name = item["url"].rpartition("/")[2].partition(".")[0]
    assert len(name) >= 32
    assert item["weir"]["id"] not in item["url"]
    assert (await client.get(f"{FILES}/{item['weir']['id']}.png")).status_code == 404


async def test_no_key_appears_in_logs_answers_or_errors(client, caplog, capfd, monkeypatch):
    caplog.set_level(logging.DEBUG)
    answers = []
    for key in (ALICE, ADMIN, planted := new_key()):
        for body in (GOOD, {**GOOD, "n": 99}, {**GOOD, "user": key}, {**GOOD, key: 1}):
            answers.append(await client.post(GENERATIONS, json=body, headers=bearer(key)))
        answers.append(await client.get(f"/v1/{key}", headers=bearer(planted)))
        answers.append(await client.post(GENERATIONS, json=GOOD, headers={"authorization": key}))
    monkeypatch.setattr(Balancer, "begin", lambda *_: 1 / 0)
    answers.append(await client.post(GENERATIONS, json=GOOD, headers=bearer(ALICE)))
    assert answers[-1].status_code == 500
    shown = "".join(json.dumps(dict(answer.headers)) + answer.text for answer in answers)
    written = "".join(capfd.readouterr()) + caplog.text.replace("GET http://weir/v1/weir-", "")
    for key in (ALICE, ADMIN, planted):
        assert key not in written
        # A key that a client uses as a field name is quoted in the error to that client only.
        assert shown.count(key) <= 4
