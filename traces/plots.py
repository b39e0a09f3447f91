"""The plots of a report, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from traces.figures import Figures, Summary
from traces.outcome import RequestOutcome
from traces.paths import in_order
from traces.plan_log import ObservedPlan
from weir.cascade import AT_DEADLINE

#: Colour by name; the page replaces them by theme colours for light and dark mode.
COLOURS = {
    "ink": "#1b2330",
    "muted": "#66717f",
    "line": "#dde2e8",
    "light": "#2b7fd9",
    "deadline": "#d99411",
    "medium": "#2a9da0",
    "heavy": "#7b52cc",
    "cache": "#b04a9c",
    "good": "#16946a",
    "bad": "#d1453b",
    "refused": "#e58a83",
    "failed": "#8d1f2d",
}

#: Largest number of points in a scatter plot, to limit the size of the page.
_MOST_POINTS = 1500

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": COLOURS["ink"],
    "legend.frameon": False,
}


def draw_plots(
    summary: Summary, outcomes: Sequence[RequestOutcome], plans: Sequence[ObservedPlan] = ()
) -> dict[str, str]:
    """Renders all plots as SVG text, by name in the order of the page, without titles and background."""
    fills: dict[str, Callable[[Axes], None]] = {
        "demand": lambda ax: _demand(ax, summary.windows),
        "latency": lambda ax: _latency(ax, summary, outcomes),
        "plan": lambda ax: _plan(ax, summary.windows, plans),
        "paths": lambda ax: _paths(ax, summary.windows),
        "violations": lambda ax: _violations(ax, summary.windows),
    }
    if not plans:
        del fills["plan"]
    if any(o.confidence is not None for o in outcomes):
        fills["confidence"] = lambda ax: _confidence(ax, outcomes)
    if summary.total.quality is not None:
        fills["quality"] = lambda ax: _quality(ax, summary)
    return {name: svg(name, fill) for name, fill in fills.items()}


def svg(name: str, fill: Callable[[Axes], None]) -> str:
    """Renders one plot as SVG text in the style of the page; ``fill`` draws into its axes."""
    # The salt makes ids unique on the page and equal from run to run.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(6.4, 2.9))
        # Fixed margins align the time axes of all plots on the page; one of them has a second scale on its right.
        axes = figure.add_axes((0.085, 0.155, 0.865, 0.735))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        fill(axes)
        text = io.StringIO()
        no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    return text.getvalue()


def _edges(windows: Sequence[Figures]) -> list[float]:
    return [w.start_s for w in windows] + [windows[-1].end_s]


def _over_time(ax: Axes, windows: Sequence[Figures], ylabel: str, **limits: tuple[float | None, float | None]) -> None:
    start, end = windows[0].start_s, windows[-1].end_s
    slack = 0.008 * (end - start)
    ax.set(xlabel="arrival, s", ylabel=ylabel, xlim=(start - slack, end + slack), **limits)


def _legend(ax: Axes, **more: object) -> None:
    """A legend in one line above the plot, with at most six entries."""
    places = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 6, "borderaxespad": 0.2}
    ax.legend(**places | {"handlelength": 1.2} | more)


def _colour(path: str) -> str:
    """The colour of a path or role; further variants share one colour."""
    return COLOURS["deadline"] if path.endswith(AT_DEADLINE) else COLOURS.get(path, COLOURS["medium"])


def _demand(ax: Axes, windows: Sequence[Figures]) -> None:
    edges = _edges(windows)
    demand, goodput = [w.demand_rps for w in windows], [w.goodput_rps for w in windows]
    ax.stairs(goodput, edges, fill=True, color=COLOURS["good"], alpha=0.28, lw=0)
    ax.stairs(goodput, edges, color=COLOURS["good"], lw=1.8, label="goodput")
    ax.stairs(demand, edges, color=COLOURS["ink"], lw=1.4, label="demand")
    _over_time(ax, windows, "requests/s", ylim=(0, None))
    _legend(ax)


def _latency(ax: Axes, summary: Summary, outcomes: Sequence[RequestOutcome]) -> None:
    answered = [o for o in outcomes if o.answered]
    shown = answered[:: max(1, -(-len(answered) // _MOST_POINTS))]
    for path in (*in_order(o.path for o in answered), None):
        of_path = [o for o in shown if o.path == path]
        if of_path:
            ax.plot(
                [o.arrival_s for o in of_path],
                [o.latency_s for o in of_path],
                linestyle="none",
                marker="o",
                markersize=3,
                markeredgewidth=0,
                color=_colour(path) if path else COLOURS["muted"],
                alpha=0.75,
                label=path or "answered",
            )
    middles = [(w.start_s + w.end_s) / 2 for w in summary.windows]
    p95 = [np.nan if w.p95_s is None else w.p95_s for w in summary.windows]
    ax.plot(middles, p95, color=COLOURS["ink"], lw=1.4, label="p95")
    ax.axhline(summary.slo_s, color=COLOURS["bad"], lw=1.4, ls=(0, (4, 3)), label="SLO")
    top = max([summary.slo_s, *(o.latency_s for o in answered)])
    _over_time(ax, summary.windows, "latency, s", ylim=(0, 1.08 * top))
    _legend(ax, columnspacing=0.9, handletextpad=0.4, handlelength=0.9, markerscale=2.2)


def _stacked(ax: Axes, windows: Sequence[Figures], layers: dict[str, tuple[str, list[float]]]) -> None:
    edges = _edges(windows)
    base = np.zeros(len(windows))
    for label, (colour, shares) in layers.items():
        ax.stairs(base + shares, edges, baseline=base, fill=True, color=colour, lw=0.6, label=label)
        base = base + shares


def _plan(ax: Axes, windows: Sequence[Figures], plans: Sequence[ObservedPlan]) -> None:
    """Plots replicas by role, stacked, and thresholds on a second axis."""
    edges = [*(plan.at_s for plan in plans), max(windows[-1].end_s, plans[-1].at_s + 1e-3)]
    base = np.zeros(len(plans))
    roles = list(dict.fromkeys(role for plan in plans for role in plan.roles))
    for role in roles:
        counts = np.array([plan.roles.get(role, 0) for plan in plans], dtype=float)
        if counts.any():
            ax.stairs(base + counts, edges, baseline=base, fill=True, color=_colour(role), alpha=0.55, lw=0, label=role)
        base = base + counts
    _over_time(ax, windows, "replicas", ylim=(0, max(1.0, float(base.max()))))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    scale = ax.twinx()
    styles = ("-", (0, (4, 2)), (0, (1, 1)))
    for i in range(max(len(plan.thresholds) for plan in plans)):
        values = [plan.thresholds[i] if i < len(plan.thresholds) else np.nan for plan in plans]
        label = "threshold" if i == 0 else f"threshold {i + 1}"
        scale.stairs(
            values, edges, baseline=None, color=COLOURS["ink"], lw=1.4, ls=styles[i % len(styles)], label=label
        )
    scale.set(ylim=(0, 1))
    scale.grid(visible=False)
    handles, labels = ax.get_legend_handles_labels()
    more_handles, more_labels = scale.get_legend_handles_labels()
    _legend(ax, handles=handles + more_handles, labels=labels + more_labels)


def _paths(ax: Axes, windows: Sequence[Figures]) -> None:
    totals = [max(1, sum(w.paths.values())) for w in windows]
    _stacked(
        ax,
        windows,
        {
            path: (_colour(path), [100 * w.paths.get(path, 0) / n for w, n in zip(windows, totals, strict=True)])
            for path in in_order(path for w in windows for path in w.paths)
        },
    )
    _over_time(ax, windows, "% of images", ylim=(0, 100))
    _legend(ax)


def _violations(ax: Axes, windows: Sequence[Figures]) -> None:
    def shares(counts: list[int]) -> list[float]:
        return [100 * c / max(1, w.requests) for c, w in zip(counts, windows, strict=True)]

    _stacked(
        ax,
        windows,
        {
            "late": (COLOURS["bad"], shares([w.late for w in windows])),
            "refused": (COLOURS["refused"], shares([w.refused for w in windows])),
            "failed": (COLOURS["failed"], shares([w.failed for w in windows])),
        },
    )
    highest = max(100 * (w.violation_ratio or 0) for w in windows)
    _over_time(ax, windows, "% of requests", ylim=(0, max(5.0, 1.1 * highest)))
    _legend(ax)


def _confidence(ax: Axes, outcomes: Sequence[RequestOutcome]) -> None:
    judged = [o for o in outcomes if o.path and o.confidence is not None]
    paths = [path for path in in_order(o.path for o in judged) if any(o.path == path for o in judged)]
    ax.hist(
        [[o.confidence for o in judged if o.path == path and o.confidence is not None] for path in paths],
        bins=list(np.linspace(0, 1, 31)),
        stacked=True,
        color=[_colour(path) for path in paths],
        label=paths,
    )
    ax.set(xlabel="confidence of the discriminator in the light image", ylabel="images", xlim=(0, 1))
    _legend(ax)


def _quality(ax: Axes, summary: Summary) -> None:
    windows = summary.windows
    quality = [np.nan if w.quality is None else w.quality for w in windows]
    ax.stairs(quality, _edges(windows), color=COLOURS["heavy"], lw=1.8, baseline=None, label="mean quality")
    ax.axhline(summary.total.quality or 0, color=COLOURS["muted"], lw=1.2, ls=(0, (4, 3)), label="of all images")
    _over_time(ax, windows, "quality")
    _legend(ax)
