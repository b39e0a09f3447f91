"""The exact simulator: the load balancer itself on virtual time, and the fast simulator held to it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from baselines.published import CASCADES
from controller.policy import Policy
from controller.registry import make_policy
from controller.setting import Setting
from simulator.arrivals import Arrivals, poisson, steps
from simulator.conditions import Conditions
from simulator.engine import simulate
from simulator.exact import VirtualTime, simulate_exactly
from simulator.families import family_setting
from simulator.outcome import UNANSWERED, Outcome
from simulator.request_stream import RequestStream
from weir.config import RedrawConfig
from weir.core import CacheLookup, ImageSize, Resume
from weir.plan import Plan
from weir.profiles import Profile

REDRAW = RedrawConfig(below=0.6, most=2)


def batches() -> Profile:
    """DiffServe's first cascade: whole batches."""
    cascade = CASCADES["diffserve-1"]
    levels = np.linspace(0.0005, 0.9995, 1000)
    sizes, light_s = cascade.light.batch_sizes, [s + 0.02 for s in cascade.light.latency_s]
    return Profile.model_validate(
        {
            "family": "f",
            "device": "d",
            "light": {"name": "l", "steps": 2, "batch_sizes": sizes, "latency_s": light_s},
            "heavy": {"name": "h", "steps": 50, "batch_sizes": sizes, "latency_s": cascade.heavy.latency_s},
            "confidences": np.interp(levels, cascade.deferral.shares, cascade.deferral.thresholds).tolist(),
            "quality": {"values": cascade.fid, "smaller_is_better": True},
        }
    )


def stepwise() -> Profile:
    """A family whose steps were measured."""

    def variant(name: str, count: int, step_s: tuple[float, ...]) -> dict[str, object]:
        sizes, fixed_s = (1, 2, 4, 8), 0.006
        return {
            "name": name,
            "steps": count,
            "batch_sizes": sizes,
            "latency_s": [count * s + b * fixed_s for b, s in zip(sizes, step_s, strict=True)],
            "step_s": step_s,
            "fixed": {"text_s": 0.001, "decode_s": 0.005},
        }

    return Profile.model_validate(
        {
            "family": "f",
            "device": "d",
            "size": 64,
            "light": variant("l", 2, (0.013, 0.02, 0.023, 0.034)),
            "heavy": variant("h", 50, (0.017, 0.022, 0.032, 0.051)),
        }
    )


def stream(arrivals: Arrivals, cache: str = "off") -> RequestStream:
    """Requests with confidences and, with a cache, lookups of which two of three find a state."""
    count, rng = len(arrivals), np.random.default_rng(0)
    lookups: list[CacheLookup] = []
    for number in range(count if cache != "off" else 0):
        k = (0, 10, 25)[number % 3]
        resume = Resume(f"s:{k}", k, 5, 0.9) if cache == "judged" else Resume(f"s:{k}", k)
        lookups.append(CacheLookup("p", 0.9, "e", resume if k else None))
    confidences = {"light": rng.random(count), "heavy": rng.beta(3, 1, count)}
    return RequestStream(arrivals, confidences, rng.beta(3, 1, (2, count)), rng.beta(9, 1, count), lookups)


def sized(arrivals: Arrivals) -> Arrivals:
    """The arrivals with three sizes: a square, one of 1.5 times its pixels, and one of half of them."""
    sizes = ImageSize(64, 64), ImageSize(96, 64), ImageSize(32, 64)
    drawn = np.random.default_rng(1).choice(3, size=len(arrivals))
    return replace(arrivals, sizes=tuple(sizes[i] for i in drawn))


def at(*times_s: float) -> Arrivals:
    return Arrivals.of(np.array(times_s), np.arange(len(times_s)))


def both(policy: str, profile: Profile, gpus: int, slo_s: float, requests: RequestStream, **more) -> list[Outcome]:
    made = (make_policy(policy, Setting.of(profile, gpus, slo_s)) for _ in range(2))
    conditions = Conditions(**more)
    return [it(next(made), requests, profile, conditions) for it in (simulate, simulate_exactly)]


