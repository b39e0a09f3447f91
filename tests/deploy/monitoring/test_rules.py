"""Recording and alert rules are valid, have remedies, and fire under their conditions only."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.monitoring.prometheus import CONFIG, RULES

DOCS = Path("docs/monitoring.md")
RULE_TESTS = Path(__file__).parent / "rules_test.yml"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]


def promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_and_the_rules_are_valid():
    promtool("check", "config", CONFIG)
    promtool("check", "rules", RULES)


def test_alerts_fire_under_their_conditions_only():
    promtool("test", "rules", RULE_TESTS)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_has_a_summary_a_remedy_and_a_section_in_the_documentation(alert):
    assert set(alert["annotations"]) == {"summary", "remedy"}
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert f"### {alert['alert']}\n" in DOCS.read_text()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_test(alert):
    assert f"alertname: {alert['alert']}\n" in RULE_TESTS.read_text()
