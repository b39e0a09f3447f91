"""The decisions of the cascade."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_balancer.runner.cascade_rules import after_light, first_role, is_deferred, may_turn_light
from weir.core import Path, Plan, Role, Rules


def plan(light: int = 1, heavy: int = 1, threshold: float = 0.5) -> Plan:
    return Plan.split(1, light, heavy, light_batch=1, heavy_batch=1, threshold=threshold)


def decide(confidence: float | None, heavy_finish_at: float | None = 1.0, latest: float = 2.0, **more) -> Path:
    given = {"plan": plan(), "forced": None, **more}
    return after_light(
        given["plan"], confidence, forced=given["forced"], heavy_finish_at=heavy_finish_at, latest=latest
    )


def test_light_draws_first_where_the_plan_has_any():
    assert first_role(plan(), None) is Role.LIGHT
    assert first_role(plan(light=0), None) is Role.HEAVY


@pytest.mark.parametrize("role", list(Role))
def test_a_forced_variant_draws_whatever_the_plan_says(role):
    assert first_role(plan(light=0), role) is role
    assert first_role(plan(heavy=0), role) is role


def test_a_confident_light_image_is_the_answer():
    assert decide(0.5) is Path.LIGHT


def test_a_doubtful_one_is_deferred_when_heavy_can_make_the_deadline():
    assert decide(0.49) is Path.HEAVY
    assert decide(0.49, heavy_finish_at=2.0, latest=2.0) is Path.HEAVY


def test_a_doubtful_one_is_the_answer_when_heavy_cannot():
    assert decide(0.49, heavy_finish_at=2.1) is Path.LIGHT_DEADLINE
    assert decide(0.49, heavy_finish_at=None) is Path.LIGHT_DEADLINE


def test_without_heavy_replicas_light_is_the_answer():
    assert decide(0.0, plan=plan(heavy=0)) is Path.LIGHT


def test_a_forced_light_image_is_never_deferred():
    assert decide(0.0, forced=Role.LIGHT) is Path.LIGHT


def test_an_image_without_confidence_counts_as_doubtful():
    assert decide(None) is Path.HEAVY
    assert decide(None, plan=plan(threshold=0)) is Path.LIGHT


@given(st.floats(0, 1))
def test_threshold_0_defers_nothing_and_1_everything(confidence):
    assert not is_deferred(confidence, 0)
    assert is_deferred(confidence, 1)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_defers_less(confidence, one, other):
    low, high = sorted((one, other))
    assert is_deferred(confidence, low) <= is_deferred(confidence, high)


def test_who_began_heavy_may_turn_light_unless_he_asked_for_it_or_the_plan_has_no_light_images():
    assert may_turn_light(plan(), None)
    assert not may_turn_light(plan(), Role.HEAVY)
    assert not may_turn_light(plan(light=0), None)
    assert not may_turn_light(replace(plan(), rules=Rules(light_fallback=False)), None)
