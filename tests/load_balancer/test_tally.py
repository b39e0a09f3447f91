"""What a controller reads of the requests that passed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from load_balancer.tally import MOST_CONFIDENCES, Tally


@given(st.lists(st.lists(st.floats(0, 1), max_size=30), max_size=10))
def test_every_confidence_is_told_once_to_a_reader_that_looks_on(seconds):
    tally, told, judged = Tally(), [], 0
    for confidences in seconds:
        for confidence in confidences:
            tally.judge(confidence, confidence < 0.5)
        look = tally.since(judged)
        told += look["confidences"]
        judged = look["judged"]
    assert told == [confidence for confidences in seconds for confidence in confidences]
    assert tally.deferred == sum(confidence < 0.5 for confidence in told)


def test_a_reader_of_an_earlier_life_is_told_all_that_is_kept():
    tally = Tally()
    tally.judge(None, True)
    assert tally.since(99) == {"arrivals": 0, "judged": 1, "deferred": 1, "confidences": [0.0]}


def test_the_oldest_confidences_make_room():
    tally = Tally()
    for i in range(MOST_CONFIDENCES + 5):
        tally.judge(i / 2000, False)
    assert tally.since(0)["confidences"][0] == 5 / 2000
