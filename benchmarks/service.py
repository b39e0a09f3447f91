"""Service files for benchmarks: one that ships, with another policy, deadline or profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from controller.policies import make_policy
from controller.setting import Setting
from weir.core import Role
from weir.profiles import load_profile


def service_file(shipped: Path, path: Path, *, policy: str, slo_s: float, **changes: Any) -> Path:
    """Writes the shipped service file, changed, to ``path``. Paths become absolute.

    Under a policy the service starts with that policy's first plan, on as many replicas as the shipped one has. No
    request is refused because many are in flight: that is the policy's to decide.

    Args:
        policy: ``static`` keeps the shipped plan.
        changes: keys of the file; a mapping is merged into the one that is there.
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
        replicas = fields["plan"]["light_replicas"] + fields["plan"]["heavy_replicas"]
        profile = load_profile(fields.get("profile") or fields["pool"]["emulate"])
        plan = make_policy(policy, Setting.of(profile, replicas, slo_s)).first_plan()
        fields["plan"] |= {
            "light_replicas": plan.count(Role.LIGHT),
            "heavy_replicas": plan.count(Role.HEAVY),
            "threshold": plan.threshold,
        } | {f"{a.role}_batch": a.batch_size for a in plan.assignments}
    path.write_text(yaml.safe_dump(fields))
    return path
