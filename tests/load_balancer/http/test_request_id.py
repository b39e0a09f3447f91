"""A request has one id: in its header, its answer, its job and its images, from the client if that sent a valid one."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest

from load_balancer.http.jobs import MOST_IDS, Jobs
from load_balancer.http.openapi import GENERATIONS
from load_balancer.runner.generation_request import GenerationRequest
from tests.load_balancer.malformed_requests import GOOD
from weir.core import ImageSize
from weir.plan import LIGHT

ASYNC = {"prefer": "respond-async"}


async def test_header_answer_job_and_worker_have_the_same_id(client, pool):
    answer = await client.post(GENERATIONS, json={**GOOD, "n": 2})
    id = answer.headers["x-request-id"]
    assert [item["weir"]["id"] for item in answer.json()["data"]] == [id, id]
    assert {request["request_id"] for _, _, request in pool.calls} == {id}
    assert len({request["id"] for _, _, request in pool.calls}) == 2
    accepted = await client.post(GENERATIONS, json=GOOD, headers=ASYNC)
    assert accepted.json()["id"] == accepted.headers["x-request-id"]
    assert accepted.headers["location"] == f"{GENERATIONS}/{accepted.headers['x-request-id']}"


@pytest.mark.parametrize("id", ["7", "req_a.b~c:d=e@f+g-h", "x" * 128, "6f1b0a2e-2f9c-4f6e-9f0e-6d1f0f6d8c11"])
async def test_a_valid_id_of_the_client_is_taken(client, id):
    answer = await client.post(GENERATIONS, json=GOOD, headers={"x-request-id": id})
    assert answer.headers.get_list("x-request-id") == [id]
    assert answer.json()["data"][0]["weir"]["id"] == id


@pytest.mark.parametrize("id", ["", " ", "x" * 129, "a/b", "a b", "é", ".."])
async def test_an_invalid_id_is_refused_with_what_is_accepted(client, pool, id):
    answer = await client.post(GENERATIONS, json=GOOD, headers={"x-request-id": id.encode()})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Request-Id"
    assert "accepted: 1 to 128" in answer.json()["error"]["message"]
    assert pool.calls == []


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/nothing", f"{GENERATIONS}/nothing"])
async def test_every_response_has_the_id(client, path):
    answer = await client.get(path, headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]


async def test_an_id_that_is_sent_twice_names_the_later_request(client, pool):
    pool.delay_s[LIGHT] = 60
    mine = {**ASYNC, "x-request-id": "mine"}
    for seed in (1, 2):
        await client.post(GENERATIONS, json={**GOOD, "seed": seed}, headers=mine)
    while len(pool.calls) < 2:
        await asyncio.sleep(0)
    assert pool.calls[0][2]["id"] != pool.calls[1][2]["id"]  # images stay apart
    assert (await client.delete(f"{GENERATIONS}/mine")).json()["status"] == "cancelled"
    assert pool.cancelled == 1


async def test_the_official_clients_request_id_cancels_and_is_found(client, pool):
    pool.delay_s[LIGHT] = 60
    async with openai.AsyncOpenAI(base_url="http://weir/v1", api_key="none", http_client=client) as caller:
        accepted = await caller.images.generate(prompt="a red circle", extra_headers=ASYNC)
        path = f"/images/generations/{accepted._request_id}"
        assert (await caller.delete(path, cast_to=httpx.Response)).json()["status"] == "cancelled"
        pool.delay_s[LIGHT] = 0
        key = {"Idempotency-Key": "k"}
        for _ in range(2):
            answer = await caller.images.generate(prompt="a red circle", extra_headers=key)
            state = await caller.get(f"/images/generations/{answer._request_id}", cast_to=httpx.Response)
            assert state.json()["status"] == "succeeded"


async def test_a_job_that_is_repeated_keeps_few_ids(balancer):
    async def rendered(job, images) -> bytes:
        return b""

    jobs = Jobs(balancer, rendered)
    requests = [GenerationRequest("a", ImageSize(64, 64), id=f"r{number}") for number in range(MOST_IDS + 4)]
    found = [(await jobs.begin(request, "", key="k"))[0] for request in requests]
    await found[0].answer()
    assert set(found) == {found[0]}
    for id in ("r0", requests[-1].id):
        assert await jobs.find(id, requests[0].caller) is found[0]
    assert len(jobs._by_id) == MOST_IDS
    await jobs.forget(found[0])
    assert not jobs._by_id
