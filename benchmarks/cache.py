"""Measures the cost of the cache and the saving of each eviction policy.

    python -m benchmarks.cache eviction --prompts FILE        a log of prompts, one per line, in submission order
    python -m benchmarks.cache eviction --requests 1000000    a synthetic log with recurring themes
    python -m benchmarks.cache lookup --entries 100000        similarity search: p50, p99, memory, rebuild
                                                              (OMP_NUM_THREADS=1: processor times count one thread)
    python -m benchmarks.cache fetch                          states of 128 and 512 KiB from a Redis on this machine
    python -m benchmarks.cache rebuild --entries 100000       a start with a full Redis: seconds until it is ready
    python -m benchmarks.cache probe                          information about other tenants in the time of a lookup

Capacities count states. Every policy runs on the same catalog, once with NIRVANA's insertion (after misses, nearest
neighbour only) and once with Weir's (also after hits, best of four neighbours).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import mannwhitneyu

from benchmarks import command
from cache.cache import ApproximateCache
from cache.encoder import WordEncoder, family_encoder
from cache.factory import open_cache
from cache.index import VectorIndex
from cache.policy.approaches import approach
from cache.policy.eviction import POLICIES
from cache.policy.partition import Partitions, Settings
from cache.replay import read_log, replay_prompts
from cache.store.backend import Backend, MemoryBackend
from cache.store.quantise import quantise, restore
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.seal import Compression
from cache.store.store import Record, SealedStore
from weir.config import CacheConfig, load_family
from weir.core import ImageRequest, ImageSize
from weir.states import State, state_key

console = Console()

TINY = Path(__file__).resolve().parents[1] / "deploy" / "families" / "weir-tiny.yaml"
#: Words of the embedded family's prompts.
COLORS = ("red", "green", "blue", "yellow", "white", "black")
SHAPES = ("circle", "square", "star", "cross", "ring", "triangle")
PLACES = ("left of", "right of", "above", "below")


class SmallIndex:
    """An exact index of few vectors, for one theme of the synthetic log."""

    def __init__(self, dim: int):
        self._rows = np.zeros((4, dim), np.float32)
        self._ids: list[int] = []
        self._place: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ident: int, vector: np.ndarray) -> None:
        if len(self._ids) == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[len(self._ids)] = vector
        self._place[ident] = len(self._ids)
        self._ids.append(ident)

    def add_many(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        for ident, vector in zip(ids, vectors, strict=True):
            self.add(ident, vector)

    def remove(self, ident: int) -> None:
        place, last = self._place.pop(ident), self._ids.pop()
        if last != ident:
            self._ids[place], self._place[last] = last, place
            self._rows[place] = self._rows[len(self._ids)]

    def search(self, vector: np.ndarray, count: int = 1) -> list[tuple[int, float]]:
        if not self._ids:
            return []
        cosines = self._rows[: len(self._ids)] @ vector
        if count == 1 or len(cosines) == 1:
            best = [int(cosines.argmax())]
        else:
            best = np.argpartition(-cosines, min(count, len(cosines)) - 1)[:count].tolist()
            best.sort(key=lambda i: -cosines[i])
        return [(self._ids[i], float(cosines[i])) for i in best]


def synthetic_log(requests: int, seed: int, dim: int = 32) -> tuple[np.ndarray, list[str]]:
    """Generates unit vectors [N, dim] of prompts with recurring themes, and the theme of each.

    There is one theme for every 50 requests, and the frequency of the n-th is proportional to n ** -0.8. Half of the
    ranks are trends, whose theme is replaced by a new one after 20 requests on average. A prompt is the sum of its
    theme's centre and a random detail; the mean cosine within a theme is uniform in 0.55…0.8. With probability 0.35 one
    of the
    last 50 users sends the next prompt instead: with probability 0.3 the same prompt, otherwise one with a cosine of
    0.7…0.99 to it. Prompts of different themes are not compared, because their cosine is about 0.
    """
    rng = np.random.default_rng(seed)
    themes = max(100, requests // 50)
    popularity = np.arange(1, themes + 1) ** -0.8
    ranks = rng.choice(themes, size=requests, p=popularity / popularity.sum())
    trend = rng.random(themes) < 0.5
    now, fresh = np.arange(themes), themes
    centres: dict[int, tuple[np.ndarray, float]] = {}
    users: list[tuple[int, np.ndarray]] = []
    vectors, names = np.zeros((requests, dim), np.float32), []

    def direction() -> np.ndarray:
        vector = rng.normal(size=dim)
        return vector / np.linalg.norm(vector)

    for i in range(requests):
        if users and rng.random() < 0.35:
            place = int(rng.integers(len(users)))
            theme, vector = users[place]
            if rng.random() >= 0.3:
                cosine = rng.uniform(0.7, 0.99)
                vector = cosine * vector + np.sqrt(1 - cosine**2) * direction()
                vector /= np.linalg.norm(vector)
            users[place] = (theme, vector)
        else:
            rank = ranks[i]
            if trend[rank] and rng.random() < 1 / 20:
                now[rank], fresh = fresh, fresh + 1
            theme = int(now[rank])
            centre, mean = centres.setdefault(theme, (direction(), rng.uniform(0.55, 0.8)))
            vector = np.sqrt(mean) * centre + np.sqrt(1 - mean) * direction()
            vector /= np.linalg.norm(vector)
            users = [*users[-49:], (theme, vector)]
        vectors[i] = vector
        names.append(str(theme))
    return vectors, names


def eviction(args: argparse.Namespace) -> dict:
    """Measures the saved steps by policy and capacity."""
    if args.prompts:
        log = read_log(args.prompts)
        vectors, themes = WordEncoder().encode(log.prompts), None
        capacities = args.capacities or [150, 500, 1500, 5000]
        what = f"{len(log.prompts)} prompts of {args.prompts.name} in order, encoder words-1024"
    else:
        vectors, themes = synthetic_log(args.requests, args.seed)
        capacities = args.capacities or [1_500, 15_000, 150_000]
        what = f"synthetic log of {args.requests} prompts, seed {args.seed}"
    found: dict = {"log": what, "rules": {}}
    for rules in args.rules:
        index = (lambda: SmallIndex(vectors.shape[1])) if themes else None
        rows: dict[str, dict[str, float]] = {}
        for capacity in capacities:
            for name in POLICIES:
                figures = replay_prompts(
                    vectors, approach(rules), eviction=name, capacity=capacity, index=index, partitions=themes
                )
                rows.setdefault(str(capacity), {})[name] = figures.steps_saved
                console.print(
                    f"{rules} insertion, {capacity} states, {name}: {figures.steps_saved:.4f} "
                    f"{ {k: round(v, 3) for k, v in figures.shares.items()} }",
                    highlight=False,
                )
                gc.collect()
        found["rules"][rules] = rows
        table = Table("states", *POLICIES, title=f"share of steps saved, {rules} insertion: {what}")
        for capacity, row in rows.items():
            table.add_row(capacity, *(f"{row[p]:.4f}" if p in row else "" for p in POLICIES))
        console.print(table)
    return found


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}_ms": float(np.percentile(seconds, q)) * 1e3 for q in (50, 99)}


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def clustered(entries: int, queries: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes unit vectors that are clustered like those of prompts, [N, D], and queries near some of them, [Q, D]."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2000, dim)).astype(np.float32)
    vectors = centres[rng.integers(2000, size=entries)]
    for start in range(0, entries, 100_000):
        part = vectors[start : start + 100_000]
        part += 0.5 * rng.normal(size=part.shape).astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    asked = vectors[rng.integers(entries, size=queries)]
    asked = asked + 0.1 * rng.normal(size=asked.shape).astype(np.float32) / np.sqrt(dim)
    return vectors, asked / np.linalg.norm(asked, axis=1, keepdims=True)


def search_times(index: VectorIndex, queries: np.ndarray) -> dict[str, float]:
    """Measures wall and processor time; the latter is the time of a lookup on an otherwise idle core."""
    wall, processor = [], []
    for query in queries:
        begin, worked = time.perf_counter(), time.thread_time()
        index.search(query, 4)
        processor.append(time.thread_time() - worked)
        wall.append(time.perf_counter() - begin)
    return percentiles(wall) | {f"processor_{name}": value for name, value in percentiles(processor).items()}


@contextmanager
def writing(index: VectorIndex, vectors: np.ndarray) -> Iterator[list[int]]:
    """Adds and removes entries on a thread during the block; yields a list with their number so far."""
    stop, written, entries = threading.Event(), [0], len(vectors)

    def write() -> None:
        at = entries
        while not stop.is_set():
            index.add(at, vectors[at % entries])
            index.remove(at - 50 if at - 50 >= entries else at % entries)
            at, written[0] = at + 1, written[0] + 1
            time.sleep(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        stop.set()
        writer.join()


def snapshot(index: VectorIndex, path: Path) -> dict[str, float]:
    """Measures saving and loading of an index."""
    started = time.perf_counter()
    index.save(path)
    saved = time.perf_counter()
    VectorIndex.load(path)
    loaded, size_mib = time.perf_counter(), path.stat().st_size / 2**20
    path.unlink()
    path.with_suffix(".json").unlink()
    return {"mib": size_mib, "save_s": saved - started, "load_s": loaded - saved}


def lookup(args: argparse.Namespace) -> dict:
    """Measures similarity search alone and with a concurrent writer, on clustered vectors like those of prompts."""
    vectors, queries = clustered(args.entries, args.queries, args.dim)
    before = resident_mib()
    index = VectorIndex(args.dim)
    started = time.perf_counter()
    index.add_many(list(range(args.entries)), vectors)
    build_s = time.perf_counter() - started
    gc.collect()
    memory = resident_mib() - before
    search_times(index, queries[:50])
    alone = search_times(index, queries)
    with writing(index, vectors) as written:
        beside = search_times(index, queries)
    sample = queries[:200]
    exact = np.array([int((vectors @ q).argmax()) for q in sample])
    recall = float(np.mean([index.search(q)[0][0] == e for q, e in zip(sample, exact, strict=True)]))
    found = {
        "entries": args.entries,
        "dim": args.dim,
        "cells": index.cells,
        "build_s": build_s,
        "index_mib": memory,
        "alone": alone,
        "beside_a_writer": beside | {"writes": written[0]},
        "recall_at_1": recall,
        "snapshot": snapshot(index, Path(args.snapshot)),
    }
    console.print_json(json.dumps(found))
    return found


def fetch(args: argparse.Namespace) -> dict:
    """Measures the fetch of a state as in a worker (Redis, the tag, the tensors) by size and compression."""
    server = RedisServer.start()
    found: dict = {}
    try:
        for side, channels in ((128, 4), (128, 16)):
            for compression in ("none", "zlib", "int8"):
                found[f"{2 * channels * side**2 // 1024} KiB, {compression}"] = _fetched(
                    RedisBackend(server.url, read_s=1, write_s=1), (channels, side, side), compression, args.times
                )
    finally:
        server.stop()
    table = Table("state", "put p50", "p99", "get p50", "p99", "bytes", "Redis MiB for 200", "rms error")
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['put']['p50_ms']:.2f} ms",
            f"{row['put']['p99_ms']:.2f}",
            f"{row['get']['p50_ms']:.2f} ms",
            f"{row['get']['p99_ms']:.2f}",
            str(row["bytes"]),
            f"{row['redis_mib']:.0f}",
            f"{row['rms_error']:.4f}",
        )
    console.print(table)
    return found


def _fetched(backend: Backend, shape: tuple[int, int, int], compression: Compression, times: int) -> dict:
    store = SealedStore(backend, os.urandom(32), compression)
    rng = np.random.default_rng(0)
    latent = rng.normal(size=shape).astype(np.float16)
    put, get, count = [], [], 200
    base = backend.used_bytes() or 0
    for i in range(count):
        request = ImageRequest(str(i), "", 0, ImageSize(1024, 1024), 0.0, capture="p")
        begin = time.perf_counter()
        store.put(request, [State(latent, 10, 50, "s", "m")])
        put.append(time.perf_counter() - begin)
    used = (backend.used_bytes() or 0) - base
    for i in range(times):
        begin = time.perf_counter()
        state = store.get(state_key("p", str(i % count), 10))
        get.append(time.perf_counter() - begin)
        assert state is not None
    size = backend.sizes([state_key("p", "0", 10)])[0]
    store.purge()
    read = restore(quantise(latent)) if compression == "int8" else latent
    error = float(np.sqrt(np.mean((read.astype(np.float64) - latent.astype(np.float64)) ** 2)))
    return {
        "put": percentiles(put),
        "get": percentiles(get),
        "bytes": size,
        "redis_mib": used / 2**20,
        "rms_error": error,
    }


def rebuild(args: argparse.Namespace) -> dict:
    """Measures the start of a cache with a full Redis: reading and verifying records, and building the index."""
    server, rng, latent = RedisServer.start(), np.random.default_rng(0), np.zeros((4, 8, 8), np.float16)
    try:
        backend = RedisBackend(server.url, read_s=5, write_s=5)
        store = SealedStore(backend, os.urandom(32))

        family = load_family(TINY)
        encoder = family_encoder(family)

        def opened() -> ApproximateCache:
            return open_cache(CacheConfig(mode="read-write"), family, encoder, store)

        partition, dim = Partitions(family, encoder.version).name("acme", Settings(ImageSize(64, 64))), encoder.dim
        for i in track(range(args.entries), "filling Redis", console=console):
            vector = rng.normal(size=dim).astype(np.float32)
            vector /= np.linalg.norm(vector)
            request = ImageRequest(str(i), "", 0, ImageSize(64, 64), 0.0, capture=partition)
            store.put(request, [State(latent, 10, 50, "s", "m")])
            store.remember(Record(partition, str(i), "a red circle", vector.astype(np.float16), {10: 1000}, float(i)))
        cache, begin = opened(), time.perf_counter()
        count = cache.rebuild()
        took_s = time.perf_counter() - begin
        found = {"entries": count, "dim": dim, "rebuild_s": took_s, "redis_mib": (backend.used_bytes() or 0) / 2**20}
    finally:
        server.stop()
    console.print_json(json.dumps(found))
    return found


def probe(args: argparse.Namespace) -> dict:
    """Measures how well a tenant can detect cached prompts by the time of a lookup.

    A tenant looks up prompts that another tenant has cached, that it has cached itself, and that are not cached, in
    random order, with the encoder of the embedded family. ``auc`` is the area under the ROC curve for the distinction
    from uncached prompts by time; 0.5 means no information.
    """
    rng = random.Random(args.seed)
    forms = [[f"a {size} {color}" for size in ("small", "large") for color in COLORS], SHAPES, PLACES, COLORS, SHAPES]
    prompts = [f"{a} {b} {c} a {d} {e}" for a, b, c, d, e in itertools.product(*forms)]
    rng.shuffle(prompts)
    others, own, uncached = (prompts[i * args.times : (i + 1) * args.times] for i in range(3))
    store = SealedStore(MemoryBackend(), os.urandom(32))
    encoder = family_encoder(load_family(TINY))
    cache = open_cache(CacheConfig(mode="read-write"), load_family(TINY), encoder, store)
    latent = np.zeros((4, 8, 8), np.float16)

    def lookup(tenant: str, name: str, prompt: str, *, keep: bool) -> float:
        """Returns the processor seconds until the worker has a state or knows that there is none. Processor time is
        what a prober could obtain by averaging the noise away."""
        begin = time.thread_time()
        [vector] = encoder.encode([prompt])
        found = cache.lookup(name, tenant, prompt, Settings(ImageSize(64, 64)), vector)
        if found.resume is not None:
            store.get(found.resume.key)
        took_s = time.thread_time() - begin
        if keep:
            request = ImageRequest(name, prompt, 0, ImageSize(64, 64), 0.0, capture=found.partition)
            store.put(request, [State(latent, 10, 50, "s", "m")])
        sought = found.resume.step if found.resume else 0
        cache.finish(name, sought, (10,) if keep else (), sought)
        return took_s

    for tenant, cached in (("acme", others), ("globex", own)):
        for i, prompt in enumerate(cached):
            lookup(tenant, f"{tenant}-{i}", prompt, keep=True)
    groups = {"cached by another tenant": others, "cached by itself": own, "not cached": uncached}
    order = [(name, prompt) for name, group in groups.items() for prompt in group]
    rng.shuffle(order)
    taken: dict[str, list[float]] = {name: [] for name in groups}
    for i, (name, prompt) in enumerate(order):
        taken[name].append(lookup("globex", f"probe-{i}", prompt, keep=False))
    unknown = taken["not cached"]
    found: dict = {"lookups of each": args.times}
    table = Table("prompt", "p50", "p99", "AUC", "±95 %")
    for name, seconds in taken.items():
        auc = float(mannwhitneyu(seconds, unknown).statistic) / args.times**2
        within = 1.96 * math.sqrt((2 * args.times + 1) / 12) / args.times
        found[name] = percentiles(seconds) | {"auc": auc, "within": within}
        ms = [f"{value:.2f} ms" for value in percentiles(seconds).values()]
        table.add_row(name, *ms, *([] if seconds is unknown else [f"{auc:.3f}", f"{within:.3f}"]))
    console.print(table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("eviction")
    one.add_argument("--prompts", type=Path)
    one.add_argument("--requests", type=int, default=100_000)
    one.add_argument("--capacities", type=int, nargs="+")
    one.add_argument("--rules", nargs="+", default=["nirvana", "weir"], choices=["nirvana", "weir"])
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=eviction)
    one = commands.add_parser("lookup")
    one.add_argument("--entries", type=int, default=100_000)
    one.add_argument("--dim", type=int, default=768)
    one.add_argument("--queries", type=int, default=5_000)
    one.add_argument("--snapshot", default="runs/index.faiss")
    one.set_defaults(run=lookup)
    one = commands.add_parser("fetch")
    one.add_argument("--times", type=int, default=2_000)
    one.set_defaults(run=fetch)
    one = commands.add_parser("rebuild")
    one.add_argument("--entries", type=int, default=100_000)
    one.set_defaults(run=rebuild)
    one = commands.add_parser("probe")
    one.add_argument("--times", type=int, default=1000, help="number of lookups of each kind")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=probe)
    args = parser.parse_args()
    found = args.run(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    command(main)
