"""Measures the cache's front: lookups/s and their time, by the number of processes that encode prompts.

    python -m benchmarks.cache_lookups                         CLIP ViT-L/14, which the cache of SDXL's families uses
    python -m benchmarks.cache_lookups --encoder openclip-bigg SDXL's second text encoder
    python -m benchmarks.cache_lookups --encoder words         no model: what everything but encoding costs

The encoder has the published shape and random weights. Lookups go the way of a load balancer: its client, Ray Serve, an
encoder and the cache, with a report of the end of each; the states are in a real Redis.

* ``lookups/s``, ``p50``, ``p99``: wall time, with ``--callers`` lookups in flight for every encoder. They depend on
  what else the machine does. Lookups without an answer within ``--limit`` are counted apart.
* ``encoder`` and ``cache``: processor time of the processes for each lookup and its end, with their part of Ray Serve.
* ``most``: lookups/s for which the processor time of one encoder, and of the cache, would be a whole core.

``searches`` sends ready vectors as encoders do; ``alone`` is the cache with ``--entries`` entries, without Ray Serve.
An encoder takes 0.5 GB (CLIP) or 2.8 GB (OpenCLIP) in each process; ``--replicas`` without a number loads it here only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from ray import serve
from rich.console import Console
from rich.table import Table

from benchmarks import command
from cache.encoder import Encoder, family_encoder
from cache.factory import SECRET, open_cache, open_store
from cache.lookup_batcher import Query
from cache.policy.partition import Partitions, Settings
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.store import Record, SealedStore
from deploy.app import cache
from deploy.cluster import cluster
from deploy.serve_config import CACHE, ENCODER
from load_balancer.runner.serve_cache_client import ServeCacheClient
from testing.sdxl_architecture import write_text_encoder
from weir.assets import ROOT
from weir.config import CacheConfig, FamilyConfig, ServiceConfig, load_service
from weir.core import NO_LOOKUP, CacheReport, ImageRequest
from weir.states import State

console = Console(width=120)

SERVICE = ROOT / "deploy" / "configs" / "weir-tiny.yaml"
#: Whether an encoder is SDXL's second one.
SHAPES = {"clip-vit-l": False, "openclip-bigg": True}
APPLICATION = "lookups"
SIDE = 1024
HERE = Settings(SIDE, SIDE)
#: Entries that the cache on Ray Serve reads from Redis. A search among many is measured alone.
STORED = 1000


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured: a service with its family, and the encoder of its cache."""

    service: ServiceConfig
    family: FamilyConfig
    encoder: Encoder

    def with_encoders(self, replicas: int) -> Setup:
        changed = self.service.cache.model_copy(update={"encoder_replicas": replicas})
        return Setup(self.service.model_copy(update={"cache": changed}), self.family, self.encoder)


def opened(args: argparse.Namespace, folder: Path, url: str) -> Setup:
    """Writes the encoder, and makes the service that uses it."""
    source = args.encoder
    if source in SHAPES:
        source = str(folder / args.encoder)
        write_text_encoder(Path(source), SHAPES[args.encoder])
    service, family = load_service(SERVICE)
    config = CacheConfig(mode="read-write", url=url, encoder=source, lookup_s=args.limit, fetch_s=1)
    encoder = family_encoder(family, source)
    return Setup(service.model_copy(update={"cache": config}), family, encoder)


def fill(setup: Setup, entries: int) -> None:
    """Enters records in Redis, each with one small state."""
    store = _store(setup)
    partition = Partitions(setup.family, setup.encoder.version).name("acme", HERE)
    state = State(np.zeros((4, 8, 8), np.float16), 10, 50, "s", "m")
    for i, vector in enumerate(clustered(entries, setup.encoder.dim)):
        name = f"entry-{i}"
        store.put(ImageRequest(name, "", 0, SIDE, SIDE, 0.0, capture=partition), [state])
        store.remember(Record(partition, name, "a red circle", vector.astype(np.float16), {10: 1000}, float(i)))


