"""Two tenants of one service in virtual time: a modest one, and one that always asks for as much as it may."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import numpy as np

from load_balancer.http.api_keys import Caller
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings, Sources
from load_balancer.runner.generation_request import GenerationRequest
from simulator.arrivals import Arrivals
from simulator.exact import SimulatedPool, Timeline, VirtualTime, family_of
from simulator.request_stream import RequestStream
from weir.clocks import Clocks
from weir.errors import WeirError
from weir.plan import HEAVY, LIGHT, Plan
from weir.profiles import Profile

SLO_S = 10.0
#: Requests per second of the modest tenant; the confidence in its light images is uniform, and half are deferred.
RATE_RPS = 3.0
#: Seconds after which the greedy tenant comes.
LATER_S = 3.0
MODEST, GREEDY = Caller("alice", "acme"), Caller("mallory", "globex")


class Load(NamedTuple):
    """What the greedy tenant asks for: requests at once, and images of each, all for the heavy variant."""

    requests: int
    images: int = 1


class Noticed(NamedTuple):
    """What the modest tenant noticed: latencies of its answers, and how many of its requests had none."""

    latencies_s: np.ndarray
    refused: int

    @property
    def p50_s(self) -> float:
        return float(np.percentile(self.latencies_s, 50))

    @property
    def p99_s(self) -> float:
        return float(np.percentile(self.latencies_s, 99))


def modest_tenant(
    seconds: float, greedy: Load | None, *, light: int = 2, heavy: int = 4, apart: bool = True
) -> Noticed:
    """Runs the load balancer on simulated replicas for that many virtual seconds.

    Args:
        greedy: what the other tenant has in flight all the time; None: there is none.
        light, heavy: number of replicas; a light image takes 0.05 s and a heavy one 0.4 s alone, batches of four
            0.1 and 0.8 s.
        apart: whether the two are tenants of their own; else all requests are of one tenant.
    """
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(_run(seconds, greedy, light, heavy, apart))


def _profile() -> Profile:
    def variant(name: str, steps: int, alone_s: float, four_s: float) -> dict[str, object]:
        return {
            "name": name,
            "steps": steps,
            "batch_sizes": [1, 4],
            "latency_s": [alone_s, four_s],
            "step_s": [alone_s / steps, four_s / steps],
            "fixed": {"text_s": 0.0, "decode_s": 0.0},
        }

    fields = {
        "family": "none",
        "device": "none",
        LIGHT: variant(LIGHT, 2, 0.05, 0.1),
        HEAVY: variant(HEAVY, 50, 0.4, 0.8),
    }
    return Profile.model_validate(fields)


async def _run(seconds: float, greedy: Load | None, light: int, heavy: int, apart: bool) -> Noticed:
    clock, count = asyncio.get_running_loop(), round(seconds * RATE_RPS)
    plan = Plan.split(1, light, heavy, light_batch=4, heavy_batch=4, threshold=0.5)
    profile = _profile()
    family = family_of(profile)
    arrivals = Arrivals(np.arange(count) / RATE_RPS, np.arange(count))
    stream = RequestStream(arrivals, {LIGHT: np.random.default_rng(1).random(count)})
    pool = SimulatedPool(family, profile, plan, stream, (), Timeline((), 1.0), Timeline((), None))
    settings, sources = BalancerSettings(slo_s=SLO_S, queued=256), Sources(Clocks(monotonic=clock.time))
    balancer = Balancer(pool, plan, family, settings, profile=profile, sources=sources)
    balancer.dispatcher.sync(await pool.describe())
    latencies_s, refused = [], 0

    async def ask(number: int) -> None:
        nonlocal refused
        began = clock.time()
        try:
            await balancer.generate(GenerationRequest(str(number), family.size, caller=MODEST))
        except WeirError:
            refused += 1
        else:
            latencies_s.append(clock.time() - began)

    async def press(load: Load) -> None:
        caller = GREEDY if apart else MODEST
        await asyncio.sleep(LATER_S)
        while True:
            wanted = GenerationRequest("0", family.size, n=load.images, variant=HEAVY, seed=1, caller=caller)
            try:
                await balancer.generate(wanted)
            except WeirError:
                await asyncio.sleep(0.1)

    pressing = [clock.create_task(press(greedy)) for _ in range(greedy.requests)] if greedy is not None else []
    asked = []
    for number in range(count):
        await asyncio.sleep(max(0.0, number / RATE_RPS - clock.time()))
        asked.append(clock.create_task(ask(number)))
    await asyncio.gather(*asked)
    for task in pressing:
        task.cancel()
    await asyncio.gather(*pressing, return_exceptions=True)
    return Noticed(np.array(latencies_s), refused)
