"""An image is dispatched to the replica of its role that would finish it first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_balancer.dispatch.dispatcher import Choice, Dispatcher
from load_balancer.dispatch.finish_time import BatchReport, Kind
from load_balancer.dispatch.role_index import TIE_S
from load_balancer.dispatch.service_times import ServiceTimes
from weir.plan import HEAVY, LIGHT, Plan
from weir.profiles import Profile

LIGHT_IMAGE, HEAVY_IMAGE = Kind(LIGHT, LIGHT), Kind(HEAVY, HEAVY)


def profile(light_s: float = 1.0, heavy_s: float = 10.0) -> Profile:
    """Batches whose time grows by a tenth with every additional image."""

    def variant(name: str, one: float) -> dict[str, object]:
        return {"name": name, "steps": 2, "batch_sizes": [1, 11], "latency_s": [one, 2 * one]}

    return Profile.model_validate(
        {"family": "f", "device": "d", "light": variant("l", light_s), "heavy": variant("h", heavy_s)}
    )


def described(*ranks: int, **more: object) -> list[dict[str, object]]:
    return [{"replica": f"r{rank}", "rank": rank, "ready": True, "queued": 0, **more} for rank in ranks]


def dispatcher_of(light: int, heavy: int, batch: int = 2) -> Dispatcher:
    plan = Plan.split(1, light, heavy, light_batch=batch, heavy_batch=batch, threshold=0.5)
    dispatcher = Dispatcher(plan, ServiceTimes(profile()))
    dispatcher.sync(described(*range(light + heavy)))
    return dispatcher


def send(dispatcher: Dispatcher, request: str, kind: Kind, now: float) -> tuple[str, float]:
    choice = best(dispatcher, kind, now)
    dispatcher.assign(choice.replica, request, kind, now)
    return choice


def best(dispatcher: Dispatcher, kind: Kind, now: float, **more: frozenset[str]) -> Choice:
    choice = dispatcher.pick(kind, now, **more)
    assert choice is not None
    return choice


def test_an_idle_replica_finishes_after_one_batch():
    assert dispatcher_of(1, 1).pick(LIGHT_IMAGE, 100.0) == ("r0", 101.0)
    assert dispatcher_of(1, 1).pick(HEAVY_IMAGE, 100.0) == ("r1", 110.0)


def test_the_estimate_adds_the_running_batch_whole_batches_and_its_own():
    dispatcher = dispatcher_of(1, 0, batch=2)
    finishes = [send(dispatcher, f"q{i}", LIGHT_IMAGE, 0.0)[1] for i in range(5)]
    # 1 s alone; then it shares the batches that follow: 1.0 s for one, 1.1 s for two.
    assert finishes == pytest.approx([1.0, 2.0, 2.1, 3.1, 3.2])


def test_images_spread_over_replicas_before_they_queue():
    dispatcher = dispatcher_of(3, 0)
    assert {send(dispatcher, f"q{i}", LIGHT_IMAGE, 0.0)[0] for i in range(3)} == {"r0", "r1", "r2"}


def test_the_replica_whose_batch_ends_first_wins_over_the_one_with_the_shorter_queue():
    dispatcher = dispatcher_of(0, 2, batch=4)
    dispatcher.assign("r0", "a", HEAVY_IMAGE, 0.0)
    dispatcher.assign("r0", "b", HEAVY_IMAGE, 0.0)
    dispatcher.assign("r1", "c", HEAVY_IMAGE, 9.0)
    # r0 is free at 10 and has one waiting; r1 is free at 19 with none. A full batch takes 13 s.
    assert dispatcher.pick(HEAVY_IMAGE, 9.5) == ("r0", pytest.approx(23.0))


def test_a_heavy_batch_costs_what_a_full_one_does_so_that_images_fill_it():
    dispatcher = dispatcher_of(0, 2, batch=4)
    dispatcher.assign("r0", "a", HEAVY_IMAGE, 0.0)
    dispatcher.assign("r1", "b", HEAVY_IMAGE, 0.5)
    assert [send(dispatcher, f"q{i}", HEAVY_IMAGE, 1.0) for i in range(5)] == [("r0", pytest.approx(23.0))] * 4 + [
        ("r1", pytest.approx(23.5))
    ]


def test_a_reply_frees_its_whole_batch_and_starts_the_next():
    dispatcher = dispatcher_of(1, 0, batch=2)
    for request in "abc":
        send(dispatcher, request, LIGHT_IMAGE, 0.0)
    dispatcher.finished("r0", "a", 1.0, BatchReport(batch_size=1, compute_s=1.0, queued=2))
    assert best(dispatcher, LIGHT_IMAGE, 1.0).finish_at == pytest.approx(1.0 + 1.1 + 1.0)
    dispatcher.finished("r0", "b", 2.1, BatchReport(batch_size=2, compute_s=1.1, queued=0))
    assert dispatcher.replicas.outstanding == {"r0": 1}
    dispatcher.finished("r0", "c", 2.1, BatchReport(batch_size=2, compute_s=1.1, queued=0))
    assert dispatcher.replicas.outstanding == {"r0": 0}
    assert dispatcher.pick(LIGHT_IMAGE, 3.0) == ("r0", 4.0)


def test_the_batch_size_of_a_reply_corrects_the_model():
    dispatcher = dispatcher_of(1, 0, batch=4)
    for request in "abc":
        send(dispatcher, request, LIGHT_IMAGE, 0.0)  # the model assumes: a alone, then b and c
    dispatcher.finished("r0", "a", 1.2, BatchReport(batch_size=3, compute_s=1.2, queued=0))
    assert best(dispatcher, LIGHT_IMAGE, 1.2).finish_at == pytest.approx(2.2)


def test_work_of_other_load_balancers_counts():
    dispatcher = dispatcher_of(2, 0, batch=1)
    send(dispatcher, "a", LIGHT_IMAGE, 0.0)
    dispatcher.finished("r0", "a", 1.0, BatchReport(batch_size=1, compute_s=1.0, queued=3))
    assert dispatcher.pick(LIGHT_IMAGE, 1.0) == ("r1", 2.0)


def test_the_predicted_finish_of_an_overdue_replica_grows_with_time():
    dispatcher = dispatcher_of(2, 0, batch=1)
    dispatcher.assign("r0", "stuck", LIGHT_IMAGE, 0.0)
    dispatcher.assign("r1", "b", LIGHT_IMAGE, 29.0)
    assert best(dispatcher, LIGHT_IMAGE, 29.5).replica == "r1"


def test_steps_scale_the_estimate_and_do_not_share_a_batch():
    dispatcher = dispatcher_of(0, 1, batch=4)
    half = Kind(HEAVY, HEAVY, 0.5)
    assert best(dispatcher, half, 0.0).finish_at == 5.0
    dispatcher.assign("r0", "a", HEAVY_IMAGE, 0.0)
    dispatcher.assign("r0", "b", half, 0.0)
    assert best(dispatcher, HEAVY_IMAGE, 0.0).finish_at == pytest.approx(10 + 5 + 13)
    assert best(dispatcher, half, 0.0).finish_at == pytest.approx(10 + 6.5)


def test_other_replicas_serve_a_role_without_live_replicas():
    dispatcher = dispatcher_of(1, 1)
    dispatcher.remove("r0")
    assert dispatcher.pick(LIGHT_IMAGE, 0.0) == ("r1", 1.0)


def test_no_replica_at_all_is_no_choice():
    dispatcher = dispatcher_of(1, 0)
    assert dispatcher.pick(LIGHT_IMAGE, 0.0, avoid=frozenset({"r0"})) is None
    dispatcher.sync([])
    assert dispatcher.pick(LIGHT_IMAGE, 0.0) is None
    assert dispatcher.finish_at(LIGHT_IMAGE, 0.0, 3) is None


def test_a_replica_that_is_not_ready_gets_nothing():
    dispatcher = dispatcher_of(1, 0)
    dispatcher.sync(described(0, ready=False))
    assert dispatcher.replicas.ready(LIGHT) == 0


def test_a_removed_replica_loses_its_queue_and_late_replies_are_ignored():
    dispatcher = dispatcher_of(2, 0)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    dispatcher.sync(described(1, 2))
    dispatcher.finished("r0", "a", 1.0, BatchReport(batch_size=1, compute_s=1.0))
    dispatcher.forget("r0", "a", 1.0)
    dispatcher.assign("r0", "b", LIGHT_IMAGE, 1.0)
    assert dispatcher.replicas.outstanding == {"r1": 0, "r2": 0}


def test_a_new_plan_assigns_roles_by_rank_and_keeps_outstanding_images():
    dispatcher = dispatcher_of(1, 1)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    dispatcher.set_plan(Plan.split(2, 0, 2, light_batch=1, heavy_batch=1, threshold=0.5))
    assert (dispatcher.replicas.ready(LIGHT), dispatcher.replicas.ready(HEAVY)) == (0, 2)
    assert dispatcher.replicas.outstanding == {"r0": 1, "r1": 0}
    assert best(dispatcher, HEAVY_IMAGE, 0.0).replica == "r1"


def test_forgetting_the_running_image_lets_the_next_one_start():
    dispatcher = dispatcher_of(1, 0, batch=1)
    dispatcher.assign("r0", "a", LIGHT_IMAGE, 0.0)
    dispatcher.assign("r0", "b", LIGHT_IMAGE, 0.0)
    dispatcher.forget("r0", "a", 0.5)
    assert best(dispatcher, LIGHT_IMAGE, 0.5).finish_at == pytest.approx(0.5 + 1 + 1)


def test_several_images_are_predicted_as_if_they_were_sent_one_after_another():
    assert dispatcher_of(2, 0, batch=1).finish_at(LIGHT_IMAGE, 0.0, 2) == 1.0
    assert dispatcher_of(2, 0, batch=1).finish_at(LIGHT_IMAGE, 0.0, 4) == 2.0


events = st.lists(st.tuples(st.sampled_from(["send", "reply", "cancel", "die", "return", "flip"]), st.integers(0, 7)))


@given(events=events, batch=st.integers(1, 4))
def test_outstanding_images_are_consistent_and_predictions_never_lie_in_the_past(events, batch):
    dispatcher = dispatcher_of(2, 2, batch)
    sent: list[tuple[str, str]] = []
    now, version, alive = 0.0, 1, {0, 1, 2, 3}
    for number, (event, k) in enumerate(events):
        now += 0.3
        if event == "send":
            key = LIGHT if k % 2 else HEAVY
            kind = Kind(key, key, 1.0 if k < 6 else 0.5)
            choice = dispatcher.pick(kind, now)
            assert (choice is None) == (not alive)
            if choice:
                assert choice.finish_at >= now
                dispatcher.assign(choice.replica, f"q{number}", kind, now)
                sent.append((choice.replica, f"q{number}"))
        elif event in ("reply", "cancel") and sent:
            replica, request = sent.pop(k % len(sent))
            if event == "reply":
                dispatcher.finished(
                    replica, request, now, BatchReport(batch_size=1 + k % batch, compute_s=1.0, queued=k)
                )
            dispatcher.forget(replica, request, now)
        elif event == "die" and alive:
            rank = sorted(alive)[k % len(alive)]
            alive.discard(rank)
            dispatcher.remove(f"r{rank}")
            sent = [(r, q) for r, q in sent if r != f"r{rank}"]
        elif event == "return":
            alive = {0, 1, 2, 3}
            dispatcher.sync(described(*alive))
        elif event == "flip":
            version += 1
            dispatcher.set_plan(
                Plan.split(version, k % 4, 4 - k % 4, light_batch=batch, heavy_batch=batch, threshold=0.5)
            )
    assert sum(dispatcher.replicas.outstanding.values()) == len(sent)
    for replica, request in sent:
        dispatcher.forget(replica, request, now)
    assert not any(dispatcher.replicas.outstanding.values())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30))
def test_the_choice_is_never_later_than_any_other_replica_of_the_role(loads):
    dispatcher = dispatcher_of(3, 0, batch=4)
    for number, rank in enumerate(loads):
        dispatcher.assign(f"r{rank % 3}", f"q{number}", LIGHT_IMAGE, 0.1 * number)
    now = 0.1 * len(loads)
    chosen = best(dispatcher, LIGHT_IMAGE, now)
    for rank in range(3):
        others = frozenset(f"r{other}" for other in range(3) if other != rank)
        assert chosen.finish_at <= best(dispatcher, LIGHT_IMAGE, now, avoid=others).finish_at + len(loads) * TIE_S
