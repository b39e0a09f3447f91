"""Tests of the cache forecast: the hits in the plans are those of the last minute."""

import pytest

from controller.cache_forecast import CacheForecast


def test_there_are_no_hits_before_enough_requests() -> None:
    hits = CacheForecast()
    hits.observe(3, {0.5: 3})
    assert hits.hits(1.0) == ()


def test_shares_are_of_all_requests_and_work_is_the_remaining_share_of_steps() -> None:
    hits = CacheForecast()
    hits.observe(100, {0.1: 20, 0.5: 10})
    low, high = hits.hits(0.9)
    assert (low.share, low.work, low.quality) == pytest.approx((0.2, 0.9, 0.9))
    assert (high.share, high.work) == pytest.approx((0.1, 0.5))


def test_a_lost_cache_is_forgotten_within_minutes() -> None:
    hits = CacheForecast()
    hits.observe(100, {0.5: 50})
    for _ in range(180):
        hits.observe(10, {})
    assert sum(h.share for h in hits.hits(1.0)) < 0.01


def test_late_answers_never_make_more_hits_than_requests() -> None:
    hits = CacheForecast()
    hits.observe(20, {})
    hits.observe(0, {0.2: 40})
    assert sum(h.share for h in hits.hits(1.0)) <= 1


def test_the_fetch_time_is_the_slowest_of_twenty_fetches() -> None:
    hits = CacheForecast()
    assert hits.fetch_s == 0.0
    hits.observe(20, {0.5: 20}, [0.001] * 19 + [0.02])
    assert hits.fetch_s == 0.001
    hits.observe(20, {0.5: 20}, [0.02])
    assert hits.fetch_s == 0.02
    hits.observe(300, {0.5: 300}, [0.002] * 300)
    assert hits.fetch_s == 0.002, "a store that is well again is forgiven"


def test_failed_fetches_count_as_whole_runs() -> None:
    hits = CacheForecast()
    for _ in range(100):
        hits.observe(10, {0.5: 5}, [0.02] * 5, 0)
    (hit,) = hits.hits(1.0)
    assert hit.work > 0.99
    for _ in range(100):
        hits.observe(10, {0.5: 5}, [0.001] * 5, 5)
    (hit,) = hits.hits(1.0)
    assert hit.work == pytest.approx(0.5, abs=0.01)