WAY = tuple(np.random.default_rng(3).exponential(0.01, 200))
RUNS = {
    "batches": ("weir", batches(), 16, 5.0, stream(poisson(np.full(60, 27.0), 1)), {}),
    "batches, calls that take 10 ms": (
        "weir", batches(), 16, 5.0, stream(poisson(np.full(60, 27.0), 2)), {"transit_s": WAY}
    ),
    "a cache, and redraws": (
        "weir", batches(), 16, 5.0, stream(poisson(np.full(40, 27.0), 1), "on"), {"redraw": REDRAW}
    ),
    "a judged cache": ("weir", batches(), 16, 5.0, stream(poisson(np.full(40, 27.0), 1), "judged"), {}),
    "steps": ("weir", stepwise(), 3, 10.0, stream(poisson(np.full(60, 8.0), 4)), {}),
    "steps, and a demand in steps": (
        "weir", stepwise(), 3, 10.0, stream(steps(2, 12, 80, 20, 5), "on"), {"transit_s": (0.005,)}
    ),
    "three sizes": ("weir", stepwise(), 3, 10.0, stream(sized(poisson(np.full(60, 5.0), 4))), {}),
    "three sizes, and calls that take 10 ms": (
        "weir", stepwise(), 3, 10.0, stream(sized(steps(2, 8, 80, 20, 5))), {"transit_s": WAY}
    ),
    "a demand beyond the capacity": ("weir", batches(), 4, 5.0, stream(poisson(np.full(30, 120.0), 6)), {}),
    "a replica that dies, and slow devices": (
        "weir", batches(), 8, 5.0, stream(poisson(np.full(60, 12.0), 7)),
        {"deaths": [(20.0, 7)], "slowdowns": [(30.0, 1.3)]},
    ),
    "random replicas, and late requests": ("diffserve", batches(), 16, 5.0, stream(poisson(np.full(60, 24.0), 8)), {}),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_the_fast_simulator_predicts_the_load_balancer(run) -> None:
    policy, profile, gpus, slo_s, requests, more = run
    fast, exact = both(policy, profile, gpus, slo_s, requests, **more)
    assert abs(fast.violated.mean() - exact.violated.mean()) <= 0.003
    assert abs(fast.answered.mean() - exact.answered.mean()) <= 0.003
    assert abs(fast.light.sum() / fast.answered.sum() - exact.light.sum() / exact.answered.sum()) <= 0.02
    # Where a replica dies, a few images are answered with what they had a moment earlier or later.
    assert abs(fast.at_deadline.mean() - exact.at_deadline.mean()) <= 0.03


class Fixed(Policy):
    """One plan for the whole run: a replica for each variant."""

    name = "fixed"

    def first_plan(self) -> Plan:
        self.rules = replace(self.rules, drop_after_s=None, light_fallback=True)
        return self.split(1, 1, light_batch=2, heavy_batch=2, threshold=0.5)


def fixed() -> Fixed:
    return Fixed(family_setting("diffserve-1", gpus=2))


def test_an_image_takes_as_long_as_its_runs() -> None:
    requests = RequestStream(at(1.0, 10.0), {"light": np.array([0.9, 0.1])})
    outcome = simulate_exactly(fixed(), requests)
    assert outcome.paths.tolist() == ["light", "heavy"]
    assert outcome.latencies_s == pytest.approx([0.12, 0.12 + 1.78])


def test_a_resumed_image_that_is_doubted_is_generated_from_noise() -> None:
    lookups = [CacheLookup("p", 0.9, "e", Resume("s", 25, 1, 0.8), capture=False)] * 2
    requests = RequestStream(
        at(1.0, 20.0), {"light": np.zeros(2), "heavy": np.array([0.9, 0.9])}, resumed=np.array([0.85, 0.2]),
        lookups=lookups,
    )  # fmt: skip
    outcome = simulate_exactly(fixed(), requests, conditions=Conditions(direct=0.5))
    assert outcome.paths.tolist() == ["cache", "heavy"]
    assert outcome.resumed_at.tolist() == [25, 0]
    assert outcome.latencies_s == pytest.approx([1.78 / 2, 1.78 / 2 + 1.78])


def test_a_run_is_a_function_of_its_arguments() -> None:
    requests = stream(poisson(np.full(20, 24.0), 8), "on")
    setting, conditions = Setting.of(batches(), 16, 5.0), Conditions(seed=3)
    runs = [simulate_exactly(make_policy("diffserve", setting), requests, batches(), conditions) for _ in range(2)]
    assert runs[0].paths.tolist() == runs[1].paths.tolist()
    assert runs[0].finished_s.tolist() == runs[1].finished_s.tolist()


def test_the_time_before_a_late_first_arrival_is_skipped() -> None:
    outcome = simulate_exactly(fixed(), RequestStream(at(9_000.0), {"light": np.array([0.9])}))
    assert outcome.latencies_s == pytest.approx([0.12])
    assert outcome.plans[0].at_s == 9_000.0 - 60.0


def test_a_run_without_requests_has_an_empty_outcome() -> None:
    outcome = simulate_exactly(fixed(), RequestStream(at(), {"light": np.empty(0)}))
    assert len(outcome.paths) == 0


def test_requests_without_any_replica_are_not_answered() -> None:
    requests = RequestStream(at(1.0, 8.0), {"light": np.array([0.9, 0.9])})
    outcome = simulate_exactly(fixed(), requests, conditions=Conditions(deaths=[(4.0, 0), (4.0, 1)]))
    assert outcome.paths.tolist() == ["light", UNANSWERED]


def test_a_policy_that_fails_ends_the_simulation() -> None:
    class Broken(Fixed):
        def observe(self, seen):
            raise ValueError("of its own")

    broken = Broken(family_setting("diffserve-1", gpus=2))
    with pytest.raises(RuntimeError, match="the policy failed"):
        simulate_exactly(broken, RequestStream(at(5.0), {"light": np.array([0.9])}))


def test_at_five_times_the_capacity_accepted_requests_are_in_time_and_refusals_end_with_the_burst() -> None:
    # A batch of two light images takes 0.17 s, so the one light replica serves about 12 requests/s.
    calm, burst = np.arange(0, 20, 0.5), 20 + np.arange(0, 20, 1 / 60)
    times_s = np.concatenate([calm, burst, 40 + calm])
    requests = RequestStream(at(*times_s), {"light": np.full(len(times_s), 0.9)})
    policy = fixed()
    outcome = simulate_exactly(policy, requests)
    refused = outcome.paths == UNANSWERED
    during = (times_s >= 20) & (times_s < 40)
    assert refused[during].mean() > 0.5
    assert not outcome.violated[~refused].any()
    assert (~refused[during]).sum() / 20 > 0.7 * 12
    assert not refused[times_s < 20].any()
    assert not refused[times_s > 40 + policy.setting.slo_s].any()


def test_virtual_time_jumps_to_the_next_timer() -> None:
    async def waits() -> float:
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        return asyncio.get_running_loop().time() - begun

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        assert runner.run(waits()) == pytest.approx(7200)


def test_a_deadlock_raises_an_error() -> None:
    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        with pytest.raises(RuntimeError, match="no timer is set"):
            runner.run(waits())
        runner.get_loop()._selector.select = lambda timeout: []  # for its end
