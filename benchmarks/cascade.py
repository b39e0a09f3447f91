"""Compares all policies on real services of the embedded family: goodput and measured quality on the same traces.

    python -m benchmarks.cascade [--out runs/cascade]
    python -m benchmarks.cascade --policies weir,all-heavy --trace traces/bursty.csv --rate 1.5 --duration 60

Each policy gets its own service, one after the other, with the same number of replicas, requests, seeds and deadline;
the service serves all traces. ``static`` is the plan of the shipped configuration. Goodput counts the images within the
deadline. Quality is the share of the requested attributes that the images show, by the family's attribute checker. The
ratios are those of ``weir`` (``static`` without it) to ``all-heavy``.

A policy takes about two minutes, and all of them on both traces about 20. Each result is a file in the folder of
``--out``; an existing result is reused unless the settings, the models or the traces have changed. ``table.md`` is
rewritten by every run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import command, served
from controller.registry import names
from quality.scorer import family_scorer
from testing.service_files import service_file
from traces.figures import Scope
from traces.loader import load_trace
from traces.replay import ReplaySettings, replay
from traces.report import write_report
from traces.trace import Trace
from weir.config import ServiceConfig, load_family, read_yaml
from weir.errors import ConfigError

GOALS = {"goodput": 2.0, "quality": 0.97}
REPOSITORY = Path(__file__).resolve().parent.parent
SERVICE = REPOSITORY / "deploy" / "configs" / "weir-tiny.yaml"
#: Cache settings by name. ``judged`` selects by the discriminator's rating of cached images instead of prompt
#: similarity.
CACHES: dict[str, dict[str, Any]] = {
    "off": {"mode": "off"},
    "read-write": {"mode": "read-write"},
    "judged": {"mode": "read-write", "selector": "../profiles/weir-tiny-judged.json", "candidates": 32},
}
TRACES = [REPOSITORY / "traces" / "normal.csv", REPOSITORY / "traces" / "bursty.csv"]
#: Figures in the tables: key, heading, factor, decimals.
COLUMNS = (
    ("goodput_rps", "goodput /s", 1, 2),
    ("quality", "quality", 1, 3),
    ("violation_ratio", "violations %", 100, 1),
    ("light_share", "light %", 100, 1),
    ("p50_s", "p50 s", 1, 2),
    ("p99_s", "p99 s", 1, 2),
)

#: Figures by trace.
Runs = dict[str, dict[str, Any]]


def measured(
    config: Path,
    traces: dict[str, Trace],
    slo_s: float,
    folder: Path,
    report: Callable[[str], None],
    *,
    judge: bool = True,
) -> Runs:
    """Starts a service, replays all traces on it, stops it, and with ``judge`` rates the images."""
    quiet, found = Console(quiet=True), {}
    report("starting")
    with served(config, folder / "state", console=quiet) as service:
        replays = {}
        for name, trace in traces.items():
            report(f"{name}, {len(trace)} requests")
            settings = ReplaySettings(slo_s, timeout_s=12 * slo_s)
            replays[name] = replay(trace, service.url, folder / name, settings, console=quiet)
    family = load_family(read_yaml(config, ServiceConfig).family)
    if judge:
        report("judging the images")
    for name, done in replays.items():
        judges = family_scorer(family, [arrival.prompt for arrival in traces[name]]) if judge else None
        summary = write_report(
            done.outcomes,
            folder / name,
            Scope(slo_s, duration_s=done.duration_s, planned=done.planned),
            title=config.stem,
            scorer=judges[1] if judges else None,
        )
        found[name] = asdict(summary.total)
    return found


def fingerprint(files: Iterable[Path], **settings: object) -> str:
    """Returns a hash of the files and settings that a result depends on."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()


def ratios(runs: dict[str, Runs], trace: str) -> dict[str, float]:
    """Returns the ratios of Weir's figures to all-heavy's; empty when one of them did not run."""
    ours, base = runs.get("weir") or runs.get("static"), runs.get("all-heavy")
    if ours is None or base is None:
        return {}
    mine, theirs = ours[trace], base[trace]
    return {
        "goodput": mine["goodput_rps"] / theirs["goodput_rps"] if theirs["goodput_rps"] else float("inf"),
        "quality": (mine["quality"] or 0.0) / (theirs["quality"] or 1.0),
    }


