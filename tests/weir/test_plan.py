"""Plans: validation, serialisation, deferral and routing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.errors import PlanError
from weir.plan import MOST_AHEAD, Assignment, Level, LevelRouting, Plan, Rules

LADDER = ("light", "medium", "heavy")
THREE = Plan(1, tuple(Assignment(key, 2) for key in (*LADDER, "heavy")), (0.6, 0.3), LADDER)
LEVELS = (Level("K=0", "heavy", "heavy"), Level("K=10", "heavy", "K=10", skipped=10), Level("light", "light", "light"))
ROUTED = Plan(
    1,
    (Assignment("heavy", 1), Assignment("K=10", 2), Assignment("light", 4)),
    (0.0,),
    routing=LevelRouting(LEVELS, ((0.5, 0.25, 0.25), (0.0, 0.0, 1.0)), hurry=True),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    chain = tuple(draw(st.lists(st.sampled_from(LADDER), min_size=1, max_size=3, unique=True)))
    assignment = st.builds(Assignment, st.sampled_from(chain), st.integers(1, 64))
    return Plan(
        version=draw(st.integers(0, 10**9)),
        assignments=tuple(draw(st.lists(assignment, min_size=1, max_size=20))),
        thresholds=tuple(draw(st.floats(0, 1)) for _ in chain[1:]),
        chain=chain,
        admitted_rps=draw(st.none() | st.floats(0, 1e6)),
        rules=Rules(heavy_entry=draw(st.floats(0, 1)), drop_after_s=draw(st.none() | st.floats(1e-3, 1e6))),
    )


@given(plans())
def test_a_plan_is_unchanged_after_serialisation(plan: Plan) -> None:
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_plan_with_level_routing_is_unchanged_after_serialisation() -> None:
    assert Plan.from_dict(ROUTED.to_dict()) == ROUTED


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": -1}, "version"),
        ({"version": 2**54}, "version"),
        ({"version": 10**30}, "version"),
        ({"version": True}, "version"),
        ({"version": 1.5}, "version"),
        ({"version": "2"}, "version"),
        ({"thresholds": [1.5]}, "thresholds"),
        ({"thresholds": [float("nan")]}, "thresholds"),
        ({"thresholds": []}, "one for each judge in use"),
        ({"threshold": 0.5}, r"older form; write chain: \[light, heavy\] and thresholds: \[0.5\]"),
        ({"chain": []}, "chain"),
        ({"chain": ["light", "light"]}, "each once"),
        ({"assignments": []}, "assignments"),
        ({"assignments": [["light", 0]]}, "batch_size"),
        ({"assignments": [["light", True]]}, "batch_size"),
        ({"assignments": [["light", 10**30]]}, "batch_size"),
        ({"assignments": [["medium", 1]]}, "medium"),
        ({"admitted_rps": -1.0}, "admitted_rps"),
        ({"colour": "red"}, "colour"),
        ({"rules": {**asdict(Rules()), "heavy_entry": 2.0}}, "heavy_entry"),
        ({"rules": {**asdict(Rules()), "drop_after_s": 0.0}}, "drop_after_s"),
        ({"rules": {**asdict(Rules()), "replica_choice": "nearest"}}, "nearest"),
        ({"rules": {**asdict(Rules()), "light_fallback": "no"}}, "light_fallback"),
        ({"rules": {**asdict(Rules()), "heavy_levels": 1.5}}, "heavy_levels"),
        ({"rules": {**asdict(Rules()), "heavy_steps": 10**30}}, "heavy_steps"),
        ({"rules": {**asdict(Rules()), "colour": "red"}}, "colour"),
        ({"rules": "none"}, "rules"),
    ],
)
def test_an_invalid_plan_is_refused_by_name(change: dict, named: str) -> None:
    good = Plan.split(1, 1, 1, light_batch=1, heavy_batch=1, threshold=0.5).to_dict()
    with pytest.raises(PlanError, match=named):
        Plan.from_dict({**good, **change})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"levels": []}, "levels is empty"),
        ({"shares": []}, "shares is empty"),
        ({"shares": [[0.5, 0.5]]}, "a row of 2 for 3 levels"),
        ({"shares": [[0.5, 0.5, 0.5]]}, "add up to 1"),
        ({"levels": [{"name": "a", "variant": "heavy", "role": "heavy", "skipped": -1}]}, "skip at least 0 steps"),
        ({"levels": [{"name": "a", "variant": "heavy", "role": "heavy", "steps": True}]}, "run at least 1"),
        ({"levels": [{"name": "a", "variant": "heavy", "role": "heavy", "speed": 1}]}, "speed"),
        ({"hurry": "no"}, "hurry"),
        ({"ladder": 1}, "ladder"),
    ],
)
def test_an_invalid_routing_is_refused_by_name(change: dict, named: str) -> None:
    good: dict[str, Any] = ROUTED.to_dict()
    with pytest.raises(PlanError, match=named):
        Plan.from_dict({**good, "routing": {**good["routing"], **change}})


@given(st.integers(0, 2**53 - 1))
def test_after_every_plan_that_a_consumer_can_have_there_is_a_next_one(version: int) -> None:
    following = Plan.split(version + 1, 1, 1, light_batch=1, heavy_batch=1, threshold=0.5)
    assert following.replaces(version)
    assert not following.replaces(version + 1)
    assert Plan.from_dict(following.to_dict()) == following


def test_a_plan_that_is_too_far_ahead_replaces_none() -> None:
    plan = Plan.split(2**53, 1, 1, light_batch=1, heavy_batch=1, threshold=0.5)
    assert not plan.replaces(2**53 - MOST_AHEAD - 1)
    assert plan.replaces(2**53 - MOST_AHEAD)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(PlanError, match="thresholds"):
        Plan.from_dict({"version": 1, "assignments": [["light", 1]]})


def test_a_rank_beyond_the_plan_has_the_last_assignment() -> None:
    plan = Plan.split(1, 1, 2, light_batch=1, heavy_batch=4, threshold=0.5)
    assert plan.assignment(0).role == "light"
    assert plan.assignment(7) == Assignment("heavy", 4)


def test_each_judge_defers_by_its_own_threshold() -> None:
    assert [THREE.defers(key, 0.5) for key in ("light", "medium")] == [True, False]
    assert THREE.defers("medium", None), "no confidence counts as 0"
    assert THREE.with_thresholds((1, 1), 2).defers("light", 1.0), "1 defers everything"


def test_the_next_variant_has_replicas() -> None:
    assert [THREE.next_variant(key) for key in LADDER] == ["medium", "heavy", None]
    without = Plan(1, (Assignment("light", 1), Assignment("heavy", 1)), (0.6, 0.3), LADDER)
    assert without.next_variant("light") == "heavy"


def test_replicas_of_a_level_run_its_variant() -> None:
    assert ROUTED.roles == ("heavy", "K=10", "light")
    assert [ROUTED.variant_of(role) for role in ROUTED.roles] == ["heavy", "heavy", "light"]
    assert (ROUTED.count("K=10"), ROUTED.batch_size("K=10")) == (1, 2)


def test_a_pool_refuses_a_plan_for_variants_that_it_does_not_hold() -> None:
    assert THREE.check(LADDER) is THREE
    with pytest.raises(PlanError, match="chain names the variant 'medium'; the replicas hold light, heavy"):
        THREE.check(("light", "heavy"))
    levels = LevelRouting((Level("m", "medium", "m"),), ((1.0,),))
    routed = Plan(1, (Assignment("m", 1),), (0.0,), routing=levels)
    with pytest.raises(PlanError, match="level m is of the variant 'medium'"):
        routed.check(("light", "heavy"))


@given(st.floats(0, 1, exclude_max=True))
def test_requests_are_assigned_to_levels_by_the_shares_of_their_class(draw: float) -> None:
    assert ROUTED.routing is not None
    assert ROUTED.routing.pick(1, draw) == 2
    first = ROUTED.routing.pick(0, draw)
    assert first == ROUTED.routing.pick(None, draw) == (0 if draw < 0.5 else 1 if draw < 0.75 else 2)
