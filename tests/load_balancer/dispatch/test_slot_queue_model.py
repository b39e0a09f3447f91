"""With a profile of steps, an image waits for a free slot and not for a batch."""

from __future__ import annotations

import pytest

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import BatchReport, Kind
from load_balancer.dispatch.service_times import ServiceTimes
from weir.core import ImageSize
from weir.plan import HEAVY, LIGHT, Plan
from weir.profiles import Profile

LIGHT_IMAGE, HEAVY_IMAGE = Kind(LIGHT, LIGHT), Kind(HEAVY, HEAVY)


def variant(name: str, one_s: float) -> dict[str, object]:
    """Ten steps of which two images take 1.5 times and four twice as long; a tenth of the time is fixed cost."""
    latency_s = [one_s, 1.5 * one_s, 2 * one_s]
    return {
        "name": name,
        "steps": 10,
        "batch_sizes": [1, 2, 4],
        "latency_s": latency_s,
        "step_s": [s / 10 for s in latency_s],
        "fixed": {"text_s": 0.0, "decode_s": one_s / 10},
    }


@pytest.fixture
def profile() -> Profile:
    return Profile.model_validate(
        {"family": "f", "device": "d", "light": variant("l", 1.0), "heavy": variant("h", 10.0)}
    )


def dispatcher_of(profile: Profile, light: int, heavy: int, slots: int) -> Dispatcher:
    plan = Plan.split(1, light, heavy, light_batch=slots, heavy_batch=slots, threshold=0.5)
    dispatcher = Dispatcher(plan, ServiceTimes(profile))
    dispatcher.sync([{"replica": f"r{rank}", "rank": rank} for rank in range(light + heavy)])
    return dispatcher


def test_a_late_arrival_takes_a_free_slot_at_once(profile):
    dispatcher = dispatcher_of(profile, 1, 0, slots=2)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    assert dispatcher.finish_at(LIGHT_IMAGE, 0.4) == pytest.approx(0.4 + 1.5)
    dispatcher.assign("r0", "b", LIGHT_IMAGE, 0.4)
    assert dispatcher.begun("r0", "b")


def test_with_every_slot_taken_an_image_waits_for_the_first_to_finish(profile):
    dispatcher = dispatcher_of(profile, 1, 0, slots=2)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    dispatcher.assign("r0", "b", LIGHT_IMAGE, 0.4)  # a has 0.6 of its steps to go, now of 1.5 s
    assert dispatcher.finish_at(LIGHT_IMAGE, 0.4) == pytest.approx(0.4 + 0.6 * 1.5 + 1.5)
    assert dispatcher.finish_at(LIGHT_IMAGE, 1.0) == pytest.approx(0.4 + 0.6 * 1.5 + 1.5)


def test_a_heavy_image_is_predicted_with_full_slots(profile):
    dispatcher = dispatcher_of(profile, 0, 1, slots=4)
    promised = dispatcher.finish_at(HEAVY_IMAGE, 0.0)
    for request in "abcd":
        assert dispatcher.finish_at(HEAVY_IMAGE, 0.0) == promised == pytest.approx(20.0)
        dispatcher.assign("r0", request, HEAVY_IMAGE, 0.0)
    assert dispatcher.finish_at(HEAVY_IMAGE, 0.0) == pytest.approx(40.0)


def test_equally_early_replicas_share_the_images(profile):
    dispatcher = dispatcher_of(profile, 0, 2, slots=4)
    chosen = []
    for request in "abcd":
        choice = dispatcher.pick(HEAVY_IMAGE, 0.0)
        assert choice is not None
        chosen.append(choice.replica)
        dispatcher.assign(choice.replica, request, HEAVY_IMAGE, 0.0)
    assert chosen == ["r0", "r1", "r0", "r1"]


def test_images_leave_one_by_one(profile):
    dispatcher = dispatcher_of(profile, 1, 0, slots=2)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    dispatcher.assign("r0", "b", LIGHT_IMAGE, 0.4)
    dispatcher.assign("r0", "c", LIGHT_IMAGE, 0.5)
    dispatcher.finished("r0", "a", 1.3, BatchReport(batch_size=2, compute_s=1.3, together=1, queued=1))
    assert dispatcher.replicas.outstanding == {"r0": 2}
    assert dispatcher.begun("r0", "b")
    assert dispatcher.begun("r0", "c")


def test_images_finished_at_the_same_step_leave_together(profile):
    dispatcher = dispatcher_of(profile, 1, 0, slots=4)
    for request in "abc":
        dispatcher.assign("r0", request, LIGHT_IMAGE, 0.0)
    assert dispatcher.finished("r0", "a", 1.7, BatchReport(batch_size=3, compute_s=1.7, together=3)) == LIGHT_IMAGE
    assert dispatcher.finish_at(LIGHT_IMAGE, 1.7) == pytest.approx(1.7 + 1.0, rel=0.05)
    assert dispatcher.finished("r0", "b", 1.7, BatchReport(batch_size=3, compute_s=1.7, together=3)) is None
    assert dispatcher.replicas.outstanding == {"r0": 1}


