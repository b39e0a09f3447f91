"""HTML page of policies of several systems on one trace, as one self-contained file."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import PackageLoader
from matplotlib.axes import Axes

from baselines.comparison.runs import Run, RunReport, Windows
from traces.page import inline, render
from traces.plots import COLOURS, svg
from weir.files import written_whole

#: Colour of a system. The first policy of a system has a solid line, its other policies have dashed lines.
_COLOURS = {"Weir": "good", "DiffServe": "bad", "NIRVANA": "heavy", "Argus": "deadline", "others": "light"}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
#: Characters of a line of a label beside a point, and its height as a share of the range of qualities.
_LABEL_CHARACTERS = 44
_LABEL_LINE = 0.09


def write_runs_page(
    path: Path, arrivals_s: np.ndarray, runs: Sequence[Run], reports: Sequence[RunReport], *, title: str, lead: str
) -> None:
    """Writes the page; ``path`` ends in .html.

    Args:
        reports: one per run.
        lead: description of the runs, in one or two sentences.

    Raises:
        ConfigError: the page cannot be written.
    """
    windows = Windows.of(arrivals_s)
    lines = _lines(reports)
    plots: list[tuple[str, Callable[[Axes], None]]] = [
        ("Quality against violations", lambda ax: _trade(ax, reports, lines)),
        ("Throughput", lambda ax: _throughput(ax, windows, runs, lines)),
        ("Quality", lambda ax: _over_time(ax, windows, runs, lines, windows.quality, "quality, %")),
        ("Violations", lambda ax: _over_time(ax, windows, runs, lines, windows.violations, "violations, %", (0, None))),
    ]
    page = render(
        "runs.html.j2",
        PackageLoader("baselines.comparison", "."),
        title=title,
        lead=lead,
        reports=reports,
        colours_of=_COLOURS,
        best=_best(reports),
        plots=[(name, inline(svg(name, fill))) for name, fill in plots],
    )
    with written_whole(path) as draft:
        draft.write_text(page, encoding="utf-8")


def _best(reports: Sequence[RunReport]) -> str:
    """Returns the policy with the best images among those that miss at most 1 % of the deadlines."""
    kept = [r for r in reports if r.violation_ratio <= 0.01 and r.quality is not None]
    return max(kept, key=lambda r: r.quality or 0.0).policy if kept else ""


def _lines(reports: Sequence[RunReport]) -> dict[str, dict[str, Any]]:
    seen: dict[str, int] = {}
    lines = {}
    for r in reports:
        n = seen[r.system] = seen.get(r.system, -1) + 1
        lines[r.policy] = {
            "color": COLOURS[_COLOURS[r.system]],
            "ls": _DASHES[min(n, len(_DASHES) - 1)],
            "lw": 2.4 if r.policy == "weir" else 1.5 if n == 0 else 1.1,
            "zorder": 3 if r.policy == "weir" else 2,
        }
    return lines


def _throughput(ax: Axes, windows: Windows, runs: Sequence[Run], lines: dict[str, dict[str, Any]]) -> None:
    ax.fill_between(windows.middles_s, windows.demand_rps(), color=COLOURS["ink"], alpha=0.12, lw=0)
    _over_time(ax, windows, runs, lines, windows.throughput_rps, "in time, /s", (0, None))


def _over_time(
    ax: Axes,
    windows: Windows,
    runs: Sequence[Run],
    lines: dict[str, dict[str, Any]],
    value: Callable[[Run], np.ndarray],
    ylabel: str,
    ylim: tuple[float | None, float | None] = (None, None),
) -> None:
    for run in runs:
        ax.plot(windows.middles_s, value(run), label=run.policy, **lines[run.policy])
    ax.set(xlabel="arrival, s", ylabel=ylabel, ylim=ylim)


def _trade(ax: Axes, reports: Sequence[RunReport], lines: dict[str, dict[str, Any]]) -> None:
    shown = sorted((r for r in reports if r.quality is not None), key=lambda r: r.quality or 0.0)
    span = max(1e-9, (shown[-1].quality or 0) - (shown[0].quality or 0)) if shown else 1.0
    points: dict[tuple[float, float], list[str]] = {}
    for r in shown:
        x, y = 100 * r.violation_ratio, float(r.quality or 0.0)
        ax.plot([x], [y], "o", ms=9 if r.policy == "weir" else 6, color=lines[r.policy]["color"])
        points.setdefault((round(x, 2), round(y, 2)), []).append(r.policy)
    tops = {True: -np.inf, False: -np.inf}
    for (x, y), policies in points.items():
        # One label for all policies of a point, above those of its neighbours: many policies meet every deadline.
        right = x > 10
        text = textwrap.fill(", ".join(policies), _LABEL_CHARACTERS)
        height = _LABEL_LINE * span * (text.count("\n") + 1)
        bottom = max(y - height / 2, tops[right])
        tops[right] = bottom + height
        ax.annotate(
            text,
            (x, bottom + height / 2),
            xytext=(-8 if right else 8, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontsize=8,
            fontweight="bold" if "weir" in policies else "normal",
        )
    ax.set_xscale("symlog", linthresh=0.1)
    ax.set(xlabel="violations, % (logarithmic above 0.1)", ylabel="quality, %", xlim=(-0.02, 130))
    ax.margins(y=0.15)
    ax.set_ylim(top=max(ax.get_ylim()[1], *tops.values()))
