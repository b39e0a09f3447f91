"""Measures Weir's overhead: its request path with workers that take no time, against a bare Ray Serve application.

The bare application has the same two hops (ingress → handle → replica) without any work. Both run on one cluster at the
same time, and requests alternate between them, so that other load on the machine affects both equally. Only the ratios
are meaningful.

    python -m benchmarks.overhead --out overhead.json
    python -m benchmarks.overhead --balancers 2 --image-bytes 1500000

Several load balancers, and as many ingresses of the bare application, are behind an HAProxy, one is behind Serve's own
proxy. Processor time is that of all processes that answer, without the clients' and without what Ray does meanwhile.
"""

# Annotations are not postponed here: Serve reads them when it builds `bare`.

import argparse
import asyncio
import base64
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml
from ray import serve
from ray.serve.handle import DeploymentHandle
from rich.console import Console
from rich.table import Table
from starlette.requests import Request
from starlette.responses import Response

from benchmarks import command
from benchmarks.processor_time import processor_s
from cache.store.redis_server import RedisServer
from deploy.cluster import behind_haproxy, cluster
from deploy.local import bindable
from deploy.publish import Publisher
from deploy.serve_config import render
from load_balancer.http.openapi import GENERATIONS
from weir.config import load_service

BODY = {"prompt": "a red circle above a blue square", "seed": 7}
GOALS = {"p50": 1.3, "throughput": 0.85}


@serve.deployment(
    max_ongoing_requests=100_000, ray_actor_options={"num_cpus": 0.1}, logging_config={"enable_access_log": False}
)
class Echo:
    """Worker of the bare application; its response has the size of Weir's."""

    def __init__(self, image_bytes: int):
        self.image = bytes(image_bytes or 75)

    async def __call__(self, body: dict) -> bytes:
        return self.image


@serve.deployment(
    max_ongoing_requests=100_000, ray_actor_options={"num_cpus": 0}, logging_config={"enable_access_log": False}
)
class Ingress:
    """Ingress of the bare application: reads JSON, calls the worker, writes JSON."""

    def __init__(self, echo: DeploymentHandle):
        self.echo = echo

    async def __call__(self, request: Request) -> Response:
        image = base64.b64encode(await self.echo.remote(await request.json()))
        body = b'{"data":[{"b64_json":"%b","weir":{"id":"%b"}}]}' % (image, b"x" * 300)
        return Response(body, media_type="application/json")


def bare(args: dict) -> serve.Application:
    ingress = Ingress.options(num_replicas=args["ingresses"])  # type: ignore[attr-defined]
    return ingress.bind(Echo.bind(args["image_bytes"]))  # type: ignore[attr-defined]


def instant_service(folder: Path, balancers: int = 1, image_bytes: int = 0) -> Path:
    """Writes the service file of a single worker that takes no time, with light images that are always accepted."""
    variant = {"steps": 1, "batch_sizes": [1, 64], "latency_s": [1e-6, 1e-6]}
    profile = {
        "family": "instant",
        "device": "none",
        "image_bytes": image_bytes,
        "light": {"name": "l", **variant},
        "heavy": {"name": "h", **variant},
    }
    one_step = {"scheduler": "ddim", "steps": 1, "guidance": 0}
    family = {
        "name": "instant",
        "pipeline": "nobody/nothing",
        "size": 64,
        "light": {"name": "l", **one_step},
        "heavy": {"name": "h", **one_step},
    }
    service = {
        "family": "family.yaml",
        "slo_s": 60,
        "plan": {"light_replicas": 1, "heavy_replicas": 0, "light_batch": 64, "threshold": 0},
        "pool": {"cpus_per_replica": 0.1, "emulate": "profile.json"},
        "limits": {"queued": 10_000},
        "balancers": balancers,
    }
    (folder / "profile.json").write_text(json.dumps(profile))
    (folder / "family.yaml").write_text(yaml.safe_dump(family))
    (folder / "service.yaml").write_text(yaml.safe_dump(service))
    return folder / "service.yaml"


async def call(session: aiohttp.ClientSession, url: str) -> float:
    """Sends one request and returns its seconds."""
    began = time.perf_counter()
    async with session.post(url, json=BODY) as answer:
        text = await answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{url} answered {answer.status}: {text[:300]!r}")
    return time.perf_counter() - began


async def throughput(session: aiohttp.ClientSession, url: str, concurrency: int, seconds: float) -> float:
    """Returns the requests per second of ``concurrency`` closed-loop clients."""
    end = time.perf_counter() + seconds
    done = 0

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call(session, url)
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return done / (time.perf_counter() - began)


#: Processes that answer requests of both applications, and parts of those of each.
SHARED = ("haproxy", "ProxyActor")


def costs(before: dict[str, float], after: dict[str, float], name: str, requests: float) -> dict[str, float]:
    """Processor milliseconds a request of the processes that answer those of an application."""
    used = {kind: 1e3 * (seconds - before.get(kind, 0.0)) / requests for kind, seconds in after.items()}
    return {kind: ms for kind, ms in used.items() if kind.startswith((f"{name}:", *SHARED))}


