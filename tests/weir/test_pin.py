"""Pins: which values are accepted, and which plan holds while one is in force."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.errors import Conflict, InvalidRequest
from weir.pin import Pin, PinValues, fitted, held, pinned
from weir.plan import HEAVY, LIGHT, PINNED, Assignment, Level, LevelRouting, Plan

LADDER = (LIGHT, "medium", HEAVY)
CONFIGURED = Plan(
    1,
    (Assignment(LIGHT, 8), Assignment("medium", 6), Assignment(HEAVY, 4)),
    (0.5, 0.6),
    LADDER,
)
RUNNING = Plan.split(7, 2, 2, light_batch=4, heavy_batch=2, threshold=0.3)
RANKS = range(4)
LEVELS = replace(
    RUNNING,
    assignments=(Assignment("fast", 1),) * 4,
    routing=LevelRouting((Level("fast", LIGHT, "fast"),), ((1.0,),)),
)


def pin(running: Plan = RUNNING, ranks: Any = RANKS, **values: Any) -> Pin:
    return pinned(PinValues(**values), running, CONFIGURED, LADDER, ranks, "pinned by ops")


# ---------------------------------------------------------------------------------------------------- what is accepted


def test_without_values_the_whole_plan_in_force_is_pinned():
    it = pin()
    assert it.plan == RUNNING
    assert (it.plan.reason, it.plan.origin) == ("pinned by ops", PINNED)


def test_replicas_name_the_chain_and_get_batches_and_thresholds_of_the_plan_in_force_or_the_configured_one():
    it = pin(replicas={"medium": 1, HEAVY: 3})
    assert it.plan.chain == ("medium", HEAVY)
    assert it.plan.assignments == (Assignment("medium", 6), *[Assignment(HEAVY, 2)] * 3)
    assert it.plan.thresholds == (0.6,)


def test_thresholds_and_batches_change_only_what_they_name():
    it = pin(thresholds={LIGHT: 0.9}, batch={HEAVY: 1})
    assert it.plan.thresholds == (0.9,)
    assert [a.batch_size for a in it.plan.assignments] == [4, 4, 1, 1]


def test_drained_ranks_are_left_out():
    assert pin(ranks=[0, 2, 3]).plan.counts == {LIGHT: 1, HEAVY: 2}


@pytest.mark.parametrize(
    ("values", "param", "words"),
    [
        (
            {"replicas": {"huge": 1, HEAVY: 3}},
            "replicas.huge",
            "no replica holds this variant; accepted: light",
        ),
        ({"replicas": {LIGHT: 4}}, "replicas", "lacks heavy, the best variant"),
        ({"replicas": {LIGHT: 2, HEAVY: 3}}, "replicas", "add up to 5; they must add up to 4"),
        ({"thresholds": {HEAVY: 0.5}}, "thresholds.heavy", "not judged in the chain light → heavy; accepted: light"),
        ({"thresholds": {"medium": 0.5}}, "thresholds.medium", "not judged in the chain"),
        ({"replicas": {HEAVY: 4}, "thresholds": {LIGHT: 0.5}}, "thresholds.light", "accepted: none"),
        ({"batch": {"medium": 2}}, "batch.medium", "not in the chain light → heavy"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_what_is_accepted(values, param, words):
    with pytest.raises(InvalidRequest, match=words) as refused:
        pin(**values)
    assert refused.value.param == param


@pytest.mark.parametrize(("part", "words"), [("batch", "batch lacks light"), ("thresholds", "thresholds lacks light")])
def test_what_no_plan_knows_has_to_be_given(part, words):
    unknown = Plan(1, (Assignment(HEAVY, 4),), (), (HEAVY,))
    more = {"batch": {LIGHT: 1}} if part == "thresholds" else {"thresholds": {LIGHT: 0.5}}
    with pytest.raises(InvalidRequest, match=words):
        pinned(PinValues(replicas={LIGHT: 1, HEAVY: 0}, **more), unknown, unknown, LADDER, [0], "")


def test_a_plan_of_levels_is_pinned_as_a_whole_only():
    assert pin(LEVELS).plan == LEVELS
    with pytest.raises(Conflict, match="approximation levels"):
        pin(LEVELS, thresholds={LIGHT: 0.5})


def test_nothing_is_pinned_while_every_replica_is_drained():
    with pytest.raises(Conflict, match="drained"):
        pin(ranks=[])


def test_a_pin_survives_json():
    for it in (pin(), pin(thresholds={LIGHT: 0.9}), pin(replicas={LIGHT: 1, HEAVY: 3}, batch={HEAVY: 1})):
        assert Pin.from_dict(json.loads(json.dumps(it.to_dict()))) == it


# ------------------------------------------------------------------------------------------------- which plan it holds

WANTED = replace(
    Plan.split(9, 3, 1, light_batch=8, heavy_batch=8, threshold=0.7), admitted_rps=3.0, reason="demand rose"
)


def test_a_pinned_threshold_leaves_roles_and_batches_to_the_policy():
    plan = held(WANTED, pin(thresholds={LIGHT: 0.1}), 4)
    assert plan == replace(WANTED, thresholds=(0.1,))
    assert (plan.origin, plan.reason) == (PINNED, "pinned by ops")


def test_pinned_replicas_leave_the_threshold_to_the_policy():
    plan = held(WANTED, pin(replicas={LIGHT: 1, HEAVY: 3}), 4)
    assert plan.counts == {LIGHT: 1, HEAVY: 3}
    assert (plan.thresholds, plan.admitted_rps) == ((0.7,), 3.0)


def test_a_pinned_batch_leaves_everything_else_to_the_policy():
    plan = held(WANTED, pin(batch={HEAVY: 1}), 4)
    assert plan.assignments == (*[Assignment(LIGHT, 8)] * 3, Assignment(HEAVY, 1))


def test_the_whole_plan_holds_whatever_the_policy_wants():
    for wanted in (WANTED, LEVELS, CONFIGURED):
        assert held(wanted, pin(), 4) == replace(RUNNING, version=wanted.version)


def test_when_the_policy_changes_the_chain_the_pinned_chain_holds_with_its_replicas():
    other = Plan(9, (Assignment("medium", 8), *[Assignment(HEAVY, 8)] * 3), (0.7,), ("medium", HEAVY))
    plan = held(other, pin(thresholds={LIGHT: 0.1}), 4)
    assert (plan.chain, plan.thresholds, plan.counts) == ((LIGHT, HEAVY), (0.1,), {LIGHT: 2, HEAVY: 2})


def test_when_the_policy_changes_to_levels_the_plan_at_the_time_of_the_pin_holds():
    it = pin(thresholds={LIGHT: 0.1})
    assert held(LEVELS, it, 4) == replace(it.plan, version=LEVELS.version)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 12))
def test_a_plan_fits_any_number_of_replicas_and_a_role_ends_last(light, heavy, replicas):
    if light + heavy == 0:
        return
    plan = Plan.split(1, light, heavy, light_batch=4, heavy_batch=2, threshold=0.5)
    found = fitted(plan, replicas)
    assert len(found.assignments) == replicas
    if replicas >= 2:
        assert {role for role, count in plan.counts.items() if count} == set(found.counts)
    taken = Counter(plan.counts) - Counter(found.counts)
    assert sum(taken.values()) == max(0, light + heavy - replicas)


def test_of_two_equal_roles_the_fastest_variant_stays():
    plan = Plan.split(1, 1, 1, light_batch=4, heavy_batch=2, threshold=0.5)
    assert fitted(plan, 1).assignments == (Assignment(LIGHT, 4),)
