"""Two load balancers answer as one: jobs, keys, images, quotas and the operator's controls."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import httpx
import pytest

from load_balancer.http.admin import ADMIN
from load_balancer.http.api_keys import ApiKeys, digest
from load_balancer.http.jobs import Jobs
from load_balancer.http.openapi import EDITS, GENERATIONS
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.shared.job_ledger import JobRecord
from load_balancer.shared.store import KEEPALIVE
from testing.pictures import gradient, png
from tests.load_balancer.shared.conftest import Member, until
from weir.core import Edit, ImageSize
from weir.plan import HEAVY, LIGHT

GOOD: dict[str, Any] = {"prompt": "a red circle"}
ASYNC = {"Prefer": "respond-async"}


async def finished(client: httpx.AsyncClient, location: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            state = (await client.get(location)).json()
            if state["status"] not in ("queued", "running"):
                return state
            await asyncio.sleep(0.05)


async def test_a_job_is_found_at_every_load_balancer(join):
    a, b = await join("a"), await join("b")
    accepted = await a.client.post(GENERATIONS, json=GOOD, headers=ASYNC)
    assert accepted.status_code == 202
    state = await finished(b.client, accepted.headers["location"])
    assert state["status"] == "succeeded"
    assert state == await finished(a.client, accepted.headers["location"])


async def test_a_key_that_is_repeated_elsewhere_gives_the_same_answer_and_draws_nothing(join, pool):
    a, b = await join("a"), await join("b")
    key = {"Idempotency-Key": "k"}
    first = await a.client.post(GENERATIONS, json=GOOD, headers=key)
    drawn = len(pool.calls)
    second = await b.client.post(GENERATIONS, json=GOOD, headers=key)
    assert second.headers["idempotent-replayed"] == "true"
    assert second.content == first.content
    assert len(pool.calls) == drawn
    other = await b.client.post(GENERATIONS, json={"prompt": "a blue star"}, headers=key)
    assert other.status_code == 422


async def test_a_key_that_is_repeated_while_the_first_request_runs_waits_for_its_answer(join, pool):
    a, b = await join("a"), await join("b")
    pool.delay_s[LIGHT] = 1.0
    key = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(it.client.post(GENERATIONS, json=GOOD, headers=key) for it in (a, b, a, b)))
    assert [it.status_code for it in answers] == [200] * 4
    assert len({it.content for it in answers}) == 1
    assert len(pool.calls) == 1


async def test_a_stream_that_is_repeated_elsewhere_ends_with_the_same_image(join):
    a, b = await join("a"), await join("b")
    body, key = {**GOOD, "stream": True}, {"Idempotency-Key": "k"}
    texts = [(await it.client.post(GENERATIONS, json=body, headers=key)).text for it in (a, b)]
    images = [text.partition('"b64_json":"')[2].partition('"')[0] for text in texts]
    assert images[0]
    assert images[0] == images[1]
    assert "event: image_generation.completed" in texts[1]


async def test_a_job_is_cancelled_at_any_load_balancer(join, pool):
    a, b = await join("a"), await join("b")
    pool.delay_s[LIGHT] = 600
    accepted = await a.client.post(GENERATIONS, json=GOOD, headers=ASYNC)
    await until(lambda: pool.calls)
    cancelled = await b.client.delete(accepted.headers["location"])
    assert cancelled.json()["status"] == "cancelled"
    assert pool.cancelled == 1


async def test_the_jobs_of_a_lost_load_balancer_give_the_images_that_they_would_have_given(join, pool):
    a, b = await join("a"), await join("b")
    pool.delay_s[LIGHT] = 600
    accepted = await a.client.post(GENERATIONS, json=GOOD, headers=ASYNC)
    await until(lambda: pool.calls)
    pool.delay_s[LIGHT] = 0
    a.stop_following()
    state = await finished(b.client, accepted.headers["location"])
    assert state["status"] == "succeeded"
    first, second = (request for _, _, request in pool.calls)
    assert (first["prompt"], first["seed"]) == (second["prompt"], second["seed"])


async def test_the_picture_of_an_edit_outlives_its_load_balancer_and_is_removed_with_the_end(join, pool):
    a, b = await join("a"), await join("b")
    picture = {"image": ("a.png", png(gradient(ImageSize(64, 64))))}
    key = {"Idempotency-Key": "k"}
    pool.delay_s[LIGHT] = 600
    accepted = await a.client.post(EDITS, data=GOOD, files=picture, headers=ASYNC | key)
    await until(lambda: pool.calls)
    pool.delay_s[LIGHT] = 0
    a.stop_following()
    state = await finished(b.client, accepted.headers["location"])
    assert state["status"] == "succeeded"
    first, second = (request for _, _, request in pool.calls)
    assert first["edit"] == second["edit"]
    again = await b.client.post(EDITS, data=GOOD, files=picture, headers=key)
    assert again.headers["Idempotent-Replayed"] == "true"
    other = {"image": ("a.png", png(gradient(ImageSize(96, 64))))}
    assert (await b.client.post(EDITS, data=GOOD, files=other, headers=key)).status_code == 422


def test_the_record_of_an_edit_is_read_as_it_was_written_and_keeps_no_picture_of_one_that_ended():
    edit = Edit(b"picture", b"mask", 0.5)
    request = GenerationRequest("a red circle", ImageSize(64, 64), seed=1, edit=edit)
    record = JobRecord("1", request, None, "", 0.0, "a")
    assert JobRecord.from_json(record.to_json()) == record
    ended = JobRecord.from_json(record.without_pictures().to_json())
    assert ended.request.edit == Edit(b"", b"", 0.5)
    assert ended.is_of(request)
    assert not ended.is_of(replace(request, edit=replace(edit, image=b"another")))
    assert ended.without_pictures() == ended


async def test_a_refused_request_leaves_its_key_free(join):
    a, b = await join("a"), await join("b")
    a.balancer.dispatcher.sync([])
    a.balancer.registry._pool = type("Empty", (), {"describe": staticmethod(_nothing)})()
    key = {"Idempotency-Key": "k"}
    assert (await a.client.post(GENERATIONS, json=GOOD, headers=key)).status_code == 503
    assert (await b.client.post(GENERATIONS, json=GOOD, headers=key)).status_code == 200


async def test_a_client_that_leaves_before_its_request_is_admitted_leaves_its_key_free(join):
    a, b = await join("a"), await join("b")
    charging = asyncio.Event()

    async def slowly(caller, images, cost):
        charging.set()
        await asyncio.sleep(600)

    jobs = Jobs(a.balancer, None, charge=slowly, sharing=a.shared.sharing)
    request = GenerationRequest("a red circle", ImageSize(64, 64), seed=1)
    leaving = asyncio.create_task(jobs.begin(request, "", key="k"))
    await charging.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    assert (await b.client.post(GENERATIONS, json=GOOD, headers={"Idempotency-Key": "k"})).status_code == 200


async def _nothing() -> list[Any]:
    return []


async def test_an_image_behind_a_url_is_served_by_every_load_balancer(join):
    a, b = await join("a"), await join("b")
    answer = await a.client.post(GENERATIONS, json={**GOOD, "response_format": "url"})
    path = httpx.URL(answer.json()["data"][0]["url"]).path
    images = [(await it.client.get(path)).content for it in (a, b)]
    assert images[0].startswith(b"\x89PNG")
    assert images[0] == images[1]


@pytest.fixture
def keys(tmp_path) -> ApiKeys:
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"keys:\n- {{name: alice, sha256: {digest('a' * 20)}, tenant: acme, concurrent_images: 2}}\n"
        f"- {{name: bob, sha256: {digest('b' * 20)}, tenant: acme, images_per_minute: 3}}\n"
        f"- {{name: ops, sha256: {digest('o' * 20)}, tenant: ops, admin: true}}\n"
    )
    path.chmod(0o600)
    return ApiKeys(path)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key * 20}"}


async def test_concurrent_images_are_counted_over_all_load_balancers_and_those_of_a_lost_one_end(join, pool, keys):
    a, b = await join("a", keys), await join("b", keys)
    pool.delay_s[LIGHT] = 600
    running = [asyncio.create_task(it.client.post(GENERATIONS, json=GOOD, headers=bearer("a"))) for it in (a, b)]
    await until(lambda: len(pool.calls) == 2)
    refused = await b.client.post(GENERATIONS, json=GOOD, headers=bearer("a"))
    assert refused.status_code == 429
    assert "2 images in flight" in refused.json()["error"]["message"]
    pool.delay_s[LIGHT] = 0
    a.stop_following()
    async with asyncio.timeout(60):
        while (await b.client.post(GENERATIONS, json=GOOD, headers=bearer("a"))).status_code != 200:
            await asyncio.sleep(0.2)
    for task in running:
        task.cancel()


async def test_images_per_minute_are_counted_over_all_load_balancers(join, keys):
    a, b = await join("a", keys), await join("b", keys)
    codes = [(await it.client.post(GENERATIONS, json=GOOD, headers=bearer("b"))).status_code for it in (a, b, a, b)]
    assert codes == [200, 200, 200, 429]


async def test_images_per_minute_are_charged_by_work_over_all_load_balancers(join, keys):
    a, b = await join("a", keys), await join("b", keys)
    twice = GOOD | {"num_inference_steps": 100}  # of 50
    answers = [await it.client.post(GENERATIONS, json=twice, headers=bearer("b")) for it in (a, b)]
    assert [it.status_code for it in answers] == [200, 429]


async def test_a_subscription_to_a_host_that_is_gone_ends(store):
    async with store.subscriber() as subscriber:
        await subscriber.subscribe("a")
        listening = subscriber.connection._writer.get_extra_info("socket")
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, probes = (listening.getsockopt(socket.IPPROTO_TCP, it) for it in KEEPALIVE)
    assert idle + interval * probes < 15


async def test_what_an_operator_changes_holds_at_every_load_balancer(join, keys):
    a, b = await join("a", keys), await join("b", keys)
    await until(lambda: a.balancer.registry.replicas() and b.balancer.registry.replicas())
    drained = b.balancer.registry.replicas()[0]["id"]
    assert (await a.client.put(f"{ADMIN}/replicas/{drained}/drain", json={}, headers=bearer("o"))).status_code == 200
    await until(lambda: b.balancer.registry.drained == {drained})
    state = (await b.client.get(f"{ADMIN}/plan", headers=bearer("o"))).json()
    assert state["actions"][0]["action"] == "drain"
    assert (await b.client.delete(f"{ADMIN}/replicas/{drained}/drain", headers=bearer("o"))).status_code == 200
    await until(lambda: not a.balancer.registry.drained)


async def test_load_balancers_know_what_the_others_have_sent_and_divide_the_limits(join, pool):
    a, b = await join("a"), await join("b")
    await until(lambda: a.balancer.peers.share == b.balancer.peers.share == 0.5)
    pool.delay_s[HEAVY] = 600
    running = asyncio.create_task(a.client.post(GENERATIONS, json={**GOOD, "model": "toy/heavy"}))
    await until(lambda: sum(b.balancer.dispatcher.replicas.outstanding.values()) == 1)
    running.cancel()
    await until(lambda: sum(b.balancer.dispatcher.replicas.outstanding.values()) == 0)


async def test_one_controller_at_a_time_may_publish_plans(join):
    a, b = await join("a"), await join("b")
    assert await a.shared.take_lease("first")
    assert not await b.shared.take_lease("second")
    assert await b.shared.take_lease("first")
    await b.shared.give_up_lease("first")
    assert await a.shared.take_lease("second")


async def without_redis(member: Member, server) -> None:
    server.process.kill()
    server.process.wait()


async def test_without_redis_plain_requests_are_answered_and_jobs_are_refused_with_the_reason(join, server, keys):
    a = await join("a", keys)
    await without_redis(a, server)
    for key in ("o", "a", "b"):
        assert (await a.client.post(GENERATIONS, json=GOOD, headers=bearer(key))).status_code == 200
    for header in (ASYNC, {"Idempotency-Key": "k"}):
        refused = await a.client.post(GENERATIONS, json=GOOD, headers={**bearer("o"), **header})
        assert refused.status_code == 503
        assert "which does not answer" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
    drain = await a.client.put(f"{ADMIN}/policy", json={"policy": "weir"}, headers=bearer("o"))
    assert drain.status_code == 503