def clustered(count: int, dim: int) -> np.ndarray:
    """Unit vectors, float32 [count, dim], in clusters, as those of prompts are."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, dim)).astype(np.float32)[rng.integers(2000, size=count)]
    for row in vectors:
        row += 0.5 * rng.normal(size=dim).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@contextmanager
def running(setup: Setup, entries: int) -> Iterator[tuple[ServeCacheClient, Any]]:
    """Context manager of the cache on Ray Serve: a load balancer's client of it, and the handle of the cache.

    Args:
        entries: number of entries in Redis; the cache has read them when the block begins.
    """
    index, encoders = cache(setup.service, setup.family)
    serve.run(encoders or index, name=APPLICATION, route_prefix=None)
    try:
        handle = serve.get_deployment_handle(CACHE, APPLICATION)
        lookups = serve.get_deployment_handle(ENCODER, APPLICATION) if encoders else None
        began = time.perf_counter()
        while handle.statistics.remote().result()["entries"] < entries:
            time.sleep(0.1)
        console.print(f"the cache was ready after {time.perf_counter() - began:.1f} s")
        yield ServeCacheClient(handle, lookups, wait_s=setup.service.cache.lookup_s), handle
    finally:
        serve.delete(APPLICATION)


def processor_s(deployment: str) -> float:
    """Processor time of a deployment's replicas so far, seconds."""
    title, total = f"ray::ServeReplica:{APPLICATION}:{deployment}", 0.0
    for it in psutil.process_iter(["cmdline"]):
        if it.info["cmdline"] and it.info["cmdline"][0].startswith(title):
            total += sum(it.cpu_times()[:2])
    return total


async def load(ask: Callable[[int], Any], callers: int, seconds: float) -> tuple[list[float], int, float]:
    """Lets ``callers`` callers each make one lookup after another.

    Returns:
        The seconds of each lookup that was answered, the number of the others, and the seconds that all of it took.
    """
    taken, unanswered, began = [], 0, time.perf_counter()
    number = iter(range(10**9))

    async def caller() -> None:
        nonlocal unanswered
        while time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            if await ask(next(number)):
                taken.append(time.perf_counter() - asked)
            else:
                unanswered += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return taken, unanswered, time.perf_counter() - began


def prompt_of(tokens: int, seed: int) -> str:
    """A prompt of ``tokens`` tokens, the marks of begin and end included; each letter is a token."""
    return "".join(np.random.default_rng(seed).choice(list("abcdefghij"), tokens - 2))


def asking(client: ServeCacheClient, tokens: int, run: str) -> Callable[[int], Any]:
    """A function that looks up a prompt of ``tokens`` tokens and reports the end of the lookup."""

    async def ask(number: int) -> bool:
        name = f"{run}-{number}"
        request = ImageRequest(name, prompt_of(tokens, number), 1, SIDE, SIDE, 0.0, tenant="acme")
        while True:
            resting = client.failures["resting"]
            found = await client.find(request)
            if client.failures["resting"] == resting:
                break
            await asyncio.sleep(0.1)  # nothing was asked, because lookups are suspended after failures
        client.finished(name, None, 0)
        return found != NO_LOOKUP

    return ask


def searching(handle: Any, encoder: Encoder, batch: int) -> Callable[[int], Any]:
    """A function that searches with a batch of ready vectors, as an encoder does, and reports the ends of the
    lookups."""
    vectors = _vectors(encoder.dim, 1000, batch)

    async def ask(number: int) -> bool:
        names = [f"batch-{batch}-{number}-{i}" for i in range(batch)]
        queries = [Query(name, "acme", "a red circle", HERE) for name in names]
        found = await handle.search.remote(queries, vectors[number % 1000], encoder.version)
        await handle.finish.remote([CacheReport(name) for name in names])
        return None not in found

    return ask


def measured(ask: Callable[[int], Any], callers: int, seconds: float, lookups_each: int = 1) -> dict[str, Any]:
    """Asks after a warm-up, and measures wall and processor time."""
    asyncio.run(load(ask, callers, seconds / 4))
    before = {name: processor_s(name) for name in (ENCODER, CACHE)}
    taken, unanswered, took_s = asyncio.run(load(lambda i: ask(i + 10**6), callers, seconds))
    spent = {name: processor_s(name) - before[name] for name in before}
    count = (len(taken) + unanswered) * lookups_each
    return {
        "callers": callers,
        "rps": len(taken) * lookups_each / took_s,
        **{f"p{q}_ms": float(np.percentile(taken, q)) * 1e3 if taken else None for q in (50, 99)},
        "unanswered": unanswered * lookups_each / count,
        "encoder_ms": 1e3 * spent[ENCODER] / count,
        "cache_ms": 1e3 * spent[CACHE] / count,
    }


def encoding(encoder: Encoder, tokens: int) -> dict[int, float]:
    """Processor time to encode a prompt in batches of several sizes, on one thread, milliseconds."""
    torch.set_num_threads(1)
    found = {}
    for size in (1, 2, 4, 8):
        prompts, taken = [prompt_of(tokens, i) for i in range(size)], []
        for _ in range(7):
            began = time.thread_time()
            encoder.encode(prompts)
            taken.append((time.thread_time() - began) / size)
        found[size] = 1e3 * float(np.median(taken))
    return found


