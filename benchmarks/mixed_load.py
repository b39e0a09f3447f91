"""Measures a mixed load on the embedded service: several sizes, adapters and edits, beside plain squares.

    python -m benchmarks.mixed_load [--seconds 120 --rate 1 --runs 1]
    python -m benchmarks.mixed_load --grouping 48 [--runs 3]

Both loads have the arrivals and the prompts of ``traces/bursty.csv``. In the mixed one, each third of the images has
one size of three, a quarter each has one adapter of two, and a fifth are edits of a picture. Requests are sent open
loop. The quality of an image is its CLIP score by the family's CLIP, which looks at images of any shape.

``--grouping`` measures one replica without a service: its step loop generates that many images of the mixed load with
the heavy variant, with images of different adapters in one batch, as Weir does it, and in batches of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import statistics
import tempfile
import time
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from benchmarks import command, served
from benchmarks.engine import Duration, looped, seconds
from load_balancer.http.openapi import EDITS, GENERATIONS
from quality.clip import ClipScorer
from testing.service_files import service_file
from traces.loader import load_trace
from traces.trace import Arrival, Trace
from weir.adapters import AdapterUse
from weir.assets import FAMILY, ROOT
from weir.config import FamilyConfig, load_family
from weir.core import Edit, ImageRequest, ImageSize
from weir.plan import HEAVY
from workers.engine.engine import DenoiseJob, denoise_job
from workers.models.family import Family

SERVICE = ROOT / "deploy" / "configs" / "weir-tiny.yaml"
SIZES = ("64x64", "96x64", "64x96")
#: Deadline of the embedded service.
SLO_S = 10.0
#: Shares of the mixed images with each of two adapters, and of those that edit a picture.
ADAPTED, EDITED = 0.25, 0.2
STRENGTH = 0.6
#: Batch size of a replica without a service, and the number of images that are known to it.
BATCH, AHEAD = 4, 8


class Ask(NamedTuple):
    """One request: what kind of image it asks for, and its body."""

    kind: str
    body: dict[str, Any]


class Answered(NamedTuple):
    """What came of a request; without an image, ``latency_s`` is infinite."""

    ask: Ask
    latency_s: float
    light: bool = False
    image: Image.Image | None = None


def plain(trace: Iterable[Arrival]) -> list[Ask]:
    """Requests for squares."""
    return [Ask("square", {"prompt": it.prompt, "seed": number}) for number, it in enumerate(trace)]


def mixed(trace: Iterable[Arrival], adapters: list[str], picture: str) -> list[Ask]:
    """Requests of all kinds.

    Args:
        picture: what edits begin with, as a data URL.
    """
    chance = np.random.default_rng(1)
    asks = []
    for ask in plain(trace):
        size, adapter, kind = str(chance.choice(SIZES)), chance.random(), chance.random()
        body = {**ask.body, "size": size}
        if kind < EDITED:
            asks.append(Ask("edit", {**body, "images": [{"image_url": picture}], "strength": STRENGTH}))
        elif adapter < 2 * ADAPTED:
            name = adapters[int(adapter // ADAPTED)]
            asks.append(Ask(f"adapter {name}", {**body, "loras": [{"name": name}]}))
        else:
            asks.append(Ask("square" if size == SIZES[0] else f"size {size}", body))
    return asks


async def send(url: str, trace: Trace, asks: list[Ask]) -> list[Answered]:
    """Sends each request at its arrival time, and waits for all answers."""

    async def one(client: httpx.AsyncClient, ask: Ask) -> Answered:
        began = time.perf_counter()
        answer = await client.post(EDITS if ask.kind == "edit" else GENERATIONS, json=ask.body)
        if not answer.is_success:
            return Answered(ask, float("inf"))
        [image] = answer.json()["data"]
        content = Image.open(io.BytesIO(base64.b64decode(image["b64_json"])))
        content.load()
        return Answered(ask, time.perf_counter() - began, image["weir"]["path"].startswith("light"), content)

    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client, asyncio.TaskGroup() as group:
        zero, sent = time.perf_counter(), []
        for arrival, ask in zip(trace, asks, strict=True):
            await asyncio.sleep(max(0.0, zero + arrival.arrival_s - time.perf_counter()))
            sent.append(group.create_task(one(client, ask)))
    return [it.result() for it in sent]


def rows(answered: list[Answered], clip: ClipScorer) -> Iterable[tuple[str, ...]]:
    """The figures of each kind, and of all."""
    kinds = sorted({it.ask.kind for it in answered})
    for kind in (*kinds, "all") if len(kinds) > 1 else kinds:
        those = [it for it in answered if kind in ("all", it.ask.kind)]
        there = [it for it in those if it.image is not None]
        latencies = [it.latency_s for it in there]
        scores = [score(clip, it) for it in there]
        yield (
            kind,
            str(len(those)),
            f"{np.mean([it.latency_s > SLO_S for it in those]):.1%}",
            f"{sum(it.latency_s <= SLO_S for it in those)}",
            "–" if not there else f"{np.median(latencies):.2f}",
            "–" if not there else f"{np.percentile(latencies, 99):.2f}",
            "–" if not there else f"{np.mean([it.light for it in there]):.0%}",
            "–" if not there else f"{np.mean(scores):.3f}",
        )


def score(clip: ClipScorer, it: Answered) -> float:
    """The CLIP score of an image for its prompt."""
    assert it.image is not None
    pixels = torch.from_numpy(np.asarray(it.image.convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1
    return float(clip.score(pixels[None], [it.ask.body["prompt"]])[0])


def two_adapters() -> FamilyConfig:
    """The embedded family with two adapters: the one that it ships, under a second name too."""
    family = load_family(FAMILY)
    [(name, shipped)] = family.adapters.items()
    return family.model_copy(update={"adapters": {name: shipped, f"{name}-2": shipped}})


def mixed_service(folder: Path) -> tuple[Path, list[str]]:
    """The embedded service with two adapters."""
    both = two_adapters()
    fields = both.model_dump(mode="json", exclude_defaults=True)
    (folder / "family.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    config = service_file(
        SERVICE, folder / "mixed.yaml", policy="weir", slo_s=SLO_S, family=str(folder / "family.yaml")
    )
    return config, list(both.adapters)


def picture() -> str:
    """A picture to edit, as a data URL: a circle."""
    image = Image.new("RGB", (64, 64), (235, 235, 235))
    ImageDraw.Draw(image).ellipse((14, 14, 50, 50), fill=(200, 40, 40))
    out = io.BytesIO()
    image.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


class Grouped(Family):
    """An engine whose calls have images of one set of adapters only."""

    def call_of(self, job: DenoiseJob) -> Hashable:
        return super().call_of(job), job.request.adapters


def compare_grouping(count: int, runs: int) -> Table:
    """Runs the same images through both engines in turn. Processor time excludes other work on the machine."""
    family = two_adapters()
    asks = mixed(load_trace(ROOT / "traces" / "bursty.csv").clip(10 * count), list(family.adapters), picture())[:count]
    jobs = [denoise_job(family, HEAVY, image_request(ask, family)) for ask in asks]
    engines: dict[str, Family] = {"in one batch": Family.load(family, threads=1)}
    engines["grouped by adapters"] = Grouped(family, engines["in one batch"].pipelines)
    taken: dict[str, list[Duration]] = {name: [] for name in engines}
    for engine in engines.values():
        looped(engine, jobs[:BATCH], BATCH)  # loads the adapters
    for _ in range(runs):
        for name, engine in engines.items():
            taken[name].append(seconds(lambda it=engine: looped(it, jobs, BATCH, AHEAD)))  # type: ignore[misc]
    table = Table("adapters", "processor seconds an image", "ratio of the pairs", title=f"{len(jobs)} images")
    [base, *_] = taken.values()
    for name, durations in taken.items():
        ratio = statistics.median(it.processor_s / of.processor_s for it, of in zip(durations, base, strict=True))
        median = statistics.median(it.processor_s for it in durations) / len(jobs)
        table.add_row(name, f"{median:.3f}", f"{ratio:.2f}")
    return table


def image_request(ask: Ask, family: FamilyConfig) -> ImageRequest:
    """What a worker gets for a request."""
    body, images = ask.body, ask.body.get("images")
    uses = [AdapterUse(it["name"], 1.0, family.adapter_weights[it["name"]]) for it in body.get("loras", ())]
    content = base64.b64decode(images[0]["image_url"].partition(",")[2]) if images else None
    size = family.size if content is not None else ImageSize(*map(int, body["size"].split("x")))  # the picture's
    edit = None if content is None else Edit(content, None, STRENGTH)
    return ImageRequest(
        str(body["seed"]), body["prompt"], body["seed"], size, float("inf"), adapters=tuple(uses), edit=edit
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the trace")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on its rate")
    parser.add_argument("--runs", type=int, default=1, help="number of pairs of runs")
    parser.add_argument("--grouping", type=int, help="number of images of a comparison without a service")
    given = parser.parse_args()
    if given.grouping:
        Console(width=110).print(compare_grouping(given.grouping, given.runs))
        return
    trace = load_trace(ROOT / "traces" / "bursty.csv").clip(given.seconds).scale_rate(given.rate)
    family = load_family(FAMILY)
    clip = ClipScorer.load(str(family.clip))
    columns = ("load", "kind", "requests", "late or none", "in time", "p50, s", "p99, s", "light", "CLIP score")
    table = Table(*columns)
    with tempfile.TemporaryDirectory() as name:
        config, adapters = mixed_service(Path(name))
        with served(config, Path(name) / "state") as service:
            for _ in range(given.runs):
                for load, asks in (("squares", plain(trace)), ("mixed", mixed(trace, adapters, picture()))):
                    for row in rows(asyncio.run(send(service.url, trace, asks)), clip):
                        table.add_row(load, *row)
    Console(width=110).print(table)


if __name__ == "__main__":
    command(main)