def rows(runs: dict[str, Runs], trace: str) -> list[list[str]]:
    """Returns one table row per policy."""
    table = []
    for policy, found in runs.items():
        values = [(found[trace][key], factor, decimals) for key, _, factor, decimals in COLUMNS]
        table.append([policy, *("–" if v is None else f"{factor * v:.{decimals}f}" for v, factor, decimals in values)])
    return table


def markdown(runs: dict[str, Runs], traces: Iterable[str]) -> str:
    """Returns all tables as Markdown, each followed by its ratios."""
    heads = ["policy", *(heading for _, heading, _, _ in COLUMNS)]
    parts = []
    for trace in traces:
        lines = [heads, ["---"] * len(heads), *rows(runs, trace)]
        parts.append(f"## {trace}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
        parts += [
            f"{what}: {ratio:.2f} of all-heavy (goal: at least {GOALS[what]})\n"
            for what, ratio in ratios(runs, trace).items()
        ]
    return "\n".join(parts)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, action="append", help="may be repeated; default: Normal and Bursty")
    parser.add_argument("--policies", default=",".join(("static", *names(levels=False))))
    parser.add_argument("--duration", type=float, default=40.0, help="seconds of each trace")
    parser.add_argument("--rate", type=float, default=2.0, help="factor on the request rate")
    parser.add_argument("--slo", type=float, default=10.0, help="deadline, seconds")
    parser.add_argument("--cache", choices=list(CACHES), default="off", help="cache of all services")
    parser.add_argument(
        "--unseeded", action="store_true", help="let the service choose seeds, so that it may redraw images"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cascade"), help="folder for one file per policy")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    console = Console()
    policies = arguments.policies.split(",")
    if unknown := set(policies) - {"static", *names()}:
        raise SystemExit(f"--policies: unknown {', '.join(sorted(unknown))}; known: static, {', '.join(names())}")
    paths = arguments.trace or TRACES
    try:
        traces = {path.stem: load_trace(path).clip(arguments.duration).scale_rate(arguments.rate) for path in paths}
    except ConfigError as error:
        raise SystemExit(f"--trace: {error.message}") from None
    if arguments.unseeded:
        traces = {name: trace.unseeded() for name, trace in traces.items()}
    service = read_yaml(SERVICE, ServiceConfig)
    assert service.profile is not None
    weights = (REPOSITORY / "models").rglob("*.safetensors")
    depends = fingerprint(
        [SERVICE, SERVICE.parent / service.family, SERVICE.parent / service.profile, *paths, *weights],
        duration=arguments.duration, rate=arguments.rate, slo=arguments.slo, cache=arguments.cache,
        unseeded=arguments.unseeded,
    )  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)

    runs: dict[str, Runs] = {}
    for number, policy in enumerate(policies, 1):
        kept = arguments.out / f"{policy}.json"
        if kept.exists() and (known := json.loads(kept.read_text()))["fingerprint"] == depends:
            console.print(f"{number}/{len(policies)} {policy}: kept from {kept}", highlight=False)
            runs[policy] = known["traces"]
            continue
        began = time.monotonic()

        def report(what: str, number: int = number, policy: str = policy, began: float = began) -> None:
            passed = time.monotonic() - began
            console.print(f"{number}/{len(policies)} {policy} {passed:4.0f} s: {what}", highlight=False)

        with tempfile.TemporaryDirectory(prefix="weir-bench-") as folder:
            file = Path(folder) / f"{policy}.yaml"
            config = service_file(SERVICE, file, policy=policy, slo_s=arguments.slo, cache=CACHES[arguments.cache])
            runs[policy] = measured(config, traces, arguments.slo, Path(folder), report)
        kept.write_text(json.dumps({"fingerprint": depends, "traces": runs[policy]}, indent=1) + "\n")
        report("done")
    for trace in traces:
        table = Table("policy", *(heading for _, heading, _, _ in COLUMNS), title=trace)
        for line in rows(runs, trace):
            table.add_row(*line)
        console.print(table)
        for what, ratio in ratios(runs, trace).items():
            console.print(f"{what}: {ratio:.2f} of all-heavy (goal: at least {GOALS[what]})", highlight=False)
    (arguments.out / "table.md").write_text(markdown(runs, traces))


if __name__ == "__main__":
    command(main)
