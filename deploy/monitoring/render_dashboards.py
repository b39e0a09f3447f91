"""Renders the dashboards with matplotlib, from their JSON and a live Prometheus, for the documentation.

    python -m deploy.monitoring.render_dashboards --prometheus http://127.0.0.1:9090 --minutes 6 --out docs/images

It supports only the panel types that the dashboards use. The data is what Grafana shows; the look differs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploy.monitoring.dashboards import FOLDER
from deploy.monitoring.panels import COLUMNS
from deploy.monitoring.prometheus import Api

#: Grafana's value of ``$__rate_interval`` at a scrape interval of 5 s.
RATE_INTERVAL = "20s"
STEP_S = 5.0
#: Size of one unit of Grafana's grid and of the gap around a panel, inches.
UNIT_W, UNIT_H, GAP = 0.68, 0.36, 0.07
PAPER, CARD, INK, FAINT = "#F3F4F6", "#FFFFFF", "#24292E", "#8A9099"
#: Colours of series without a fixed one.
PALETTE = ("#3366CC", "#F2A93B", "#2E9E6B", "#D9653B", "#8F5BB5", "#4FB3BF", "#B8860B", "#C4162A", "#5A5A66")


def render(dashboard: dict[str, Any], api: Api, start: float, end: float) -> Any:
    """One dashboard as a matplotlib figure, over a range of unix time.

    Raises:
        ServiceError: Prometheus does not answer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = COLUMNS * UNIT_W + 2 * GAP, rows * UNIT_H + 2 * GAP + 0.55
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.text(3 * GAP / width, 1 - 0.33 / height, dashboard["title"], size=15, weight="bold", color=INK, va="center")
    span = f"{time.strftime('%H:%M:%S', time.gmtime(start))} to {time.strftime('%H:%M:%S', time.gmtime(end))} UTC"
    figure.text(1 - 3 * GAP / width, 1 - 0.33 / height, span, size=9.5, color=FAINT, va="center", ha="right")
    for panel in panels:
        place = panel["gridPos"]
        left, top = GAP + place["x"] * UNIT_W, height - 0.55 - GAP - place["y"] * UNIT_H
        box = (left, top - place["h"] * UNIT_H, place["w"] * UNIT_W, place["h"] * UNIT_H)
        _PANELS[panel["type"]](_Canvas(figure, box, width, height), panel, api, (start, end))
    return figure


class _Canvas:
    """The area of one panel on a figure; coordinates are inches from the lower left corner of the panel."""

    def __init__(self, figure: Any, box: tuple[float, float, float, float], width: float, height: float):
        self.figure, self.width, self.height = figure, box[2], box[3]
        self._box, self._whole = box, (width, height)

    def text(self, x: float, y: float, text: str, **look: Any) -> None:
        self.figure.text((self._box[0] + x) / self._whole[0], (self._box[1] + y) / self._whole[1], text, **look)

    def axes(self, left: float, bottom: float, right: float, top: float) -> Any:
        """Axes within the panel, with the given margins in inches."""
        x, y, w, h = self._box
        total_w, total_h = self._whole
        return self.figure.add_axes(
            ((x + left) / total_w, (y + bottom) / total_h, (w - left - right) / total_w, (h - bottom - top) / total_h)
        )

    def card(self, title: str) -> None:
        """Draws the panel's background and its title."""
        from matplotlib.patches import FancyBboxPatch

        x, y, w, h = self._box
        total_w, total_h = self._whole
        back = self.figure.add_axes((0, 0, 1, 1), zorder=-1)
        back.set_xlim(0, total_w)
        back.set_ylim(0, total_h)
        back.axis("off")
        pad = GAP / 2
        back.add_patch(
            FancyBboxPatch(
                (x + pad, y + pad), w - 2 * pad, h - 2 * pad,
                boxstyle="round,pad=0,rounding_size=0.06", facecolor=CARD, edgecolor="#DFE2E6", linewidth=0.8,
            )
        )  # fmt: skip
        self.text(0.17, self.height - 0.24, title, size=10.5, weight="bold", color=INK, va="center")


def _heading(canvas: _Canvas, panel: dict[str, Any], api: Api, span: tuple[float, float]) -> None:
    canvas.text(0.1, canvas.height / 2, panel["title"], size=11.5, weight="bold", color=FAINT, va="center")


