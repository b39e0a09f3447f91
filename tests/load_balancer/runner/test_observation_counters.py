"""The counters that a controller observes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_balancer.runner.observation_counters import MOST_CONFIDENCES, UNKNOWN_CLASS, ObservationCounters
from weir.cascade import (
    Action,
    Answer,
    CascadeSettings,
    Image,
    ImageReady,
    ImageTask,
    Judged,
    LookupAnswered,
    Progress,
    Run,
    TellCache,
)
from weir.core import CacheLookup, Resume
from weir.plan import HEAVY, LIGHT, Assignment, Plan

CHAIN = (LIGHT, "medium", HEAVY)
PLAN = Plan(1, tuple(Assignment(key, 1) for key in CHAIN), (0.5, 0.5), CHAIN)
PROGRESS = Progress(ImageTask(PLAN, 0.0, 5.0), CascadeSettings({LIGHT: 2, "medium": 10, HEAVY: 50}))
READY = ImageReady(LIGHT, None)


def follow(counters: ObservationCounters, *actions: Action, image: str = "a", progress=PROGRESS, event=READY, now=0.0):
    counters.follow(image, progress, event, actions, now)


def look_up(counters: ObservationCounters, image: str, k: int, prompt_class: int | None) -> Progress:
    lookup = CacheLookup("p", resume=Resume("key", k) if k else None, prompt_class=prompt_class)
    progress = PROGRESS._replace(lookup=lookup)
    follow(counters, image=image, progress=progress, event=LookupAnswered(lookup))
    return progress


@given(st.lists(st.lists(st.floats(0, 1), max_size=30), max_size=10))
def test_everything_is_reported_once_to_a_regular_reader(seconds):
    counters, confidences, batches, fetches = ObservationCounters(10), [], [], []
    later, before, fetched, verdicts = [], (0, 0), 0, 0
    for second in seconds:
        for number in second:
            follow(counters, Judged(LIGHT, number, number < 0.5), Judged("medium", 1 - number, False))
            counters.batch(LIGHT, 1, number)
            counters.fetch(number)
        look = counters.since(*before, now=0, fetched=fetched, verdicts=verdicts)
        confidences += look["confidences"]
        later += look["confidences_by_variant"].get("medium", [])
        assert look["confidences_by_variant"].get(LIGHT, []) == look["confidences"]
        batches += look["batches"]
        fetches += look["fetches"]
        before, fetched, verdicts = (look["judged"], look["batches_run"]), look["fetched"], look["verdicts"]
    assert confidences == [number for second in seconds for number in second]
    assert later == [1 - number for number in confidences]
    assert batches == [("light", 1, number) for number in confidences]
    assert fetches == confidences
    assert counters.deferred == sum(confidence < 0.5 for confidence in confidences)


def test_confidences_are_of_the_first_variant_of_the_chain_in_use():
    counters = ObservationCounters(10)
    plan = Plan(2, (Assignment(HEAVY, 1),), (0.5,), ("medium", HEAVY))
    follow(counters, Judged("medium", 0.3, True), progress=PROGRESS._replace(task=ImageTask(plan, 0.0, 5.0)))
    look = counters.since(0, 0, now=0)
    assert (look["confidences"], look["judged"], look["deferred"]) == ([0.3], 1, 1)
    assert look["confidences_by_variant"] == {"medium": [0.3]}


def test_a_reader_with_higher_counts_gets_all_kept_samples():
    counters = ObservationCounters(10)
    follow(counters, Judged(LIGHT, None, True))
    look = counters.since(99, 99, now=0)
    assert (look["judged"], look["confidences"]) == (1, [0.0])


def test_the_oldest_confidences_are_dropped():
    counters = ObservationCounters(10)
    for i in range(MOST_CONFIDENCES + 5):
        follow(counters, Judged(LIGHT, i / 2000, False))
    assert counters.since(0, 0, now=0)["confidences"][0] == 5 / 2000


def test_an_image_is_in_flight_until_it_is_answered_or_expires():
    counters = ObservationCounters(expiry_s=10)
    for second, image in enumerate("abc"):
        counters.admitted(image, float(second))
    follow(counters, Judged(LIGHT, 0.1, True), image="b")
    follow(counters, Judged(LIGHT, 0.1, True), image="c")
    follow(counters, Answer(0, LIGHT), image="a", now=3.0)

    def seen(now: float) -> tuple[int, ...]:
        look = counters.since(0, 0, now)
        return tuple(look[k] for k in ("in_flight", "deferred_in_flight", "late_answers", "late_deferred"))

    assert seen(3.0) == (2, 2, 0, 0)
    assert seen(11.5) == (1, 1, 0, 1)
    follow(counters, Answer(0, LIGHT), image="b", now=11.6)
    assert seen(11.7) == (1, 1, 1, 1)


def test_image_ids_may_be_numbers():
    counters = ObservationCounters(expiry_s=10)
    counters.admitted(7, 0.0)
    counters.follow(7, PROGRESS, READY, (Answer(0, LIGHT),), 1.0)
    assert counters.since(0, 0, 1.0)["in_flight"] == 0


def test_lookups_are_counted_by_result_and_predicted_class():
    counters = ObservationCounters(10)
    first = look_up(counters, "a", 10, 1)
    look_up(counters, "b", 0, 2)
    third = look_up(counters, "c", 0, None)
    follow(counters, Judged(LIGHT, 0.5, False), image="a", progress=first)
    follow(counters, Judged(LIGHT, 0.6, False), image="c", progress=third)
    seen = counters.since(0, 0, now=0)
    assert (seen["found"], seen["missed"], seen["levels"]) == ({"0.2": 1}, {"2": 1}, [1, UNKNOWN_CLASS])
    assert seen["classes"] == {"-1": 1, "1": 1, "2": 1}


@pytest.mark.parametrize(("resumed_at", "reused"), [(10, {"0.2": 1}), (0, {})])
def test_saved_steps_count_only_if_the_image_resumed(resumed_at, reused):
    counters = ObservationCounters(10)
    run = Run(HEAVY, HEAVY, 1.0, 1.0, resume=Resume("key", 10))
    progress = PROGRESS._replace(images=(Image(HEAVY, None, resumed_at, run),))
    follow(counters, TellCache(0, 10), progress=progress)
    follow(counters, TellCache(None, 0))
    seen = counters.since(0, 0, now=0)
    assert (seen["looked_up"], seen["reused"]) == (2, reused)
