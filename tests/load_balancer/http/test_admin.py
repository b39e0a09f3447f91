"""The routes below ``/v1/admin`` over HTTP, in process: who may call them, and what they refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from load_balancer.admin_controls import ControlTargets
from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys, append_key, digest, new_key
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings, Connections
from tests.load_balancer.test_admin_controls import FakeCache, FakeController
from weir.config import KeyConfig
from weir.plan import HEAVY, LIGHT
from weir.telemetry import PrometheusMetrics

ALICE, OPS = new_key(), new_key()
CALLS = [
    ("GET", "plan", None),
    ("PUT", "pin", {"for_s": 60}),
    ("DELETE", "pin", None),
    ("PUT", "policy", {"policy": "all-heavy"}),
    ("PUT", "replicas", {"replicas": 4}),
    ("PUT", "replicas/replica-1/drain", {}),
    ("DELETE", "replicas/replica-1/drain", None),
    ("GET", "cache", None),
    ("POST", "cache/purge", {"tenant": "acme"}),
]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def balancer(pool, plan, family, profile, registry) -> Balancer:
    targets = ControlTargets("weir", FakeController(), FakeCache())
    metrics = PrometheusMetrics(registry)
    balancer = Balancer(
        pool,
        plan,
        family,
        BalancerSettings(slo_s=5.0, queued=64),
        profile=profile,
        connections=Connections(targets=targets, metrics=metrics),
    )
    await balancer.registry._take_in(await pool.describe())
    return balancer


@pytest.fixture
async def ops(balancer, family, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key of the scope admin."""
    keys = tmp_path / "keys.yaml"
    append_key(keys, KeyConfig(name="alice", sha256=digest(ALICE), tenant="acme"))
    append_key(keys, KeyConfig(name="ops", sha256=digest(OPS), tenant="ops", admin=True))
    app = create_app(balancer, family, callers=ApiKeys(keys))
    headers = {"authorization": f"Bearer {OPS}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://weir/v1/admin/", headers=headers) as client:
        yield client


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
@pytest.mark.parametrize("key", [ALICE, None], ids=["a key without the scope", "no key"])
async def test_a_key_without_the_scope_admin_is_refused_and_nothing_changes(ops, balancer, method, path, body, key):
    headers = {"authorization": f"Bearer {key}" if key else ""}
    answer = await ops.request(method, path, json=body, headers=headers)
    assert answer.status_code == (403 if key else 401)
    assert answer.json()["error"]["code"] == ("forbidden" if key else "invalid_api_key")
    assert not balancer.controls.log.recent
    assert balancer.controls.pins.current is None
    assert not balancer.registry.drained


@pytest.mark.parametrize("is_local", [True, False])
async def test_without_keys_only_a_service_on_the_loopback_interface_is_open(balancer, family, is_local):
    app = create_app(balancer, family, callers=ApiKeys(open_admin=is_local))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        answer = await client.get("/v1/admin/plan")
    assert answer.status_code == (200 if is_local else 403)


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
async def test_every_call_of_an_administrator_is_answered(ops, method, path, body):
    assert (await ops.request(method, path, json=body)).status_code == 200


async def test_the_plan_in_force_is_shown_with_its_reason_and_every_replica(ops):
    state = (await ops.get("plan")).json()
    assert state["plan"] | {"age_s": 0} == {
        "version": 1,
        "age_s": 0,
        "origin": "",
        "reason": "",
        "chain": [LIGHT, HEAVY],
        "thresholds": {LIGHT: 0.5},
        "replicas": {LIGHT: 1, HEAVY: 2},
        "batch": {LIGHT: 4, HEAVY: 4},
        "admitted_rps": None,
    }
    assert [(it["id"], it["role"], it["state"]) for it in state["replicas"]] == [
        ("replica-0", LIGHT, "serving"),
        ("replica-1", HEAVY, "serving"),
        ("replica-2", HEAVY, "serving"),
    ]
    assert (state["policy"], state["pin"], state["actions"]) == ("weir", None, [])


