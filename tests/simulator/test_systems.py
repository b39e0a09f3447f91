"""Every policy of all systems on the same requests of one service, measured by one scale."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from baselines.comparison.runs import Run, Windows
from baselines.comparison.systems import COMPARED, SystemComparison, compare_systems
from cache.policy.resume_quality import load_resume_quality
from cache.policy.selector import load_selector
from simulator.arrivals import Arrivals, resampled
from simulator.workload import Workload, nearest_earlier, service_workload
from traces.loader import load_trace
from weir.errors import ConfigError

SERVICE = Path("deploy/configs/weir-tiny.yaml")
JUDGED = str(Path("deploy/profiles/weir-tiny-judged.json").resolve())


@pytest.fixture(scope="module")
def workload() -> Workload:
    trace = load_trace(Path("traces/bursty.csv")).clip(50)
    return service_workload(SERVICE, trace, gpus=2, rate=2.0)


@pytest.fixture(scope="module")
def found(workload) -> SystemComparison:
    return compare_systems(workload)


def test_every_policy_of_every_system_has_its_row(found):
    assert [r.policy for r in found.reports] == list(COMPARED)
    assert {r.system for r in found.reports} == {"Weir", "DiffServe", "NIRVANA", "Argus", "others"}
    for r in found.reports:
        assert 0 <= r.violation_ratio <= 1
        assert 85 < r.quality < 102, r.policy


def test_weir_has_the_best_images_among_the_policies_that_meet_deadlines(found):
    weir, *others = found.reports
    assert weir.violation_ratio < 0.01
    for other in others:
        assert other.violation_ratio > weir.violation_ratio or other.quality <= weir.quality + 1e-9, other.policy


def test_the_quality_of_an_answer_follows_its_path(found):
    runs = {run.policy: run for run in found.runs}
    work = found.workload
    assert runs["all-light"].qualities == pytest.approx(100 * work.share_of_whole("light"))
    answered = np.isfinite(runs["nirvana"].latencies_s)
    assert runs["nirvana"].qualities[answered] == pytest.approx(100 * work.own_resumed_quality[answered])
    assert np.nanmax(runs["argus"].qualities) <= 100


def test_the_ladder_has_the_measurements_of_the_service(workload):
    ladder = workload.setting.ladder
    assert ladder is not None
    assert [level.skipped_steps for level in ladder.levels] == [0, 5, 10, 15, 20, 25, 0]
    assert ladder.levels[-1].quality == pytest.approx(workload.share_of_whole("light"))
    assert sum(ladder.similarity_shares) == pytest.approx(1)
    assert ladder.similarity_shares[0] == pytest.approx((workload.ks == 0).mean())


def test_a_request_finds_the_nearest_earlier_prompt():
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    assert nearest_earlier(vectors, block=2) == pytest.approx([-1, 0.6, 1.0, 0.8])


def test_scaled_demand_does_not_raise_similarities(workload):
    first = len(workload.arrivals) // 2
    assert (workload.ks[:first] == workload.ks[first : 2 * first]).all()


def test_scaling_keeps_the_shape_of_the_demand_and_resampling_its_size():
    arrivals = Arrivals.of(np.linspace(0, 99.9, 1000), np.arange(1000))
    scaled = resampled(arrivals, 2.0)
    assert len(scaled) == pytest.approx(2000, abs=2)
    assert (scaled.prompts[:1000] == arrivals.prompts).all()
    one, other, same = (resampled(arrivals, redraw=seed) for seed in (1, 2, 1))
    assert len(one) == pytest.approx(1000, abs=150)
    assert one.times_s.tolist() == same.times_s.tolist() != other.times_s.tolist()


def test_windows_count_every_request_once():
    arrivals = np.array([0.0, 1.0, 6.0, 11.0])
    run = Run("p", np.array([True, False, True, True]), np.array([1, 9, 1, 1.0]), np.array([90, np.nan, 100, 80.0]))
    windows = Windows.of(arrivals)
    assert windows.counts.tolist() == [2, 1, 1]
    assert windows.throughput_rps(run).tolist() == [0.2, 0.2, 1]
    assert windows.quality(run).tolist() == [90, 100, 80]
    assert windows.violations(run).tolist() == [50, 0, 0]


def test_a_comparison_of_systems_has_a_table_a_plot_json_and_a_self_contained_page(found, tmp_path, capsys):
    found.print()
    assert "weir-levels" in capsys.readouterr().out
    found.plot(tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    rows = json.loads(found.to_json())
    assert {"policy", "system", "quality", "violation_ratio", "peak_throughput_per_min"} <= set(rows[0])
    found.write_page(tmp_path / "page.html", "a <trace>")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>a &lt;trace&gt;</h1>" in page
    assert page.count("<svg") == 4
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert re.findall(r"<td class=\"name policy\">.*?</i>([\w-]+)</td>", page) == list(COMPARED)


def service(tmp_path: Path, **changes) -> Path:
    fields = yaml.safe_load(SERVICE.read_text())
    for key in ("family", "profile"):
        fields[key] = str((SERVICE.parent / fields[key]).resolve())
    fields["cache"]["selector"] = str((SERVICE.parent / fields["cache"]["selector"]).resolve())
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump({**fields, **changes}))
    return path


def test_hits_by_confidence_have_the_measured_frequency_and_saving(tmp_path):
    judged = service(tmp_path, cache={"mode": "read", "selector": JUDGED})
    found = service_workload(judged, load_trace(Path("traces/bursty.csv")), gpus=2)
    share, ran = load_resume_quality(JUDGED).hits(load_selector(JUDGED))
    assert found.ladder == (0, 25)
    assert (found.ks > 0).mean() == pytest.approx(share, abs=0.1)
    doubted = (found.requests.resumed == 0).mean()
    assert (50 - 25) / 5 + 50 * doubted == pytest.approx(ran, abs=5)
    assert found.own_resumed_quality.max() <= 1


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"profile": None, "controller": {}}, "the key profile is missing"),
        ({"profile": "a100"}, "confidences and the quality of mixes.*weir calibrate"),
        ({"cache": {"mode": "read"}}, "nirvana: has no measurements of resumed images"),
    ],
)
def test_a_missing_measurement_of_the_service_is_named(tmp_path, changes, remedy):
    if changes.get("profile") == "a100":
        changes = {"profile": str(Path("deploy/profiles/a100-sdxl.json").resolve())}
    with pytest.raises(ConfigError, match=remedy):
        service_workload(service(tmp_path, **changes), load_trace(Path("traces/bursty.csv")), gpus=2)


def test_an_unknown_policy_is_refused_with_the_known_ones(workload):
    with pytest.raises(ConfigError, match=r"policy is 'best'; known: weir, weir-levels, diffserve"):
        compare_systems(workload, ["best"])
