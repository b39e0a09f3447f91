"""The Serve configuration of a service, and the insertion of plans into it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weir.assets import ROOT
from weir.config import ServiceConfig, load_service
from weir.errors import NotReady, PlanError
from weir.plan import MOST_AHEAD, Plan, is_version

#: Name of the application that serves images, and names of its deployments.
APPLICATION = "weir"
POOL = "Pool"
CACHE = "Cache"
ENCODER = "Encoder"
BALANCER = "LoadBalancer"
#: Name of the application that plans. It is separate, so that its failures do not affect the application that serves.
CONTROLLER_APPLICATION = "weir-controller"
CONTROLLER = "Controller"
#: Ray options of what runs on the head node.
ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
#: Ray options of what runs on any node where load balancers do. It reserves no processor, because a service has to
#: start where the pool has taken all of them; Serve spreads the replicas.
ANYWHERE = {"num_cpus": 0}


def render(
    config_path: Path | str, *, host: str, port: int, controlled: bool, every_node: bool = False
) -> dict[str, Any]:
    """Returns the configuration of a service for ``PUT /api/serve/applications/`` and ``serve deploy``.

    A service file inside the repository is named relative to it, because the repository has another path on a cluster.
    The arguments include a digest of the file: Serve detects changes by comparing arguments and would miss a changed
    file.

    Args:
        controlled: whether to include the controller.
        every_node: whether every node answers requests, or the head node only.

    Raises:
        ConfigError: the file or its family is invalid.
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
        "proxy_location": "EveryNode" if every_node else "HeadOnly",
        "http_options": {"host": host, "port": port},
        "applications": [serving, planning] if controlled else [serving],
    }


def placement(service: ServiceConfig) -> dict[str, dict[str, Any]]:
    """Returns the Ray options of the load balancers, the cache and its encoders.

    The three run on the same nodes, so that the loss of the head node takes none of them for good. Only a cache whose
    level head the controller may replace stays on the head node, because the controller does that in a file there.
    """
    nodes = ANYWHERE if service.on_every_node else ON_HEAD
    return {BALANCER: nodes, CACHE: ON_HEAD if service.cache.shadow else nodes, ENCODER: nodes}


def most_on_one_node(balancers: int, nodes: int) -> int:
    """The largest number of load balancers on one of the nodes. Else all of them could be on one, after another one was
    away for a while, and the loss of that one would leave none."""
    return max(1, math.ceil(balancers / max(1, nodes)))


def digest(path: Path) -> str:
    """Returns a hash of a service file with its family and profiles, which changes with any of them.

    Raises:
        ConfigError: the file or its family is invalid.
    """
    service, _ = load_service(path)
    named = (service.family, service.profile, service.pool.emulate)
    files = (path, *map(Path, filter(None, named)))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def located(config: str) -> Path:
    """Returns the path of the service file that :func:`render` named, on the node that reads it."""
    return ROOT / config


def with_plan(body: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Returns the configuration with another plan, which changes only the number of replicas and ``user_config``.

    Only these changes leave every replica running; any other change restarts the application.

    Raises:
        NotReady: the configuration has no application of Weir.
        PlanError: the deployed plan has the same version or a newer one.
    """
    application = next((it for it in body["applications"] if it["name"] == APPLICATION), None)
    if application is None:
        raise NotReady(f"no application {APPLICATION} is deployed by a configuration; use `weir up` or `serve deploy`")
    deployments = {it["name"]: it for it in application.get("deployments", ())}
    current = followed_version(deployments.get(POOL, {}).get("user_config"), plan)
    if current >= plan.version:
        raise PlanError(f"plan {plan.version} is outdated: plan {current} is deployed")
    fields = plan.to_dict()
    for name, more in ((POOL, {"num_replicas": len(plan.assignments)}), (BALANCER, {})):
        deployments[name] = {"name": name, **deployments.get(name, {}), **more, "user_config": fields}
    changed = {**application, "deployments": list(deployments.values())}
    return {**body, "applications": [changed if it is application else it for it in body["applications"]]}


def followed_version(user_config: Mapping[str, Any] | None, plan: Plan) -> int:
    """The version of a deployed plan; 0 if it is none, or so far ahead of ``plan`` that no replica follows it.

    So a plan that was deployed by mistake does not keep the next one from being published.
    """
    version = (user_config or {}).get("version", 0)
    return version if is_version(version) and version - plan.version <= MOST_AHEAD else 0


def deployed(details: Mapping[str, Any]) -> dict[str, Any]:
    """Extracts the deployed configuration from the response of ``GET /api/serve/applications/``.

    The next configuration must contain all of it, because Serve deletes applications that a configuration leaves out.
    """
    kept = ("proxy_location", "http_options", "grpc_options", "target_capacity")
    applications = [
        it["deployed_app_config"] for it in details["applications"].values() if it.get("deployed_app_config")
    ]
    return {**{key: details[key] for key in kept if details.get(key) is not None}, "applications": applications}
