"""Measures refusals and deadlines at five times the capacity of a service.

    python -m benchmarks.overload [--seconds 20] [--factor 5] [--json]

It starts a service of emulated replicas and sends evenly spaced requests for the heavy variant open loop: at half of
the capacity, then at ``--factor`` times the capacity, then at half of it again. Times are measured by the client,
include its own delays, and the client shares the machine with the service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import command
from deploy.local import down, up
from testing.service_files import emulated_service

SLO_S = 4.0
#: One heavy replica, in batches of four within half a second.
CAPACITY_RPS = 8.0
CALM = 0.5


@dataclass(frozen=True, slots=True)
class Overload:
    """Result of one burst. Ratios refer to the requests of the burst; times are measured by the client.

    Attributes:
        refused_calm: number of refusals before the burst.
        accepted_over_capacity: answered requests per second of the burst, divided by the capacity.
        recovered_s: seconds from the end of the burst to the last refusal; 0 when there was none.
        codes: number of responses by status over the whole run.
    """

    offered_rps: float
    accepted: int
    accepted_over_capacity: float
    in_time: float
    accepted_p99_s: float
    refused: int
    refused_p50_ms: float
    refused_p99_ms: float
    with_retry_after: float
    recovered_s: float
    refused_calm: int
    codes: dict[str, int]


def write_service(folder: Path, **changes: Any) -> Path:
    """Writes the service file of the benchmark: one heavy replica with batches of four in half a second."""
    fields = {
        "slo_s": SLO_S,
        "plan": {"light_replicas": 1, "heavy_replicas": 1, "threshold": 0},
        "pool": {"cpus_per_replica": 0.1},
    }
    return emulated_service(folder, "overload", light_s=(0.02, 0.05), heavy_s=(0.25, 0.5), **fields | changes)


@dataclass(frozen=True, slots=True)
class _Answer:
    sent_s: float
    took_s: float
    status: int
    retry_after: bool


async def overload(url: str, *, seconds: float, calm_s: float, factor: float, key: str | None = None) -> Overload:
    """Sends the load and summarises the responses."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    rates = [(calm_s, CALM * CAPACITY_RPS), (seconds, factor * CAPACITY_RPS), (calm_s, CALM * CAPACITY_RPS)]
    times, start = [], 0.0
    for duration_s, rps in rates:
        times += list(start + np.arange(round(duration_s * rps)) / rps)
        start += duration_s
    answers: list[_Answer] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, headers=headers, trust_env=False) as client:

        async def one(number: int, at_s: float) -> None:
            began = time.perf_counter()
            answer = await client.post(
                "/v1/images/generations", json={"prompt": f"number {number}", "model": "overload/heavy"}
            )
            took_s = time.perf_counter() - began
            answers.append(_Answer(at_s, took_s, answer.status_code, "retry-after" in answer.headers))

        async with asyncio.TaskGroup() as group:
            zero = time.perf_counter()
            for number, at_s in enumerate(times):
                await asyncio.sleep(max(0.0, zero + at_s - time.perf_counter()))
                group.create_task(one(number, at_s))
    return _report(answers, burst=(calm_s, calm_s + seconds), offered_rps=factor * CAPACITY_RPS)


def _report(answers: list[_Answer], *, burst: tuple[float, float], offered_rps: float) -> Overload:
    begin, end = burst
    during = [it for it in answers if begin <= it.sent_s < end]
    accepted = [it for it in during if it.status == 200]
    refusals = [it for it in answers if it.status == 503]
    refused = [it for it in during if it.status == 503]
    last = max((it.sent_s for it in refusals), default=end)
    return Overload(
        offered_rps=offered_rps,
        accepted=len(accepted),
        accepted_over_capacity=len(accepted) / (end - begin) / CAPACITY_RPS,
        in_time=float(np.mean([it.took_s <= SLO_S for it in accepted])) if accepted else 0.0,
        accepted_p99_s=float(np.percentile([it.took_s for it in accepted], 99)) if accepted else float("nan"),
        refused=len(refused),
        refused_p50_ms=1000 * float(np.percentile([it.took_s for it in refused], 50)) if refused else 0.0,
        refused_p99_ms=1000 * float(np.percentile([it.took_s for it in refused], 99)) if refused else 0.0,
        with_retry_after=float(np.mean([it.retry_after for it in refusals])) if refusals else 1.0,
        recovered_s=max(0.0, last - end),
        refused_calm=sum(it.sent_s < begin for it in refusals),
        codes={str(code): count for code, count in sorted(Counter(it.status for it in answers).items())},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures refusals and deadlines at five times the capacity.")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the burst")
    parser.add_argument("--factor", type=float, default=5.0, help="load as a multiple of the capacity")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        service = up(write_service(here), detach=True, port=0, folder=here / "state")
        assert service is not None
        try:
            found = asyncio.run(overload(service.url, seconds=given.seconds, calm_s=8.0, factor=given.factor))
        finally:
            down(service.name, folder=here / "state")
    if given.json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
        return
    sys.stdout.write(
        f"offered in the burst     {found.offered_rps:.0f} requests/s, {given.factor:g} × the capacity\n"
        f"accepted                 {found.accepted}, {found.accepted_over_capacity:.2f} × the capacity\n"
        f"accepted within the SLO  {found.in_time:.1%} of them (SLO {SLO_S:g} s, p99 {found.accepted_p99_s:.2f} s)\n"
        f"refused                  {found.refused}, in {found.refused_p50_ms:.1f} ms (p99 {found.refused_p99_ms:.1f})\n"
        f"with Retry-After         {found.with_retry_after:.0%} of the refusals\n"
        f"last refusal             {found.recovered_s:.2f} s after the burst; {found.refused_calm} before it\n"
        f"statuses                 {found.codes}\n"
    )


if __name__ == "__main__":
    command(main)
