"""Measures the gain of the step loop on bursts: one heavy replica with and without it, on the same arrivals.

    python -m benchmarks.bursty --images 80

*Steps* schedules as :mod:`workers.engine.scheduling` does: images join and leave between any two steps. *Batches* runs
the waiting images, up to the batch size, until the last of them is finished; no image joins or leaves before. Both
resume from stored states, with the shares of K in the published logs. The models run, and the clock advances by the
processor time of each call, so that other load on the machine has no effect.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import command
from benchmarks.engine import LEVELS, SHARES
from traces.loader import load_trace
from traces.trace import Trace
from weir.config import load_family
from weir.core import ImageRequest, Resume
from weir.states import State
from workers.engine.engine import DenoiseJob, denoise_job
from workers.engine.scheduling import Task, next_call
from workers.models.family import Family

console = Console(width=120)


@dataclass(slots=True, eq=False, kw_only=True)
class Waiting(Task):
    """An image with its arrival time and, when it is finished, its finish time."""

    order: DenoiseJob
    arrival_s: float
    sample: Any = None
    done_s: float | None = field(default=None)


class Replica:
    """One engine with a clock that only its own work advances."""

    def __init__(self, engine: Family, batch: int):
        self.engine, self.batch, self.now = engine, batch, 0.0

    def worked(self, work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        answer = work()
        self.now += time.process_time() - begun
        return answer

    def begin(self, images: Sequence[Waiting]) -> None:
        fresh = [image for image in images if image.sample is None]
        if fresh:
            samples = self.worked(lambda: self.engine.begin([image.order for image in fresh]))
            for image, sample in zip(fresh, samples, strict=True):
                image.sample = sample

    def step(self, images: Sequence[Waiting]) -> list[Waiting]:
        """Runs one call of the denoiser and returns the images that have finished their steps."""
        self.worked(lambda: self.engine.step([image.sample for image in images]))
        for image in images:
            image.left -= 1
        return [image for image in images if image.left <= 0]

    def finish(self, images: Sequence[Waiting]) -> None:
        if images:
            self.worked(lambda: [f.result() for f in self.engine.finish([image.sample for image in images])])
            for image in images:
                image.done_s = self.now

    def steps(self, queue: list[Waiting]) -> None:
        """Runs one iteration of the step loop."""
        call = next_call(queue, lambda image: self.batch, self.now)
        self.begin(call)
        through = self.step(call)
        self.finish(through)
        queue[:] = [image for image in queue if image not in through]

    def batches(self, queue: list[Waiting]) -> None:
        """Runs one batch from its first step to its last."""
        batch, queue[:] = queue[: self.batch], queue[self.batch :]
        self.begin(batch)
        running = list(batch)
        while running:
            through = self.step(running)
            running = [image for image in running if image not in through]
        self.finish(batch)


def serve(replica: Replica, images: Sequence[Waiting], mode: Callable[[list[Waiting]], None], name: str) -> None:
    queue: list[Waiting] = []
    for image in track(images, name, console=console):
        while queue and replica.now < image.arrival_s:
            mode(queue)
        replica.now = max(replica.now, image.arrival_s)
        queue.append(image)
    while queue:
        mode(queue)


def figures(images: Sequence[Waiting], slo_s: float) -> dict[str, float]:
    latencies = np.array([image.done_s - image.arrival_s for image in images if image.done_s is not None])
    span = max(image.done_s or 0.0 for image in images) - images[0].arrival_s
    return {
        "p50_s": float(np.percentile(latencies, 50)),
        "p99_s": float(np.percentile(latencies, 99)),
        "violations": float((latencies > slo_s).mean()),
        "goodput_rps": float((latencies <= slo_s).sum() / span),
    }


class Workload:
    """The first images of a trace, of which some resume as in a cache."""

    def __init__(self, engine: Family, trace: Trace, count: int, slo_s: float):
        self.arrivals = np.array(trace.arrivals_s[:count]) - trace.arrivals_s[0]
        self.steps, self._engine, self._slo_s = engine.config.heavy.steps, engine, slo_s
        size = engine.config.size
        self._requests = [
            ImageRequest(f"bursty-{i}", prompt, i, size, float("inf")) for i, prompt in enumerate(trace.prompts[:count])
        ]
        chosen = np.random.default_rng(0).choice(LEVELS, len(self._requests), p=np.array(SHARES) / sum(SHARES))
        self.levels = [round(int(k) / 50 * self.steps) for k in chosen]
        # Speed does not depend on the content of a state, so the states of one run serve all images.
        [source] = engine.generate(
            "heavy", [ImageRequest("source", "a red circle", 0, size, float("inf"), capture="bursty")]
        )
        self._states: dict[int, State] = {state.step: state for state in source.states}

    def __len__(self) -> int:
        return len(self._requests)

    def images(self, scale: float) -> list[Waiting]:
        """Returns the images with their arrivals stretched by ``scale``."""
        made = []
        rows = zip(self._requests, self.levels, (self.arrivals * scale).tolist(), strict=True)
        for i, (request, level, arrival) in enumerate(rows):
            resumed = replace(request, resume=Resume("-", level) if level else None)
            order = denoise_job(self._engine.config, "heavy", resumed, self._states.get(level))
            made.append(
                Waiting(
                    ticket=i,
                    call=self._engine.call_of(order),
                    deadline=arrival + self._slo_s,
                    left=self.steps - level,
                    order=order,
                    arrival_s=arrival,
                )
            )
        return made

    def image_s(self, batch: int) -> float:
        """Measures the seconds of an image in full batches."""
        warm, full = Replica(self._engine, batch), self.images(0.0)[:batch]
        warm.begin(full)
        warm.step(full)
        before = warm.now
        for _ in range(5):
            warm.step(full)
        return (warm.now - before) / 5 / batch * (self.steps - float(np.mean(self.levels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=Path("deploy/families/weir-tiny.yaml"))
    parser.add_argument("--trace", type=Path, default=Path("traces/bursty.csv"))
    parser.add_argument("--images", type=int, default=80, help="number of images from the start of the trace")
    parser.add_argument("--load", type=float, default=0.7, help="mean demand divided by the capacity of full batches")
    parser.add_argument("--slo", type=float, default=5.0, help="seconds")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Family.load(load_family(args.family), threads=1)
    load = Workload(engine, load_trace(args.trace), args.images, args.slo)
    scale = len(load) * load.image_s(args.batch) / args.load / float(load.arrivals[-1])
    found: dict[str, Any] = {"images": len(load), "batch": args.batch, "slo_s": args.slo, "load": args.load}
    table = Table("", "p50", "p99", "violations", "goodput", title=f"{len(load)} images of {args.trace.name}")
    for name in ("batches", "steps"):
        replica, asked = Replica(engine, args.batch), load.images(scale)
        serve(replica, asked, getattr(replica, name), name)
        row = found[name] = figures(asked, args.slo)
        table.add_row(
            name,
            f"{row['p50_s']:.2f} s",
            f"{row['p99_s']:.2f} s",
            f"{row['violations']:.1%}",
            f"{row['goodput_rps']:.2f}/s",
        )
    console.print(table)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
