"""A replica that Serve holds back for a moment is not gone."""

from __future__ import annotations

from controller.live_ranks import ABSENCE_S, LiveRanks


def test_a_rank_counts_at_once():
    ranks = LiveRanks()
    assert ranks.observe((0, 2), 0.0) == (0, 2)
    assert ranks.observe((0, 1, 2), 1.0) == (0, 1, 2)


def test_a_rank_that_takes_in_a_plan_is_not_missed():
    ranks = LiveRanks()
    ranks.observe((0, 1, 2, 3), 0.0)
    assert ranks.observe((0, 1), 1.0) == (0, 1, 2, 3)
    assert ranks.observe((0, 1, 2, 3), 2.0) == (0, 1, 2, 3)


def test_a_rank_that_stays_away_is_gone():
    ranks = LiveRanks()
    ranks.observe((0, 1), 0.0)
    assert ranks.observe((1,), ABSENCE_S) == (1,)


def test_ranks_that_are_handed_out_again_replace_the_old_ones_in_time():
    ranks = LiveRanks()
    ranks.observe((0, 1, 2, 3), 0.0)
    for second in range(1, 7):
        found = ranks.observe((0, 1, 2), float(second))
    assert found == (0, 1, 2)
