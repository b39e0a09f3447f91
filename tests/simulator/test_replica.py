"""A simulated replica does what a worker's step loop does."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.replica import Device, Job, Reply, SimulatedReplica
from weir.plan import HEAVY, LIGHT, Plan
from weir.profiles import Profile
from workers.engine.scheduling import next_call

SIZES = (1, 2, 4)


def profile(stepwise: bool) -> Profile:
    def variant(steps: int, step_s: tuple[float, ...]) -> dict[str, Any]:
        whole = {
            "name": "v",
            "steps": steps,
            "batch_sizes": SIZES,
            "latency_s": [steps * s + 0.03 * size for s, size in zip(step_s, SIZES, strict=True)],
        }
        return {**whole, "step_s": step_s, "fixed": {"text_s": 0.01, "decode_s": 0.02}} if stepwise else whole

    variants = {LIGHT: variant(2, (0.05, 0.06, 0.08)), HEAVY: variant(10, (0.1, 0.13, 0.2))}
    return Profile.model_validate({"family": "f", "device": "d", "variants": variants})


class Bench:
    """One replica on virtual time, and what came back from it."""

    def __init__(self, stepwise: bool, plan: Plan):
        self.device = Device(profile(stepwise), plan)
        self.events: list[tuple[float, int, Any, Any]] = []
        self.number = 0
        self.now = 0.0
        self.replies: dict[Any, tuple[float, Reply]] = {}
        self.replica = SimulatedReplica("r0", 0, self.device, plan, self._answer, self._later)

    def _later(self, at: float, handle: Any, payload: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (at, self.number, handle, payload))

    def _answer(self, job: Job, reply: Reply) -> None:
        self.replies[job.image] = self.now, reply

    def send(self, image: str, at: float, variant: str = HEAVY, *, deadline: float = 99.0) -> Job:
        steps = self.device.times(variant, None).steps
        job = Job(0, variant, deadline, steps, image=image, variant=variant, role=variant)
        self._later(at, lambda job, now: self.replica.submit(job, now), job)
        return job

    def run(self) -> dict[Any, float]:
        """By image, when it was finished."""
        while self.events:
            self.now, _, handle, payload = heapq.heappop(self.events)
            handle(payload, self.now)
        return {image: at for image, (at, _) in self.replies.items()}


def bench(stepwise: bool = True, batch: int = 2) -> Bench:
    return Bench(stepwise, Plan.split(1, 0, 1, light_batch=batch, heavy_batch=batch, threshold=0.0))


def test_a_single_image_takes_its_encoding_steps_and_decoding():
    at = bench()
    at.send("a", 1.0)
    assert at.run()["a"] == pytest.approx(1.0 + 0.01 + 10 * 0.1 + 0.02)
    assert at.replies["a"][1] == pytest.approx(Reply(0.01, 1.02, 1.02, 1, 1, 0))


def test_an_image_that_arrives_later_joins_at_the_next_step():
    at = bench()
    at.send("a", 0.0)
    at.send("b", 0.34)  # the fourth step ends at 0.41
    # Six steps of both, then a is decoded, then the four steps that b has left.
    found = at.run()
    assert found["a"] == pytest.approx(0.41 + 0.01 + 6 * 0.13 + 0.02)
    assert found["b"] == pytest.approx(found["a"] + 4 * 0.1 + 0.02)


def test_images_beyond_the_batch_size_run_in_order_of_their_deadlines():
    at = bench(batch=1)
    at.send("patient", 0.0, deadline=50.0)
    at.send("urgent", 0.35, deadline=5.0)
    found = at.run()
    assert found["urgent"] < found["patient"]
    assert found["urgent"] == pytest.approx(0.41 + 0.01 + 10 * 0.1 + 0.02, abs=0.25)  # the oldest has its turns


def test_whole_batches_are_closed_to_later_images():
    at = bench(stepwise=False, batch=4)
    for image in "ab":
        at.send(image, 1.0)
    at.send("c", 1.5)
    found = at.run()
    assert found["a"] == found["b"] == pytest.approx(1.0 + 10 * 0.13 + 0.06)
    assert found["c"] == pytest.approx(found["a"] + 10 * 0.1 + 0.03)
    assert at.replies["a"][1].queued == 1


def test_a_cancelled_image_leaves_before_the_next_step_and_is_not_answered():
    at = bench()
    at.send("a", 0.0)
    gone = at.send("b", 0.0)
    at._later(0.5, lambda job, now: at.replica.cancel(job, now), gone)
    found = at.run()
    assert "b" not in found
    assert found["a"] < 0.02 + 10 * 0.13 + 0.02


def test_a_role_change_returns_waiting_images_and_keeps_begun_ones():
    at = bench(stepwise=False, batch=1)
    at.send("a", 0.0)
    at.send("b", 0.1)
    moved: list[Job] = []

    both = Plan.split(2, 1, 1, light_batch=1, heavy_batch=1, threshold=0.0)
    at._later(0.2, lambda plan, now: moved.extend(at.replica.reassign(plan)[1]), both)
    assert set(at.run()) == {"a"}
    assert [job.image for job in moved] == ["b"]


def test_a_dead_replica_reports_its_lost_images_only():
    at = bench()
    for image in "ab":
        at.send(image, 0.0)
    lost: list[Job] = []
    at._later(0.5, lambda _, now: lost.extend(at.replica.die()), None)
    assert at.run() == {}
    assert [job.image for job in lost] == ["a", "b"]


class StepByStep:
    """The step loop, with an event for every step."""

    def __init__(self, at: Bench, jobs: list[tuple[float, Job]], limit: int):
        self.at, self.coming, self.limit = at, jobs, limit

    def run(self) -> dict[Any, float]:
        here: list[Job] = []
        coming = sorted(self.coming, key=lambda it: it[0])
        now, turn, found, fastest = 0.0, 0, {}, {}
        while coming or here:
            if not here:
                now = max(now, coming[0][0])
            while coming and coming[0][0] <= now + 1e-9:
                here.append(coming.pop(0)[1])
                here[-1].ticket = len(self.coming) - len(coming)
            turn += 1
            call = next_call(here, lambda job: self.limit, now, lambda job: fastest.get(job.call, 0.0), turn)
            times = self.at.device.times(call[0].variant, None)
            now += times.text_s * sum(job.begun < 0 for job in call)
            for job in call:
                job.begun = now if job.begun < 0 else job.begun
            left = call[0].left
            seconds = times.call_s(len(call), left)
            now += seconds
            step_s = seconds if times.stepwise else seconds / left
            known = fastest.get(call[0].call, step_s)
            fastest[call[0].call] = min(step_s, known + 0.02 * (step_s - known))
            for job in call:
                job.left -= 1 if times.stepwise else left
            through = [job for job in call if job.left <= 0]
            here = [job for job in here if job.left > 0]
            now += times.leave_s * len(through)
            found.update({job.image: now for job in through})
        return found


@pytest.mark.parametrize("stepwise", [True, False], ids=["steps", "whole batches"])
@given(
    sent=st.lists(
        st.tuples(st.integers(0, 3000), st.sampled_from([LIGHT, HEAVY]), st.integers(1, 9)), min_size=1, max_size=14
    ),
    batch=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_finish_times_equal_those_of_a_simulation_with_an_event_per_step(stepwise, sent, batch):
    plan = Plan.split(1, 1, 1, light_batch=batch, heavy_batch=batch, threshold=0.0)
    at, other = Bench(stepwise, plan), Bench(stepwise, plan)
    jobs = []
    for number, (ms, variant, slo_s) in enumerate(sent):
        arrival = ms / 1000 + 0.0003 * number  # none at the same time, and none at a boundary
        at.send(str(number), arrival, variant, deadline=arrival + slo_s)
        jobs.append((arrival, other.send(str(number), arrival, variant, deadline=arrival + slo_s)))
    found, expected = at.run(), StepByStep(other, jobs, batch).run()
    assert found.keys() == expected.keys()
    assert [found[key] for key in expected] == pytest.approx(list(expected.values()))
    assert at.replica.busy_s <= max(found.values()) - min(at for at, _ in jobs) + 1e-6


def test_a_slower_device_takes_effect_at_the_next_step():
    at = bench()
    at.send("a", 0.0)
    at.device.slower = 2.0
    assert at.run()["a"] == pytest.approx(0.01 + 10 * 0.2 + 0.02)
    assert np.isfinite(at.replica.busy_s)
