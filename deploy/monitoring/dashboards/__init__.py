"""The dashboards: Overview, Cascade, Cache, Controller, as the JSON files that Grafana is provisioned with.

python -m deploy.monitoring.dashboards
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.monitoring.dashboards.cache import cache
from deploy.monitoring.dashboards.cascade import cascade
from deploy.monitoring.dashboards.controller import controller
from deploy.monitoring.dashboards.overview import overview
from weir.assets import MONITORING

FOLDER = MONITORING / "grafana" / "dashboards"
DASHBOARDS = (overview, cascade, cache, controller)


def files() -> dict[Path, str]:
    """The content of every dashboard's file, by its path."""
    built = (build() for build in DASHBOARDS)
    return {FOLDER / f"{d['uid'].removeprefix('weir-')}.json": json.dumps(d, indent=1) + "\n" for d in built}
