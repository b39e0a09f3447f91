"""What a controller reads of the requests that passed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from load_balancer.runner.observation_counters import MOST_CONFIDENCES, UNKNOWN_LEVEL, ObservationCounters
from weir.core import Role


@given(st.lists(st.lists(st.floats(0, 1), max_size=30), max_size=10))
def test_everything_is_told_once_to_a_reader_that_looks_on(seconds):
    tally, confidences, batches, fetches, before, fetched = ObservationCounters(10), [], [], [], (0, 0), 0
    for second in seconds:
        for number in second:
            tally.judge("a", number, number < 0.5)
            tally.batch(Role.LIGHT, 1, number)
            tally.fetch(number)
        look = tally.since(*before, now=0, fetched=fetched)
        confidences += look["confidences"]
        batches += look["batches"]
        fetches += look["fetches"]
        before, fetched = (look["judged"], look["batches_run"]), look["fetched"]
    assert confidences == [number for second in seconds for number in second]
    assert batches == [("light", 1, number) for number in confidences]
    assert fetches == confidences
    assert tally.deferred == sum(confidence < 0.5 for confidence in confidences)


def test_a_reader_of_an_earlier_life_is_told_all_that_is_kept():
    tally = ObservationCounters(10)
    tally.judge("a", None, True)
    look = tally.since(99, 99, now=0)
    assert (look["judged"], look["confidences"]) == (1, [0.0])


def test_the_oldest_confidences_make_room():
    tally = ObservationCounters(10)
    for i in range(MOST_CONFIDENCES + 5):
        tally.judge("a", i / 2000, False)
    assert tally.since(0, 0, now=0)["confidences"][0] == 5 / 2000


def test_an_image_is_in_flight_until_it_is_answered_or_expires():
    tally = ObservationCounters(expiry_s=10)
    for second, image in enumerate("abc"):
        tally.admitted(image, float(second))
    tally.judge("b", 0.1, True)
    tally.judge("c", 0.1, True)
    tally.answered("a", 3.0)

    def seen(now: float) -> tuple[int, ...]:
        look = tally.since(0, 0, now)
        return tuple(look[k] for k in ("in_flight", "deferred_in_flight", "late_answers", "late_deferred"))

    assert seen(3.0) == (2, 2, 0, 0)
    assert seen(11.5) == (1, 1, 0, 1)
    tally.answered("b", 11.6)
    assert seen(11.7) == (1, 1, 1, 1)


def test_lookups_are_told_by_what_they_found_and_what_was_predicted():
    tally = ObservationCounters(10)
    tally.admitted("a", 0.0)
    tally.lookup("a", 0.2, level=1)
    tally.lookup("b", 0.0, level=2)
    tally.lookup("c", 0.0, level=None)
    tally.judge("a", 0.5, False)
    tally.judge("c", 0.6, False)
    seen = tally.since(0, 0, now=0)
    assert (seen["found"], seen["missed"], seen["levels"]) == ({"0.2": 1}, {"2": 1}, [1, UNKNOWN_LEVEL])
