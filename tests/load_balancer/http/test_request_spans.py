"""A trace tells what happened to a request: admission, lookups, each call of a worker, its answer or its refusal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys, append_key, digest, new_key
from load_balancer.http.openapi import GENERATIONS
from testing.collector import Collector, ReceivedSpan, recorded
from tests.load_balancer.malformed_requests import GOOD
from weir.config import KeyConfig
from weir.plan import LIGHT

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def names(collector: Collector, parent: ReceivedSpan | None = None) -> list[str]:
    """Names of the children of a span, in the order in which they began; of the roots without one."""
    of = "" if parent is None else parent.span_id
    return [it.name for it in sorted(collector.spans, key=lambda it: it.start_s) if it.parent_id == of]


def only(collector: Collector, name: str) -> ReceivedSpan:
    [span] = [it for it in collector.spans if it.name == name]
    return span


async def test_the_trace_of_a_request_has_its_admission_calls_and_encoding_under_one_id(client, pool):
    pool.confidence = 0.1
    with recorded("load-balancer") as collector:
        body = {**GOOD, "output_format": "jpeg"}
        answer = await client.post(GENERATIONS, json=body, headers={"x-request-id": "mine"})
    about = answer.json()["data"][0]["weir"]
    request, image = only(collector, f"POST {GENERATIONS}"), only(collector, "image")
    assert request.attributes == {"weir.request_id": "mine", "http.response.status_code": 200}
    assert names(collector, request) == ["admission", "image", "encode"]
    assert names(collector, image) == ["run", "run"]
    assert {it.trace_id for it in collector.spans} == {request.trace_id}
    assert {it.attributes["weir.request_id"] for it in collector.spans} == {"mine"}
    assert not [it for it in collector.spans if it.failed]
    told = {name: image.attributes[f"weir.{name}"] for name in ("path", "variant", "plan_version", "resumed_at")}
    assert told == {"path": "heavy", "variant": "heavy", "plan_version": about["plan_version"], "resumed_at": 0}
    assert image.attributes["weir.confidence"] == pytest.approx(about["confidence"])
    runs = [it for it in collector.spans if it.name == "run"]
    assert [it.attributes["weir.variant"] for it in runs] == ["light", "heavy"]
    # A worker is told the span of its call.
    called = [(replica, request["traceparent"].split("-")[2]) for replica, _, request in pool.calls]
    assert called == [(it.attributes["weir.replica"], it.span_id) for it in runs], (
        "a worker is told the span of its call"
    )


async def test_the_clients_trace_is_continued(client):
    with recorded() as collector:
        await client.post(GENERATIONS, json=GOOD, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert {it.trace_id for it in collector.spans} == {TRACE}
    assert only(collector, f"POST {GENERATIONS}").parent_id == SPAN


async def test_the_call_of_a_replica_that_died_is_a_failed_span_beside_the_one_that_gave_the_image(client, pool):
    del pool.alive["replica-0"]
    with recorded() as collector:
        answer = await client.post(GENERATIONS, json=GOOD)
    assert answer.status_code == 200
    dead, other = (it for it in collector.spans if it.name == "run")
    assert (dead.failed, dead.attributes["error.type"], dead.attributes["weir.replica"]) == (True, "lost", "replica-0")
    assert not other.failed
    assert not only(collector, "image").failed


async def test_a_request_that_fails_and_one_that_is_refused_say_why(client, pool):
    pool.alive.clear()
    with recorded() as collector:
        failed = await client.post(GENERATIONS, json=GOOD)
    assert only(collector, f"POST {GENERATIONS}").attributes["http.response.status_code"] == failed.status_code == 500
    assert only(collector, "image").attributes["error.type"] == failed.json()["error"]["code"]
    with recorded() as collector:
        refused = await client.post(GENERATIONS, json={**GOOD, "n": 11})
    assert only(collector, f"POST {GENERATIONS}").attributes["http.response.status_code"] == refused.status_code == 400


async def test_a_cancelled_request_and_its_call_are_failed(client, pool):
    pool.delay_s[LIGHT] = 60
    with recorded() as collector:
        accepted = await client.post(GENERATIONS, json=GOOD, headers={"prefer": "respond-async"})
        while not pool.calls:
            await asyncio.sleep(0)
        await client.delete(accepted.headers["location"])
    assert only(collector, f"POST {GENERATIONS}").attributes["http.response.status_code"] == 202
    assert only(collector, "run").attributes["error.type"] == "CancelledError"
    assert {it.trace_id for it in collector.spans} == {only(collector, "run").trace_id}


async def test_no_span_has_a_prompt_a_key_or_a_tenant(balancer, family, pool, tmp_path: Path):
    key, tenant = new_key(), "a-tenant"
    keys = tmp_path / "keys.yaml"
    append_key(keys, KeyConfig(name="a-caller", sha256=digest(key), tenant=tenant))
    app = create_app(balancer, family, callers=ApiKeys(keys))
    prompt, negative = "a secret painting", "a secret dislike"
    pool.fail = lambda *_: ("generation_failed", f"no {prompt}")
    with recorded() as collector:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
            for body in ({"prompt": prompt}, {"prompt": prompt, "size": prompt}):
                body = {**body, "negative_prompt": negative}
                answer = await client.post(GENERATIONS, json=body, headers={"authorization": f"Bearer {key}"})
                assert answer.status_code >= 400
    sent = b"".join(collector.bodies)
    assert b"generation_failed" in sent
    for private in (prompt, negative, key, tenant, "a-caller"):
        assert private.encode() not in sent
