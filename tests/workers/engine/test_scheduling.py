"""Selection of the next call: the most urgent tasks that can share it, at most the limit, and none waits forever."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from weir.config import BATCH_SLACK
from weir.plan import Assignment, Plan
from workers.engine.scheduling import OLDEST_FIRST_EVERY, BatchLimits, Task, next_call

NOW = 100.0
HEAVY, LIGHT = ("heavy", 64), ("light", 64)


@st.composite
def running_sets(draw: st.DrawFn) -> list[Task]:
    rows = st.tuples(st.sampled_from([HEAVY, LIGHT, ("heavy", 32)]), st.integers(90, 120), st.integers(1, 50))
    return [Task(i, call, float(deadline), left) for i, (call, deadline, left) in enumerate(draw(st.lists(rows)))]


def urgency(task: Task, step_s: float = 0.0) -> tuple[bool, float, int]:
    return (task.deadline < NOW + task.left * step_s, task.deadline, task.ticket)


@given(running_sets(), st.integers(1, 8), st.integers(1, 20))
def test_a_call_has_at_most_the_limit_of_tasks_and_one_key(tasks: list[Task], limit: int, turn: int) -> None:
    call = next_call(tasks, lambda _: limit, NOW, turn=turn)
    assert bool(call) == bool(tasks)
    assert len(call) <= limit
    assert len({task.call for task in call}) <= 1
    assert len(set(call)) == len(call)


@given(running_sets(), st.integers(1, 8))
def test_a_call_takes_the_most_urgent_tasks_that_can_share_it(tasks: list[Task], limit: int) -> None:
    call = next_call(tasks, lambda _: limit, NOW, lambda _: 0.1)
    ranked = sorted(tasks, key=lambda t: urgency(t, 0.1))
    same = [task for task in ranked if task.call == ranked[0].call]
    assert list(call) == same[:limit]


def test_a_call_is_full_while_enough_tasks_that_can_share_it_wait() -> None:
    tasks = [Task(i, HEAVY, NOW + 9, 50) for i in range(5)]
    assert len(next_call(tasks, lambda _: 4, NOW)) == 4


def test_running_images_keep_their_places_from_step_to_step() -> None:
    tasks = [Task(i, HEAVY, NOW + 60 + i, 50) for i in range(6)]
    first = next_call(tasks, lambda _: 4, NOW, lambda _: 1.0)
    for task in first:
        task.left -= 1
    assert next_call(tasks, lambda _: 4, NOW + 1, lambda _: 1.0) == first


def test_an_image_that_is_late_in_any_case_does_not_make_others_late() -> None:
    doomed, fine = Task(0, HEAVY, NOW + 3, 50), Task(1, HEAVY, NOW + 9, 50)
    assert next_call([doomed, fine], lambda _: 1, NOW, lambda _: 0.1) == (fine,)
    assert next_call([doomed, fine], lambda _: 2, NOW, lambda _: 0.1) == (fine, doomed)


def test_a_resumed_image_is_in_time_where_a_whole_run_would_be_late() -> None:
    whole, resumed = Task(0, HEAVY, NOW + 3, 50), Task(1, HEAVY, NOW + 3, 25)
    assert next_call([whole, resumed], lambda _: 1, NOW, lambda _: 0.1) == (resumed,)


@given(st.integers(1, 4), st.integers(1, 12))
def test_a_late_image_finishes_although_urgent_ones_keep_arriving(limit: int, steps: int) -> None:
    late, ticket, calls = Task(0, HEAVY, NOW - 1, steps), 0, 0
    others: list[Task] = []
    while late.left:
        others = [t for t in others if t.left] + [Task(ticket := ticket + 1, HEAVY, NOW + 100, 3) for _ in range(limit)]
        calls += 1
        for task in next_call([late, *others], lambda _: limit, NOW, turn=calls):
            task.left -= 1
        assert calls <= OLDEST_FIRST_EVERY * steps


def test_an_image_of_low_priority_is_in_time_although_others_keep_the_device_busy() -> None:
    """Its deadline is later than theirs, and at last earlier than those of the ones that come."""
    slo_s, steps, step_s = 5.0, 10, 0.1
    patient = Task(0, HEAVY, BATCH_SLACK * slo_s, steps)
    tasks, now, turn = [patient], 0.0, 0
    while patient.left and now < 2 * patient.deadline:
        if turn % steps == 0:  # as many as the device takes
            tasks.append(Task(len(tasks) + turn, HEAVY, now + slo_s, steps))
        (first,) = next_call(tasks, lambda _: 1, now, lambda _: step_s, turn=1)
        first.left -= 1
        now, turn = now + step_s, turn + 1
        tasks = [task for task in tasks if task.left]
    assert now <= patient.deadline


def test_an_image_of_low_priority_slows_no_image_of_another_tenant() -> None:
    urgent, own, foreign = (
        Task(0, HEAVY, NOW + 1, 50, "acme"),
        Task(1, HEAVY, NOW + 2, 50, "acme", low_priority=True),
        Task(2, HEAVY, NOW + 3, 50, "globex", low_priority=True),
    )
    assert next_call([urgent, own, foreign], lambda _: 3, NOW) == (urgent, own)
    assert next_call([own, foreign], lambda _: 3, NOW) == (own, foreign)


def test_the_oldest_image_goes_first_now_and_then_but_none_of_low_priority_before_others() -> None:
    oldest, older = Task(0, HEAVY, NOW + 9, 50, "globex", low_priority=True), Task(1, LIGHT, NOW + 8, 2)
    tasks = [oldest, older, Task(2, HEAVY, NOW + 1, 50)]
    assert next_call(tasks, lambda _: 1, NOW, turn=OLDEST_FIRST_EVERY) == (older,)
    assert next_call([oldest], lambda _: 1, NOW, turn=OLDEST_FIRST_EVERY) == (oldest,)


def test_a_limit_below_one_counts_as_one() -> None:
    assert len(next_call([Task(0, HEAVY, NOW + 1, 1)], lambda _: 0, NOW)) == 1


def test_scheduling_step_loop_and_emulated_engine_do_not_import_torch() -> None:
    modules = "workers.engine.scheduling, workers.engine.step_loop, workers.emulated"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_role_without_replicas_keeps_the_batch_size_that_it_had() -> None:
    split = Plan.split(1, 1, 1, light_batch=16, heavy_batch=2, threshold=0.5)
    limits = BatchLimits(split)
    limits.follow(Plan.split(2, 2, 0, light_batch=16, heavy_batch=2, threshold=0.0))
    own = Assignment("light", 16)
    assert limits.of("light", own) == 16
    assert limits.of("heavy", own) == 2, "waiting requests do not form a batch of sixteen"
    assert limits.of("K=10", own) == 16, "no plan has had this role"
