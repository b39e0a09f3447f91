"""Attacks on a running service with two clients: each says what happened, and whether that is right.

``benchmarks/attack.py`` runs all of them, and ``tests/deploy/test_attacks.py`` those that take seconds. The service has
API keys of Mallory, who attacks, and of Alice, who has another tenant and must notice nothing.
"""

from __future__ import annotations

import asyncio
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from PIL import Image

from load_balancer.http.api_keys import append_key, digest, new_key
from load_balancer.http.openapi import EDITS, FILES, GENERATIONS
from testing.pictures import gradient, png
from testing.raw_http import answers, in_format
from testing.service_files import emulated_service
from weir.config import KeyConfig
from weir.core import ImageSize

SLO_S = 10.0
#: The heavy variant of the service under attack.
HEAVY = "attacked/heavy"
#: Time limit of a request of the attacks, seconds: a service that hangs is found, and not waited for.
LONGEST_S = 60.0
#: Number of connections that are opened at once.
CROWD = 60
#: Number of jobs that are begun and cancelled: more than a service keeps.
JOBS = 1100

_GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
#: Raw bytes of a request, and the status of the right answer.
RAW: dict[str, tuple[bytes, int]] = {
    "an id that is not UTF-8": (_GET + b"X-Request-Id: \xff\r\n\r\n", 400),
    "a session that is not UTF-8": (_GET + b"x-session-id: \xff\r\n\r\n", 200),
    "a model that is not UTF-8": (_GET + b"serve_multiplexed_model_id: \xff\r\n\r\n", 200),
    "a time limit of its own": (_GET + b"X-Request-Timeout-Seconds: 0.001\r\n\r\n", 200),
    "a key that is not UTF-8": (_GET.replace(b"healthz", b"v1/models") + b"Authorization: Bearer \xff\r\n\r\n", 401),
    "two ids": (_GET + b"X-Request-Id: mine\r\nX-Request-Id: yours\r\n\r\n", 200),
    "Ray Serve's routes": (_GET.replace(b"healthz", b"-/routes") + b"\r\n", 404),
    "a path out of the images": (
        _GET.replace(b"healthz", FILES[1:].encode() + b"/..%2f..%2f..%2fetc%2fpasswd") + b"\r\n",
        404,
    ),
    "no path": (_GET.replace(b"/healthz", b"*") + b"\r\n", 404),
    "no HTTP": (b"\0\r\n\r\n", 400),
    "a header without end": (_GET + b"X: " + b"a" * 2**20, 431),
    "many headers": (_GET + b"X: a\r\n" * 1000 + b"\r\n", 431),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one attack."""

    attack: str
    happened: str
    right: bool


@dataclass(frozen=True, slots=True)
class Target:
    """A service under attack.

    Attributes:
        keys_file: file of its API keys; the attacks edit Mallory's quota in it.
        folders: folders of the service that no other user may reach.
    """

    url: str
    alice: str
    mallory: str
    keys_file: Path
    folders: tuple[Path, ...] = ()

    def client(self, key: str) -> httpx.AsyncClient:
        """A client with a key, and without a limit of its own on connections."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=LONGEST_S, limits=limits, trust_env=False)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def write_service(folder: Path, *, heavy_replicas: int = 1, **quota: Any) -> tuple[Path, str, str]:
    """Writes the files of a service of emulated workers; returns the service file and the keys of Alice and Mallory.

    Args:
        quota: of Mallory's key; default: eight images at once.
    """
    alice, mallory = new_key(), new_key()
    keys = folder / "keys.yaml"
    append_key(keys, KeyConfig(name="alice", sha256=digest(alice), tenant="acme"))
    append_key(
        keys, KeyConfig(name="mallory", sha256=digest(mallory), tenant="globex", **quota or {"concurrent_images": 8})
    )
    fields = {
        "slo_s": SLO_S,
        "plan": {"light_replicas": 2, "heavy_replicas": heavy_replicas},
        "pool": {"cpus_per_replica": 0.1},
        "keys_file": "keys.yaml",
        "limits": {"images": 4},
    }
    config = emulated_service(folder, "attacked", light_s=(0.05, 0.1), heavy_s=(0.4, 0.8), stepwise=True, **fields)
    return config, alice, mallory


async def raw_bytes(target: Target, attack: str) -> Verdict:
    """Raw bytes get one answer in the format of the API, with one id."""
    sent, status = RAW[attack]
    found = await answers(target.port, sent)
    right = len(found) == 1 and found[0].status == status and in_format(found[0])
    ids = [name for it in found for name, _ in it.headers].count("x-request-id")
    codes = ", ".join(str(it.status) for it in found) or "no answer"
    return Verdict(attack, f"{codes}, {ids} id", right and ids == 1)


async def replayed_streams(target: Target) -> Verdict:
    """Alice is answered while Mallory replays a stream of four large images with previews on 60 connections."""
    big = {
        "prompt": "a",
        "n": 4,
        "stream": True,
        "partial_images": 2,
        "output_format": "webp",
        "model": HEAVY,
    }
    async with target.client(target.mallory) as hostile, target.client(target.alice) as client:

        async def replay() -> int:
            async with hostile.stream("POST", GENERATIONS, json=big, headers={"Idempotency-Key": "storm"}) as answer:
                return sum([len(part) async for part in answer.aiter_bytes()])

        await replay()
        async with asyncio.TaskGroup() as group:
            storm = [group.create_task(replay()) for _ in range(CROWD)]
            times = [await _ask(client, f"circle {number}") for number in range(10)]
        refused = sum(it is None for it in times)
        slowest = max((it for it in times if it is not None), default=float("inf"))
        got = sum(it.result() > 0 for it in storm)
    happened = f"{got} replays; of 10 requests of Alice {refused} refused, slowest {slowest:.2f} s"
    return Verdict("60 replays of a stream", happened, refused == 0 and slowest <= SLO_S)


async def large_pictures(target: Target) -> Verdict:
    """Alice's edits are answered while Mallory sends pictures of as many pixels as are allowed, and of more."""
    allowed, beyond = (png(Image.new("1", (side, side))) for side in (5792, 13000))
    async with target.client(target.mallory) as hostile, target.client(target.alice) as client:

        async def edit(caller: httpx.AsyncClient, picture: bytes) -> httpx.Response:
            return await caller.post(EDITS, data={"prompt": "a"}, files={"image": ("a.png", picture)})

        refused = await edit(hostile, beyond)
        storm = [asyncio.create_task(edit(hostile, allowed)) for _ in range(CROWD)]
        await asyncio.sleep(0.5)
        times, codes = [], Counter[int]()
        for _ in range(5):
            began = time.perf_counter()
            codes[(await edit(client, png(gradient(ImageSize(64, 64))))).status_code] += 1
            times.append(time.perf_counter() - began)
        for task in storm:
            task.cancel()
        ended = await asyncio.gather(*storm, return_exceptions=True)
    failed = sum(isinstance(it, httpx.Response) and it.status_code >= 500 for it in ended)
    happened = f"Alice: {_counted(codes)}, slowest {max(times):.2f} s; beyond the limit: {refused.status_code}"
    right = codes == {200: 5} and max(times) <= SLO_S and refused.status_code == 400 and not failed
    return Verdict("large pictures", happened, right)


async def cancelled_jobs(target: Target, jobs: int = JOBS) -> Verdict:
    """Alice's idempotency key survives many jobs that Mallory begins and cancels."""
    async with target.client(target.mallory) as hostile, target.client(target.alice) as client:
        key = {"Idempotency-Key": f"kept-{time.monotonic_ns()}"}
        first = await client.post(GENERATIONS, json={"prompt": "a red circle"}, headers=key)
        slots, codes = asyncio.Semaphore(8), Counter[int]()

        async def begin_and_cancel() -> None:
            async with slots:
                begun = await hostile.post(GENERATIONS, json={"prompt": "a"}, headers={"Prefer": "respond-async"})
                codes[begun.status_code] += 1
                if begun.status_code == 202:
                    codes[(await hostile.delete(begun.headers["location"])).status_code] += 1

        await asyncio.gather(*(begin_and_cancel() for _ in range(jobs)))
        again = await client.post(GENERATIONS, json={"prompt": "a red circle"}, headers=key)
    same = again.headers.get("idempotent-replayed") == "true" and again.content == first.content
    happened = f"{jobs} jobs: {_counted(codes)}; Alice's key is {'known' if same else 'FORGOTTEN'}"
    return Verdict("jobs begun and cancelled", happened, same and max(codes) < 500)


async def disconnections(target: Target, count: int = 300) -> Verdict:
    """Clients that leave in the middle of their requests leave nothing that runs."""
    async with target.client(target.alice) as client:
        async with target.client(target.mallory) as hostile:
            for _ in range(0, count, CROWD):
                asked = [
                    asyncio.create_task(hostile.post(GENERATIONS, json={"prompt": "a", "model": HEAVY}))
                    for _ in range(CROWD)
                ]
                await asyncio.sleep(0.05)
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
        took_s = await _ask(client, "a star")
        until = time.monotonic() + LONGEST_S
        while (left := (await client.get("/readyz")).json()["in_flight"]) and time.monotonic() < until:
            await asyncio.sleep(0.1)
    happened = f"{count} requests left; {left} images in flight; Alice waits {took_s or float('inf'):.2f} s"
    return Verdict("clients that leave", happened, left == 0 and took_s is not None)


async def half_heads(target: Target, count: int = 200) -> Verdict:
    """Connections that send half of a request's head are ended, and other clients are answered meanwhile."""
    opened = [await asyncio.open_connection("127.0.0.1", target.port) for _ in range(count)]
    for _, writer in opened:
        writer.write(_GET)
    async with target.client(target.alice) as client:
        took_s = await _ask(client, "a box")
    closed = 0
    for reader, writer in opened:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(LONGEST_S):
                closed += b" 408 " in await reader.read()
        writer.close()
    happened = f"{closed} of {count} ended by a 408; Alice waits {took_s or float('inf'):.2f} s"
    return Verdict("half of a head", happened, closed == count and took_s is not None)


async def edited_quota(target: Target) -> Verdict:
    """A request is repeated by its key after the quota of its API key was edited."""
    key = {"Idempotency-Key": f"edited-{time.monotonic_ns()}"}
    async with target.client(target.mallory) as client:
        first = await client.post(GENERATIONS, json={"prompt": "a"}, headers=key)
        kept = target.keys_file.read_text()
        fields = yaml.safe_load(kept)
        fields["keys"][1] |= {"images_per_minute": 6000, "concurrent_images": 7}
        target.keys_file.write_text(yaml.safe_dump(fields))
        try:
            await asyncio.sleep(2.0)  # the service looks at its keys once a second
            again = await client.post(GENERATIONS, json={"prompt": "a"}, headers=key)
        finally:
            target.keys_file.write_text(kept)
            await asyncio.sleep(2.0)
    same = again.content == first.content
    return Verdict("a quota edited", f"{first.status_code}, then {again.status_code}", same and first.is_success)


async def open_folders(target: Target) -> Verdict:
    """No other user of the machine reaches a folder of the service."""
    modes = {str(it): stat.S_IMODE(it.stat().st_mode) for it in target.folders}
    happened = ", ".join(f"{mode:o}" for mode in modes.values())
    return Verdict("modes of folders", happened, not any(mode & 0o077 for mode in modes.values()))


#: What takes seconds, and what takes up to a minute.
QUICK: Mapping[str, Callable[[Target], Awaitable[Verdict]]] = {
    "streams": replayed_streams,
    "pictures": large_pictures,
    "disconnections": disconnections,
    "quota": edited_quota,
    "folders": open_folders,
}
LONG: Mapping[str, Callable[[Target], Awaitable[Verdict]]] = {"heads": half_heads, "jobs": cancelled_jobs}


async def _ask(client: httpx.AsyncClient, prompt: str) -> float | None:
    """Seconds until a request is answered; None when it is refused or fails."""
    began = time.perf_counter()
    answer = await client.post(GENERATIONS, json={"prompt": prompt})
    return time.perf_counter() - began if answer.is_success else None


def _counted(codes: Counter[int]) -> str:
    return ", ".join(f"{count} × {code}" for code, count in sorted(codes.items()))
