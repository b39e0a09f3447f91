"""The dashboards are current, valid for Grafana, and query only what Prometheus has."""

from __future__ import annotations

import json
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.dashboards import DASHBOARDS, FOLDER, files
from deploy.monitoring.panels import COLUMNS, DATASOURCE
from weir import metrics

GRAFANA = FOLDER.parent
EVERY = pytest.mark.parametrize("dashboard", [build() for build in DASHBOARDS], ids=lambda it: it["uid"])
#: Grafana's ids of the units in use.
UNITS = {"reqps", "s", "percentunit", "short", "bytes"}


def graphs(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in graphs(dashboard) for target in panel["targets"]]


def test_the_committed_files_are_what_the_code_writes():
    expected = files()
    assert set(FOLDER.glob("*.json")) == set(expected)
    for path, text in expected.items():
        assert path.read_text() == text, "run `python -m deploy.monitoring.dashboards`"


@EVERY
def test_a_dashboard_has_the_fields_that_grafana_requires(dashboard):
    assert dashboard["uid"].startswith("weir-")
    assert len(dashboard["uid"]) <= 40
    assert dashboard["schemaVersion"] >= 36
    assert [variable["type"] for variable in dashboard["templating"]["list"]] == ["datasource"]
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert numbers == list(range(1, len(numbers) + 1))


@EVERY
def test_a_panel_has_a_unique_title_a_description_a_unit_and_queries(dashboard):
    titles = [panel["title"] for panel in graphs(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in graphs(dashboard):
        assert panel["type"] in ("timeseries", "stat", "heatmap")
        assert panel["description"].endswith(".")
        assert panel["datasource"] == DATASOURCE
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
        assert unit in UNITS
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)
        assert all(target["datasource"] == DATASOURCE and target["expr"] for target in panel["targets"])


@EVERY
def test_panels_neither_overlap_nor_cross_the_edge(dashboard):
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= COLUMNS and p["h"] > 0 for p in places)
    for a, b in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_x or apart_y


def test_every_query_is_valid_promql(tmp_path: Path):
    queries = [expr.replace("$__rate_interval", "1m") for build in DASHBOARDS for expr in expressions(build())]
    rules = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_is_on_a_dashboard_or_in_a_rule():
    shown = " ".join(expr for build in DASHBOARDS for expr in expressions(build()))
    shown += (FOLDER.parents[1] / "rules.yml").read_text()
    recorded = (metric for metric in metrics.ALL if metric.room != "traces")  # recorded by a client, not by the service
    assert [metric.name for metric in recorded if f"ray_{metric.name}" not in shown] == []


def test_grafana_is_provisioned_with_the_data_source_that_the_dashboards_query():
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/weir.yaml").read_text())["datasources"]
    current = {json.dumps(build()["templating"]["list"][0]["current"]["value"]) for build in DASHBOARDS}
    assert current == {json.dumps(source["uid"])}
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/weir.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
