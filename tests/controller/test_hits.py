"""The hits that plans are made with are those of the last minute."""

import pytest

from controller.cache_forecast import LiveHits


def test_nothing_is_believed_before_there_were_requests() -> None:
    hits = LiveHits()
    hits.observe(3, {0.5: 3})
    assert hits.hits(1.0) == ()


def test_shares_are_of_all_requests_and_work_is_what_is_left() -> None:
    hits = LiveHits()
    hits.observe(100, {0.1: 20, 0.5: 10})
    low, high = hits.hits(0.9)
    assert (low.share, low.work, low.quality) == pytest.approx((0.2, 0.9, 0.9))
    assert (high.share, high.work) == pytest.approx((0.1, 0.5))


def test_a_cache_that_went_away_is_forgotten_within_minutes() -> None:
    hits = LiveHits()
    hits.observe(100, {0.5: 50})
    for _ in range(180):
        hits.observe(10, {})
    assert sum(h.share for h in hits.hits(1.0)) < 0.01


def test_late_answers_never_make_more_hits_than_requests() -> None:
    hits = LiveHits()
    hits.observe(20, {})
    hits.observe(0, {0.2: 40})
    assert sum(h.share for h in hits.hits(1.0)) <= 1


def test_plans_reckon_with_the_slowest_of_twenty_fetches() -> None:
    hits = LiveHits()
    assert hits.fetch_s == 0.0
    hits.observe(20, {0.5: 20}, [0.001] * 19 + [0.02])
    assert hits.fetch_s == 0.001
    hits.observe(20, {0.5: 20}, [0.02])
    assert hits.fetch_s == 0.02
    hits.observe(300, {0.5: 300}, [0.002] * 300)
    assert hits.fetch_s == 0.002, "a store that is well again is forgiven"


def test_states_that_do_not_come_are_planned_as_the_whole_runs_that_they_cost() -> None:
    hits = LiveHits()
    for _ in range(100):
        hits.observe(10, {0.5: 5}, [0.02] * 5, 0)
    (hit,) = hits.hits(1.0)
    assert hit.work > 0.99
    for _ in range(100):
        hits.observe(10, {0.5: 5}, [0.001] * 5, 5)
    (hit,) = hits.hits(1.0)
    assert hit.work == pytest.approx(0.5, abs=0.01)
