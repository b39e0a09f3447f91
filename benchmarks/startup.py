"""Measures what a start costs: seconds and processor seconds until a service is up, by process.

    python -m benchmarks.startup [SERVICE.yaml ...] [--repeats 1] [--against CHECKOUT]

With ``--against``, the starts of another checkout (with an environment of its own) alternate with those of this one, so
that both meet the same load of the machine. Without a service, the embedded one and the emulated one are started.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.processor_time import processor_s
from weir.errors import ConfigError

HERE = Path(__file__).resolve().parent.parent
SERVICES = ("deploy/configs/weir-tiny.yaml", "deploy/configs/emulated-16.yaml")


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Attributes:
        seconds: from the command to the ready service.
        processor_s: processor seconds by kind of process, of all processes of the service until then.
    """

    seconds: float
    processor_s: Mapping[str, float]

    @property
    def total_s(self) -> float:
        return sum(self.processor_s.values())


def start(checkout: Path, service: str) -> Start:
    """Starts a service of a checkout in a folder of its own, measures it, and stops it."""
    weir = [str(checkout / ".venv" / "bin" / "weir")]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(checkout / "deploy", folder / "deploy")
        (folder / "models").symlink_to(checkout / "models")
        file = folder / service
        fields = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**fields, "http": {**fields.get("http", {}), "port": 0}}))
        began = time.monotonic()
        before = _children_s()
        subprocess.run([*weir, "up", service, "--detach"], cwd=folder, env=environment, check=True, capture_output=True)
        seconds, command_s = time.monotonic() - began, _children_s() - before
        try:
            state = json.loads(next((folder / ".weir").glob("*.json")).read_text())
            return Start(seconds, {"weir up": command_s} | processor_s(psutil.Process(state["pid"])))
        finally:
            subprocess.run([*weir, "down"], cwd=folder, env=environment, check=True, capture_output=True)


def _children_s() -> float:
    """Processor seconds of all processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def rows(starts: Iterable[Start]) -> Iterator[tuple[str, float]]:
    """Kinds of processes with their median processor seconds, the most expensive first."""
    known = list(starts)
    kinds = {kind for it in known for kind in it.processor_s}
    costs = {kind: statistics.median(it.processor_s.get(kind, 0.0) for it in known) for kind in kinds}
    yield from sorted(costs.items(), key=lambda item: -item[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("services", nargs="*", default=list(SERVICES), help="service files of the checkout")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout")
    given = parser.parse_args()
    checkouts = {"this": HERE} | ({} if given.against is None else {"other": given.against.resolve()})
    for service, checkout in itertools.product(given.services, checkouts.values()):
        if not (checkout / service).is_file():
            raise ConfigError(f"{checkout / service}: there is no such file; name service files by their path in it")
    console = Console()
    for service in given.services:
        starts: dict[str, list[Start]] = {name: [] for name in checkouts}
        for _ in range(given.repeats):
            for name, checkout in checkouts.items():
                starts[name].append(start(checkout, service))
        for name, known in starts.items():
            seconds, total = (statistics.median(getattr(it, key) for it in known) for key in ("seconds", "total_s"))
            table = Table("process", "processor seconds", title=f"{service}, {name} checkout")
            for kind, cost in rows(known):
                table.add_row(kind, f"{cost:.1f}")
            console.print(table)
            console.print(
                f"{name}: up after {seconds:.1f} s, {total:.1f} processor seconds (medians of {len(known)})\n"
            )


if __name__ == "__main__":
    command(main)
