"""Service files for benchmarks and tests: changed copies of shipped files, and services of emulated workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from controller.registry import make_policy
from controller.setting import Setting
from weir.config import PlanConfig
from weir.profiles import load_profile


def service_file(shipped: Path, path: Path, *, policy: str, slo_s: float, **changes: Any) -> Path:
    """Writes a changed copy of the shipped service file to ``path``. Paths become absolute.

    Under a policy the service starts with the first plan of the policy, for the number of replicas of the shipped plan.
    The limit of queued requests is raised, so that the policy alone decides which requests are refused.

    Args:
        policy: name of the policy; ``static`` keeps the shipped plan.
        changes: keys of the file; a mapping is merged into the existing one.
    """
    fields: dict[str, Any] = yaml.safe_load(shipped.read_text())
    for key, value in changes.items():
        fields[key] = fields.get(key, {}) | value if isinstance(value, dict) else value
    fields |= {"slo_s": slo_s, "controller": {"policy": policy}}
    fields["limits"] = fields.get("limits", {}) | {"queued": 100_000}
    for holder, key in ((fields, "family"), (fields, "profile"), (fields.get("pool", {}), "emulate")):
        if holder.get(key):
            holder[key] = str((shipped.parent / holder[key]).resolve())
    cache = fields.get("cache", {})
    for key in ("selector", "levels", "predictor"):  # files, or names of published ones
        if (file := (shipped.parent / str(cache.get(key))).resolve()).is_file():
            cache[key] = str(file)
    if policy != "static":
        replicas = PlanConfig.model_validate(fields["plan"]).size
        profile = load_profile(fields.get("profile") or fields["pool"]["emulate"])
        plan = make_policy(policy, Setting.of(profile, replicas, slo_s)).first_plan()
        fields["plan"] = {
            "replicas": {key: plan.count(key) for key in plan.chain},
            "batch": {key: plan.batch_size(key) for key in plan.chain},
            "thresholds": dict(zip(plan.chain, plan.thresholds, strict=False)),
        }
    path.write_text(yaml.safe_dump(fields))
    return path


def emulated_service(
    folder: Path,
    name: str,
    *,
    light_s: tuple[float, float],
    heavy_s: tuple[float, float],
    stepwise: bool = False,
    **fields: Any,
) -> Path:
    """Writes the service file of emulated workers with its family and profile.

    Args:
        name: name of the family and of the file.
        light_s, heavy_s: seconds of batches of one and of four images.
        stepwise: whether images join and leave at every step, as on real workers, or at the ends of batches.
        fields: fields of the service file.
    """
    variants = {"light": (2, 1, light_s), "heavy": (50, 2, heavy_s)}
    family = {"name": name, "pipeline": "none/emulated", "size": 64} | {
        role: {"name": f"{name}-{role}", "scheduler": "ddim", "steps": steps, "guidance": guidance}
        for role, (steps, guidance, _) in variants.items()
    }
    profile = {"family": name, "device": "none"} | {
        role: {"name": f"{name}-{role}", "steps": steps, "batch_sizes": [1, 4], "latency_s": list(seconds)}
        for role, (steps, _, seconds) in variants.items()
    }
    if stepwise:
        for role, (steps, _, seconds) in variants.items():
            fixed = dict.fromkeys(("text_s", "decode_s"), 0.0)
            profile[role] |= {"step_s": [it / steps for it in seconds], "fixed": fixed}  # type: ignore[operator]
    (folder / "family.yaml").write_text(yaml.safe_dump(family))
    (folder / "profile.json").write_text(json.dumps(profile))
    path = folder / f"{name}.yaml"
    pool = {"emulate": "profile.json"} | fields.pop("pool", {})
    path.write_text(yaml.safe_dump({"family": "family.yaml", "pool": pool} | fields))
    return path
