"""Tests of the live ranks: a replica that applies a plan is not dead."""

from __future__ import annotations

from controller.live_ranks import ABSENCE_S, LiveRanks


def test_a_new_rank_is_alive_at_once():
    ranks = LiveRanks()
    assert ranks.observe((0, 2), 0.0) == (0, 2)
    assert ranks.observe((0, 1, 2), 1.0) == (0, 1, 2)


def test_a_rank_that_applies_a_plan_stays_alive():
    ranks = LiveRanks()
    ranks.observe((0, 1, 2, 3), 0.0)
    assert ranks.observe((0, 1), 1.0) == (0, 1, 2, 3)
    assert ranks.observe((0, 1, 2, 3), 2.0) == (0, 1, 2, 3)


def test_a_rank_absent_for_long_is_dead():
    ranks = LiveRanks()
    ranks.observe((0, 1), 0.0)
    assert ranks.observe((1,), ABSENCE_S) == (1,)


def test_reassigned_ranks_replace_the_old_ones():
    ranks = LiveRanks()
    ranks.observe((0, 1, 2, 3), 0.0)
    for second in range(1, 7):
        found = ranks.observe((0, 1, 2), float(second))
    assert found == (0, 1, 2)
