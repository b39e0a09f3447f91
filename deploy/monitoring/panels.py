"""Panels of a Grafana dashboard as plain data, and their layout.

The panels are plain dictionaries, because the types of Grafana's own Python SDK are older than the Grafana version that
the dashboards are checked against (``make check-dashboards``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from weir.metrics import PATH, ROLE

#: Width of Grafana's grid.
COLUMNS = 24
#: Height of a panel with curves.
HEIGHT = 8
#: How curves are drawn: as lines, as stacked areas for parts of a whole, or in steps, with a value constant until the
#: next one, for example a number of replicas.
Style = Literal["lines", "stacked", "steps", "stacked-steps"]
#: The Prometheus to query, a variable of every dashboard.
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: Colours of series, the same on every dashboard.
COLOURS = {
    "light": "#F2A93B",
    "heavy": "#3366CC",
    "cache": "#2E9E6B",
    "light-deadline": "#D9653B",
    "demand": "#5A5A66",
    "capacity": "#2E9E6B",
    "late": "#D9653B",
    "failed": "#C4162A",
    "refused": "#8F5BB5",
}


class Query(NamedTuple):
    """A PromQL expression and the legend of its series; ``{{label}}`` stands for the value of a label."""

    expr: str
    legend: str = ""


class Alarm(NamedTuple):
    """Values that are shown in red."""

    when: Literal["above", "below"]
    value: float


def row(title: str) -> dict[str, Any]:
    """A heading above the following panels."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": COLUMNS, "h": 1}}


def timeseries(
    title: str,
    queries: Sequence[Query],
    *,
    unit: str,
    help: str,
    width: int = 12,
    limits: tuple[float | None, float | None] = (0, None),
    style: Style = "lines",
) -> dict[str, Any]:
    """Curves over time.

    Args:
        unit: one of Grafana's ids: ``reqps``, ``s``, ``percentunit``, ``short``, ``bytes``, …
        help: description, which Grafana shows behind the panel's (i).
        limits: fixed ends of the axis; None leaves an end to the values.
    """
    stacked = style.startswith("stacked")
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if style.endswith("steps") else "linear",
        "lineWidth": 1 if stacked else 2,
        "fillOpacity": 60 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    ends = {key: value for key, value in zip(("min", "max"), limits, strict=True) if value is not None}
    return {
        **_panel("timeseries", title, queries, help, width, HEIGHT),
        "fieldConfig": {
            "defaults": {"unit": unit, "color": {"mode": "palette-classic"}, "custom": custom, **ends},
            "overrides": _colours(queries),
        },
        "options": {
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def stat(
    title: str,
    query: Query,
    *,
    unit: str,
    help: str,
    decimals: int | None = None,
    colour: str = "#5A5A66",
    alarm: Alarm | None = None,
) -> dict[str, Any]:
    """The current value in large type, with its history behind it; red beyond the alarm value."""
    stages: list[dict[str, Any]] = [{"value": None, "color": colour}]
    if alarm is not None:
        below, above = ("#C4162A", colour) if alarm.when == "below" else (colour, "#C4162A")
        stages = [{"value": None, "color": below}, {"value": alarm.value, "color": above}]
    defaults: dict[str, Any] = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": stages},
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return {
        **_panel("stat", title, [query], help, width=4, height=4),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "value",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def heatmap(title: str, metric: str, *, unit: str, help: str, width: int = 12) -> dict[str, Any]:
    """A histogram over time: the number of observations in each bucket, as a heatmap."""
    query = Query(f"sum by (le) (increase({metric}_bucket[$__rate_interval]))", "{{le}}")
    panel = _panel("heatmap", title, [query], help, width, HEIGHT)
    panel["targets"][0]["format"] = "heatmap"
    return {
        **panel,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {
                "mode": "scheme", "scheme": "Blues", "fill": "#3366CC", "exponent": 0.5, "steps": 64, "reverse": False,
                "scale": "exponential",
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        },
    }  # fmt: skip


def arrange(panels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds ids and positions to the panels: from left to right, with a new line when a panel does not fit."""
    x = y = height = 0
    out = []
    for number, panel in enumerate(panels, 1):
        w, h = panel["gridPos"]["w"], panel["gridPos"]["h"]
        if x + w > COLUMNS:
            x, y, height = 0, y + height, 0
        out.append({"id": number, **panel, "gridPos": {"x": x, "y": y, "w": w, "h": h}})
        x, height = x + w, max(height, h)
    return out


def _panel(kind: str, title: str, queries: Sequence[Query], help: str, width: int, height: int) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend,
            "range": True,
        }
        for number, query in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": help,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": targets,
    }


def _colours(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Overrides with the fixed colours of ``COLOURS``; further series of the same colour are dashed."""
    seen: set[str] = set()
    overrides = []
    for query in queries:
        for name, subject in _series_names(query.legend):
            if subject in COLOURS:
                properties: list[dict[str, Any]] = [
                    {"id": "color", "value": {"mode": "fixed", "fixedColor": COLOURS[subject]}}
                ]
                if subject in seen:
                    properties.append({"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}})
                overrides.append({"matcher": {"id": "byName", "options": name}, "properties": properties})
                seen.add(subject)
    return overrides


def _series_names(legend: str) -> list[tuple[str, str]]:
    """Names of the series that a legend expands to, each with its role or path, or with the legend itself."""
    for label in (ROLE, PATH):
        place = f"{{{{{label.name}}}}}"
        if place in legend:
            return [(legend.replace(place, value), value) for value in label.values]
    return [(legend, legend)]
