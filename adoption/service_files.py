"""Writes the files of an adopted service: family, discriminators, profile, cache profile, level head and service."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from adoption.context import Context
from adoption.demands import first_plan, rows_by_demand
from weir.config import CLIP_SCORE, load_service
from weir.files import make_folder, written_whole
from weir.own_code import is_own
from weir.plan import Plan
from weir.profiles import Profile

FAMILY, PROFILE, SERVICE, CACHE, LEVELS = (
    "family.yaml",
    "profile.json",
    "service.yaml",
    "cache.json",
    "levels.safetensors",
)
_ABOUT = "# Written by `weir adopt`; report.html explains it.\n"
#: Replicas of one machine without GPUs share its cores.
_CPUS_PER_REPLICA = 1.0


def write_files(context: Context, out: Path) -> dict[str, Any]:
    """Writes all files to the folder ``out``, checks the service, and returns its first plan and its demands."""
    make_folder(out)
    ladder = context.done("ladder")
    keys = [*ladder["lighter"], context.last]
    profile = Profile.model_validate(context.done("calibration"))
    profile = profile.model_copy(update={"variants": {key: profile.variants[key] for key in keys}})
    _write(out / FAMILY, _ABOUT + _yaml(_family(context, keys, out)))
    _write(out / PROFILE, profile.model_dump_json(indent=1) + "\n")
    for stage, name in (("cache", CACHE), ("levels", LEVELS)):
        if file := context.done(stage).get("file"):
            _copy(Path(file), out / name)
    plan = first_plan(profile, context.choices.replicas, ladder["slo_s"])
    _write(out / SERVICE, _ABOUT + _yaml(_service(context, plan, ladder["slo_s"])))
    load_service(out / SERVICE)
    rows = rows_by_demand(profile, context.choices.replicas, ladder["slo_s"], context.choices.demand_rps)
    return {
        "variants": keys,
        "plan": {"roles": _roles(plan), "thresholds": list(plan.thresholds), "reason": plan.reason},
        "slo_s": ladder["slo_s"],
        "demands": [row.to_dict() for row in rows],
    }


def _family(context: Context, keys: list[str], out: Path) -> dict[str, Any]:
    """The fields of the family file: those given, with the chosen variants and their discriminators."""
    family, chosen = context.family, context.done("discriminators")
    fields = family.model_dump(mode="json", exclude_defaults=True)
    variants = {}
    for key in keys:
        variant = family.variants[key].model_dump(mode="json", exclude_defaults=True)
        variant.pop("discriminator", None)
        if key != context.last:
            variant["discriminator"] = _discriminator(str(chosen[key]["discriminator"]), key, context, out)
        variants[key] = variant
    fields["variants"] = variants
    return fields


def _discriminator(reference: str, key: str, context: Context, out: Path) -> str:
    """What the family file names; a discriminator that was trained here is copied beside the file."""
    trained = context.results.folder("discriminators")
    if reference == CLIP_SCORE or is_own(reference) or Path(reference).parent != trained:
        return reference
    folder = out / "discriminators" / key
    make_folder(folder.parent)
    fresh = folder.with_name(f".{key}.{os.getpid()}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(reference, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return f"discriminators/{key}"


def _service(context: Context, plan: Plan, slo_s: float) -> dict[str, Any]:
    cached, levels = context.done("cache")["made"], context.done("levels")["fitted"]
    roles, chain = _roles(plan), plan.chain
    thresholds = dict(zip(chain[:-1], (round(t, 4) for t in plan.thresholds), strict=True))
    on_gpus = context.device.startswith("cuda")
    pool = {"gpus_per_replica": 1} if on_gpus else {"cpus_per_replica": _CPUS_PER_REPLICA}
    fields: dict[str, Any] = {
        "family": FAMILY,
        "profile": PROFILE,
        "slo_s": slo_s,
        "plan": {
            "replicas": {key: roles.get(key, 0) for key in chain},
            "batch": {key: plan.batch_size(key) for key in chain if roles.get(key)},
            "thresholds": thresholds,
        },
        "controller": {"policy": "weir"},
        "pool": pool,
        "http": {"host": "127.0.0.1", "port": 8000},
    }
    if cached:
        fields["cache"] = {"mode": "read-write", "selector": CACHE} | ({"levels": LEVELS} if levels else {})
    return fields


def _roles(plan: Plan) -> dict[str, int]:
    return {role: plan.count(role) for role in plan.roles}


def _yaml(fields: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110)
    return text


def _write(path: Path, text: str) -> None:
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _copy(source: Path, path: Path) -> None:
    with written_whole(path) as draft:
        shutil.copyfile(source, draft)
