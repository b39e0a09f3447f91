"""The Serve configuration of a service: what ``serve deploy`` takes, and how a plan gets into it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weir.assets import ROOT
from weir.config import load_service
from weir.errors import NotReady, PlanError
from weir.plan import Plan

#: The application that serves, and its deployments.
APPLICATION = "weir"
POOL = "Pool"
CACHE = "Cache"
BALANCER = "LoadBalancer"
#: The application that plans. It is one of its own, so that whatever happens to it, the other one stays as it is.
CONTROLLER_APPLICATION = "weir-controller"
CONTROLLER = "Controller"
#: What there is one of lies on the head node, which the cluster cannot do without anyway.
ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}


def render(config_path: Path | str, *, host: str, port: int, controlled: bool) -> dict[str, Any]:
    """What ``PUT /api/serve/applications/`` and ``serve deploy`` take, for the service of a file.

    A service file that comes with the code is named relative to it, for on a cluster the code lies elsewhere. Its
    digest is beside its name: Serve compares arguments to see what has changed, and would take a changed file for the
    same.

    Args:
        controlled: whether a controller comes along.

    Raises:
        ConfigError: the file or its family is wrong.
    """
    path = Path(config_path).resolve()
    args = {
        "config": str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path),
        "digest": digest(path),
    }
    serving = {"name": APPLICATION, "route_prefix": "/", "import_path": "deploy.app:build", "args": args}
    planning = {
        "name": CONTROLLER_APPLICATION,
        "route_prefix": None,
        "import_path": "deploy.control:build",
        "args": dict(args),
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port},
        "applications": [serving, planning] if controlled else [serving],
    }


def digest(path: Path) -> str:
    """Tells a service file, with the family and the profiles that it names, from what they were before a change.

    Raises:
        ConfigError: the file or its family is wrong.
    """
    service, _ = load_service(path)
    named = (service.family, service.profile, service.pool.emulate)
    files = (path, *map(Path, filter(None, named)))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def located(config: str) -> Path:
    """The service file that :func:`render` named, on the node that reads it."""
    return ROOT / config


def with_plan(body: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """A configuration with another plan; two plans differ only in the number of replicas and in ``user_config``.

    Only such differences leave every replica running; a change of anything else restarts the application.

    Raises:
        NotReady: the configuration has no application of ours.
        PlanError: its plan is as new as this one.
    """
    application = next((it for it in body["applications"] if it["name"] == APPLICATION), None)
    if application is None:
        raise NotReady(f"no application {APPLICATION} is deployed by a configuration; use `weir up` or `serve deploy`")
    deployments = {it["name"]: it for it in application.get("deployments", ())}
    there = (deployments.get(POOL, {}).get("user_config") or {}).get("version", 0)
    if there >= plan.version:
        raise PlanError(f"plan {plan.version} came too late: plan {there} is deployed")
    fields = plan.to_dict()
    for name, more in ((POOL, {"num_replicas": len(plan.assignments)}), (BALANCER, {})):
        deployments[name] = {"name": name, **deployments.get(name, {}), **more, "user_config": fields}
    changed = {**application, "deployments": list(deployments.values())}
    return {**body, "applications": [changed if it is application else it for it in body["applications"]]}


def deployed(details: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that is deployed, from what ``GET /api/serve/applications/`` answers.

    Everything of it goes into the next one: Serve takes down what a configuration leaves out.
    """
    kept = ("proxy_location", "http_options", "grpc_options", "target_capacity")
    applications = [
        it["deployed_app_config"] for it in details["applications"].values() if it.get("deployed_app_config")
    ]
    return {**{key: details[key] for key in kept if details.get(key) is not None}, "applications": applications}
