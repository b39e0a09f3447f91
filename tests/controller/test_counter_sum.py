"""The counters of several load balancers add up, and the sum goes on when one of them ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.counter_sum import CounterSum
from controller.counters import Counters
from weir.plan import Plan

PLAN = Plan.split(3, 1, 1, light_batch=1, heavy_batch=1, threshold=0.5)
EMPTY = Counters(PLAN, (), {}, 0, 0, 0, ())


def counters(arrivals: int, **more) -> Counters:
    return replace(EMPTY, arrivals=arrivals, **more)


def test_counts_and_samples_of_all_load_balancers_add_up() -> None:
    first = counters(3, judged=2, confidences=(0.1, 0.2), found={0.5: 1}, in_flight=4, ranks=(0,))
    second = counters(4, judged=1, confidences=(0.3,), found={0.5: 2, 0.8: 1}, in_flight=1, ranks=(0, 1))
    total = CounterSum().add({"a": first, "b": second})
    assert (total.arrivals, total.judged, total.in_flight) == (7, 3, 5)
    assert sorted(total.confidences) == [0.1, 0.2, 0.3]
    assert total.found == {0.5: 3, 0.8: 1}
    assert total.ranks == (0, 1)


def test_the_sum_goes_on_when_a_load_balancer_ends_and_another_one_starts() -> None:
    added = CounterSum()
    assert added.add({"a": counters(10), "b": counters(20)}).arrivals == 30
    assert added.add({"a": counters(12)}).arrivals == 32
    assert added.add({"a": counters(12), "c": counters(5)}).arrivals == 37
    assert added.add({"a": counters(13), "c": counters(5)}).since(None, 0.0).arrivals == 38


def test_waiting_images_are_counted_once_because_every_load_balancer_counts_all() -> None:
    total = CounterSum().add({"a": counters(0, queued={"heavy": 3}), "b": counters(0, queued={"heavy": 4, "light": 1})})
    assert total.queued == {"heavy": 4, "light": 1}


def test_the_oldest_plan_in_force_shows_that_a_load_balancer_lacks_the_newest() -> None:
    newer = replace(EMPTY, plan=replace(PLAN, version=4))
    assert CounterSum().add({"a": newer, "b": EMPTY}).plan.version == 3


def test_a_load_balancer_is_read_from_where_it_was_read_last() -> None:
    added = CounterSum()
    added.add({"a": counters(0, judged=5, batches_run=6, fetched=7, verdicts=8)})
    assert added.cursors() == {"a": (5, 6, 7, 8)}


def test_without_a_load_balancer_there_is_no_sum() -> None:
    with pytest.raises(ValueError, match="no load balancer answered"):
        CounterSum().add({})
