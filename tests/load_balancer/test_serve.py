"""The whole service on Ray Serve with emulated workers, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import yaml

from benchmarks.chaos import run_fault
from controller.policy import PUBLISHED
from deploy.cluster import cluster
from deploy.local import bindable, readiness
from deploy.publish import Publisher
from deploy.serve_config import render, with_plan
from load_balancer.http.openapi import GENERATIONS
from testing.faults import faults
from testing.testbed import Testbed
from testing.toy_family import FAMILY, PROFILE
from tests.load_balancer.malformed_requests import BODIES, GOOD
from weir.plan import LIGHT, Plan

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.ray,
    # Ray and the subprocess it starts leave their sockets and pipes to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
]
SLO_S = 20.0
#: Nothing takes so long, however busy the machine.
LONGEST_S = 240.0


class Up(NamedTuple):
    url: str
    config: Path
    publisher: Publisher
    port: int

    def pool(self) -> list[dict[str, Any]]:
        """The running replicas of the pool, as reported by Serve."""
        replicas = self.publisher.details()["applications"]["weir"]["deployments"]["Pool"]["replicas"]
        return [replica for replica in replicas if replica["state"] == "RUNNING"]

    def publish(self, plan: Plan, **fields: Any) -> None:
        """Deploys a plan, with other ``fields`` than its own."""
        body = with_plan(render(self.config, host="127.0.0.1", port=self.port, controlled=False), plan)
        for deployment in body["applications"][0]["deployments"]:
            deployment["user_config"] = {**deployment["user_config"], **fields}
        self.publisher.put(body)

    def version(self) -> int:
        """The next free plan version."""
        return self.state()["plan"]["version"] + 1

    def state(self) -> dict[str, Any]:
        """The readiness report."""
        state = readiness(self.url)
        assert state
        return state

    def wait(self, condition) -> None:
        """Waits until the readiness report fulfils the condition."""
        end = time.monotonic() + LONGEST_S
        while not ((state := readiness(self.url)) and condition(state)):
            assert time.monotonic() < end, state
            time.sleep(0.1)


def plan(version: int, light: int = 2, heavy: int = 1, threshold: float = 0.5) -> Plan:
    return Plan.split(version, light, heavy, light_batch=4, heavy_batch=4, threshold=threshold)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "family.yaml").write_text(yaml.safe_dump(FAMILY))
    heavy = PROFILE["heavy"]
    steps = {"step_s": [it / heavy["steps"] for it in heavy["latency_s"]], "fixed": {"text_s": 0, "decode_s": 0}}
    (folder / "profile.json").write_text(json.dumps({**PROFILE, "heavy": {**heavy, **steps}}))
    config = folder / "service.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "family": "family.yaml",
                "slo_s": SLO_S,
                "plan": {"light_replicas": 2, "heavy_replicas": 1},
                "pool": {"cpus_per_replica": 0.1, "emulate": "profile.json"},
                "limits": {"queued": 64},
            }
        )
    )
    port = bindable("127.0.0.1", 0)
    with cluster(cpus=4) as dashboard:
        service = Up(f"http://127.0.0.1:{port}", config, Publisher(dashboard), port)
        service.publish(plan(1))
        service.publisher.wait_applied(plan(1), timeout_s=LONGEST_S)
        service.wait(lambda state: not state["pending"])
        yield service
        import ray.serve

        ray.serve.shutdown()


@pytest.fixture
def client(up: Up) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=up.url, timeout=LONGEST_S) as client:
        yield client


async def load(up: Up, requests: int, concurrency: int, **fields: Any) -> list[httpx.Response]:
    """Sends ``requests`` requests, at most ``concurrency`` at a time."""
    slots = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)

    async with httpx.AsyncClient(base_url=up.url, timeout=LONGEST_S, limits=limits) as client:

        async def one(number: int) -> httpx.Response:
            async with slots:
                return await client.post(GENERATIONS, json={"prompt": f"circle {number}", **fields})

        return await asyncio.gather(*(one(number) for number in range(requests)))


async def test_a_call_reaches_the_chosen_replica(up):
    from ray.serve import get_deployment_handle

    from load_balancer.pool.serve_pool import ServePool

    pool = ServePool(get_deployment_handle("Pool", app_name="weir"))
    known = {it["replica"]: it for it in await pool.describe()}
    assert sorted(it["rank"] for it in known.values()) == [0, 1, 2]
    assert Counter(it["role"] for it in known.values()) == {"light": 2, "heavy": 1}
    request = {"id": "a", "prompt": "a", "seed": 1, "size": "64x64", "left_s": 60.0}
    for replica in [*known, *known]:
        replies = await asyncio.gather(*(pool.generate(replica, LIGHT, request, LIGHT) for _ in range(5)))
        assert {reply["replica"] for reply in replies} == {replica}


def test_the_official_client_works_unchanged(up):
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["toy", "toy/light", "toy/heavy"]
        answer = client.images.generate(
            prompt="a red circle", model="toy", n=2, size="64x64", response_format="b64_json", user="me"
        )
        assert answer.data
        assert len(answer.data) == 2
        assert base64.b64decode(answer.data[0].b64_json or "").startswith(b"\x89PNG")
        extended = client.images.generate(
            prompt="a red circle", model="toy/heavy", extra_body={"seed": 7, "num_inference_steps": 25}
        )
        about = extended.to_dict()["data"][0]["weir"]  # type: ignore[index]
        assert (about["seed"], about["steps"], about["path"], about["emulated"]) == (7, 25, "heavy", True)
        fetched = client.images.generate(prompt="a", response_format="url").data
        assert fetched
        assert httpx.get(fetched[0].url or "").content.startswith(b"\x89PNG")
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="a red circle", n=99)
        assert refused.value.param == "n"
        with pytest.raises(openai.NotFoundError):
            client.images.generate(prompt="a red circle", model="dall-e-3")


def test_the_official_clients_request_id_is_the_only_one_and_cancels_the_request(up):
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
        long = {"model": "toy/heavy", "extra_body": {"num_inference_steps": 100}}
        accepted = client.images.generate(prompt="a", extra_headers={"Prefer": "respond-async"}, **long)
        path = f"/images/generations/{accepted._request_id}"
        assert client.delete(path, cast_to=httpx.Response).json()["status"] == "cancelled"
    for headers in ({}, {"x-request-id": "mine"}):
        answer = httpx.post(f"{up.url}{GENERATIONS}", json=GOOD, headers=headers, timeout=LONGEST_S)
        [id] = answer.headers.get_list("x-request-id")
        assert answer.json()["data"][0]["weir"]["id"] == id == headers.get("x-request-id", id)
    refused = httpx.post(f"{up.url}{GENERATIONS}", json=GOOD, headers={"x-request-id": "a/b"})
    [id] = refused.headers.get_list("x-request-id")
    assert (refused.status_code, id == "a/b") == (400, False)


def test_the_official_client_streams_the_light_image_a_preview_and_the_heavy_one(up):
    kinds: dict[int, list[str]] = {}
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
        for seed in range(8):  # some of them are good enough at once
            stream = client.images.generate(
                prompt="a red circle", stream=True, partial_images=2, size="64x64", extra_body={"seed": seed}
            )
            kinds[seed] = []
            for event in stream:
                assert base64.b64decode(event.b64_json).startswith(b"\x89PNG")
                assert (event.output_format, event.size, event.background) == ("png", "64x64", "opaque")
                if event.type == "image_generation.partial_image":
                    assert event.partial_image_index == len(kinds[seed])
                kinds[seed].append(f"{event.type.rpartition('.')[2]} {event.to_dict()['weir'].get('role', '')}".strip())
    assert ["completed"] in kinds.values()
    assert ["partial_image light", "partial_image heavy", "completed"] in kinds.values()


def test_a_client_that_leaves_a_stream_frees_its_work(up, client):
    up.wait(lambda state: state["in_flight"] == 0)
    body = {**GOOD, "model": "toy/heavy", "num_inference_steps": 100, "n": 4, "stream": True, "partial_images": 3}
    with client.stream("POST", GENERATIONS, json=body) as answer:
        assert next(answer.iter_lines()) == "event: image_generation.partial_image"
    up.wait(lambda state: state["in_flight"] == 0)
    assert client.post(GENERATIONS, json=GOOD).status_code == 200


def test_a_request_is_answered_later_found_by_its_id_and_cancelled(up, client):
    long = {**GOOD, "model": "toy/heavy", "num_inference_steps": 100, "n": 4}
    answer = client.post(GENERATIONS, json=long, headers={"prefer": "respond-async"})
    assert answer.status_code == 202
    assert client.get(answer.headers["location"]).json()["status"] in ("queued", "running")
    assert client.delete(answer.headers["location"]).json()["status"] == "cancelled"
    up.wait(lambda state: state["in_flight"] == 0)
    answer = client.post(GENERATIONS, json=GOOD, headers={"prefer": "respond-async"})
    until = time.monotonic() + LONGEST_S
    while (state := client.get(answer.headers["location"]).json())["status"] != "succeeded":
        assert time.monotonic() < until, state
    assert state["result"]["data"][0]["b64_json"]


async def test_many_requests_with_one_key_are_generated_once(up):
    limits = httpx.Limits(max_connections=10)
    async with httpx.AsyncClient(base_url=up.url, timeout=LONGEST_S, limits=limits) as client:
        key = {"idempotency-key": "one"}
        answers = await asyncio.gather(*(client.post(GENERATIONS, json=GOOD, headers=key) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["data"][0]["weir"]["id"] for answer in answers}) == 1


async def test_all_images_of_one_request_are_generated(up):
    answers = await load(up, 24, 6, n=4)
    assert Counter(answer.status_code for answer in answers) == {200: 24}
    assert all(len(answer.json()["data"]) == 4 for answer in answers)


def test_the_same_request_gets_the_same_answer(client):
    answers = [client.post(GENERATIONS, json={**GOOD, "seed": 3}).json()["data"][0] for _ in range(3)]
    assert len({item["b64_json"] for item in answers}) == 1
    assert len({item["weir"]["confidence"] for item in answers}) == 1
    assert len({item["weir"]["path"] for item in answers}) == 1
    assert len({item["weir"]["id"] for item in answers}) == 3


def test_a_hundred_malformed_bodies_leave_it_answering(up, client):
    for name, (body, status, param) in BODIES.items():
        answer = client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status, name
        assert answer.json()["error"]["param"] == param, name
    assert client.post(GENERATIONS, json=GOOD).status_code == 200
    assert up.state()["in_flight"] == 0


def test_a_client_that_disconnects_cancels_its_work(up, client):
    up.wait(lambda state: state["in_flight"] == 0)
    with pytest.raises(httpx.ReadTimeout):
        client.post(GENERATIONS, json={**GOOD, "model": "toy/heavy", "num_inference_steps": 100, "n": 4}, timeout=0.05)
    up.wait(lambda state: state["in_flight"] == 0)


async def test_a_plan_change_under_load_fails_nothing_and_restarts_nothing(up):
    before = {replica["pid"] for replica in up.pool()}
    version = up.version()
    running = asyncio.create_task(load(up, 120, 8))
    for change in (plan(version, 1, 2, threshold=0.9), plan(version + 1, 2, 1, threshold=0.2)):
        await asyncio.sleep(0.5)
        await asyncio.to_thread(up.publish, change)
        await asyncio.to_thread(up.publisher.wait_applied, change, timeout_s=LONGEST_S)
    answers = await running
    assert Counter(answer.status_code for answer in answers) == {200: 120}
    await asyncio.to_thread(up.wait, lambda state: state["plan"]["version"] == version + 1)
    (after,) = await load(up, 1, 1)
    assert after.json()["data"][0]["weir"]["plan_version"] == version + 1
    assert {replica["pid"] for replica in up.pool()} == before


async def test_an_invalid_plan_changes_nothing_and_restarts_nothing(up):
    from ray.serve import get_deployment_handle

    from load_balancer.pool.serve_pool import ServePool

    pool, version = ServePool(get_deployment_handle("Pool", app_name="weir")), up.version()

    async def replicas() -> set[tuple[Any, ...]]:
        return {(it["replica"], it["role"], it["plan_version"]) for it in await pool.describe()}

    before = await replicas()
    for invalid in ({"thresholds": [7]}, {"assignments": "nonsense"}):
        await asyncio.to_thread(up.publish, plan(version, 0, 3), **invalid)
        await asyncio.to_thread(up.publisher.wait_applied, plan(version, 0, 3), timeout_s=LONGEST_S)
        assert await replicas() == before
        assert up.version() == version
    await asyncio.to_thread(up.publish, plan(version + 1))
    await asyncio.to_thread(up.wait, lambda state: state["plan"]["version"] == version + 1 and not state["pending"])
    end = time.monotonic() + LONGEST_S
    while len(after := {it[0] for it in await replicas()}) < len(before):  # Serve leaves out one that takes in a plan
        assert time.monotonic() < end
        await asyncio.sleep(0.2)
    assert after == {it[0] for it in before}


async def test_diffserves_rules_hold_on_the_cluster(up):
    published = replace(PUBLISHED, heavy_entry=0.3)
    version = up.version()
    running = asyncio.create_task(load(up, 120, 8))
    for change in (plan(version, 1, 2), plan(version + 1, 2, 1)):
        await asyncio.to_thread(up.publish, replace(change, rules=published))
        await asyncio.to_thread(up.publisher.wait_applied, change, timeout_s=LONGEST_S)
    answers = await running
    assert Counter(answer.status_code for answer in answers) == {200: 120}
    paths = Counter(answer.json()["data"][0]["weir"]["path"] for answer in answers)
    assert set(paths) <= {"light", "heavy"}
    after = await load(up, 20, 1)
    assert {answer.json()["data"][0]["weir"]["plan_version"] for answer in after} == {version + 1}
    await asyncio.to_thread(up.publish, plan(version + 2))
    await asyncio.to_thread(up.wait, lambda state: state["plan"]["version"] == version + 2)


async def test_overload_is_refused_early_with_seconds_to_wait_and_recovers(up):
    answers = await load(up, 160, 160, model="toy/heavy", num_inference_steps=100)
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 503}, codes
    assert codes[200] >= 64
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["code"] == "overloaded" for answer in refused)
    assert {answer.status_code for answer in await load(up, 8, 4)} == {200}


@pytest.mark.parametrize("name", ["heavy", "poison", "balancer"])
async def test_no_request_is_lost_when_a_process_is_killed_or_broken_under_load(up, name):
    bed = Testbed(up.url, up.config, up.port, "", up.publisher)
    row = await run_fault(bed, faults(flips=0)[name], random.Random(name), rps=10, before_s=1, after_s=1)
    assert row.sent > 10
    assert (row.lost, row.duplicated) == (0, 0)
    assert row.recovered_s is not None
    if name != "balancer":  # clients of the load balancer have to send their requests again
        assert (row.errors, row.broken, row.refused) == (0, 0, 0)