def test_a_resumed_run_costs_its_steps_and_the_whole_fixed_cost(profile):
    dispatcher = dispatcher_of(profile, 0, 1, slots=1)
    assert dispatcher.finish_at(Kind(HEAVY, HEAVY, 0.5), 0.0) == pytest.approx(1.0 + 0.5 * 9.0)


def test_the_predicted_finish_of_a_hanging_replica_grows_with_time(profile):
    dispatcher = dispatcher_of(profile, 2, 0, slots=1)
    dispatcher.assign("r0", "stuck", LIGHT_IMAGE, 0.0)
    dispatcher.assign("r1", "b", LIGHT_IMAGE, 29.0)
    choice = dispatcher.pick(LIGHT_IMAGE, 29.5)
    assert choice is not None
    assert choice.replica == "r1"


def test_with_fewer_slots_running_images_continue(profile):
    dispatcher = dispatcher_of(profile, 1, 0, slots=4)
    for request in "abc":
        dispatcher.assign("r0", request, LIGHT_IMAGE, 0.0)
    dispatcher.set_plan(Plan.split(2, 1, 0, light_batch=1, heavy_batch=1, threshold=0.5))
    assert all(dispatcher.begun("r0", request) for request in "abc")
    assert dispatcher.finish_at(LIGHT_IMAGE, 0.0) == pytest.approx(1.0 + 1.0)


# ------------------------------------------------------------------------------------------------ several sizes

LARGE_IMAGE = Kind(LIGHT, LIGHT, 1.0, ImageSize(128, 64))  # twice the pixels, and so twice the time


def sized(profile: Profile, slots: int = 2) -> Dispatcher:
    return dispatcher_of(profile.measured_at(ImageSize(64, 64)), 1, 0, slots=slots)


def test_images_of_another_size_take_no_slot_and_come_before(profile):
    dispatcher = sized(profile, slots=1)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    assert dispatcher.finish_at(LARGE_IMAGE, 0.0) == pytest.approx(1.0 + 2.0)
    dispatcher.assign("r0", "b", LARGE_IMAGE, 0.0)
    assert dispatcher.begun("r0", "b"), "it has a slot of its own size"
    assert dispatcher.finish_at(LIGHT_IMAGE, 0.0) == pytest.approx(2.0 + 1.0 + 1.0), "b, then a, then this one"


def test_work_goes_to_the_size_of_the_oldest_image_first(profile):
    dispatcher = sized(profile)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    dispatcher.assign("r0", "b", LARGE_IMAGE, 0.0)
    # After 0.5 s, a has half of its 1 s to go and b all of its 2 s.
    assert dispatcher.finish_at(LARGE_IMAGE, 0.5) == pytest.approx(0.5 + 0.5 + 1.5 * 2.0)
    # After 2 s, a should be done, and half of b is.
    assert dispatcher.finish_at(LIGHT_IMAGE, 2.0) == pytest.approx(2.0 + 0.5 * 2.0 + 1.5)


def test_images_of_one_size_wait_together_for_those_of_another(profile):
    dispatcher = sized(profile)
    for name in ("a", "b"):
        dispatcher.assign("r0", name, LARGE_IMAGE, 0.0)
    assert dispatcher.finish_at(LIGHT_IMAGE, 0.0) == pytest.approx(1.5 * 2.0 + 1.0), "both in one batch of two"


def test_images_that_finish_together_are_of_one_size(profile):
    dispatcher = sized(profile, slots=4)
    for name, kind in (("a", LIGHT_IMAGE), ("b", LARGE_IMAGE), ("c", LIGHT_IMAGE)):
        dispatcher.assign("r0", name, kind, 0.0)
    dispatcher.finished("r0", "a", 1.5, BatchReport(batch_size=2, compute_s=1.5, together=2))
    assert dispatcher.replicas.outstanding["r0"] == 2, "c is expected, too"
    assert dispatcher.finish_at(LARGE_IMAGE, 1.5) == pytest.approx(1.5 + 1.5 * 2.0), "b is there"


def test_calls_of_other_sizes_do_not_count_as_a_slower_device(profile):
    dispatcher = sized(profile)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    dispatcher.finished("r0", "a", 9.0, BatchReport(batch_size=1, compute_s=9.0, device_s=1.0))
    assert dispatcher.finish_at(LIGHT_IMAGE, 9.0) == pytest.approx(10.0)
