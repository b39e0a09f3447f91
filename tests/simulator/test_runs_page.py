"""The plots of policies of several systems."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.text import Annotation

from baselines.comparison.runs import RunReport
from baselines.comparison.runs_page import _lines, _trade


def report(policy: str, quality: float) -> RunReport:
    return RunReport(policy, "others", 10, 0.0, quality, 1.0, 1.0, 1.0, 60.0, quality, 0.0)


def test_policies_of_one_point_share_a_label_and_no_label_is_outside_the_plot() -> None:
    reports = [report("all-light", 93.0), *(report(f"policy-{i}", 100.0) for i in range(9)), report("weir", 100.1)]
    ax = Figure().subplots()
    _trade(ax, reports, _lines(reports))
    labels = {it.get_text().replace("\n", " "): it.xy[1] for it in ax.texts if isinstance(it, Annotation)}
    assert list(labels) == ["all-light", ", ".join(f"policy-{i}" for i in range(9)), "weir"]
    assert list(labels.values()) == sorted(labels.values())
    bottom, top = ax.get_ylim()
    assert all(bottom < height < top for height in labels.values())
