"""The figures of a run, and the bound they are held against."""

from __future__ import annotations

import numpy as np
import pytest

from controller.setting import QualityCurve
from simulator.families import family_setting
from simulator.fluid import fluid_bound
from simulator.outcome import UNANSWERED, Outcome
from simulator.report import report, windowed_quality


def outcome(arrivals, latencies, paths, slo_s=5.0, loss=None) -> Outcome:
    loss = np.zeros(len(paths)) if loss is None else np.array(loss)
    arrivals = np.array(arrivals, dtype=float)
    resumed_at = np.zeros(len(paths), dtype=int)
    finished = arrivals + latencies
    return Outcome("p", slo_s, ("light", "heavy"), arrivals, finished, np.array(paths), resumed_at, loss, 8.0, 3, (), 2)


def test_late_and_unanswered_requests_are_violations():
    run = outcome([0, 1, 2, 10], [1, 6, np.inf, 5], ["light", "heavy", UNANSWERED, "heavy"])
    figures = report(run, None, gpu_hour_price=3.6)
    assert figures.violation_ratio == 0.5
    assert figures.goodput_rps == pytest.approx(0.2)
    assert figures.gpu_utilisation == pytest.approx(8 / (2 * 15))
    assert figures.gpu_seconds_per_image == pytest.approx(8 / 3)
    assert figures.cost_per_1000_images == pytest.approx(3.6 * 2 * 15 / 3600 / 3 * 1000)
    assert figures.windowed_quality is None


def test_quality_is_the_mean_over_windows_of_the_curve_at_their_light_share():
    curve = QualityCurve((20.0, 10.0, 30.0))
    # first window: half light (10); second: all light (30), one of it by the deadline
    run = outcome([0, 1, 31, 32], [1] * 4, ["light", "heavy", "light", "light-deadline"])
    assert windowed_quality(run, curve) == pytest.approx(20.0)
    assert report(run, curve).light_share == 0.75


@pytest.mark.parametrize(("smaller_is_better", "quality"), [(True, 11.0), (False, 9.0)])
def test_the_loss_of_short_heavy_runs_lowers_the_quality(smaller_is_better, quality):
    run = outcome([0, 1], [1, 1], ["light", "heavy"], loss=[0.0, 2.0])
    assert windowed_quality(run, QualityCurve((20.0, 10.0, 30.0), smaller_is_better)) == pytest.approx(quality)


def test_simultaneous_requests_count_as_one_second():
    assert report(outcome([3, 3], [1, 1], ["light", "light"]), None).goodput_rps == 2.0


def test_a_run_without_requests_has_figures():
    assert report(outcome([], [], []), None).violation_ratio == 0.0


def test_the_bound_on_a_light_load_is_the_best_mix():
    assert fluid_bound(family_setting("diffserve-1", 16), np.arange(0, 300, 0.2)) == pytest.approx(16.79)


def test_the_bound_rises_with_the_load():
    setting = family_setting("diffserve-3", 16)
    bounds = [fluid_bound(setting, np.arange(0, 300, 1 / rate)) for rate in (1, 4, 8, 16)]
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(23.14)
    # 16/s need 7.2 light GPUs; 8.8 heavy ones of 0.188/s draw 10.3 % of the images.
    assert bounds[-1] == pytest.approx(30.96, abs=0.1)