def _stat(canvas: _Canvas, panel: dict[str, Any], api: Api, span: tuple[float, float]) -> None:
    canvas.card(panel["title"])
    defaults = panel["fieldConfig"]["defaults"]
    [(_, times, values)] = list(_series(panel, api, span))[:1] or [("", np.array([]), np.array([]))]
    if not len(values):
        canvas.text(canvas.width / 2, canvas.height / 2, "No data", size=12, color=FAINT, ha="center", va="center")
        return
    last = values[np.isfinite(values)][-1]
    colour = next(s["color"] for s in reversed(defaults["thresholds"]["steps"]) if last >= (s["value"] or -math.inf))
    history = canvas.axes(0.05, 0.06, 0.05, 0.82)
    history.fill_between(times, values, min(0.0, float(np.nanmin(values))), color=colour, alpha=0.15, linewidth=0)
    history.plot(times, values, color=colour, linewidth=1.2)
    history.set_xlim(*span)
    history.axis("off")
    text = _format(defaults["unit"], defaults.get("decimals"))(last)
    canvas.text(canvas.width / 2, 0.78, text, size=21, weight="bold", color=colour, ha="center", va="center")


def _timeseries(canvas: _Canvas, panel: dict[str, Any], api: Api, span: tuple[float, float]) -> None:
    canvas.card(panel["title"])
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    found = list(_series(panel, api, span))
    axes = canvas.axes(0.72, 0.66, 0.22, 0.46)
    fixed = {
        o["matcher"]["options"]: o["properties"][0]["value"]["fixedColor"] for o in panel["fieldConfig"]["overrides"]
    }
    free = iter([c for c in PALETTE if c not in fixed.values()] * 4)
    colours = [fixed.get(name) or next(free) for name, _, _ in found]
    styles = _styles(colours)
    stairs = custom["lineInterpolation"] == "stepAfter"
    if custom["stacking"]["mode"] == "normal" and found:
        below = np.zeros_like(found[0][2])
        for (_, times, values), colour in zip(found, colours, strict=True):
            above = below + np.nan_to_num(values)
            axes.fill_between(
                times, below, above, color=colour, alpha=0.72, linewidth=0, step="post" if stairs else None
            )
            below = above
    else:
        for (_, times, values), colour, style in zip(found, colours, styles, strict=True):
            axes.plot(
                times, values, color=colour, linestyle=style, linewidth=1.6, drawstyle="steps-post" if stairs else None
            )
    _scale(axes, defaults, span)
    _legend(canvas, [name for name, _, _ in found], colours, styles)


def _heatmap(canvas: _Canvas, panel: dict[str, Any], api: Api, span: tuple[float, float]) -> None:
    from matplotlib.colors import PowerNorm

    canvas.card(panel["title"])
    found = sorted(((float(name), times, values) for name, times, values in _series(panel, api, span)))
    axes = canvas.axes(0.72, 0.42, 0.22, 0.46)
    if not found:
        axes.axis("off")
        return
    counts = np.diff([np.nan_to_num(values) for _, _, values in found], axis=0, prepend=0.0).clip(min=0)
    edges = np.append(found[0][1], found[0][1][-1] + STEP_S)
    shown = np.ma.masked_less(counts, 1e-6)
    axes.pcolormesh(edges, np.arange(len(found) + 1), shown, cmap="Blues", norm=PowerNorm(0.5, vmin=0))
    names = [f"{bound:g}" if math.isfinite(bound) else "+Inf" for bound, _, _ in found]
    axes.set_yticks(np.arange(len(found)) + 1.0, names)
    axes.set_ylim(0, len(found))
    _times(axes, span)
    axes.tick_params(labelsize=7.5, colors=FAINT, length=0)


_PANELS: dict[str, Callable[[_Canvas, dict[str, Any], Api, tuple[float, float]], None]] = {
    "row": _heading,
    "stat": _stat,
    "timeseries": _timeseries,
    "heatmap": _heatmap,
}


