"""Measures what a client notices of a hostile neighbour; ``python -m benchmarks.attack --neighbours 300`` runs it.

Alice sends evenly spaced requests alone, and then beside Mallory, who does all that ``testing/attacks.py`` has, over
and over, from a process of the lowest priority. Client, attacker and service share the machine.

    python -m benchmarks.neighbours URL KEY KEYS_FILE SECONDS

is Mallory.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from load_balancer.http.openapi import GENERATIONS
from testing.attacks import HEAVY, LONGEST_S, RAW, SLO_S, Target, cancelled_jobs, raw_bytes, replayed_streams
from weir.assets import ROOT

#: Alice's requests per second, and replicas of the heavy variant: she needs a quarter of them.
RATE_RPS, HEAVY_REPLICAS = 3.0, 4
#: Quota of Mallory's key.
QUOTA = {"concurrent_images": 4, "images_per_minute": 60}
#: Share by which Alice's p99 may be worse beside Mallory.
MOST_WORSE = 0.1


@dataclass(frozen=True, slots=True)
class Noticed:
    """What Alice noticed in one run.

    Attributes:
        violated: share of her requests that were late, refused or failed.
    """

    requests: int
    p50_s: float
    p99_s: float
    violated: float
    refused: int

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, p50 {self.p50_s:.3f} s, p99 {self.p99_s:.3f} s, "
            f"{self.violated:.1%} violations, {self.refused} refused or failed"
        )


async def alice(target: Target, seconds: float) -> Noticed:
    """Sends evenly spaced requests open loop."""
    times_s: list[float] = []
    refused = 0

    async def one(client: httpx.AsyncClient, number: int) -> None:
        nonlocal refused
        began = time.perf_counter()
        try:
            answer = await client.post(GENERATIONS, json={"prompt": f"circle {number}", "seed": number})
        except httpx.HTTPError:
            refused += 1
            return
        times_s.append(time.perf_counter() - began)
        refused += not answer.is_success

    async with target.client(target.alice) as client, asyncio.TaskGroup() as group:
        zero = time.perf_counter()
        for number in range(round(seconds * RATE_RPS)):
            await asyncio.sleep(max(0.0, zero + number / RATE_RPS - time.perf_counter()))
            group.create_task(one(client, number))
    count = round(seconds * RATE_RPS)
    late = sum(it > SLO_S for it in times_s)
    p50_s, p99_s = np.percentile(times_s, (50, 99))
    return Noticed(count, float(p50_s), float(p99_s), (late + refused) / count, refused)


async def mallory(target: Target, seconds: float) -> None:
    """Attacks in every way at once until the time is over."""
    until = time.monotonic() + seconds

    async def raw() -> None:
        for name in RAW:
            await raw_bytes(target, name)

    async def flood() -> None:
        async with target.client(target.mallory) as client:
            big = {"prompt": "a", "n": 4, "model": HEAVY}
            await asyncio.gather(*(client.post(GENERATIONS, json=big) for _ in range(20)))

    async def leave() -> None:
        async with target.client(target.mallory) as client:
            asked = [asyncio.create_task(client.post(GENERATIONS, json={"prompt": "a"})) for _ in range(20)]
            await asyncio.sleep(0.05)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def heads() -> None:
        opened = [await asyncio.open_connection("127.0.0.1", target.port) for _ in range(50)]
        for _, writer in opened:
            writer.write(b"GET / HTTP/1.1\r\nX: ")
        await asyncio.sleep(2)
        for _, writer in opened:
            writer.close()

    async def repeat(one: object) -> None:
        while time.monotonic() < until:
            try:
                await one()  # type: ignore[operator]
            except Exception:
                await asyncio.sleep(0.1)  # a refusal is what an attacker may expect

    ways = (raw, flood, leave, heads, lambda: cancelled_jobs(target, 100), lambda: replayed_streams(target))
    async with asyncio.timeout(seconds + LONGEST_S):
        await asyncio.gather(*map(repeat, ways))


def compare(target: Target, seconds: float, runs: int) -> bool:
    """Prints pairs of runs, without and with Mallory; returns whether Alice noticed no more than she may."""
    pairs = []
    for number in range(runs):
        alone = asyncio.run(alice(target, seconds))
        command = [sys.executable, "-m", "benchmarks.neighbours", target.url, target.mallory, str(target.keys_file)]
        attacker = subprocess.Popen([*command, str(seconds)], cwd=ROOT, preexec_fn=lambda: os.nice(19))
        try:
            time.sleep(5)  # its imports
            beside = asyncio.run(alice(target, seconds - 5))
        finally:
            attacker.terminate()
            attacker.wait()
        load = f"load of the machine {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs"
        sys.stdout.write(
            f"run {number + 1} alone           {alone}\nrun {number + 1} beside Mallory  {beside}; {load}\n"
        )
        sys.stdout.flush()
        pairs.append((alone, beside))
    worse = [beside.p99_s / alone.p99_s - 1 for alone, beside in pairs]
    refused = sum(beside.refused for _, beside in pairs)
    sys.stdout.write(f"p99 beside Mallory is worse by {min(worse):+.1%} to {max(worse):+.1%}; {refused} refused\n")
    return max(worse) <= MOST_WORSE and refused == 0


def main() -> None:
    url, key, keys_file, seconds = sys.argv[1:]
    # Mallory has no key of Alice's, and asks for images in her place with her own.
    asyncio.run(mallory(Target(url, key, key, Path(keys_file)), float(seconds)))


if __name__ == "__main__":
    main()
