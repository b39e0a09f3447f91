"""A service of emulated workers in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.toy_family import FAMILY, PROFILE


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
