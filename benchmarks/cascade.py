"""Every policy on the embedded family for real: goodput and measured quality on the same traces and the same machine.

    python -m benchmarks.cascade --rate 2 --duration 90 --out cascade.json
    python -m benchmarks.cascade --policies weir,all-heavy --trace traces/bursty.csv

Each policy gets a service of its own, one after the other, with the same number of replicas, requests, seeds and
deadline. ``static`` is the plan of the shipped configuration. Goodput counts the images within the deadline; quality is
the share of what was asked that the images show, by the family's attribute checker. The ratios are those of ``weir``
(or of ``static`` without it) to ``all-heavy``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.service import service_file
from controller.policies import POLICIES
from deploy.local import down, up
from quality.scorer import family_scorer
from traces.figures import Figures
from traces.loader import load_trace
from traces.replay import replay
from traces.report import write_report
from traces.trace import Trace
from weir.config import ServiceConfig, load_family, read_yaml
from weir.errors import ConfigError

GOALS = {"goodput": 2.0, "quality": 0.97}
REPOSITORY = Path(__file__).resolve().parent.parent
SERVICE = REPOSITORY / "deploy" / "configs" / "weir-tiny.yaml"
TRACES = [REPOSITORY / "traces" / "normal.csv", REPOSITORY / "traces" / "bursty.csv"]


def measured(config: Path, trace: Trace, slo_s: float, out: Path, console: Console) -> Figures:
    """One service's replay, from its start to its end."""
    service = up(config, detach=True, port=0, folder=out / "state", console=console)
    assert service is not None
    try:
        done = replay(trace, service.url, slo_s=slo_s, out=out / "replay", timeout_s=120, console=console)
    finally:
        down(folder=out / "state")
    judge = family_scorer(load_family(read_yaml(config, ServiceConfig).family), [a.prompt for a in trace])
    assert judge is not None
    return write_report(
        done.outcomes,
        out / "replay",
        slo_s=slo_s,
        title=config.stem,
        duration_s=done.duration_s,
        planned=done.planned,
        scorer=judge[1],
    ).total


def ratios(runs: dict[str, Figures]) -> dict[str, float]:
    """Of ours to all-heavy; empty when one of them did not run."""
    ours, base = runs.get("weir") or runs.get("static"), runs.get("all-heavy")
    if ours is None or base is None:
        return {}
    return {
        "goodput": ours.goodput_rps / base.goodput_rps if base.goodput_rps else float("inf"),
        "quality": (ours.quality or 0.0) / (base.quality or 1.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, action="append", help="again for several; default: Normal and Bursty")
    parser.add_argument("--policies", default=",".join(("static", *POLICIES)))
    parser.add_argument("--duration", type=float, default=90.0, help="seconds of each trace")
    parser.add_argument("--rate", type=float, default=2.0, help="factor on its request rate")
    parser.add_argument("--slo", type=float, default=10.0, help="deadline, seconds")
    parser.add_argument("--cache", choices=("off", "read-write"), default="off", help="the cache in front of all")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    arguments = parser.parse_args()
    console = Console()
    policies = arguments.policies.split(",")
    if unknown := set(policies) - {"static", *POLICIES}:
        raise SystemExit(f"--policies: unknown {', '.join(sorted(unknown))}; known: static, {', '.join(POLICIES)}")
    found: dict[str, dict[str, Figures]] = {}
    for path in arguments.trace or TRACES:
        try:
            trace = load_trace(path).clip(arguments.duration).scale_rate(arguments.rate)
        except ConfigError as error:
            raise SystemExit(f"--trace: {error.message}") from None
        runs = found[path.stem] = {}
        for policy in policies:
            with tempfile.TemporaryDirectory(prefix="weir-bench-") as name:
                file = Path(name) / f"{policy}.yaml"
                config = service_file(
                    SERVICE, file, policy=policy, slo_s=arguments.slo, cache={"mode": arguments.cache}
                )
                runs[policy] = measured(config, trace, arguments.slo, Path(name), console)
        table = Table("", "goodput /s", "quality", "violations", "p50 s", "p99 s", "light share", title=path.stem)
        for policy, total in runs.items():
            cells = (
                total.goodput_rps,
                total.quality,
                total.violation_ratio,
                total.p50_s,
                total.p99_s,
                total.light_share,
            )
            table.add_row(policy, *("—" if c is None else f"{c:.3f}" for c in cells))
        console.print(table)
        for what, ratio in ratios(runs).items():
            console.print(f"{what}: {ratio:.2f} of all-heavy (goal: at least {GOALS[what]})", highlight=False)
    if arguments.out:
        figures = {
            trace: {"runs": {policy: asdict(total) for policy, total in runs.items()}, "ratios": ratios(runs)}
            for trace, runs in found.items()
        }
        arguments.out.write_text(json.dumps({"traces": figures, "goals": GOALS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
