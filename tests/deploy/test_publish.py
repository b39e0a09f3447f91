"""A plan travels in one PUT, and only what does not restart anything differs between two of them."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.publish import is_applied, render
from weir.core import Plan
from weir.errors import NotReady


def plan(version: int = 1, light: int = 1, heavy: int = 2, threshold: float = 0.5) -> Plan:
    return Plan.split(version, light, heavy, light_batch=4, heavy_batch=2, threshold=threshold)


def rendered(plan: Plan) -> dict[str, Any]:
    return render("service.yaml", plan, host="127.0.0.1", port=8000)


def test_the_pool_has_a_replica_for_every_assignment_and_both_deployments_get_the_same_plan():
    pool, balancer = rendered(plan())["applications"][0]["deployments"]
    assert (pool["name"], pool["num_replicas"]) == ("Pool", 3)
    assert pool["user_config"] == balancer["user_config"] == plan().to_dict()


plans = st.builds(plan, st.integers(1, 99), st.integers(0, 8), st.integers(1, 8), st.floats(0, 1))


@given(plans, plans)
def test_two_plans_differ_only_where_no_replica_restarts(one, other):
    first, second = rendered(one), rendered(other)
    for body in (first, second):
        json.dumps(body, allow_nan=False)
        for deployment in body["applications"][0]["deployments"]:
            deployment.pop("num_replicas", None)
            Plan.from_dict(deployment.pop("user_config"))
    assert first == second


def details(**more: Any) -> dict[str, Any]:
    pool = {
        "message": "",
        "replicas": [{"state": "RUNNING"}] * 3,
        "deployment_config": {"user_config": plan().to_dict()},
    }
    return {"applications": {"weir": {"status": "RUNNING", "message": "", "deployments": {"Pool": pool}, **more}}}


def test_a_plan_is_applied_when_the_application_runs_it_on_all_replicas():
    assert is_applied(details(), plan())


def test_it_is_not_while_anything_is_still_under_way():
    assert not is_applied({}, plan())
    assert not is_applied(details(status="DEPLOYING"), plan())
    assert not is_applied(details(), plan(version=2))
    starting = deepcopy(details())
    starting["applications"]["weir"]["deployments"]["Pool"]["replicas"][0]["state"] = "STARTING"
    assert not is_applied(starting, plan())


def test_a_failed_deployment_says_why():
    with pytest.raises(NotReady, match="no such model"):
        is_applied(details(status="DEPLOY_FAILED", message="no such model"), plan())
