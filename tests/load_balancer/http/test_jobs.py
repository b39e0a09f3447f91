"""Requests that outlive their connection: idempotency keys, asynchronous answers, status, cancellation."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys, Caller, append_key, digest, new_key
from load_balancer.http.jobs import JobLimits, Jobs
from load_balancer.http.openapi import GENERATIONS
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from load_balancer.runner.generation_request import GenerationRequest
from testing.toy_family import PROFILE
from tests.load_balancer.malformed_requests import GOOD
from weir.clocks import Clocks
from weir.config import KeyConfig
from weir.core import ImageSize
from weir.errors import KeyReused, NotFound
from weir.plan import HEAVY, LIGHT
from weir.profiles import Profile

ALICE, BOB, ROOT = new_key(), new_key(), new_key()
ASYNC = {"prefer": "respond-async"}
ORDER = GenerationRequest("a red circle", ImageSize(64, 64))


async def ended(ask: Callable[[], Awaitable[httpx.Response]]) -> dict[str, Any]:
    """Waits until a request has ended, and returns its status."""
    while (state := (await ask()).json())["status"] in ("queued", "running"):
        await asyncio.sleep(0)
    return state


# ----------------------------------------------------------------------------------------------- the same once more


async def test_the_same_request_with_the_same_key_is_generated_once_with_equal_answers(client, pool):
    key = {"idempotency-key": "k"}
    first = await client.post(GENERATIONS, json=GOOD, headers=key)
    again = await client.post(GENERATIONS, json=GOOD, headers=key)
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    assert len(pool.calls) == 1
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    for answer in (first, again):  # each is a request with an id of its own
        state = await client.get(f"{GENERATIONS}/{answer.headers['x-request-id']}")
        assert state.json()["id"] == first.headers["x-request-id"]


async def test_concurrent_requests_with_one_key_are_generated_once(client, pool, balancer):
    pool.delay_s[LIGHT] = 0.05
    answers = await asyncio.gather(
        *(client.post(GENERATIONS, json=GOOD, headers={"idempotency-key": "k"}) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(pool.calls) == 1
    assert balancer.admission.in_flight == 0


async def test_a_client_that_disconnected_gets_its_image_by_the_key(client, pool):
    pool.delay_s[LIGHT] = 0.1
    lost = asyncio.create_task(client.post(GENERATIONS, json=GOOD, headers={"idempotency-key": "k"}))
    while not pool.calls:
        await asyncio.sleep(0)
    lost.cancel()
    again = await client.post(GENERATIONS, json=GOOD, headers={"idempotency-key": "k"})
    assert again.status_code == 200
    assert (len(pool.calls), pool.cancelled) == (1, 0)


async def test_a_stream_is_attached_from_its_beginning(client, pool):
    pool.confidence = 0.1
    body = {**GOOD, "stream": True, "partial_images": 2}
    first = await client.post(GENERATIONS, json=body, headers={"idempotency-key": "k"})
    calls = len(pool.calls)
    again = await client.post(GENERATIONS, json=body, headers={"idempotency-key": "k"})
    assert [line for line in first.text.split("\n") if line.startswith("event")] == [
        line for line in again.text.split("\n") if line.startswith("event")
    ]
    assert len(pool.calls) == calls


@pytest.mark.parametrize("change", [{"prompt": "a blue star"}, {"n": 2}, {"seed": 1}, {"stream": True}], ids=str)
async def test_another_request_with_the_same_key_is_refused(client, pool, change):
    await client.post(GENERATIONS, json=GOOD, headers={"idempotency-key": "k"})
    answer = await client.post(GENERATIONS, json={**GOOD, **change}, headers={"idempotency-key": "k"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "idempotency_key_reused"
    assert answer.json()["error"]["param"] == "Idempotency-Key"
    assert len(pool.calls) == 1


async def test_a_failed_request_is_generated_again_with_its_key(client, pool):
    broken = ("generation_failed", "black")
    failures = iter([broken, broken, None])  # another replica tries as well
    pool.fail = lambda *_: next(failures)
    key = {"idempotency-key": "k"}
    assert (await client.post(GENERATIONS, json=GOOD, headers=key)).status_code == 500
    assert (await client.post(GENERATIONS, json=GOOD, headers=key)).status_code == 200


async def test_a_request_that_was_not_admitted_leaves_its_key_free(client, balancer):
    balancer.admission.in_flight = 64
    key = {"idempotency-key": "k"}
    assert (await client.post(GENERATIONS, json=GOOD, headers=key)).status_code == 503
    balancer.admission.in_flight = 0
    assert (await client.post(GENERATIONS, json=GOOD, headers=key)).status_code == 200


async def test_after_a_crash_the_same_key_has_the_same_seed(client, balancer, family, pool):
    await client.post(GENERATIONS, json=GOOD, headers={"idempotency-key": "k"})
    app = create_app(balancer, family)  # a new application without the earlier jobs
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as other:
        await other.post(GENERATIONS, json=GOOD, headers={"idempotency-key": "k"})
    assert len({request["seed"] for _, _, request in pool.calls}) == 1
    assert len(pool.calls) == 2


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "a\tb"])
async def test_a_bad_key_is_refused_with_the_header_and_what_is_accepted(client, pool, key):
    answer = await client.post(GENERATIONS, json=GOOD, headers={"idempotency-key": key})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"
    assert "accepted: " in answer.json()["error"]["message"]
    assert pool.calls == []


# ------------------------------------------------------------------------------------------------------------- later


async def test_an_asynchronous_request_is_accepted_and_its_answer_is_at_the_location(client, pool):
    pool.delay_s[LIGHT] = 0.05
    answer = await client.post(GENERATIONS, json={**GOOD, "seed": 7}, headers=ASYNC)
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert int(answer.headers["retry-after"]) >= 1
    place = answer.headers["location"]
    assert place == f"{GENERATIONS}/{answer.json()['id']}"
    assert answer.json()["status"] == "queued"
    assert answer.json()["result"] is None
    state = await ended(lambda: client.get(place))
    assert state["status"] == "succeeded"
    assert state["error"] is None
    assert state["expires_at"] > state["created"]
    whole = (await client.post(GENERATIONS, json={**GOOD, "seed": 7})).json()
    assert state["result"]["data"][0]["b64_json"] == whole["data"][0]["b64_json"]


async def test_a_client_that_waits_gets_the_answer_if_it_is_ready_in_time(client, pool):
    quick = await client.post(GENERATIONS, json=GOOD, headers={"prefer": "respond-async, wait=30"})
    assert quick.status_code == 200
    assert quick.json()["data"]
    pool.delay_s[LIGHT] = 60
    slow = await client.post(GENERATIONS, json=GOOD, headers={"prefer": "respond-async, wait=0"})
    assert slow.status_code == 202
    await client.delete(slow.headers["location"])


async def test_a_stream_is_never_postponed(client):
    answer = await client.post(GENERATIONS, json={**GOOD, "stream": True}, headers=ASYNC)
    assert answer.status_code == 200
    assert "preference-applied" not in answer.headers


async def test_the_status_of_a_failed_request_has_the_error(client, pool):
    pool.fail = lambda *_: ("generation_failed", "the image is black")
    answer = await client.post(GENERATIONS, json=GOOD, headers=ASYNC)
    state = await ended(lambda: client.get(answer.headers["location"]))
    assert (state["status"], state["result"]) == ("failed", None)
    assert state["error"]["message"] == "the image is black"


async def test_the_status_has_the_queue_position_and_an_estimate(pool, plan, family):
    # Batches take seconds, so that the duration of the test does not matter.
    slow = {key: {**PROFILE[key], "latency_s": [100 * s for s in PROFILE[key]["latency_s"]]} for key in (LIGHT, HEAVY)}
    profile = Profile.model_validate(PROFILE | slow)
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=500.0, queued=64), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    app = create_app(balancer, family)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir")
    pool.delay_s[LIGHT] = 600
    places = [(await client.post(GENERATIONS, json=GOOD, headers=ASYNC)).headers["location"] for _ in range(3)]
    while len(pool.calls) < 3:
        await asyncio.sleep(0)
    states = [(await client.get(place)).json() for place in places]
    assert [state["status"] for state in states] == ["running", "queued", "queued"]
    assert [state["queue_position"] for state in states] == [None, 1, 2]
    estimates = [state["estimated_s"] for state in states]
    assert 0 <= estimates[0] <= estimates[1] <= estimates[2] < 100
    for place in places:
        await client.delete(place)
    await client.aclose()
    assert balancer.admission.in_flight == 0


# ------------------------------------------------------------------------------------------------------------ cancel


async def test_a_cancelled_request_leaves_its_worker_and_others_continue(client, pool, balancer):
    pool.delay_s[LIGHT] = 0.2
    one, two = [(await client.post(GENERATIONS, json=GOOD, headers=ASYNC)).headers["location"] for _ in range(2)]
    while len(pool.calls) < 2:
        await asyncio.sleep(0)
    answer = await client.delete(one)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert (pool.cancelled, balancer.admission.in_flight) == (1, 1)
    assert (await client.get(one)).json()["status"] == "cancelled"
    assert (await ended(lambda: client.get(two)))["status"] == "succeeded"


async def test_clients_that_wait_for_a_cancelled_request_get_an_error(client, pool):
    pool.delay_s[LIGHT] = 60
    key = {"idempotency-key": "k"}
    waiting = asyncio.create_task(client.post(GENERATIONS, json=GOOD, headers=key))
    while not pool.calls:
        await asyncio.sleep(0)
    known = await client.post(GENERATIONS, json=GOOD, headers={**ASYNC, **key})
    await client.delete(known.headers["location"])
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cancelled")


async def test_a_request_that_has_ended_is_forgotten_when_it_is_deleted(client):
    place = (await client.post(GENERATIONS, json=GOOD, headers=ASYNC)).headers["location"]
    await ended(lambda: client.get(place))
    assert (await client.delete(place)).json()["status"] == "succeeded"
    assert (await client.get(place)).status_code == 404
    assert (await client.delete(place)).status_code == 404


@pytest.mark.parametrize("id", ["nothing", "0" * 32, "%00", "..%2F..", "x" * 2000])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_request_is_a_404_in_openais_format(client, id, method):
    answer = await client.request(method, f"{GENERATIONS}/{id}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_request_without_a_key_is_removed_after_its_answer(client):
    answer = await client.post(GENERATIONS, json=GOOD)
    assert (await client.get(f"{GENERATIONS}/{answer.headers['x-request-id']}")).status_code == 404


async def test_only_its_caller_and_an_administrator_find_a_request(balancer, family, pool, tmp_path: Path):
    keys = tmp_path / "keys.yaml"
    for name, key, admin in (("alice", ALICE, False), ("bob", BOB, False), ("root", ROOT, True)):
        append_key(keys, KeyConfig(name=name, sha256=digest(key), tenant="acme", admin=admin))
    app = create_app(balancer, family, callers=ApiKeys(keys))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:

        def of(key: str, **more: str) -> dict[str, str]:
            return {"authorization": f"Bearer {key}", **more}

        place = (await client.post(GENERATIONS, json=GOOD, headers=of(ALICE, **ASYNC))).headers["location"]
        found = {key: (await client.get(place, headers=of(key))).status_code for key in (ALICE, BOB, ROOT)}
        assert found == {ALICE: 200, BOB: 404, ROOT: 200}
        assert (await client.delete(place, headers=of(BOB))).status_code == 404
        # The same key of another caller is another key.
        for key in (ALICE, BOB):
            await client.post(GENERATIONS, json=GOOD, headers=of(key, **{"idempotency-key": "k"}))
        assert len(pool.calls) == 3


# ----------------------------------------------------------------------------------------------------------- bounded


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def rendered(job, generated) -> bytes:
    return b"x" * 100


async def finished(jobs: Jobs, **more: Any) -> str:
    job, _ = await jobs.begin(replace(ORDER, id=uuid.uuid4().hex), "", keep=True, **more)
    await job.answer()
    return job.id


async def known(jobs: Jobs, ids: list[str]) -> list[bool]:
    found = []
    for id in ids:
        try:
            found.append(bool(await jobs.find(id, ORDER.caller)))
        except NotFound:
            found.append(False)
    return found


async def test_an_answer_expires_together_with_its_key(balancer, pool):
    clock = Clock()
    jobs = Jobs(balancer, rendered, limits=JobLimits(kept_s=60), clocks=Clocks(clock))
    old = await finished(jobs, key="k")
    clock.now += 59
    new = await finished(jobs)
    assert await known(jobs, [old, new]) == [True, True]
    clock.now += 1
    assert await known(jobs, [old, new]) == [False, True]
    await finished(jobs, key="k")
    assert len(pool.calls) == 3


async def test_an_answer_is_kept_as_long_as_promised_when_the_wall_clock_is_set_back(balancer):
    clock, wall = Clock(), Clock()
    jobs = Jobs(balancer, rendered, limits=JobLimits(kept_s=60), clocks=Clocks(clock, wall))
    job = await jobs.find(await finished(jobs), ORDER.caller)
    assert jobs.expires_at(job) == wall.now + 60
    clock.now += 30
    wall.now -= 3600
    assert jobs.expires_at(job) == wall.now + 30
    clock.now += 30
    assert await known(jobs, [job.id]) == [False]


async def test_the_oldest_jobs_are_removed_when_there_are_too_many(balancer):
    jobs = Jobs(balancer, rendered, limits=JobLimits(jobs=3))
    ids = [await finished(jobs) for _ in range(5)]
    assert await known(jobs, ids) == [False, False, True, True, True]


async def test_the_oldest_answers_are_removed_when_they_are_too_large_and_running_jobs_stay(balancer, pool):
    probe, _ = await Jobs(balancer, rendered).begin(ORDER, "")
    await probe.answer()
    jobs = Jobs(balancer, rendered, limits=JobLimits(size_bytes=2 * probe.size_bytes))
    pool.delay_s[HEAVY] = 60
    running, _ = await jobs.begin(GenerationRequest("a", ImageSize(64, 64), variant=HEAVY), "", keep=True)
    ids = [await finished(jobs) for _ in range(4)]
    assert await known(jobs, [*ids, running.id]) == [False, False, True, True, True]
    await running.cancel()


async def test_a_key_whose_quota_was_edited_meanwhile_repeats_its_request(balancer, pool):
    jobs = Jobs(balancer, rendered)
    before = replace(ORDER, caller=Caller("alice", "acme", images_per_minute=60))
    after = replace(ORDER, caller=Caller("alice", "acme", "batch", images_per_minute=90, concurrent_images=4))
    job, _ = await jobs.begin(before, "", key="k")
    assert await jobs.begin(after, "", key="k") == (job, True)
    await job.answer()
    assert len(pool.calls) == 1


async def test_another_caller_has_keys_of_its_own(balancer):
    jobs = Jobs(balancer, rendered)
    job, _ = await jobs.begin(ORDER, "", key="k")
    with pytest.raises(NotFound):
        await jobs.find(job.id, Caller("bob", "acme"))
    await job.answer()


async def test_a_tenant_that_begins_and_cancels_many_jobs_makes_no_other_tenants_key_forgotten(balancer, pool):
    jobs = Jobs(balancer, rendered)
    mine = replace(ORDER, caller=Caller("alice", "acme"))
    job, _ = await jobs.begin(mine, "", key="k")
    await job.answer()
    pool.delay_s[LIGHT] = 60
    for number in range(1100):
        hostile = replace(ORDER, id=f"h{number}", caller=Caller("mallory", "globex"))
        cancelled, _ = await jobs.begin(hostile, "", keep=True)
        await cancelled.cancel()
    assert await jobs.begin(mine, "", key="k") == (job, True)
    assert job.body is not None


async def test_jobs_without_an_answer_are_removed_first(balancer, pool):
    jobs = Jobs(balancer, rendered, limits=JobLimits(jobs=3))
    answered = [await finished(jobs) for _ in range(2)]
    pool.delay_s[LIGHT] = 60
    cancelled = []
    for number in range(3):
        job, _ = await jobs.begin(replace(ORDER, id=f"c{number}"), "", keep=True)
        await job.cancel()
        cancelled.append(job.id)
    assert await known(jobs, answered) == [True, True]
    assert await known(jobs, cancelled) == [False, False, True]


async def test_a_key_outlives_its_answer(balancer, pool):
    clock = Clock()
    jobs = Jobs(balancer, rendered, limits=JobLimits(kept_s=60, jobs=1), clocks=Clocks(clock))
    request = replace(ORDER, seed=7)
    first, _ = await jobs.begin(request, "", key="k")
    await first.answer()
    await finished(jobs)
    with pytest.raises(NotFound):
        await jobs.find(first.id, ORDER.caller)
    with pytest.raises(KeyReused):
        await jobs.begin(replace(request, prompt="a blue star"), "", key="k")
    again, existed = await jobs.begin(request, "", key="k")
    assert (again.request.seed, existed) == (7, False)
    await again.answer()
    await finished(jobs)
    clock.now += 60
    other, _ = await jobs.begin(replace(request, prompt="a blue star"), "", key="k")
    await other.answer()
    assert len(jobs._digests) == len(jobs._answered) == 0
