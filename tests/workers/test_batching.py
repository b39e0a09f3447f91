"""Which requests form the next batch: most urgent first, compatible only, never more than fit."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from weir.core import Role
from workers.batching import Recipe, Waiting, next_batch

HEAVY = Recipe(Role.HEAVY, 64, 64, 50, 5.0)
LIGHT = Recipe(Role.LIGHT, 64, 64, 1, 0.0)
RECIPES = (HEAVY, LIGHT, HEAVY._replace(steps=25), HEAVY._replace(guidance=1.0), HEAVY._replace(width=32, height=32))
NOW = 100.0


@st.composite
def queues(draw: st.DrawFn) -> list[Waiting]:
    rows = draw(st.lists(st.tuples(st.sampled_from(RECIPES), st.integers(90, 120), st.booleans()), max_size=30))
    return [Waiting(i, recipe, float(deadline), cancelled) for i, (recipe, deadline, cancelled) in enumerate(rows)]


def urgency(job: Waiting) -> tuple[bool, float, int]:
    return (job.deadline < NOW, job.deadline, job.ticket)


@given(queues(), st.integers(1, 8))
def test_every_request_is_in_exactly_one_part(queue: list[Waiting], limit: int) -> None:
    decision = next_batch(queue, lambda _: limit, NOW)
    parts = [job.ticket for part in (decision.batch, decision.dropped, decision.waiting) for job in part]
    assert Counter(parts) == Counter(job.ticket for job in queue)


@given(queues(), st.integers(1, 8))
def test_a_batch_is_compatible_fits_and_holds_nothing_cancelled(queue: list[Waiting], limit: int) -> None:
    batch = next_batch(queue, lambda _: limit, NOW).batch
    assert len(batch) <= limit
    assert len({job.recipe for job in batch}) <= 1
    assert not any(job.cancelled for job in batch)


@given(queues(), st.integers(1, 8))
def test_the_most_urgent_request_is_always_in_the_batch(queue: list[Waiting], limit: int) -> None:
    live = [job for job in queue if not job.cancelled]
    batch = next_batch(queue, lambda _: limit, NOW).batch
    assert batch[:1] == tuple(sorted(live, key=urgency)[:1])


@given(queues(), st.integers(1, 8))
def test_nobody_compatible_is_overtaken_and_no_place_is_left_empty(queue: list[Waiting], limit: int) -> None:
    decision = next_batch(queue, lambda _: limit, NOW)
    if not decision.batch:
        assert all(job.cancelled for job in queue)
        return
    left = [job for job in decision.waiting if job.recipe == decision.batch[0].recipe]
    assert not left or len(decision.batch) == limit
    assert all(urgency(job) > urgency(decision.batch[-1]) for job in left)


@given(queues(), st.integers(1, 8))
def test_a_queue_runs_empty_in_a_finite_number_of_batches(queue: list[Waiting], limit: int) -> None:
    live = sum(not job.cancelled for job in queue)
    served = 0
    while batch := (decision := next_batch(queue, lambda _: limit, NOW)).batch:
        served += len(batch)
        queue = list(decision.waiting)
    assert served == live


def test_with_one_slo_for_all_the_oldest_goes_first() -> None:
    queue = [Waiting(i, HEAVY, NOW + 10 + i) for i in (3, 1, 2, 0)]
    assert [job.ticket for job in next_batch(queue, lambda _: 3, NOW).batch] == [0, 1, 2]


def test_a_request_that_is_late_anyway_does_not_make_others_late() -> None:
    doomed, fine = Waiting(0, HEAVY, NOW + 3), Waiting(1, HEAVY, NOW + 9)
    decision = next_batch([doomed, fine], lambda _: 1, NOW, service_s=lambda _: 5.0)
    assert decision.batch == (fine,)
    assert decision.waiting == (doomed,)


def test_a_limit_below_one_still_serves() -> None:
    assert len(next_batch([Waiting(0, HEAVY, NOW + 1)], lambda _: 0, NOW).batch) == 1


def test_neither_the_decision_nor_the_emulation_imports_torch() -> None:
    code = "import sys, workers.batching, workers.emulated; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
