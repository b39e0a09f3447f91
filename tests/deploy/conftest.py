"""A service of emulated workers in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

FAMILY: dict[str, Any] = {
    "name": "toy",
    "pipeline": "nobody/nothing",
    "size": 64,
    "light": {"name": "toy-light", "scheduler": "ddim", "steps": 2, "guidance": 1},
    "heavy": {"name": "toy-heavy", "scheduler": "ddim", "steps": 50, "guidance": 2},
}
PROFILE: dict[str, Any] = {
    "family": "toy",
    "device": "none",
    "light": {"name": "toy-light", "steps": 2, "batch_sizes": [1, 4], "latency_s": [0.02, 0.05]},
    "heavy": {"name": "toy-heavy", "steps": 50, "batch_sizes": [1, 4], "latency_s": [0.1, 0.25]},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(FAMILY))
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    service = {
        "family": "family.yaml",
        "slo_s": 10,
        "plan": {"light_replicas": 1, "heavy_replicas": 1},
        "controller": {"policy": "weir"},
        "pool": {"cpus_per_replica": 0.1, "emulate": "profile.json"},
        "http": {"port": 0},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(service))
    return path
