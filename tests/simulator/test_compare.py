"""Policies side by side, and what is claimed of Weir's: better than the published ones, on other arrivals too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from baselines.comparison.compare import Comparison, compare, compare_files
from simulator.arrivals import Arrivals, poisson, read_arrivals, spikes, steps
from simulator.confidences import read_scores, recorded, sample_confidences
from simulator.families import family_setting
from simulator.request_stream import RequestStream
from simulator.scenario import Scenario
from weir.errors import ConfigError

#: A hump of demand from 4 to 32 requests/s and back.
HUMP = 4 + 28 * np.sin(np.linspace(0, np.pi, 150)) ** 2
BASELINES = ("all-light", "all-heavy", "proteus", "diffserve-static", "diffserve")
TRACES = {
    "hump": ("diffserve-1", poisson(HUMP, seed=1)),
    "hump on cascade 2": ("diffserve-2", poisson(HUMP, seed=2)),
    "slow models": ("diffserve-3", poisson(HUMP / 4, seed=3)),
    "steps": ("diffserve-1", steps(6, 28, seconds=150, every_s=30, seed=4)),
    "spikes": ("diffserve-1", spikes(8, 36, seconds=150, every_s=40, length_s=8, seed=5)),
    "steady": ("diffserve-1", poisson(np.full(150, 20.0), seed=6)),
}


def run(family: str, arrivals: Arrivals, policies) -> Comparison:
    setting = family_setting(family, 16)
    return compare(
        setting,
        RequestStream(arrivals, {"light": sample_confidences(setting.deferral, len(arrivals), seed=9)}),
        policies,
    )


@pytest.mark.parametrize("trace", TRACES)
def test_no_baseline_is_better_than_weir_on_both_axes(trace):
    found = run(*TRACES[trace], ("weir", *BASELINES))
    weir, *others = found.reports
    assert weir.violation_ratio <= 0.0005
    for other in others:
        better_quality = other.windowed_quality < weir.windowed_quality
        assert not (better_quality and other.violation_ratio <= weir.violation_ratio), other.policy


@pytest.mark.parametrize(("trace", "gap"), [("hump", 0.1), ("hump on cascade 2", 0.15), ("slow models", 0.9)])
def test_weir_is_close_to_perfect_foresight(trace, gap):
    found = run(*TRACES[trace], ("weir",))
    assert found.reports[0].windowed_quality <= found.bound + gap


def test_a_comparison_has_a_table_a_plot_and_json(tmp_path):
    found = run("diffserve-1", poisson(np.full(20, 5.0), seed=1), ("all-light", "weir"))
    console = Console(record=True, width=160, file=open(tmp_path / "out", "w"))  # noqa: SIM115
    found.print(console)
    console.file.close()
    assert "all-light" in console.export_text()
    found.plot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    rows = json.loads(found.to_json())
    assert [r["policy"] for r in rows] == ["all-light", "weir"]
    assert set(rows[0]) == {
        "policy", "requests", "violation_ratio", "windowed_quality", "light_share", "goodput_rps", "p50_s", "p95_s",
        "p99_s", "gpu_utilisation", "role_flips", "gpu_seconds_per_image", "cost_per_1000_images",
    }  # fmt: skip


def test_files_and_families_are_compared_by_name(tmp_path):
    (tmp_path / "trace.txt").write_text("1500.0,2\n500.0,1\n700.0,1\n")
    # Four values of P(fake) for each of three prompts.
    (tmp_path / "scores.txt").write_text("\n".join(["1"] * 4 + ["0", "0", "1", "1"] + ["0"] * 4))
    found = compare_files("diffserve-1", Scenario(tmp_path / "trace.txt"), ["weir"], scores=tmp_path / "scores.txt")
    assert found.arrivals.times_s.tolist() == [0.5, 0.7, 1.5]
    assert found.reports[0].requests == 3


def test_recorded_scores_give_one_confidence_per_prompt(tmp_path):
    (tmp_path / "scores.txt").write_text("\n".join(["1"] * 4 + ["0", "0", "1", "1"]))
    scores = read_scores(tmp_path / "scores.txt")
    assert recorded(scores, np.array([1, 0, 3])).tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("file", "content"), [("scores", "0.5\n0.5\n0.5\n"), ("scores", "2\n2\n2\n2\n"), ("scores", "fake\n")]
)
def test_an_invalid_score_file_is_refused(tmp_path, file, content):
    (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError, match=file):
        read_scores(tmp_path / file)


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.csv"):
        read_arrivals(tmp_path / "nowhere.csv")


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="diffserve-1, diffserve-2, diffserve-3, sdxl-a100"):
        family_setting("sdxl-h100", 16)


def test_sampled_confidences_follow_the_curve():
    curve = family_setting("diffserve-1", 1).deferral
    confidences = sample_confidences(curve, 100_000, seed=0)
    assert np.mean(confidences < 0.2) == pytest.approx(curve.at(0.2), abs=0.01)