async def test_a_pin_is_shown_until_it_is_ended(ops, balancer):
    body = {"for_s": 60, "replicas": {LIGHT: 2, HEAVY: 1}, "reason": "a look"}
    state = (await ops.put("pin", json=body)).json()
    assert state["pin"]["replicas"] == {LIGHT: 2, HEAVY: 1}
    assert state["pin"]["reason"] == "pinned by ops: a look"
    assert 0 < state["pin"]["left_s"] <= 60
    assert balancer.counters()["pin"] is not None, "the controller learns of it"
    assert balancer.live()["pinned_until"] == state["pin"]["until"]
    assert (await ops.delete("pin")).json()["pin"] is None
    assert balancer.counters()["pin"] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "param", "words"),
    [
        ("PUT", "pin", {}, "for_s", "for_s is missing; accepted: seconds until the pin ends, from 1 to 604800"),
        ("PUT", "pin", {"for_s": -1}, "for_s", "for_s is -1; accepted: seconds until the pin ends, from 1 to 604800"),
        ("PUT", "pin", {"for_s": 1e12}, "for_s", "from 1 to 604800"),
        ("PUT", "pin", {"for_s": "60"}, "for_s", 'for_s is "60"'),
        ("PUT", "pin", {"for_s": 60, "replicas": {"huge": 3}}, "replicas.huge", "accepted: light, heavy"),
        ("PUT", "pin", {"for_s": 60, "replicas": {LIGHT: 9, HEAVY: 1}}, "replicas", "must add up to 3"),
        (
            "PUT",
            "pin",
            {"for_s": 60, "replicas": {LIGHT: -1, HEAVY: 4}},
            "replicas.light",
            "is -1; accepted: ",
        ),
        ("PUT", "pin", {"for_s": 60, "thresholds": {LIGHT: 1.5}}, "thresholds.light", "accepted: threshold in 0…1"),
        ("PUT", "pin", {"for_s": 60, "thresholds": {HEAVY: 0.5}}, "thresholds.heavy", "accepted: light"),
        ("PUT", "pin", {"for_s": 60, "thresholds": [0.5]}, "thresholds", "by variant"),
        ("PUT", "pin", {"for_s": 60, "batch": {LIGHT: 0}}, "batch.light", "from 1 to 256"),
        ("PUT", "pin", {"for_s": 60, "plan": {}}, "plan", "no field 'plan'; known fields: for_s, replicas"),
        ("PUT", "pin", {"for_s": 60, "reason": "x" * 201}, "reason", "at most 200 characters"),
        ("PUT", "pin", [], None, "the body has to be a JSON object with the fields for_s, replicas"),
        ("PUT", "policy", {}, "policy", "policy is missing"),
        ("PUT", "policy", {"policy": ""}, "policy", "name of a policy"),
        ("PUT", "replicas", {}, "replicas", "replicas is missing"),
        ("PUT", "replicas", {"replicas": 0}, "replicas", "a whole number from 1 to 100000"),
        ("PUT", "replicas", {"replicas": 2.5}, "replicas", "a whole number from 1 to 100000"),
        ("PUT", "replicas/replica-1/drain", {"force": "yes"}, "force", "true or false"),
        ("POST", "cache/purge", {}, "tenant", "null stands for every tenant"),
        ("POST", "cache/purge", {"tenant": ""}, "tenant", "name of the tenant"),
    ],
)
async def test_a_bad_body_is_refused_with_its_field_and_range(ops, balancer, method, path, body, param, words):
    answer = await ops.request(method, path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert words in error["message"]
    assert not balancer.controls.log.recent


async def test_a_body_that_is_not_json_is_refused(ops):
    answer = await ops.post("cache/purge", content=b'{"tenant": null}', headers={"content-type": "text/plain"})
    assert answer.status_code == 400, "browsers send this type to other origins without asking"
    answer = await ops.put("pin", content=b"{", headers={"content-type": "application/json"})
    assert "not valid JSON" in answer.json()["error"]["message"]


async def test_a_policy_that_the_controller_refuses_changes_nothing(ops, balancer):
    answer = await ops.put("policy", json={"policy": "argus"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "policy")
    assert balancer.counters()["policy"] == "weir"
    assert (await ops.put("policy", json={"policy": "all-heavy"})).json()["policy"] == "all-heavy"
    assert balancer.counters()["policy"] == balancer.live()["policy"] == "all-heavy"


async def test_replicas_are_drained_and_returned_and_the_last_one_needs_force(ops, balancer):
    unknown = await ops.put("replicas/nobody/drain", json={})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "id")
    for number in (0, 1):
        assert (await ops.put(f"replicas/replica-{number}/drain", json={})).status_code == 200
    last = await ops.put("replicas/replica-2/drain", json={})
    assert (last.status_code, last.json()["error"]["code"]) == (409, "conflict")
    assert balancer.counters()["ranks"] == [2]
    state = (await ops.put("replicas/replica-2/drain", json={"force": True})).json()
    assert {it["state"] for it in state["replicas"]} == {"drained"}
    assert balancer.live()["drained"] == 3
    state = (await ops.delete("replicas/replica-2/drain")).json()
    assert [it["state"] for it in state["replicas"]] == ["drained", "drained", "serving"]
    assert (await ops.delete("replicas/nobody/drain")).status_code == 404


async def test_the_pool_gets_another_number_of_replicas(ops, balancer):
    answer = await ops.put("replicas", json={"replicas": 5})
    assert (answer.status_code, answer.json()["size"]) == (200, 5)
    assert balancer.counters()["size"] == 5
    assert answer.json()["actions"][0]["what"] == "5 replicas instead of 3"
    await ops.put("replicas", json={"replicas": 5})
    assert balancer.controls.log.counts["scale"] == 1, "what changes nothing is no action"


async def test_metrics_count_actions_and_show_pins_and_drained_replicas(ops, balancer, registry):
    await ops.put("pin", json={"for_s": 60})
    await ops.put("replicas/replica-1/drain", json={})
    balancer.record_metrics()
    assert registry.get_sample_value("weir_pinned") == 1
    assert registry.get_sample_value("weir_drained_replicas") == 1
    assert registry.get_sample_value("weir_plan_replicas", {"role": HEAVY}) == 1, "a drained one is not missing"
    for action in ("pin", "drain"):
        assert registry.get_sample_value("weir_admin_actions_total", {"action": action}) == 1
