"""The simulator against what it is the twin of: the load balancer, the controller and the workers' scheduling."""

from __future__ import annotations

import numpy as np
import pytest

from baselines.published import CASCADES
from controller.policies import make_policy
from controller.setting import Setting
from simulator.arrivals import Arrivals, poisson, steps
from simulator.engine import simulate
from simulator.outcome import ANSWERED_AT_DEADLINE, ANSWERED_LIGHT
from testing.toy_family import FAMILY
from testing.virtual_cluster import confidences, serve
from weir.config import FamilyConfig
from weir.profiles import Profile


def batches() -> Profile:
    """DiffServe's first cascade: whole batches."""
    cascade = CASCADES["diffserve-1"]
    levels = np.linspace(0.0005, 0.9995, 1000)
    light = {
        "name": "l",
        "steps": 2,
        "batch_sizes": cascade.light.batch_sizes,
        "latency_s": [s + 0.02 for s in cascade.light.latency_s],
    }
    heavy = {"name": "h", "steps": 50, "batch_sizes": cascade.heavy.batch_sizes, "latency_s": cascade.heavy.latency_s}
    return Profile.model_validate(
        {
            "family": "f",
            "device": "d",
            "light": light,
            "heavy": heavy,
            "confidences": np.interp(levels, cascade.deferral.shares, cascade.deferral.thresholds).tolist(),
            "quality": {"values": cascade.fid, "smaller_is_better": True},
        }
    )


def seats() -> Profile:
    """A family whose steps were measured."""

    def variant(name: str, steps: int, step_s: tuple[float, ...]) -> dict[str, object]:
        sizes, fixed_s = (1, 2, 4, 8), 0.006
        latency_s = [steps * s + b * fixed_s for b, s in zip(sizes, step_s, strict=True)]
        fixed = {"text_s": 0.001, "decode_s": 0.005}
        return {
            "name": name, "steps": steps, "batch_sizes": sizes, "latency_s": latency_s, "step_s": step_s, "fixed": fixed
        }  # fmt: skip

    return Profile.model_validate(
        {
            "family": "f",
            "device": "d",
            "light": variant("l", 2, (0.013, 0.02, 0.023, 0.034)),
            "heavy": variant("h", 50, (0.017, 0.022, 0.032, 0.051)),
        }
    )


RUNS = {
    "batches": (batches(), 16, 5.0, poisson(np.full(60, 27.0), 1), ()),
    "batches, with calls that take 10 ms on average": (
        batches(), 16, 5.0, poisson(np.full(60, 27.0), 2), tuple(np.random.default_rng(3).exponential(0.01, 200))
    ),
    "seats": (seats(), 3, 10.0, poisson(np.full(60, 8.0), 4), ()),
    "seats, and a demand in steps": (seats(), 3, 10.0, steps(2, 12, 80, 20, 5), (0.005,)),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_the_twin_foresees_what_the_load_balancer_does(run: tuple[Profile, int, float, Arrivals, tuple[float, ...]]):
    profile, gpus, slo_s, arrivals, transit_s = run

    def policy():
        return make_policy("weir", Setting.of(profile, gpus, slo_s))

    paths, latencies = serve(policy, profile, FamilyConfig.model_validate(FAMILY), arrivals, transit_s)
    twin = simulate(policy(), arrivals, confidences(profile, len(arrivals)), transit_s=transit_s)
    light = np.isin(paths, (ANSWERED_LIGHT, ANSWERED_AT_DEADLINE))
    assert abs(light.mean() - twin.light.mean()) < 0.03
    assert abs((latencies > slo_s).mean() - twin.violated.mean()) < 0.005
    assert abs((paths == ANSWERED_AT_DEADLINE).mean() - (twin.paths == ANSWERED_AT_DEADLINE).mean()) < 0.03