def _series(panel: dict[str, Any], api: Api, span: tuple[float, float]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, times and values of every series of a panel, on one time grid; NaN where a value is missing."""
    start, end = span
    grid = np.arange(start, end + STEP_S / 2, STEP_S)
    for target in panel["targets"]:
        expr = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
        for series in sorted(api.query_range(expr, start, end, STEP_S), key=lambda it: _sort_key(it["metric"])):
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            values = np.full(len(grid), np.nan)
            for at, value in series["values"]:
                values[min(len(grid) - 1, round((at - start) / STEP_S))] = float(value)
            yield name, grid, values


def _sort_key(labels: dict[str, str]) -> list[Any]:
    """Sorts numbers by value, before words in alphabetical order."""
    return [(0, float(v), "") if v.replace(".", "", 1).isdigit() else (1, 0.0, v) for _, v in sorted(labels.items())]


def _styles(colours: list[str]) -> list[Any]:
    """Line styles; series of the same colour have different dashes."""
    seen: dict[str, int] = {}
    styles: list[Any] = []
    for colour in colours:
        styles.append(("-", "--", ":", "-.")[seen.get(colour, 0) % 4])
        seen[colour] = seen.get(colour, 0) + 1
    return styles


def _scale(axes: Any, defaults: dict[str, Any], span: tuple[float, float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    low, high = axes.get_ylim()
    if "min" in defaults:
        low = defaults["min"]
        high = max(high, low + 1e-3 if defaults["unit"] == "s" else low + 0.1)
    axes.set_ylim(low, 1.03 * defaults["max"] if "max" in defaults else high + 0.06 * (high - low))
    binary = defaults["unit"] == "bytes" and high > 0
    axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(high / 5))) if binary else MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format(defaults["unit"])(value)))
    _times(axes, span)
    axes.grid(axis="y", color="#E9EBEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=FAINT, length=0)


def _times(axes: Any, span: tuple[float, float]) -> None:
    start, end = span
    every = next(s for s in (15, 30, 60, 120, 300, 600, 1800, 3600, 7200) if (end - start) / s <= 8)
    ticks = np.arange(math.ceil(start / every) * every, end, every)
    form = "%H:%M:%S" if every < 60 else "%H:%M"
    axes.set_xticks(ticks, [time.strftime(form, time.gmtime(at)) for at in ticks])
    axes.set_xlim(start, end)
    for side in axes.spines.values():
        side.set_visible(False)


def _legend(canvas: _Canvas, names: list[str], colours: list[str], styles: list[Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, linestyle=s, linewidth=2.4) for c, s in zip(colours, styles, strict=True)]
    holder = canvas.axes(0.14, 0.1, 0.14, canvas.height - 0.36)
    holder.axis("off")
    size = 6.5 if len("".join(names)) > 60 else 8
    holder.legend(
        handles, names, loc="center left", ncols=max(1, len(names)), frameon=False, fontsize=size, labelcolor=INK,
        handlelength=1.6, columnspacing=1.1, handletextpad=0.5, borderpad=0, borderaxespad=0,
    )  # fmt: skip


def _format(unit: str, decimals: int | None = None) -> Callable[[float], str]:
    def plain(value: float) -> str:
        if decimals is None and abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"

    def seconds(value: float) -> str:
        if value == 0 or abs(value) >= 1:
            return f"{value:.3g} s" if abs(value) < 120 else f"{value / 60:.3g} min"
        return f"{1e3 * value:.3g} ms"

    def size(value: float) -> str:
        power = 0 if value < 1 else min(3, int(math.log2(value) // 10))
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"

    def share(value: float) -> str:
        return f"{100 * value:.{decimals if decimals is not None else 0}f}%"

    return {
        "reqps": lambda value: f"{plain(value)} /s",
        "s": seconds,
        "percentunit": share,
        "bytes": size,
        "short": plain,
    }[unit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=6.0, help="length of the rendered time range")
    parser.add_argument("--end", type=float, help="end of the time range, unix time; the default is now")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end = args.end or time.time()
    end -= end % STEP_S
    for path in sorted(FOLDER.glob("*.json")):
        figure = render(json.loads(path.read_text()), Api(args.prometheus), end - 60 * args.minutes, end)
        figure.savefig(args.out / f"dashboard-{path.stem}.png", dpi=110)


if __name__ == "__main__":
    main()
