"""A family without weights and a profile that makes it quick."""

from typing import Any

FAMILY: dict[str, Any] = {
    "name": "toy",
    "pipeline": "nobody/nothing",
    "size": 64,
    "sizes": [32],
    "light": {"name": "toy-light", "scheduler": "ddim", "steps": 2, "guidance": 1},
    "heavy": {"name": "toy-heavy", "scheduler": "ddim", "steps": 50, "guidance": 2},
}
PROFILE: dict[str, Any] = {
    "family": "toy",
    "device": "none",
    "light": {"name": "toy-light", "steps": 2, "batch_sizes": [1, 4], "latency_s": [0.02, 0.05]},
    "heavy": {"name": "toy-heavy", "steps": 50, "batch_sizes": [1, 4], "latency_s": [0.1, 0.25]},
}
