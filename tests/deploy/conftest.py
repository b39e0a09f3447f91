"""Fixtures with a service of emulated workers in a separate folder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.toy_family import FAMILY, PROFILE

with warnings.catch_warnings():  # Ray's models warn of pydantic's future at import
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401


def toy_service(folder: Path, **more: Any) -> Path:
    """Writes a service file with its family and profile."""
    (folder / "family.yaml").write_text(yaml.safe_dump(FAMILY))
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    service = {
        "family": "family.yaml",
        "slo_s": 10,
        "plan": {"light_replicas": 1, "heavy_replicas": 1},
        "controller": {"policy": "weir"},
        "pool": {"cpus_per_replica": 0.1, "emulate": "profile.json"},
        "http": {"port": 0},
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(service | more))
    return path


@pytest.fixture(scope="session")
def serve_schema() -> Any:
    """Ray Serve's schema of a configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Ray does with pydantic
        from ray.serve.schema import ServeDeploySchema
    return ServeDeploySchema


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return toy_service(tmp_path)
