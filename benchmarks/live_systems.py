"""Compares policies of several systems on real services of the embedded family with the simulator's predictions.

    python -m benchmarks.live_systems [--policies weir,argus,nirvana] [--service deploy/configs/weir-tiny.yaml]
        [--trace traces/bursty.csv] [--rate 1.5] [--duration 60] [--json FILE]

Each policy gets its own service with the same replicas, requests, seeds, deadline and cache; the live controller runs
it as ``controller.policy``. The same requests then run in the simulator with the profile and the cache profile of the
service. A level is the variant of an answer, or ``K=…`` for an image that resumed from a stored state. Quality is
percent of a whole run of the last variant: measured on the images of the service by the attribute checker, and taken
from the profiles in the simulator.

A policy takes about three minutes. The simulator's replicas are as fast as the service's were: its steps take as many
times what the profile says. In the simulator a prompt is in the cache as soon as its request starts; the service's
cache contains only prompts whose images were finished and stored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from baselines.comparison.systems import qualities
from benchmarks import command
from benchmarks.cascade import measured
from controller.registry import make_policy, names
from simulator.conditions import Conditions
from simulator.engine import simulate
from simulator.outcome import Outcome
from simulator.workload import Workload, service_workload
from traces.loader import load_trace
from traces.outcome import RequestOutcome, read_outcomes
from traces.trace import Trace
from weir.cascade import AT_DEADLINE, FROM_CACHE
from weir.config import load_service
from weir.profiles import Profile, load_profile

REPOSITORY = Path(__file__).resolve().parents[1]
#: Keys of files in the shipped service file, which a copy in another folder must name by absolute paths.
FILES = ("family", "profile")
#: Level head that predicts the class of a prompt, for policies that assign levels by class.
LEVEL_HEAD = REPOSITORY / "models" / "weir-tiny" / "levels" / "head.safetensors"


def service_under(shipped: Path, path: Path, policy: str, slo_s: float) -> Path:
    """Writes a copy of the shipped service file to ``path``, with a policy, a cache and a level head."""
    fields: dict[str, Any] = yaml.safe_load(shipped.read_text())
    for key in FILES:
        fields[key] = str((shipped.parent / fields[key]).resolve())
    cache = fields.setdefault("cache", {})
    cache["selector"] = str((shipped.parent / cache["selector"]).resolve())
    cache["mode"] = "read-write"
    if policy != "weir":  # ladders of more than two variants have no level head
        cache["levels"] = str(LEVEL_HEAD)
    fields |= {"slo_s": slo_s, "controller": {"policy": policy}}
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


def level(path: str, resumed_at: int) -> str:
    """Returns the name of the level of an answer."""
    return f"K={resumed_at}" if path == FROM_CACHE else path.removesuffix(AT_DEADLINE)


def shares(levels: Iterable[str]) -> dict[str, float]:
    """Returns the share of each level in percent, the most frequent one first."""
    counts = Counter(levels)
    return {name: round(100 * n / counts.total(), 1) for name, n in counts.most_common()}


def slowdown(answers: Sequence[RequestOutcome], profile: Profile) -> float:
    """Returns how many times the profile's seconds the service's runs took, in the median; 1 if no run tells.

    Only answers of one run tell: those of the first variant, and those of a level policy. Replicas that share their
    cores with each other and with the load balancer are slower than one alone, which the profile measured.
    """
    ratios = []
    for it in answers:
        if it.path in profile.keys and it.compute_s and it.steps and it.batch_size:
            variant = profile.variant(it.path)
            fixed_s = variant.fixed_s * it.batch_size
            whole_s = variant.latency.at(it.batch_size)
            ratios.append(it.compute_s / (fixed_s + (whole_s - fixed_s) * it.steps / variant.steps))
    return statistics.median(ratios) if ratios else 1.0


def simulated(workload: Workload, policy: str, slower: float) -> dict[str, Any]:
    """Returns the figures of the simulator, whose steps take ``slower`` times what the profile says."""
    made = make_policy(policy, workload.setting)
    outcome: Outcome = simulate(
        made, workload.requests, workload.profile, Conditions(direct=workload.direct, slowdowns=((0.0, slower),))
    )
    found = qualities(outcome, workload)[outcome.answered]
    answers = zip(outcome.paths[outcome.answered], outcome.resumed_at[outcome.answered], strict=True)
    return {
        "late": 100 * float(outcome.violated.mean()),
        "quality": float(found.mean()),
        "levels": shares(level(str(path), int(k)) for path, k in answers),
    }


def served(config: Path, trace: Trace, slo_s: float, folder: Path, console: Console) -> dict[str, Any]:
    """Returns the same figures of the real service."""

    def report(what: str) -> None:
        console.print(f"  {what}", highlight=False)

    total = measured(config, {"replay": trace}, slo_s, folder, report)["replay"]
    service, family = load_service(config)
    profile = load_profile(str(service.profile), family.keys, family.size)
    assert profile.quality is not None
    answers = [it for it in read_outcomes(folder / "replay" / "requests.csv") if it.answered]
    whole = profile.heavy.steps
    # An image of the cascade's last variant had another run before it.
    single = [it for it in answers if service.controller.policy in names(levels=True) or it.path == profile.keys[0]]
    return {
        "slower": slowdown(single, profile),
        "late": 100 * total["violation_ratio"],
        "quality": 100 * total["quality"] / profile.quality.values[0],
        "levels": shares(level(str(it.path), whole - (it.steps or whole)) for it in answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="weir,argus,nirvana")
    parser.add_argument("--service", type=Path, default=REPOSITORY / "deploy" / "configs" / "weir-tiny.yaml")
    parser.add_argument("--trace", type=Path, default=REPOSITORY / "traces" / "bursty.csv")
    parser.add_argument("--rate", type=float, default=1.5, help="factor on the request rate")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of the trace")
    parser.add_argument("--slo", type=float, default=10.0, help="deadline, seconds")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    console = Console()
    trace = load_trace(arguments.trace).clip(arguments.duration)
    service, _ = load_service(arguments.service)
    workload = service_workload(
        arguments.service, trace, gpus=service.plan.size, slo_s=arguments.slo, rate=arguments.rate
    )
    found: dict[str, dict[str, Any]] = {}
    for policy in arguments.policies.split(","):
        console.print(policy, highlight=False)
        with tempfile.TemporaryDirectory(prefix="weir-live-") as folder:
            config = service_under(arguments.service, Path(folder) / f"{policy}.yaml", policy, arguments.slo)
            live = served(config, trace.scale_rate(arguments.rate), arguments.slo, Path(folder), console)
        slower = live.pop("slower")
        found[policy] = {"slower": slower, "service": live, "simulator": simulated(workload, policy, slower)}
        title = f"{policy}, on replicas {slower:.2f} times as slow as profiled"
        table = Table("", "late %", "quality %", "levels, % of answers", title=title)
        for where in ("service", "simulator"):
            it = found[policy][where]
            levels = ", ".join(f"{name} {share:g}" for name, share in it["levels"].items())
            table.add_row(where, f"{it['late']:.1f}", f"{it['quality']:.1f}", levels)
        console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
