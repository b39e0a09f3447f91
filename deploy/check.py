"""``weir check``: detects the kind of a file, validates it and describes its content.

The kind follows from the content: the top-level keys, the header of a CSV file, or the tensors of a safetensors file.
Every kind is read by the same loader as in the other commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cache.policy.predictor import MatchPredictor
from cache.policy.resume_quality import resumed_share
from cache.policy.selector import load_selector
from deploy.local import checked
from traces.loader import FORMS, load_trace
from weir.approximation_levels import Ladder, load_ladder
from weir.config import FamilyConfig, ServiceConfig, load_family, load_keys
from weir.errors import ConfigError, PlanError
from weir.json_files import parsed_json, read_json
from weir.plan import Plan
from weir.profiles import Profile, load_profile
from weir.prompt_levels import LevelHead
from weir.yaml_files import read_mapping
from workers.models.checkpoint import check_family


@dataclass(frozen=True, slots=True)
class Check:
    """The description of a valid file.

    Attributes:
        kind: kind of the file, such as ``service``.
        details: sentences that describe its content.
    """

    kind: str
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    keys: Collection[str]
    read: Callable[[Path], tuple[str, ...]]


def check(path: Path) -> Check:
    """Reads a file, or a folder of dashboards.

    Raises:
        ConfigError: the file is invalid or of an unknown kind; the message names the file and the key, the line or the
            remedy.
    """
    if path.is_dir():
        return Check("folder of dashboards", _dashboards(path))
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file")
    if not path.is_file():
        raise ConfigError(f"{path}: is a device, a pipe or a socket; name a file")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _weights(path)
    fields = _fields(path)
    if fields is None:
        return Check("trace", _trace(path))
    kind = max(KINDS, key=lambda kind: len(set(kind.keys) & set(fields)))
    if not fields or 2 * len(set(kind.keys) & set(fields)) < len(fields):
        raise ConfigError(
            f"{path}: cannot tell what it is from the keys {', '.join(map(str, fields)) or '(none)'}; known are a "
            f"{', '.join(it.name for it in KINDS)}, a trace ({FORMS}), a level head and a folder of dashboards"
        )
    return Check(kind.name, kind.read(path))


def _fields(path: Path) -> dict[str, Any] | None:
    """Reads the keys and values of a YAML or JSON file. Returns None for other text, which can only be a trace.

    Raises:
        ConfigError: the suffix is that of YAML or JSON, and the content is not. The message does not quote the file,
            which may contain API keys.
    """
    try:
        fields = parsed_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        if path.suffix == ".json":
            line = f" from line {error.lineno} on" if isinstance(error, json.JSONDecodeError) else ""
            raise ConfigError(f"{path}: is not valid JSON{line}") from None
    else:
        return fields if isinstance(fields, dict) else None
    try:
        return read_mapping(path, quoted=False)
    except ConfigError:
        if path.suffix in (".yaml", ".yml"):
            raise
        return None


def _service(path: Path) -> tuple[str, ...]:
    service, family = checked(path)
    cache, plan = service.cache, service.plan
    if cache.predictor is not None:
        MatchPredictor.load(Path(cache.predictor))
    if cache.levels is not None:
        LevelHead.load(Path(cache.levels), steps=family.heavy.steps)
    emulated = " emulated" if service.pool.emulate else ""
    replicas = ", ".join(f"{count} {key}" for key, count in plan.replicas.items())
    return (
        f"serves {family.name} at {service.http.host}:{service.http.port} within {service.slo_s:g} s",
        f"starts with{emulated} replicas: {replicas}",
        f"plans with the policy {service.controller.policy}" if service.controlled else "keeps this plan",
        "uses no cache" if cache.mode == "off" else f"uses a cache ({cache.mode})",
        "requires no API key" if service.keys_file is None else f"requires an API key of {service.keys_file}",
    )


def _family(path: Path) -> tuple[str, ...]:
    family = load_family(path)
    check_family(family)
    details = [f"{family.name}: {family.allowed_sizes} from {family.pipeline}"]
    for key, variant in family.variants.items():
        judge = f", judged by {variant.discriminator}" if variant.discriminator else ""
        inpaints = f", edits with a mask by {variant.inpainting}" if variant.inpainting else ""
        details.append(f"{key}: {variant.name}, {variant.steps} steps{judge}{inpaints}")
    if family.adapters:
        details.append(f"LoRA adapters: {', '.join(family.adapters)}")
    return tuple(details)


def _keys(path: Path) -> tuple[str, ...]:
    keys = load_keys(path).keys
    tenants, admins = {key.tenant for key in keys}, sum(key.admin for key in keys)
    return (f"{len(keys)} keys of {len(tenants)} tenants, {admins} of administrators",)


def _profile(path: Path) -> tuple[str, ...]:
    profile = load_profile(path)
    details = [f"{profile.family} on {profile.device}"]
    for key, variant in profile.variants.items():
        seconds = ", ".join(f"{b}: {s:.3g} s" for b, s in zip(variant.batch_sizes, variant.latency_s, strict=True))
        seconds += "".join(f"; {size} alone {times.latency_s[0]:.3g} s" for size, times in variant.sizes.items())
        confidences = f"; {len(variant.confidences)} confidences" if variant.confidences else ""
        details.append(f"{key}: {variant.name}, {variant.steps} steps, by batch size {seconds}{confidences}")
    details.append("measured by the step" if profile.stepwise else "measured by whole batches")
    return tuple(details)


def _ladder(path: Path) -> tuple[str, ...]:
    ladder = load_ladder(path)
    rates = ", ".join(f"{level.name} {level.latency_s[0]:.3g} s" for level in ladder.levels)
    return (f"{ladder.family} on {ladder.device}, {ladder.steps} steps", f"{len(ladder.levels)} levels: {rates}")


def _cache_profile(path: Path) -> tuple[str, ...]:
    selector = load_selector(path)
    levels = ", ".join(f"above {threshold:g} at step {k}" for threshold, k in selector.levels)
    return (
        f"resumes runs of {selector.steps} steps by {selector.by.value}: {levels or 'never'}",
        f"plans count a resumed image as {resumed_share(path):.3g} of a whole one",
    )


def _plan(path: Path) -> tuple[str, ...]:
    try:
        plan = Plan.from_dict(read_json(path))
    except (PlanError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    replicas = ", ".join(f"{plan.count(role)} {role}" for role in plan.roles)
    thresholds = ", ".join(f"{threshold:g}" for threshold in plan.thresholds) or "none"
    admits = "admits all" if plan.admitted_rps is None else f"admits {plan.admitted_rps:g} requests/s"
    return (f"version {plan.version}: replicas {replicas}; thresholds {thresholds}; {admits}",)


def _dashboard(path: Path) -> tuple[str, ...]:
    try:
        fields = read_json(path)
        panels = [panel for panel in fields["panels"] if panel["type"] != "row"]
        empty = [panel["title"] for panel in panels if not all(target["expr"] for target in panel["targets"])]
        title = fields["title"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a Grafana dashboard: it lacks {error}") from None
    if empty:
        raise ConfigError(f"{path}: panels without a query: {', '.join(empty)}")
    return (f"{title}: {len(panels)} panels",)


def _dashboards(folder: Path) -> tuple[str, ...]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ConfigError(f"{folder}: contains no dashboard; give a file, or a folder of dashboards (*.json)")
    details: list[str] = []
    for file in files:
        found = check(file)
        if found.kind != "dashboard":
            raise ConfigError(f"{file}: is a {found.kind} and not a dashboard; check it separately")
        details += found.details
    return tuple(details)


def _trace(path: Path) -> tuple[str, ...]:
    trace = load_trace(path)
    peak = max(trace.rate_curve().rates_rps, default=0.0)
    return (
        f"{len(trace)} requests in {trace.duration_s:.0f} s: {trace.mean_rps:.3g} per second, at most {peak:.3g}",
        f"{len(set(trace.prompts))} different prompts",
    )


def _weights(path: Path) -> Check:
    try:
        with safe_open(path, "numpy") as file:
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: the safetensors file cannot be read: {error}") from None
    if "cuts" in names:
        about = LevelHead.load(path).about
        return Check("level head", (f"{about.family}, vectors of {about.encoder}: {', '.join(about.rungs)}",))
    if "support" in names:
        return Check("match predictor", (f"vectors of {MatchPredictor.load(path).encoder}",))
    raise ConfigError(f"{path}: neither a level head nor a match predictor; check the family file that names it")


_DASHBOARD = (
    *("uid", "title", "description", "tags", "schemaVersion", "version", "editable", "graphTooltip", "refresh", "time"),
    *("timezone", "templating", "links", "annotations", "panels"),
)
KINDS = (
    _Kind("service", ServiceConfig.model_fields, _service),
    _Kind("family", (*FamilyConfig.model_fields, "light", "heavy", "discriminator"), _family),
    _Kind("keys file", ("keys",), _keys),
    _Kind("profile", (*Profile.model_fields, "light", "heavy", "confidences", "quality"), _profile),
    _Kind("ladder", Ladder.model_fields, _ladder),
    _Kind(
        "cache profile",
        ("selector", "family", "model", "encoder", "judge", "alpha", "pairs", "measured"),
        _cache_profile,
    ),
    _Kind(
        "plan", ("version", "assignments", "thresholds", "chain", "admitted_rps", "rules", "routing", "reason"), _plan
    ),
    _Kind("dashboard", _DASHBOARD, _dashboard),
)
