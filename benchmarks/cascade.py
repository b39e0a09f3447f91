"""The cascade against all-heavy: the same trace, machine, deadline and number of replicas.

Both services replay the same requests with the same seeds, one after the other, at a rate that all-heavy cannot keep
up with. Goodput counts the images within the deadline; quality is the share of what was asked that the images
show, by the family's attribute checker.

    python -m benchmarks.cascade --rate 2 --duration 90 --out cascade.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from deploy.local import down, up
from quality.scorer import family_scorer
from traces.figures import Summary
from traces.loader import load_trace
from traces.replay import replay
from traces.report import write_report
from traces.trace import Trace
from weir.config import ServiceConfig as Service
from weir.config import load_family, read_yaml

GOALS = {"goodput": 2.0, "quality": 0.97}
REPOSITORY = Path(__file__).resolve().parent.parent
SERVICE = REPOSITORY / "deploy" / "configs" / "weir-tiny.yaml"


def all_heavy(folder: Path, slo_s: float) -> Path:
    """The embedded service with every replica in the heavy role."""
    fields: dict[str, Any] = yaml.safe_load(SERVICE.read_text())
    replicas = fields["plan"]["light_replicas"] + fields["plan"]["heavy_replicas"]
    fields["plan"] |= {"light_replicas": 0, "heavy_replicas": min(replicas, 2)}
    return written(fields, folder / "all-heavy.yaml", slo_s)


def cascade(folder: Path, slo_s: float) -> Path:
    return written(yaml.safe_load(SERVICE.read_text()), folder / "cascade.yaml", slo_s)


def written(fields: dict[str, Any], path: Path, slo_s: float) -> Path:
    for key in ("family", "profile"):
        if fields.get(key):
            fields[key] = str((SERVICE.parent / fields[key]).resolve())
    path.write_text(yaml.safe_dump(fields | {"slo_s": slo_s}))
    return path


def measured(config: Path, trace: Trace, slo_s: float, out: Path, console: Console) -> Summary:
    """One service's replay, from its start to its end."""
    service = up(config, detach=True, port=0, folder=out / "state", console=console)
    assert service is not None
    try:
        done = replay(trace, service.url, slo_s=slo_s, out=out / config.stem, timeout_s=120, console=console)
    finally:
        down(folder=out / "state")
    judge = family_scorer(load_family(read_yaml(config, Service).family), [a.prompt for a in trace])
    assert judge is not None
    return write_report(
        done.outcomes,
        out / config.stem,
        slo_s=slo_s,
        title=config.stem,
        duration_s=done.duration_s,
        planned=done.planned,
        scorer=judge[1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=REPOSITORY / "traces" / "bursty.csv")
    parser.add_argument("--duration", type=float, default=90.0, help="seconds of the trace")
    parser.add_argument("--rate", type=float, default=2.0, help="factor on its request rate")
    parser.add_argument("--slo", type=float, default=10.0, help="deadline, seconds")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    arguments = parser.parse_args()
    console = Console()
    trace = load_trace(arguments.trace).clip(arguments.duration).scale_rate(arguments.rate)
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as name:
        folder = Path(name)
        runs = {
            make.__name__: measured(make(folder, arguments.slo), trace, arguments.slo, folder, console).total
            for make in (all_heavy, cascade)
        }
    table = Table("", "goodput /s", "quality", "violations", "p50 s", "p99 s", "light share")
    for run, total in runs.items():
        cells = (total.goodput_rps, total.quality, total.violation_ratio, total.p50_s, total.p99_s, total.light_share)
        table.add_row(run, *("—" if c is None else f"{c:.3f}" for c in cells))
    console.print(table)
    base, ours = runs["all_heavy"], runs["cascade"]
    ratios = {
        "goodput": ours.goodput_rps / base.goodput_rps if base.goodput_rps else float("inf"),
        "quality": (ours.quality or 0.0) / (base.quality or 1.0),
    }
    for what, ratio in ratios.items():
        console.print(f"{what}: {ratio:.2f} of all-heavy (goal: at least {GOALS[what]})", highlight=False)
    if arguments.out:
        figures = {"runs": {k: asdict(v) for k, v in runs.items()}, "ratios": ratios, "goals": GOALS}
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
