"""A replay records the plans in force, and the report shows them with their reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from traces.figures import Scope
from traces.plan_log import PLANS, ObservedPlan, PlanLog, main_plans, read_plans
from traces.replay import ReplaySettings, replay
from traces.report import write_report
from traces.trace import Arrival, Trace
from weir.errors import ConfigError

LIVE = {
    "roles": {"light": {"planned": 1, "ready": 1}, "heavy": {"planned": 2, "ready": 2}},
    "plan_version": 3,
    "thresholds": [0.4],
    "reason": "demand rose to 3.1/s",
}


def plan(at_s: float, version: int, light: int, heavy: int, threshold: float = 0.5, reason: str = "") -> ObservedPlan:
    return ObservedPlan(at_s, version, {"light": light, "heavy": heavy}, (threshold,), reason)


def test_a_plan_is_read_from_the_services_live_endpoint() -> None:
    assert ObservedPlan.of(LIVE, 1.5) == plan(1.5, 3, 1, 2, 0.4, "demand rose to 3.1/s")


def test_a_replay_saves_the_plans_that_it_observed(server, tmp_path: Path, quiet) -> None:
    server.live = LIVE
    server.behaviour = lambda number, body: (0.2, 200, server.image())
    replay(Trace.of([Arrival(0, "a", 1)]), server.url, tmp_path, ReplaySettings(5), console=quiet)
    (plan,) = read_plans(tmp_path)
    assert (plan.version, plan.roles, plan.reason) == (3, {"light": 1, "heavy": 2}, "demand rose to 3.1/s")


@pytest.mark.parametrize("live", [None, {}, {"roles": 3}, {**LIVE, "plan_version": "new"}])
def test_a_server_without_a_live_endpoint_can_be_replayed(server, tmp_path: Path, quiet, live) -> None:
    server.live = live
    server.behaviour = lambda number, body: (0.2, 200, server.image())
    result = replay(Trace.of([Arrival(0, "a", 1)]), server.url, tmp_path, ReplaySettings(5), console=quiet)
    assert len(result.outcomes) == 1
    assert read_plans(tmp_path) == []


def test_main_plans_have_other_roles_or_a_threshold_far_from_the_last_one() -> None:
    plans = [
        plan(0, 1, 1, 2),
        plan(5, 2, 1, 2, 0.6),
        plan(9, 3, 2, 1, 0.6),
        plan(12, 4, 2, 1, 0.2),
        plan(13, 5, 2, 1, 0.3),
    ]
    assert [plan.version for plan in main_plans(plans)] == [1, 3, 4]


def test_the_report_shows_roles_thresholds_and_reasons_over_time(tmp_path: Path) -> None:
    PlanLog([plan(0, 1, 1, 2), plan(4, 2, 2, 1, 0.3, "demand rose to 3.1/s; 40 % are deferred")]).save(tmp_path)
    write_report([], tmp_path, Scope(5, duration_s=10))
    page = (tmp_path / "report.html").read_text()
    assert "Plans and their reasons" in page
    assert "demand rose to 3.1/s; 40 % are deferred" in page
    assert "the plan of the service file" in page
    assert (tmp_path / "plots" / "plan.svg").exists()


def test_a_report_without_plans_has_no_section_of_plans(tmp_path: Path) -> None:
    write_report([], tmp_path, Scope(5, duration_s=10))
    assert "Plans and their reasons" not in (tmp_path / "report.html").read_text()


def test_a_damaged_plans_file_is_named(tmp_path: Path) -> None:
    (tmp_path / PLANS).write_text("{}x")
    with pytest.raises(ConfigError, match=PLANS):
        read_plans(tmp_path)
