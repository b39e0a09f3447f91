"""Measures the whole service at full size: SDXL's architecture with random weights, 1024 px, on the local GPUs.

    python -m benchmarks.full_size                       # CUDA; nothing to download
    python -m benchmarks.full_size --small --size 64     # a small model on the CPU, to try the benchmark itself

It writes the family, measures its profile (``weir profile``), and replays the bursty trace on a real service under each
policy, one after the other, with the same requests, replicas and deadline. Random weights generate noise, so it
measures the performance of a GPU (seconds, memory, goodput, deadlines) and no quality. Family and profile stay in the
folder of ``--out`` and are reused.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.cascade import COLUMNS, REPOSITORY, Runs, measured, ratios, rows
from controller.registry import POLICIES
from testing.sdxl_architecture import SMALL, write_family
from testing.service_files import service_file
from traces.loader import load_trace
from traces.prompts import prompt_by_id
from weir.config import load_family
from workers.profiler import Measurements, profile_family, write_profile


def profiled(family: Path, path: Path, batch_sizes: list[int], repeats: int, console: Console) -> Path:
    """Measures the family's profile unless it exists."""
    if not path.exists():
        prompts = [prompt_by_id(i) for i in range(16)]
        profile = profile_family(
            load_family(family),
            Measurements(batch_sizes, repeats, prompts),
            lambda done, total, what: console.print(f"{done}/{total} {what}", highlight=False),
        )
        write_profile(profile, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--policies", nargs="*", default=["weir", "all-heavy"], choices=POLICIES, help="none: profile only"
    )
    parser.add_argument("--trace", type=Path, default=REPOSITORY / "traces" / "bursty.csv")
    parser.add_argument("--rate", type=float, default=0.4, help="factor on the trace's request rate")
    parser.add_argument("--duration", type=float, default=90.0, help="seconds of the trace")
    parser.add_argument("--slo", type=float, default=15.0, help="deadline, seconds")
    parser.add_argument("--replicas", type=int, default=2, help="number of replicas, which share the GPUs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4], help="batch sizes of the profile")
    parser.add_argument("--repeats", type=int, default=2, help="repeats of the profile")
    parser.add_argument("--size", type=int, default=1024, help="side of the images, pixels")
    parser.add_argument("--small", action="store_true", help="a few layers instead of SDXL's, on the CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/full-size"))
    arguments = parser.parse_args()
    console, gpus = Console(width=120), 0 if arguments.small else torch.cuda.device_count()
    if not gpus and not arguments.small:
        parser.exit(2, "benchmarks.full_size: needs a CUDA device; torch finds none\n")
    arguments.out.mkdir(parents=True, exist_ok=True)
    out, family = arguments.out.resolve(), arguments.out.resolve() / "family.yaml"
    if not family.exists():
        console.print("writing the family")
        shape = SMALL if arguments.small else {}
        write_family(out, "cuda" if gpus else "cpu", arguments.size, **shape)
    profile = profiled(family, out / "profile.json", arguments.batches, arguments.repeats, console)
    console.print(f"the profile is {profile}", highlight=False)
    if not arguments.policies:
        return
    pool = {"cpus_per_replica": 0.5, "gpus_per_replica": gpus / arguments.replicas}
    plan = {"light_replicas": 1, "heavy_replicas": arguments.replicas - 1}
    fields = {"family": str(family), "profile": str(profile), "plan": plan, "pool": pool}
    (out / "service.yaml").write_text(yaml.safe_dump(fields))
    name = arguments.trace.stem
    traces = {name: load_trace(arguments.trace).clip(arguments.duration).scale_rate(arguments.rate)}
    runs: dict[str, Runs] = {}
    for policy in arguments.policies:
        with tempfile.TemporaryDirectory(prefix="weir-bench-") as folder:
            config = service_file(
                out / "service.yaml", Path(folder) / f"{policy}.yaml", policy=policy, slo_s=arguments.slo
            )
            runs[policy] = measured(config, traces, arguments.slo, Path(folder), console.print, judge=False)
        (out / "figures.json").write_text(json.dumps(runs, indent=1) + "\n")
    table = Table("policy", *(heading for _, heading, _, _ in COLUMNS), title=f"{name}, {len(traces[name])} requests")
    for line in rows(runs, name):
        table.add_row(*line)
    console.print(table)
    if ratio := ratios(runs, name).get("goodput"):
        console.print(f"goodput: {ratio:.2f} of all-heavy", highlight=False)


if __name__ == "__main__":
    command(main)
