"""Plans are checked where they are made and where they arrive."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.core import Assignment, DeferralCurve, LatencyProfile, Plan, Role, Rules
from weir.errors import PlanError

assignments = st.lists(st.builds(Assignment, st.sampled_from(Role), st.integers(1, 64)), min_size=1, max_size=20)
plans = st.builds(
    Plan,
    version=st.integers(0, 10**9),
    assignments=assignments.map(tuple),
    threshold=st.floats(0, 1),
    admitted_rps=st.none() | st.floats(0, 1e6),
    rules=st.builds(Rules, heavy_entry=st.floats(0, 1), drop_after_s=st.none() | st.floats(1e-3, 1e6)),
)


@given(plans)
def test_a_plan_survives_the_way_to_its_consumers(plan: Plan) -> None:
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": -1}, "version"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"assignments": []}, "assignments"),
        ({"assignments": [["light", 0]]}, "batch_size"),
        ({"assignments": [["medium", 1]]}, "medium"),
        ({"admitted_rps": -1.0}, "admitted_rps"),
        ({"colour": "red"}, "colour"),
        ({"rules": {**asdict(Rules()), "heavy_entry": 2.0}}, "heavy_entry"),
        ({"rules": {**asdict(Rules()), "drop_after_s": 0.0}}, "drop_after_s"),
        ({"rules": {**asdict(Rules()), "replica_choice": "nearest"}}, "nearest"),
        ({"rules": {**asdict(Rules()), "colour": "red"}}, "colour"),
        ({"rules": None}, "NoneType"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(change: dict, named: str) -> None:
    good = Plan.split(1, 1, 1, light_batch=1, heavy_batch=1, threshold=0.5).to_dict()
    with pytest.raises(PlanError, match=named):
        Plan.from_dict({**good, **change})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(PlanError, match="threshold"):
        Plan.from_dict({"version": 1, "assignments": [["light", 1]]})


def test_a_rank_beyond_the_plan_takes_the_last_assignment() -> None:
    plan = Plan.split(1, 1, 2, light_batch=1, heavy_batch=4, threshold=0.5)
    assert plan.assignment(0).role is Role.LIGHT
    assert plan.assignment(7) == Assignment(Role.HEAVY, 4)


@given(st.integers(1, 100), st.integers(1, 100))
def test_a_larger_batch_never_takes_less_time(a: int, b: int) -> None:
    profile = LatencyProfile((1, 2, 4, 8), (1.0, 1.5, 2.5, 4.0))
    assert profile.at(min(a, b)) <= profile.at(max(a, b))


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_defers_less(a: float, b: float) -> None:
    curve = DeferralCurve((0.0, 0.5, 1.0), (0.0, 0.2, 1.0))
    assert curve.at(min(a, b)) <= curve.at(max(a, b))
