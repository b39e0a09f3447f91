"""Reports of several replays on one page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.traces.test_report import outcome
from traces.figures import Scope
from traces.report import write_report
from traces.side_by_side import write_side_by_side
from weir.errors import ConfigError


def run(folder: Path, policy: str, latency_s: float) -> Path:
    outcomes = [outcome(i, latency_s=latency_s) for i in range(4)]
    write_report(outcomes, folder, Scope(5.0), about={"trace": "bursty.csv", "policy": policy})
    return folder


def test_figures_plots_and_differences_of_two_replays_are_on_one_page(tmp_path: Path) -> None:
    runs = [run(tmp_path / "one", "weir", 2.0), run(tmp_path / "two", "diffserve", 9.0)]
    write_side_by_side(runs, tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    assert page.count("<svg") == 2 * len(list((runs[0] / "plots").glob("*.svg")))
    assert "<td>violations of the SLO, %, lower is better</td><td>0.00</td><td>100.00</td>" in page
    figures, _, made_with = page.partition("What they were made with")
    assert "diffserve" in figures, "what differs is beside the figures"
    assert "bursty.csv" not in figures
    assert "bursty.csv" in made_with


def test_a_folder_without_a_report_is_named_and_no_page_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"two: there is no report\.json .*name folders of `weir replay`"):
        write_side_by_side([run(tmp_path / "one", "weir", 2.0), tmp_path / "two"], tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()