def alone(setup: Setup, entries: int, times: int) -> dict[str, Any]:
    """Processor time of what the cache does for a lookup and its end, in this process."""
    opened = open_cache(setup.service.cache, setup.family, setup.encoder, _store(setup))
    partition = Partitions(setup.family, setup.encoder.version).name("acme", HERE)
    vectors, taken = clustered(entries, setup.encoder.dim), []
    opened.catalog.restore(partition, [f"entry-{i}" for i in range(entries)], vectors, [{10: 1000}] * entries)
    for i in range(times):
        began = time.thread_time()
        opened.lookup(str(i), "acme", "a red circle", HERE, vectors[i * 7919 % entries]).to_dict()
        opened.finish(str(i))
        taken.append(time.thread_time() - began)
    spent = {f"p{q}_ms": float(np.percentile(taken, q)) * 1e3 for q in (50, 99)}
    return {"entries": entries, **spent, "most": times / sum(taken)}


def shown(rows: list[dict[str, Any]], title: str, by: str) -> Table:
    """A table of measured lookups; ``by`` is the key that tells the rows apart."""
    table = Table(title=title)
    for name in (by, "callers", "lookups/s", "p50, p99, ms", "unanswered", "encoder, ms", "cache, ms", "most"):
        table.add_column(name, justify="right")
    for row in rows:
        wall = ", ".join(f"{row[key]:.1f}" if row[key] else "–" for key in ("p50_ms", "p99_ms"))
        each = [row["encoder_ms"], row["cache_ms"]]
        most = ", ".join(f"{1e3 / it:.0f}" if it else "–" for it in each)
        spent = [f"{it:.2f}" if it else "–" for it in each]
        share = f"{row['unanswered']:.1%}"
        table.add_row(str(row[by]), str(row["callers"]), f"{row['rps']:.1f}", wall, share, *spent, most)
    return table


def _vectors(dim: int, count: int, batch: int) -> np.ndarray:
    """Batches of random unit vectors, float32 [count, batch, dim]."""
    vectors = np.random.default_rng(1).normal(size=(count, batch, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=2, keepdims=True)


def _store(setup: Setup) -> SealedStore:
    """The store with the patience of a benchmark."""
    config = setup.service.cache
    return open_store(config, RedisBackend(str(config.url), read_s=10, write_s=10))


def _lookups(setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    replicas = setup.service.cache.encoder_replicas
    with running(setup, STORED) as (client, _):
        ask = asking(client, args.tokens, f"{replicas} encoders")
        return {"encoders": replicas, **measured(ask, args.callers * max(1, replicas), args.seconds)}


def _searches(setup: Setup, args: argparse.Namespace) -> list[dict[str, Any]]:
    with running(setup, STORED) as (_, handle):
        return [
            {"batch": batch, **measured(searching(handle, setup.encoder, batch), 4, args.seconds / 2, batch)}
            for batch in (1, 4, 16)
        ]


def _on_serve(setup: Setup, args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    with cluster(cpus=4):
        lookups = [_lookups(setup.with_encoders(count), args) for count in args.replicas]
        searches = _searches(setup.with_encoders(0), args)
        serve.shutdown()
    return lookups, searches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="clip-vit-l", choices=[*SHAPES, "words"])
    parser.add_argument("--replicas", type=int, nargs="*", default=[0, 1, 2], help="0: the cache encodes by itself")
    parser.add_argument("--callers", type=int, default=4, help="lookups in flight for every encoder")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--entries", type=int, default=100_000, help="of the cache alone")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--limit", type=float, default=0.25, help="cache.lookup_s, at most 5 s")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    os.environ.setdefault(SECRET, os.urandom(32).hex())
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    server = RedisServer.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            setup = opened(args, Path(folder), server.url)
            encoded = encoding(setup.encoder, args.tokens)
            fill(setup, STORED)
            lookups, searches = _on_serve(setup, args) if args.replicas else ([], [])
        here = alone(setup, args.entries, 2000)
    finally:
        server.stop()
    console.print(shown(lookups, f"lookups with {args.encoder}, {args.tokens} tokens", "encoders"))
    console.print(shown(searches, "searches of ready vectors", "batch"))
    console.print_json(json.dumps({"processor time to encode a prompt in a batch of N, ms": encoded, "alone": here}))
    if args.out:
        found = {"limit_s": args.limit, "tokens": args.tokens, "encoding": encoded, "alone": here}
        found |= {"lookups": lookups, "searches": searches}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    command(main)
