"""The frame of every dashboard: the choice of Prometheus, the links to the other dashboards, the time range."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.panels import arrange

#: Version of @grafana/schema, which `make check-dashboards` checks the files against.
SCHEMA_VERSION = 42


def dashboard(name: str, title: str, description: str, panels: list[dict[str, Any]]) -> dict[str, Any]:
    """A whole dashboard as Grafana's JSON."""
    return {
        "uid": f"weir-{name}",
        "title": title,
        "description": description,
        "tags": ["weir"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "Weir", "value": "weir"},
                    "hide": 0,
                    "includeAll": False,
                    "multi": False,
                    "options": [],
                    "refresh": 1,
                    "regex": "",
                }
            ]
        },
        "links": [
            {
                "type": "dashboards",
                "title": "Weir",
                "tags": ["weir"],
                "icon": "external link",
                "tooltip": "",
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
            }
        ],
        "annotations": {"list": []},
        "panels": arrange(panels),
    }
