"""HTML page of a comparison of policies on one trace, as one self-contained file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import PackageLoader
from matplotlib.axes import Axes

from baselines.comparison.compare import Comparison
from simulator.outcome import Outcome
from traces.page import inline, render
from traces.plots import COLOURS, svg
from weir.files import written_whole

#: Colour and stroke of a policy; published variants are dashed.
_STROKES = {
    "weir": ("good", "-"),
    "diffserve": ("bad", "-"),
    "diffserve-static": ("failed", (0, (4, 2))),
    "proteus": ("deadline", "-"),
    "all-light": ("light", "-"),
    "all-light-published": ("light", (0, (4, 2))),
    "all-heavy": ("heavy", "-"),
    "all-heavy-published": ("heavy", (0, (4, 2))),
}
#: Number of windows over the whole trace, and the least length of one, seconds.
_WINDOWS, _LEAST_WINDOW_S = 60, 5.0


def write_page(found: Comparison, path: Path, *, title: str) -> None:
    """Writes the page; ``path`` ends in .html.

    Raises:
        ConfigError: the page cannot be written.
    """
    plots: list[tuple[str, Callable[[Axes], None]]] = [
        ("Quality against violations", lambda ax: _trade(ax, found)),
        ("Demand", lambda ax: _demand(ax, found)),
        ("Share of violations", lambda ax: _over_time(ax, found, "violations, %", lambda o: o.violated)),
        ("Share of light answers", lambda ax: _over_time(ax, found, "light, %", lambda o: o.light)),
    ]
    if all(r.windowed_quality is None for r in found.reports):
        del plots[0]
    setting = found.setting
    smaller = setting.quality is None or setting.quality.smaller_is_better
    page = render(
        "compare.html.j2",
        PackageLoader("baselines.comparison", "."),
        title=title,
        found=found,
        reports=found.reports,
        strokes={r.policy: _STROKES.get(r.policy, ("muted", "-"))[0] for r in found.reports},
        better="less is better" if smaller else "more is better",
        plots=[(name, inline(svg(name, fill))) for name, fill in plots],
    )
    with written_whole(path) as draft:
        draft.write_text(page, encoding="utf-8")


def _line(policy: str) -> dict[str, Any]:
    colour, stroke = _STROKES.get(policy, ("muted", "-"))
    return {"color": COLOURS[colour], "ls": stroke, "lw": 2.2 if policy == "weir" else 1.4}


def _windows(found: Comparison) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the window of each request, the middle of each window and its number of requests."""
    times = found.arrivals.times_s
    width = max(_LEAST_WINDOW_S, float(times[-1]) / _WINDOWS) if len(times) else _LEAST_WINDOW_S
    window = (times // width).astype(int)
    counts = np.bincount(window)
    return window, (np.arange(len(counts)) + 0.5) * width, counts


def _demand(ax: Axes, found: Comparison) -> None:
    _, middles, counts = _windows(found)
    seconds = np.full(len(counts), 2 * middles[0]) if len(counts) else np.ones(0)
    # The last window ends with the trace.
    seconds[-1:] = np.maximum(found.arrivals.times_s[-1:] - middles[-1:] + seconds[-1:] / 2, 1.0)
    ax.fill_between(middles, counts / seconds, color=COLOURS["ink"], alpha=0.12, lw=0)
    ax.plot(middles, counts / seconds, color=COLOURS["ink"], lw=1.4)
    ax.set(xlabel="arrival, s", ylabel="requests/s", ylim=(0, None))


def _over_time(ax: Axes, found: Comparison, ylabel: str, mask: Callable[[Outcome], np.ndarray]) -> None:
    window, middles, counts = _windows(found)
    for outcome in found.outcomes:
        share = 100 * np.bincount(window, mask(outcome), len(counts)) / np.maximum(counts, 1)
        ax.plot(middles, share, label=outcome.policy, **_line(outcome.policy))
    ax.set(xlabel="arrival, s", ylabel=ylabel, ylim=(0, None))


def _trade(ax: Axes, found: Comparison) -> None:
    for r in found.reports:
        if r.windowed_quality is None:
            continue
        x, colour = 100 * r.violation_ratio, COLOURS[_STROKES.get(r.policy, ("muted", "-"))[0]]
        ax.plot([x], [r.windowed_quality], "o", ms=9 if r.policy == "weir" else 6, color=colour)
        right = x > 30
        ax.annotate(
            r.policy,
            (x, r.windowed_quality),
            xytext=(-8 if right else 8, -11 if r.policy.endswith("-published") else 4),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8.5,
        )
    if found.bound is not None:
        ax.axhline(found.bound, color=COLOURS["muted"], lw=1.2, ls=(0, (2, 2)))
        ax.annotate(
            "perfect foresight", (1, found.bound), xycoords=("axes fraction", "data"), xytext=(-4, -12),
            textcoords="offset points", ha="right", fontsize=8.5, color=COLOURS["muted"],
        )  # fmt: skip
    ax.set_xscale("symlog", linthresh=0.1)
    ax.set(xlabel="violations, % (logarithmic above 0.1)", ylabel="windowed quality", xlim=(-0.02, 130))
    ax.margins(y=0.15)
