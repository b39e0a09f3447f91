"""Tests of ``weir plan``: one instance as numbers and as text."""

from __future__ import annotations

import pytest

from controller.explain import Objective, describe, explain, plan_for
from simulator.families import family_setting

SETTING = family_setting("diffserve-1", gpus=16)


def test_the_published_objective_gives_the_published_optimum():
    answer = describe(*plan_for(SETTING, 24, objective=Objective.THRESHOLD))
    assert (answer["threshold"], answer["deferral"], answer["status"]) == (0.23, 0.63, "optimal")
    assert answer["gpus"]["light"] + answer["gpus"]["heavy"] + answer["spare_gpus"] == 16


def test_the_quality_objective_stops_at_the_best_mix():
    assert describe(*plan_for(SETTING, 4))["deferral"] == pytest.approx(0.6, abs=0.01)
    assert "this is the best mix" in explain(*plan_for(SETTING, 4))


def test_the_explanation_of_an_excessive_demand_names_the_served_rate():
    problem, solution = plan_for(SETTING, 1000, objective=Objective.THRESHOLD)
    assert describe(problem, solution)["status"] == "infeasible"
    assert "332.47 requests/s are served" in explain(problem, solution)


def test_the_explanation_names_both_stages_and_the_limit():
    words = explain(*plan_for(SETTING, 40, objective=Objective.THRESHOLD))
    for part in (
        "40 requests/s on 16 GPUs",
        "light: ",
        "heavy: ",
        "batch 4",
        "threshold 0.055",
        "37.1%",
        "exceeds the capacity",
    ):
        assert part in words