async def measure(urls: dict[str, str], requests: int, rounds: int, seconds: float, concurrency: int) -> dict[str, Any]:
    me = psutil.Process()
    cost: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    latency: dict[str, list[float]] = {name: [] for name in urls}
    rates: dict[str, list[float]] = {name: [] for name in urls}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for url in urls.values():
            for _ in range(50):
                await call(session, url)
            await throughput(session, url, concurrency, 1)
        for number in range(requests):
            for name in list(urls) if number % 2 else reversed(urls):
                latency[name].append(await call(session, urls[name]))
        for number in range(rounds):
            for name in list(urls) if number % 2 else reversed(urls):
                before = await asyncio.to_thread(processor_s, me)
                rates[name].append(await throughput(session, urls[name], concurrency, seconds))
                after = await asyncio.to_thread(processor_s, me)
                cost[name].append(costs(before, after, name, rates[name][-1] * seconds))
    p50 = {name: statistics.median(values) for name, values in latency.items()}
    p99 = {name: statistics.quantiles(values, n=100)[98] for name, values in latency.items()}
    rps = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "p50_ms": {name: round(1e3 * value, 2) for name, value in p50.items()},
        "p99_ms": {name: round(1e3 * value, 2) for name, value in p99.items()},
        "rps": {name: round(value, 1) for name, value in rps.items()},
        "p50_ratio": round(p50["weir"] / p50["bare"], 3),
        "throughput_ratio": round(
            statistics.median(w / b for w, b in zip(rates["weir"], rates["bare"], strict=True)), 3
        ),
        "processor_ms": {
            name: {kind: round(statistics.median(it.get(kind, 0.0) for it in found), 2) for kind in sorted(found[0])}
            for name, found in cost.items()
        },
        "requests": requests,
        "rounds": rounds,
        "concurrency": concurrency,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=500, help="sequential requests to each, alternating")
    parser.add_argument("--rounds", type=int, default=6, help="throughput windows of each, alternating")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a window")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--balancers", type=int, default=1, help="load balancers; several are behind an HAProxy")
    parser.add_argument("--haproxy", action="store_true", help="put an HAProxy before a single load balancer, too")
    parser.add_argument("--image-bytes", type=int, default=0, help="size of an image; 1024 px have about 1,500,000")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    console = Console()
    port = bindable("127.0.0.1", 0)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-", dir="/tmp"))
        if given.haproxy or given.balancers > 1:
            stack.enter_context(behind_haproxy(Path(folder) / "door", 60))
        if given.balancers > 1:
            redis = RedisServer.start()
            stack.callback(redis.stop)
            os.environ["WEIR_STATE_URL"] = redis.url
        dashboard = stack.enter_context(cluster(cpus=2))
        config = instant_service(Path(folder), given.balancers, given.image_bytes)
        service, family = load_service(config)
        plan = service.plan.plan(family.keys)
        body = render(config, host="127.0.0.1", port=port, controlled=False)
        body["applications"].append(
            {
                "name": "bare",
                "route_prefix": "/bare",
                "import_path": "benchmarks.overhead:bare",
                "args": {"ingresses": given.balancers, "image_bytes": given.image_bytes},
            }
        )
        publisher = Publisher(dashboard)
        publisher.put(body)
        publisher.wait_applied(plan, timeout_s=300)
        while publisher.details()["applications"]["bare"]["status"] != "RUNNING":
            time.sleep(0.2)
        urls = {"bare": f"http://127.0.0.1:{port}/bare", "weir": f"http://127.0.0.1:{port}{GENERATIONS}"}
        figures = asyncio.run(measure(urls, given.requests, given.rounds, given.seconds, given.concurrency))
        serve.shutdown()
    table = Table(title="Weir against a bare two-hop Ray Serve application")
    for column in ("", "bare", "weir", "ratio", "goal"):
        table.add_column(column, justify="right" if column else "left")
    p50, p99, rps = figures["p50_ms"], figures["p99_ms"], figures["rps"]
    table.add_row("p50, ms", str(p50["bare"]), str(p50["weir"]), f"{figures['p50_ratio']}", f"≤ {GOALS['p50']}")
    table.add_row("p99, ms", str(p99["bare"]), str(p99["weir"]), f"{p99['weir'] / p99['bare']:.3f}", "")
    table.add_row(
        "requests/s", str(rps["bare"]), str(rps["weir"]), f"{figures['throughput_ratio']}", f"≥ {GOALS['throughput']}"
    )
    for name, kinds in figures["processor_ms"].items():
        parts = ", ".join(f"{kind} {ms:g}" for kind, ms in kinds.items())
        console.print(f"{name}: {sum(kinds.values()):.2f} ms of processor time a request: {parts}", soft_wrap=True)
    console.print(table)
    console.print_json(data=figures)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
