"""Overload is refused before any work, with a retry time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_balancer.admission.admission import Admission
from weir.errors import NotReady, Overloaded, WeirError


def admit(admission: Admission, images: int = 1, now: float = 0.0, **more) -> None:
    admission.admit(images, **{"now": now, "deadline": now + 5, "finish_at": now + 1, **more})


def test_images_in_flight_are_bounded():
    admission = Admission(queued=3)
    admit(admission, 2)
    with pytest.raises(Overloaded, match="at most 3"):
        admit(admission, 2)
    admit(admission, 1)
    admission.release(2)
    admit(admission, 2)
    assert admission.in_flight == 3


def test_a_prediction_beyond_the_deadline_is_refused_until_the_queue_has_drained():
    with pytest.raises(Overloaded) as refused:
        admit(Admission(9), finish_at=8.5)
    assert refused.value.retry_after_s == 3.5


def test_a_prediction_at_the_deadline_is_admitted():
    admit(Admission(9), finish_at=5.0)


def test_without_a_replica_the_refusal_has_a_retry_time():
    with pytest.raises(NotReady) as refused:
        admit(Admission(9), finish_at=None)
    assert refused.value.status == 503
    assert (refused.value.retry_after_s or 0) >= 1


def test_the_admitted_rate_of_the_plan_is_kept_after_a_burst_of_a_second():
    admission = Admission(1000)
    admitted, retries = 0, []
    for tenth in range(100):
        for _ in range(3):  # 30 a second against 10 admitted
            try:
                admit(admission, now=tenth / 10, rps=10)
                admitted += 1
            except Overloaded as error:
                retries.append(error.retry_after_s or 0)
    assert min(retries) > 0
    assert 100 <= admitted <= 111


def test_an_admitted_rate_of_zero_admits_only_the_first_request():
    admission = Admission(10)
    admit(admission, rps=0)
    with pytest.raises(Overloaded):
        admit(admission, now=1000, rps=0)


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 10), st.booleans())))
def test_in_flight_never_exceeds_the_limit_and_a_refusal_uses_nothing(orders):
    admission = Admission(8)
    inside: list[int] = []
    for images, finish_at, leave in orders:
        if leave and inside:
            admission.release(inside.pop())
        try:
            admit(admission, images, finish_at=finish_at)
            inside.append(images)
        except WeirError:
            pass
        assert admission.in_flight == sum(inside) <= 8


def test_a_request_for_more_images_than_the_limit_is_admitted_by_an_idle_service():
    admission = Admission(queued=1)
    admit(admission, 4, share=0.5)
    with pytest.raises(Overloaded, match="4 images are in flight"):
        admit(admission, 1)
    admission.release(4)
    admit(admission, 4)


def test_the_admitted_rate_is_of_images_of_the_familys_own_size():
    def admitted(images: int, price: float) -> int:
        admission, count = Admission(10**6), 0
        for tenth in range(1000):
            try:
                admit(admission, images, now=tenth / 10, rps=10, price=price)
                count += 1
            except Overloaded:
                pass
        return count

    assert admitted(1, 1.0) == pytest.approx(1000, rel=0.02)
    assert admitted(4, 4.0) == pytest.approx(250, rel=0.02)
    assert admitted(1, 16.0) == pytest.approx(62, rel=0.05)
