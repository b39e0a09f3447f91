"""Tests of the Serve configuration of a service: two plans differ only in fields that restart no replica."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.serve_config import (
    ANYWHERE,
    APPLICATION,
    BALANCER,
    CACHE,
    ENCODER,
    ON_HEAD,
    deployed,
    located,
    most_on_one_node,
    placement,
    render,
    with_plan,
)
from tests.deploy.conftest import toy_service
from weir.assets import ROOT
from weir.config import load_service
from weir.errors import NotReady, PlanError
from weir.plan import Plan


def plan(version: int = 1, light: int = 1, heavy: int = 2, threshold: float = 0.5) -> Plan:
    return Plan.split(version, light, heavy, light_batch=4, heavy_batch=2, threshold=threshold)


SERVICE = ROOT / "deploy" / "configs" / "weir-tiny.yaml"


def rendered(path: Path = SERVICE, controlled: bool = True) -> dict[str, Any]:
    return render(path, host="127.0.0.1", port=8000, controlled=controlled)


def test_the_configuration_is_valid_for_serve(serve_schema):
    serve_schema.model_validate(with_plan(rendered(), plan()))


def test_the_controller_is_included_when_requested():
    assert [it["name"] for it in rendered()["applications"]] == ["weir", "weir-controller"]
    assert [it["name"] for it in rendered(controlled=False)["applications"]] == ["weir"]


def test_a_file_of_the_checkout_is_found_at_any_location_of_the_checkout(config, monkeypatch):
    named = rendered(SERVICE)["applications"][0]["args"]["config"]
    assert named == "deploy/configs/weir-tiny.yaml"
    monkeypatch.chdir(config.parent)
    assert located(named) == SERVICE
    other = rendered(Path(config.name))["applications"][0]["args"]["config"]
    assert located(other) == config == Path(other)


@pytest.mark.parametrize("changed", ["toy.yaml", "family.yaml", "profile.json"])
def test_a_changed_file_of_the_same_name_changes_the_configuration(config, changed):
    before = [it["args"] for it in rendered(config)["applications"]]
    assert [it["args"] for it in rendered(config)["applications"]] == before
    path = config.parent / changed
    path.write_text(path.read_text().replace("10", "11") + "\n")
    after = [it["args"] for it in rendered(config)["applications"]]
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_the_pool_has_a_replica_for_every_assignment_and_both_deployments_get_the_same_plan():
    pool, balancer = with_plan(rendered(), plan())["applications"][0]["deployments"]
    assert (pool["name"], pool["num_replicas"]) == ("Pool", 3)
    assert pool["user_config"] == balancer["user_config"] == plan().to_dict()


plans = st.builds(plan, st.integers(1, 99), st.integers(0, 8), st.integers(1, 8), st.floats(0, 1))


@given(plans, plans)
def test_two_plans_differ_only_in_fields_that_restart_no_replica(one, other):
    first, second = with_plan(rendered(), one), with_plan(rendered(), other)
    for body in (first, second):
        json.dumps(body, allow_nan=False)
        for deployment in body["applications"][0]["deployments"]:
            deployment.pop("num_replicas", None)
            Plan.from_dict(deployment.pop("user_config"))
    assert first == second


#: A deployed configuration with more fields than ``render`` writes.
RICH: dict[str, Any] = {
    "proxy_location": "EveryNode",
    "http_options": {"host": "0.0.0.0", "port": 80, "request_timeout_s": 60.0},
    "applications": [
        {
            "name": APPLICATION,
            "route_prefix": "/weir",
            "import_path": "deploy.app:build",
            "args": {"config": "a.yaml"},
            "runtime_env": {"env_vars": {"HF_HOME": "/weights"}},
            "deployments": [
                {"name": "Cache", "ray_actor_options": {"num_cpus": 1}},
                {"name": "Pool", "num_replicas": 1},
            ],
        },
        {"name": "another", "route_prefix": "/other", "import_path": "other:app"},
    ],
}


def answered(body: dict[str, Any]) -> dict[str, Any]:
    """Returns the response of ``GET`` for a deployed configuration."""
    applications = {it["name"]: {"status": "RUNNING", "deployed_app_config": it} for it in body["applications"]}
    by_code = {"by code": {"status": "RUNNING", "deployed_app_config": None}}
    about = {"controller_info": {}, "grpc_options": None, "target_capacity": None, "proxies": {}}
    return {**about, **body, "applications": applications | by_code}


def test_a_plan_leaves_the_rest_of_the_deployed_configuration_unchanged():
    assert deployed(answered(RICH)) == RICH
    changed = with_plan(deployed(answered(RICH)), plan(version=7))
    cache, pool, balancer = changed["applications"][0].pop("deployments")
    assert cache == RICH["applications"][0]["deployments"][0]
    assert (pool["num_replicas"], pool["user_config"]["version"], balancer["user_config"]["version"]) == (3, 7, 7)
    unplanned = {key: value for key, value in RICH["applications"][0].items() if key != "deployments"}
    assert changed == {**RICH, "applications": [unplanned, RICH["applications"][1]]}


def test_the_target_capacity_of_the_deployment_is_kept():
    assert deployed({**answered(RICH), "target_capacity": 40.0})["target_capacity"] == 40.0


def test_a_plan_that_is_not_newer_is_refused():
    body = with_plan(RICH, plan(version=7))
    for version in (6, 7):
        with pytest.raises(PlanError, match=f"plan {version} is outdated: plan 7 is deployed"):
            with_plan(body, plan(version))


def test_a_configuration_without_the_application_is_an_error():
    with pytest.raises(NotReady, match="no application weir is deployed"):
        with_plan(deployed({"applications": {}}), plan())


@pytest.mark.parametrize("version", [10**30, True, 1.5, "9", None, 2**53])
def test_a_plan_that_no_replica_follows_does_not_keep_the_next_one_from_being_deployed(version):
    body = with_plan(RICH, plan(version=7))
    for deployment in body["applications"][0]["deployments"]:
        if "user_config" in deployment:
            deployment["user_config"] = {**deployment["user_config"], "version": version}
    [pool] = [it for it in with_plan(body, plan(8))["applications"][0]["deployments"] if it["name"] == "Pool"]
    assert pool["user_config"]["version"] == 8


EVERYWHERE = {"balancers": 2, "http": {"host": "0.0.0.0", "port": 0}}
SHADOWED = {"cache": {"mode": "read", "levels": "head.safetensors", "shadow": 0.1}}


@pytest.mark.parametrize(
    ("fields", "on_head"),
    [
        ({}, {BALANCER, CACHE, ENCODER}),
        (EVERYWHERE, set()),
        (EVERYWHERE | {"http": {"host": "127.0.0.1", "port": 0}}, {BALANCER, CACHE, ENCODER}),
        (EVERYWHERE | SHADOWED, {CACHE}),
    ],
    ids=["one load balancer", "several", "several on one address", "a level head that is replaced on the head node"],
)
def test_cache_and_encoders_run_where_the_load_balancers_do(
    tmp_path: Path, fields: dict[str, Any], on_head: set[str]
) -> None:
    service, _ = load_service(toy_service(tmp_path, **fields))
    options = placement(service)
    assert {name for name in options if options[name] == ON_HEAD} == on_head
    assert {name for name in options if options[name] == ANYWHERE} == options.keys() - on_head


@pytest.mark.parametrize(("balancers", "nodes", "most"), [(2, 1, 2), (2, 2, 1), (2, 5, 1), (3, 2, 2), (4, 0, 4)])
def test_load_balancers_are_spread_over_the_nodes_as_evenly_as_they_can(balancers, nodes, most):
    assert most_on_one_node(balancers, nodes) == most
