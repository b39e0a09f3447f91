"""Tests of the live latencies: profiled batch times corrected by the measured ones."""

from __future__ import annotations

import math
import random

import pytest

from baselines.published import cascade
from controller.latencies import LiveLatency
from controller.observation import Batch
from controller.setting import Setting
from solvers.problem import GpuType
from weir.plan import HEAVY, LIGHT

CASCADE = cascade("diffserve-1")
SETTING = Setting((GpuType.pair("a100", 4, CASCADE.light, CASCADE.heavy),), 5.0, CASCADE.deferral, discriminator_s=0.02)


def heavy(factor: float, size: int = 2) -> Batch:
    return Batch(HEAVY, size, factor * CASCADE.heavy.at(size))


def after(latency: LiveLatency, seconds: int, batches: list[Batch], start: float = 0.0) -> LiveLatency:
    for second in range(seconds):
        latency.observe(batches, start + second)
    return latency


def test_without_batches_the_profile_is_unchanged():
    latency = LiveLatency(SETTING)
    latency.observe([heavy(3.0)] * 2, 1.0)
    assert latency.gpus() == SETTING.gpus


def test_a_slower_device_changes_only_its_own_variant_within_a_minute():
    latency = after(after(LiveLatency(SETTING), 60, [heavy(1.0)]), 30, [heavy(1.5)], start=60)
    assert latency.factor(HEAVY) == pytest.approx(1.5)
    assert latency.factor(LIGHT) == 1.0
    assert latency.gpus()[0].heavy.at(4) == pytest.approx(1.5 * CASCADE.heavy.at(4))


def test_the_correction_ends_when_the_device_recovers():
    latency = after(after(LiveLatency(SETTING), 60, [heavy(1.5)]), 40, [heavy(1.0)], start=60)
    assert latency.factor(HEAVY) == pytest.approx(1.0)


def test_light_batches_are_compared_with_the_profile_plus_the_discriminator():
    latency = after(LiveLatency(SETTING), 40, [Batch(LIGHT, 4, CASCADE.light.at(4) + 0.02)])
    assert latency.factor(LIGHT) == 1.0


def test_noise_and_outliers_change_no_factor():
    chance = random.Random(1)
    latency = LiveLatency(SETTING)
    for second in range(300):
        noisy = [heavy(chance.uniform(0.8, 1.2), chance.choice((1, 2, 4))) for _ in range(3)]
        latency.observe([*noisy, heavy(50.0)] if second % 5 == 0 else noisy, float(second))
        assert latency.gpus() == SETTING.gpus


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_invalid_times_are_ignored(seconds):
    latency = after(LiveLatency(SETTING), 40, [Batch(HEAVY, 1, seconds), Batch(HEAVY, 0, 1.0)])
    assert latency.gpus() == SETTING.gpus


def test_corrections_are_bounded():
    assert after(LiveLatency(SETTING), 40, [heavy(1e6)]).factor(HEAVY) == 10.0
