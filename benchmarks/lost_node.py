"""Kills a node of the cluster during a replay, and reports the results of requests, replicas and plans.

    python -m benchmarks.lost_node [--nodes 4] [--seconds 120] [--json]

``weir up --nodes`` starts 16 emulated replicas on Ray nodes of this machine under Weir's policy. After a third of the
replay it kills the raylet of one node, and with it the node's replicas. The exit code is 1 when an accepted request has
no image in the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import command, served
from deploy.local import readiness
from testing.processes import nodes_of
from testing.service_files import service_file
from traces.loader import load_trace
from traces.replay import ReplaySettings, replay

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "deploy" / "configs" / "emulated-16.yaml"
TRACE = REPOSITORY / "traces" / "bursty.csv"
SLO_S = 15.0


@dataclass(frozen=True, slots=True)
class Look:
    """The report of ``/readyz`` at a time of the replay."""

    at_s: float
    light: int
    heavy: int
    plan: int

    @property
    def replicas(self) -> int:
        return self.light + self.heavy


@dataclass(frozen=True, slots=True)
class LostNode:
    """Result of the benchmark. Times are seconds of the replay.

    Attributes:
        ends: number of requests by result: ``in time``, ``late``, ``refused``, or the error of a lost one.
        lost: number of accepted requests without an image.
        replicas: number of replicas before the death of the node, its minimum, and the number at the end.
        plan_after_s: time from the death of the node to the next plan; None when there was none.
        whole_after_s: time from the death of the node until the number of replicas was restored; None when it was not.
    """

    nodes: int
    requests: int
    died_at_s: float
    ends: dict[str, int]
    lost: int
    replicas: tuple[int, int, int]
    plan_after_s: float | None
    whole_after_s: float | None


def kill_a_node(pid: int) -> None:
    """Kills one node, like a power failure."""
    nodes_of(pid)[0].kill()


def lost_node(nodes: int, seconds: float, console: Console) -> LostNode:
    with tempfile.TemporaryDirectory(prefix="weir-lost-node-") as name:
        folder = Path(name)
        config = service_file(CONFIG, folder / "lost-node.yaml", policy="weir", slo_s=SLO_S)
        with served(config, folder / "state", nodes=nodes, console=console) as service:
            trace = load_trace(TRACE).clip(seconds)
            looks: list[Look] = []
            began, over = time.monotonic(), threading.Event()

            def watch() -> float:
                died_at_s = 0.0
                while not over.wait(0.5):
                    at_s, state = time.monotonic() - began, readiness(service.url)
                    if state is not None:
                        ready = {role: it["ready"] for role, it in state["replicas"].items()}
                        looks.append(Look(at_s, ready["light"], ready["heavy"], state["plan"]["version"]))
                    if not died_at_s and at_s > seconds / 3:
                        kill_a_node(service.pid)
                        died_at_s = at_s
                return died_at_s

            with ThreadPoolExecutor(1) as watching:
                watched = watching.submit(watch)
                try:
                    settings = ReplaySettings(SLO_S, keep_images=False)
                    done = replay(trace, service.url, folder / "replay", settings, console=console)
                finally:
                    over.set()
                died_at_s = watched.result()
    ends = Counter(
        "refused" if it.refused else it.error or ("in time" if it.latency_s <= SLO_S else "late")
        for it in done.outcomes
    )
    before = [look for look in looks if look.at_s <= died_at_s][-1]
    after = [look for look in looks if look.at_s > died_at_s]
    fewest = min(after, key=lambda look: look.replicas)

    def after_s(condition: Callable[[Look], bool]) -> float | None:
        return next((round(look.at_s - died_at_s, 1) for look in after if condition(look)), None)

    return LostNode(
        nodes=nodes,
        requests=len(done.outcomes),
        died_at_s=round(died_at_s, 1),
        ends=dict(ends.most_common()),
        lost=sum(not it.answered and not it.refused for it in done.outcomes),
        replicas=(before.replicas, fewest.replicas, after[-1].replicas),
        plan_after_s=after_s(lambda look: look.plan > before.plan),
        whole_after_s=after_s(lambda look: look.at_s > fewest.at_s and look.replicas >= before.replicas),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4, help="number of nodes beside the head")
    parser.add_argument("--seconds", type=float, default=120.0, help="seconds of traces/bursty.csv")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    console = Console(stderr=True)
    found = lost_node(given.nodes, given.seconds, console)
    if given.json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        for key, value in asdict(found).items():
            console.print(f"[bold]{key:>14}[/]  {value}", highlight=False)
    sys.exit(1 if found.lost else 0)


if __name__ == "__main__":
    command(main)
