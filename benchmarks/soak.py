"""Keeps a service under load for long and reports growth of memory, files, threads, Redis and metric series.

    python -m benchmarks.soak [--minutes 60] [--embedded 10] [--every 5] [--samples FILE] [--json]

First emulated replicas serve the Normal trace for half of the time and the Bursty trace for the other half. Then the
embedded family serves the Bursty trace, thinned to the capacity of two cores. Everything runs on the loopback
interface. The table compares the first quarter of each run with the last one, and shows the growth over the second
half. The exit code is 1 when a figure grows.

A short run detects only large leaks: growth that is within the allowance in ten minutes is six times as large in an
hour.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import httpx
import psutil
import redis
from rich.console import Console

from benchmarks import command, served
from deploy.state import Service
from testing.service_files import service_file
from testing.testbed import write_service
from testing.trend import Allowance, Trend, trend
from traces.loader import load_trace
from traces.replay import ReplaySettings, replay
from traces.trace import Trace

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = REPOSITORY / "deploy" / "configs" / "weir-tiny.yaml"
#: Share of the trace's requests for the embedded family on two cores.
TINY_SHARE = 0.25
#: Budget of the cache, which fills within the first minutes.
BUDGET_MIB = 1
MIB = 2**20
#: Allowed growth by kind of figure. Files and threads vary with connections, and allocators keep pages.
ALLOWED = {
    "memory MiB": Allowance(0.03, 6.0),
    "files": Allowance(0.05, 6),
    "threads": Allowance(0.05, 4),
    "keys": Allowance(0.05, 20),
    "bytes MiB": Allowance(0.05, 1.0),
    "series": Allowance(0.01, 5),
}

#: Figures by (process, kind of figure).
Sample = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Row:
    run: str
    whose: str
    what: str
    trend: Trend


def sample(service: Service) -> Sample:
    """Measures a service: figures by kind of process, summed over its processes, and figures of Redis and the metrics.

    Memory is the unique set size (USS), because Ray's processes share libraries and the object store.
    """
    found: Sample = defaultdict(float)
    root = psutil.Process(service.pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            whose = "weir up" if process == root else kind(process.cmdline())
            if whose is None or process.status() == psutil.STATUS_ZOMBIE:
                continue
            memory, files, threads = process.memory_full_info().uss, process.num_fds(), process.num_threads()
        except psutil.Error:  # it ended meanwhile
            continue
        found[whose, "memory MiB"] += memory / MIB
        found[whose, "files"] += files
        found[whose, "threads"] += threads
    if service.cache_url:
        with redis.Redis.from_url(service.cache_url) as client:
            found["Redis", "keys"] = client.dbsize()
            found["Redis", "bytes MiB"] = client.info("memory")["used_memory"] / MIB
    for ours, count in series(service.targets).items():
        found["weir's metrics" if ours else "Ray's metrics", "series"] = count
    return dict(found)


def kind(command: list[str]) -> str | None:
    """Returns the kind of a process by its command line; None for idle Ray workers and short-lived processes."""
    line = " ".join(command).strip()  # some processes put their whole title into the first word
    if actor := re.match(r"ray::([\w:-]+)", line):
        name = actor[1].removeprefix("ServeReplica:weir:")
        return None if name == "IDLE" else name
    if line.startswith("ray-dashboard-") or "multiprocessing.forkserver" in line:
        return "dashboard"
    names = {
        "raylet": "raylet",
        "gcs_server": "gcs_server",
        "redis-server": "redis-server",
        "valkey-server": "redis-server",
    }
    if line and (name := Path(line.split()[0]).name) in names:
        return names[name]
    script = re.search(r"/(\w+)\.py\b", line)
    return script[1] if script else None


def series(targets: str) -> dict[bool, int]:
    """Returns the number of series that Prometheus would scrape: of Weir (True) and of Ray (False)."""
    counts = {True: 0, False: 0}
    if not Path(targets).is_file():
        return counts
    for target in {it for group in json.loads(Path(targets).read_text()) for it in group["targets"]}:
        for line in httpx.get(f"http://{target}/metrics", timeout=30, trust_env=False).text.splitlines():
            if line and not line.startswith("#"):
                counts[line.startswith("ray_weir_")] += 1
    return counts


def repeated(name: str, seconds: float, share: float = 1.0) -> Iterator[Trace]:
    """Yields a shipped trace repeatedly for ``seconds``, with a share of its requests."""
    trace = load_trace(REPOSITORY / "traces" / f"{name}.csv")
    trace = trace if share == 1 else trace.scale_rate(share)
    while seconds > 1:
        part = trace.clip(min(seconds, trace.duration_s))
        if len(part):  # the end of a thinned trace may be empty
            yield part
        seconds -= part.duration_s


def soaked(
    config: Path, loads: Iterable[Trace], *, folder: Path, every_s: float, keep: Callable[[float, Sample], object]
) -> list[tuple[float, Sample]]:
    """Serves the loads one after the other, and returns samples with their time since the start.

    Args:
        keep: called with each sample.
    """
    quiet = Console(quiet=True)
    with served(config, folder / "state", console=quiet) as service:
        samples: list[tuple[float, Sample]] = []
        over = threading.Event()
        begun = time.monotonic()

        def look() -> None:
            while not over.wait(every_s):
                samples.append((time.monotonic() - begun, sample(service)))
                keep(*samples[-1])

        looking = threading.Thread(target=look)
        looking.start()
        ends: Counter[str] = Counter()
        try:
            for number, part in enumerate(loads):
                out = folder / f"replay-{config.stem}-{number}"
                settings = ReplaySettings(slo_s=30, keep_images=False, timeout_s=120)
                done = replay(part, service.url, out, settings, console=quiet)
                ends.update(outcome.error or "answered" for outcome in done.outcomes)
        finally:
            over.set()
            looking.join()
    sys.stderr.write(f"{config.stem}: {time.monotonic() - begun:.0f} s, {len(samples)} samples, {dict(ends)}\n")
    return samples


def judged(run: str, samples: list[tuple[float, Sample]]) -> list[Row]:
    """Returns a row for every figure that is in more than half of the samples."""
    rows = []
    for whose, what in sorted({name for _, found in samples for name in found}):
        points = [(at_s, found[whose, what]) for at_s, found in samples if (whose, what) in found]
        if len(points) > len(samples) / 2:
            times, values = zip(*points, strict=True)
            rows.append(Row(run, whose, what, trend(times, values, ALLOWED[what])))
    return rows


def line(row: Row) -> str:
    t = row.trend
    return (
        f"{row.run:<9} {row.whose:<28} {row.what:<11} {t.first:9.1f} {t.last:9.1f} {t.growth:+9.2f} "
        f"{t.per_hour:+9.1f}  {'GROWING' if t.growing else 'flat'}\n"
    )


HEAD = f"{'run':<9} {'whose':<28} {'what':<11} {'first ¼':>9} {'last ¼':>9} {'2nd half':>9} {'per hour':>9}  judged\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Keeps a service under load for long and reports growth.")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes of emulated replicas")
    parser.add_argument("--embedded", type=float, default=10.0, help="minutes of the embedded family")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--samples", type=Path, help="file for all samples: CSV without a header")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows: list[Row] = []
    write = sys.stderr.write if given.json else sys.stdout.write
    write(HEAD)
    with tempfile.TemporaryDirectory() as name, (given.samples or Path(os.devnull)).open("w") as file:
        folder = Path(name)
        for run, (config, loads) in runs(folder, given.minutes, given.embedded).items():

            def keep(at_s: float, found: Sample, run: str = run) -> None:
                rows = (f"{run},{at_s:.1f},{whose},{what},{value:.3f}\n" for (whose, what), value in found.items())
                file.write("".join(rows))
                file.flush()

            found = judged(run, soaked(config, loads, folder=folder, every_s=given.every, keep=keep))
            write("".join(map(line, found)))
            rows += found
    if given.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    sys.exit(1 if any(row.trend.growing for row in rows) else 0)


def runs(folder: Path, minutes: float, embedded: float) -> dict[str, tuple[Path, Iterable[Trace]]]:
    """Returns the service file and the load of each run with a positive duration."""
    found: dict[str, tuple[Path, Iterable[Trace]]] = {}
    if minutes:
        cache = {"mode": "read-write", "encoder": "words", "budget_mib": BUDGET_MIB}
        half_s = 30 * minutes
        config = write_service(folder, cache=cache)
        found["emulated"] = config, chain(repeated("normal", half_s), repeated("bursty", half_s))
    if embedded:
        config = service_file(TINY, folder / "tiny.yaml", policy="weir", slo_s=15, cache={"budget_mib": BUDGET_MIB})
        found["embedded"] = config, repeated("bursty", 60 * embedded, TINY_SHARE)
    return found


if __name__ == "__main__":
    command(main)
