"""Replicas in a local Ray Serve: plans arrive as ``user_config`` without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster import cluster
from tests.workers.samples import image_request, profile
from weir.config import FamilyConfig
from weir.plan import Plan

pytestmark = [
    # Ray and the subprocesses that it starts leave their sockets and pipes to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


def plan(version: int, light: int, heavy: int) -> dict[str, Any]:
    return Plan.split(version, light, heavy, light_batch=2, heavy_batch=3, threshold=0.5).to_dict()


@pytest.fixture(scope="module")
def serve_instance() -> Iterator[Any]:
    with cluster(cpus=2):
        from ray import serve

        serve.start(proxy_location="Disabled")
        yield serve
        serve.shutdown()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end, "the condition did not hold within three minutes"
        time.sleep(0.05)


def test_plans_change_roles_without_a_restart_and_an_invalid_plan_changes_nothing(
    serve_instance: Any, embedded: FamilyConfig, tmp_path: Path
) -> None:
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    path = tmp_path / "profile.json"
    path.write_text(profile(1e-9, 1e-9).model_dump_json())
    arguments = {"family": embedded.model_dump(), "plan": plan(1, 1, 1), "emulate": str(path)}

    def publish(user_config: dict[str, Any]) -> None:
        """Deploys the application as ``PUT /api/serve/applications/`` does."""
        application = {
            "name": "pool",
            "route_prefix": None,
            "import_path": "tests.workers.pool_app:build",
            "args": arguments,
            "deployments": [{"name": "Worker", "num_replicas": 2, "user_config": user_config}],
        }
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))

    def described() -> list[dict[str, Any]]:
        handle = serve_instance.get_app_handle("pool")
        return sorted(handle.broadcast("describe").results(timeout_s=30), key=lambda d: d["rank"])

    def roles() -> list[str]:
        return [d["role"] for d in described()]

    publish(plan(1, 1, 1))
    until(lambda: serve_instance.status().applications["pool"].status == "RUNNING")
    until(lambda: roles() == ["light", "heavy"])
    replicas = [d["replica"] for d in described()]
    assert [d["batch_size"] for d in described()] == [2, 3]
    handle = serve_instance.get_app_handle("pool")
    result = handle.generate.remote("light", image_request().to_dict()).result(timeout_s=30)
    assert result["error"] is None
    assert result["replica"] in replicas

    publish(plan(2, 2, 0))
    until(lambda: roles() == ["light", "light"])
    assert [d["plan_version"] for d in described()] == [2, 2]

    publish(plan(3, 0, 2) | {"thresholds": [7]})
    publish(plan(3, 0, 2) | {"assignments": "nonsense"})
    time.sleep(1)  # there is no condition to wait for: nothing must change
    until(lambda: len(roles()) == 2)
    assert roles() == ["light", "light"]

    publish(plan(4, 0, 2))
    until(lambda: roles() == ["heavy", "heavy"])
    assert [d["replica"] for d in described()] == replicas
    assert serve_instance.status().applications["pool"].status == "RUNNING"
