"""The index finds the same replica as an evaluation of all replicas."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import BatchReport, Kind
from load_balancer.dispatch.service_times import ServiceTimes
from weir.plan import HEAVY, LIGHT, Plan
from weir.profiles import Profile

#: Avoiding an unknown replica makes the dispatcher evaluate all others.
EVALUATE_ALL = frozenset({"a replica that is not there"})


def profile(stepwise: bool) -> Profile:
    def variant(name: str, one_s: float) -> dict[str, object]:
        latency_s = [one_s, 1.5 * one_s, 2 * one_s]
        whole = {"name": name, "steps": 10, "batch_sizes": [1, 2, 4], "latency_s": latency_s}
        steps = {"step_s": [s / 10 for s in latency_s], "fixed": {"text_s": 0.0, "decode_s": 0.0}}
        return {**whole, **steps} if stepwise else whole

    fields = {"family": "f", "device": "d", "light": variant("l", 0.5), "heavy": variant("h", 4.0)}
    return Profile.model_validate(fields)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["send"] * 6 + ["reply"] * 4 + ["cancel", "plan", "die", "return"]), st.integers(0, 63)),
    min_size=10,
    max_size=120,
)


@pytest.mark.parametrize("stepwise", [False, True], ids=["whole batches", "steps"])
@given(events=EVENTS, batch=st.integers(1, 4), way_s=st.sampled_from([0.0, 0.05]), slower=st.sampled_from([1.0, 0.7]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_index_finds_the_same_replica_as_an_exhaustive_search(stepwise, events, batch, way_s, slower):
    plan = Plan.split(1, 3, 4, light_batch=batch, heavy_batch=batch, threshold=0.5)
    dispatcher = Dispatcher(plan, ServiceTimes(profile(stepwise)))
    everyone = [{"replica": f"r{rank}", "rank": rank} for rank in range(7)]
    dispatcher.sync(everyone)
    sent: list[tuple[str, str, float, Kind]] = []
    now = 0.0
    for number, (event, k) in enumerate(events):
        now += 0.05 * (k % 5)
        kind = Kind(HEAVY, HEAVY, 0.5 if k % 8 == 0 else 1.0) if k % 3 else Kind(LIGHT, LIGHT)
        low = k % 7 == 0
        found, asked = (
            dispatcher.pick(kind, now, low_priority=low, avoid=avoid) for avoid in (frozenset(), EVALUATE_ALL)
        )
        assert (found is None) == (asked is None)
        if found is not None and asked is not None:
            assert found.finish_at == pytest.approx(asked.finish_at, abs=1e-5 if stepwise else 1e-9)
            if not stepwise:
                assert found.replica == asked.replica
        if event == "send" and found is not None:
            dispatcher.assign(found.replica, f"q{number}", kind, now, low_priority=low)
            sent.append((found.replica, f"q{number}", now, kind))
        elif event in ("reply", "cancel") and sent:
            replica, request, since, kind = sent.pop(k % len(sent))
            if event == "reply":
                compute_s = slower * dispatcher.times.seconds(kind.variant, 1, kind.work)
                queue_s = max(0.0, now - since - 2 * way_s - compute_s)
                dispatcher.finished(
                    replica, request, now, BatchReport(batch_size=1, compute_s=compute_s, queue_s=queue_s, queued=k % 2)
                )
            dispatcher.forget(replica, request, now)
        elif event == "plan":
            light = k % 8
            dispatcher.set_plan(
                Plan.split(1, light, 7 - light, light_batch=batch, heavy_batch=1 + k % 4, threshold=0.5)
            )
        elif event == "die":
            dispatcher.remove(f"r{k % 7}")
        elif event == "return":
            dispatcher.sync(everyone)


def test_among_a_thousand_replicas_few_are_evaluated(monkeypatch):
    plan = Plan.split(1, 0, 1000, light_batch=1, heavy_batch=2, threshold=0.5)
    dispatcher = Dispatcher(plan, ServiceTimes(profile(stepwise=False)))
    dispatcher.sync([{"replica": f"r{rank}", "rank": rank} for rank in range(1000)])
    kind = Kind(HEAVY, HEAVY)

    def send(number: int) -> str:
        choice = dispatcher.pick(kind, 0.001 * number)
        assert choice is not None
        dispatcher.assign(choice.replica, f"q{number}", kind, 0.001 * number)
        return choice.replica

    assert [send(number) for number in range(1000)] == [f"r{rank}" for rank in range(1000)]
    assert send(1000) == "r0"
    asked = 0
    model = type(next(iter(dispatcher.replicas.values())))
    finish_at = model.finish_at

    def counted(self, *arguments, **more):
        nonlocal asked
        asked += 1
        return finish_at(self, *arguments, **more)

    monkeypatch.setattr(model, "finish_at", counted)
    for number in range(1001, 1101):
        send(number)
    assert asked < 500
