"""Quotas of each key, with a retry time in the refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_balancer.admission.quotas import Quotas
from load_balancer.http.api_keys import ANONYMOUS, Caller
from weir.errors import InvalidRequest, RateLimited

ALICE = Caller("alice", "acme", images_per_minute=60, concurrent_images=4)
BOB = Caller("bob", "acme", images_per_minute=60)


def test_a_burst_of_one_minutes_rate_is_allowed() -> None:
    quotas = Quotas()
    for _ in range(60):
        quotas.take(BOB, 1, 0.0)
    with pytest.raises(RateLimited) as refused:
        quotas.take(BOB, 1, 0.0)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    quotas.take(BOB, 1, 1.0)


def test_concurrent_images_count_until_they_are_answered() -> None:
    quotas = Quotas()
    quotas.take(ALICE, 3, 0.0)
    with pytest.raises(RateLimited, match="3 images in flight and may have at most 4"):
        quotas.take(ALICE, 2, 0.0)
    quotas.give_back(ALICE, 3)
    quotas.take(ALICE, 2, 0.0)


def test_callers_have_separate_quotas() -> None:
    quotas = Quotas()
    quotas.take(BOB, 60, 0.0)
    quotas.take(ALICE, 1, 0.0)
    quotas.take(ANONYMOUS, 1000, 0.0)


def test_a_request_beyond_the_whole_quota_is_invalid_and_not_rate_limited() -> None:
    with pytest.raises(InvalidRequest, match="at most 4 at once") as refused:
        Quotas().take(ALICE, 5, 0.0)
    assert refused.value.param == "n"


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 3), st.booleans()), max_size=60),
    st.floats(0.5, 120),
    st.integers(1, 8),
)
def test_no_key_exceeds_its_quota(steps, rate, most) -> None:
    caller = Caller("carol", "acme", images_per_minute=rate, concurrent_images=most)
    quotas, now, flying, given_at = Quotas(), 0.0, [], []
    for gap, images, answered in steps:
        now += gap
        if answered and flying:
            quotas.give_back(caller, flying.pop())
        try:
            quotas.take(caller, images, now)
        except (RateLimited, InvalidRequest):
            continue
        flying.append(images)
        given_at += [now] * images
        assert sum(flying) <= most
        for start in given_at:
            within = sum(start <= at for at in given_at)
            assert within <= max(1.0, rate) + rate / 60 * (now - start) + 1e-6


@given(st.integers(1, 10))
def test_a_retry_after_the_given_time_is_admitted(images) -> None:
    quotas = Quotas()
    quotas.take(BOB, 60, 0.0)
    with pytest.raises(RateLimited) as refused:
        quotas.take(BOB, images, 10.0 if images > 10 else 0.0)
    wait_s = refused.value.retry_after_s
    assert wait_s
    quotas.take(BOB, images, wait_s + 1e-6)


def test_the_rate_of_a_key_is_charged_by_work() -> None:
    quotas = Quotas()
    quotas.take(BOB, 2, 0.0, price=32)
    with pytest.raises(RateLimited) as refused:
        quotas.take(BOB, 2, 0.0, price=32)
    assert refused.value.retry_after_s == pytest.approx(4.0)
    with pytest.raises(InvalidRequest, match="work of 64 images of the family's own size"):
        quotas.take(BOB, 1, 0.0, price=64)
