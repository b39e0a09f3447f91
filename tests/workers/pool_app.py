"""A minimal Serve application with a pool of workers."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from workers.replica import Worker


def build(arguments: dict[str, Any]) -> Application:
    options: dict[str, Any] = {"name": "Worker", "num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}
    return serve.deployment(Worker, **options).bind(arguments["family"], arguments["plan"], arguments["emulate"])
