"""Panels of a Grafana dashboard as plain data, and their places on it.

Plain dictionaries, for the types of Grafana's own Python SDK are older than the Grafana that this is checked against
(``make check-dashboards``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from weir.metrics import PATH, ROLE

#: Grafana's grid is so many units wide.
COLUMNS = 24
#: The variable of every dashboard that names the Prometheus to ask.
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: One colour for one thing on every dashboard.
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
    """A PromQL expression and how its series are called; ``{{label}}`` puts a label's value in."""

    expr: str
    legend: str = ""


def row(title: str) -> dict[str, Any]:
    """A heading over the panels that follow."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": COLUMNS, "h": 1}}


def lines(
    title: str,
    queries: Sequence[Query],
    *,
    unit: str,
    help: str,
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
    steps: bool = False,
) -> dict[str, Any]:
    """Curves over time.

    Args:
        unit: one of Grafana's ids: ``reqps``, ``s``, ``percentunit``, ``short``, ``bytes``, …
        help: shown behind the (i) of the panel.
        stacked: areas on top of one another, for what adds up to something.
        least, most: ends of the axis, where they are fixed.
        steps: the value holds until the next one, as a number of replicas does.
    """
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if steps else "linear",
        "lineWidth": 1 if stacked else 2,
        "fillOpacity": 60 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    limits = {key: value for key, value in (("min", least), ("max", most)) if value is not None}
    return {
        **_panel("timeseries", title, queries, help, width, height),
        "fieldConfig": {
            "defaults": {"unit": unit, "color": {"mode": "palette-classic"}, "custom": custom, **limits},
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
    width: int = 4,
    decimals: int | None = None,
    colour: str = "#5A5A66",
    alarm_above: float | None = None,
    alarm_below: float | None = None,
) -> dict[str, Any]:
    """One number, large, with its recent course behind it; red where it passes the alarm."""
    red, fine = "#C4162A", colour
    if alarm_above is not None:
        stages: list[dict[str, Any]] = [{"value": None, "color": fine}, {"value": alarm_above, "color": red}]
    elif alarm_below is not None:
        stages = [{"value": None, "color": red}, {"value": alarm_below, "color": fine}]
    else:
        stages = [{"value": None, "color": fine}]
    defaults: dict[str, Any] = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": stages},
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return {
        **_panel("stat", title, [query], help, width, 4),
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


def spread(title: str, metric: str, *, unit: str, help: str, width: int = 12, height: int = 8) -> dict[str, Any]:
    """A histogram over time: how many fell into each bucket."""
    query = Query(f"sum by (le) (increase({metric}_bucket[$__rate_interval]))", "{{le}}")
    panel = _panel("heatmap", title, [query], help, width, height)
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


def placed(panels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The panels with numbers and places: from left to right, in a new line where the width is used up."""
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
    """The fixed colours of series that show a thing that has one; a second query about the same things is dashed."""
    seen: set[str] = set()
    overrides = []
    for query in queries:
        for name, thing in _named(query.legend):
            if thing in COLOURS:
                properties: list[dict[str, Any]] = [
                    {"id": "color", "value": {"mode": "fixed", "fixedColor": COLOURS[thing]}}
                ]
                if thing in seen:
                    properties.append({"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}})
                overrides.append({"matcher": {"id": "byName", "options": name}, "properties": properties})
                seen.add(thing)
    return overrides


def _named(legend: str) -> list[tuple[str, str]]:
    """The names of the series that a legend gives, each with the thing that it is about."""
    for label in (ROLE, PATH):
        place = f"{{{{{label.name}}}}}"
        if place in legend:
            return [(legend.replace(place, value), value) for value in label.values]
    return [(legend, legend)]
