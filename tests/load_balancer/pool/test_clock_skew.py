"""The skew of another host's clock is what an answer proves, and deadlines do not depend on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_balancer.pool.clock_skew import clock_skew_s


@pytest.mark.parametrize(
    ("theirs", "skew_s"),
    [(100.0, 0.0), (100.5, 0.0), (101.0, 0.0), (104.0, 3.0), (97.0, -3.0)],
    ids=["as asked", "between", "as answered", "ahead", "behind"],
)
def test_an_answer_proves_the_difference_beyond_the_time_that_it_took(theirs: float, skew_s: float):
    assert clock_skew_s(theirs, asked=100.0, answered=101.0) == skew_s


@given(st.floats(-100, 100), st.floats(0, 5), st.floats(0, 5))
def test_no_more_is_claimed_than_there_is(skew: float, way_s: float, back_s: float):
    shown = clock_skew_s(1000 + way_s + skew, 1000, 1000 + way_s + back_s)
    assert abs(shown) <= abs(skew) + 1e-9
    assert abs(shown - skew) <= way_s + back_s + 1e-9
