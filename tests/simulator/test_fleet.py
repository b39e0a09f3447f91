"""Dispatch in the twin and in the cluster is one rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.setting import Setting
from load_balancer.dispatch.dispatcher import Dispatcher
from load_balancer.dispatch.finish_time import Kind
from load_balancer.dispatch.service_times import ServiceTimes
from simulator.fleet import HEAVY, LIGHT, NEVER, ROLES, Fleet
from simulator.seat_fleet import SeatFleet, advance, leavers
from solvers.problem import GpuType
from weir.core import DeferralCurve, LatencyProfile, Plan, Role
from weir.profiles import FixedCosts, Profile, VariantProfile

SIZES, SECONDS = (1, 2, 4), (0.1, 0.15, 0.22)
LATENCY = LatencyProfile(SIZES, SECONDS)


def variant(name: str) -> VariantProfile:
    return VariantProfile(name=name, steps=1, batch_sizes=SIZES, latency_s=SECONDS)


def fleet(plan: Plan) -> Fleet:
    gpu = GpuType("gpu", len(plan.assignments), LATENCY, LATENCY)
    return Fleet(Setting((gpu,), 5.0, DeferralCurve((0.0, 1.0), (0.0, 1.0))), plan)


@pytest.mark.parametrize("role", list(Role))
@given(gaps=st.lists(st.floats(0, 0.2), min_size=1, max_size=40), replicas=st.integers(1, 5))
@settings(max_examples=60, derandomize=True)
def test_images_would_be_ready_when_the_load_balancer_says_so(role, gaps, replicas):
    light = replicas if role is Role.LIGHT else 0
    plan = Plan.split(1, light, replicas - light, light_batch=4, heavy_batch=4, threshold=0.0)
    twin = fleet(plan)
    profile = Profile(family="f", device="d", light=variant("l"), heavy=variant("h"))
    dispatcher = Dispatcher(plan, ServiceTimes(profile))
    dispatcher.sync([{"replica": str(i), "rank": i} for i in range(replicas)])
    ends: list[tuple[float, int]] = []
    now = 0.0
    for number, gap in enumerate(gaps):
        now += gap
        while ends and min(ends)[0] <= now:
            end, index = min(ends)
            ends.remove((end, index))
            finish_batch(twin, dispatcher, index, end, ends)
        replica, at = twin.earliest(ROLES[role], now)
        choice = dispatcher.pick(Kind(role), now)
        assert choice is not None
        assert abs(choice.finish_at - at) < 1e-9
        # Two replicas may tie; both books then follow the twin.
        dispatcher.assign(str(replica.index), str(number), Kind(role), now)
        replica.queue.append(number)
        if not replica.running:
            start_batch(twin, replica, now, ends)
        twin.refresh(replica)


def start_batch(twin, replica, now, ends):
    replica.running = [replica.queue.popleft() for _ in range(min(replica.limit, len(replica.queue)))]
    replica.busy_until = now + replica.times[replica.role][len(replica.running)]
    ends.append((replica.busy_until, replica.index))


def finish_batch(twin, dispatcher, index, now, ends):
    replica = twin.replicas[index]
    batch, replica.running = replica.running, []
    compute_s = replica.times[replica.role][len(batch)]
    for number in batch:
        dispatcher.finished(str(index), str(number), now, batch_size=len(batch), compute_s=compute_s)
    if replica.queue:
        start_batch(twin, replica, now, ends)
        twin.refresh(replica)
    else:
        twin.became_idle(replica)


def test_a_heavy_image_joins_the_batch_that_starts_first():
    twin = fleet(Plan.split(1, 0, 2, light_batch=4, heavy_batch=4, threshold=1.0))
    for replica, busy_until in zip(twin.replicas, (0.05, 0.1), strict=True):
        replica.running, replica.busy_until = [0], busy_until
        twin.refresh(replica)
    for _ in range(4):
        replica, finish = twin.earliest(HEAVY, 0.0)
        assert (replica.index, finish) == (0, 0.05 + 0.22)
        replica.queue.append(1)
        twin.refresh(replica)
    assert twin.earliest(HEAVY, 0.0)[0].index == 1


def test_an_idle_replica_comes_before_a_busy_one():
    twin = fleet(Plan.split(1, 2, 1, light_batch=4, heavy_batch=4, threshold=0.5))
    twin.replicas[0].running = [0]
    twin.refresh(twin.replicas[0])
    assert twin.earliest(LIGHT, 0.0)[0].index == 1


def test_without_a_replica_of_the_role_there_is_no_choice():
    twin = fleet(Plan.split(1, 2, 0, light_batch=4, heavy_batch=4, threshold=0.0))
    assert twin.earliest(HEAVY, 0.0)[0] is None


STEPWISE = Profile(
    family="f",
    device="d",
    **{
        name: VariantProfile(
            name=name,
            steps=10,
            batch_sizes=SIZES,
            latency_s=SECONDS,
            step_s=tuple(s / 10 for s in SECONDS),
            fixed=FixedCosts(text_s=0, decode_s=0),
        )
        for name in ("light", "heavy")
    },
)


@pytest.mark.parametrize("role", list(Role))
@given(gaps=st.lists(st.floats(0, 0.2), min_size=1, max_size=40), replicas=st.integers(1, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_images_that_join_at_steps_would_be_ready_when_the_load_balancer_says_so(role, gaps, replicas):
    light = replicas if role is Role.LIGHT else 0
    plan = Plan.split(1, light, replicas - light, light_batch=3, heavy_batch=3, threshold=0.0)
    twin = SeatFleet(Setting.of(STEPWISE, replicas, 5.0), plan)
    dispatcher = Dispatcher(plan, ServiceTimes(STEPWISE))
    dispatcher.sync([{"replica": str(i), "rank": i} for i in range(replicas)])
    now = 0.0
    for number, gap in enumerate(gaps):
        now += gap
        for replica in twin.replicas:
            while (end := ends_at(replica)) <= now:
                leave(twin, dispatcher, replica, end)
        choice = dispatcher.pick(Kind(role), now)
        replica, at = twin.earliest(ROLES[role], now)
        assert choice is not None
        assert choice.finish_at == pytest.approx(at, abs=1e-6)
        dispatcher.assign(str(replica.index), str(number), Kind(role), now)  # of two that tie both take the twin's
        replica.queue.append(number)
        seat(twin, replica, now)


def ends_at(replica):
    if not replica.running:
        return NEVER
    return replica.as_of + min(replica.left) * replica.times[replica.role][len(replica.running)]


def seat(twin, replica, now):
    advance(replica, now)
    replica.running_role = replica.role
    while replica.queue and len(replica.running) < replica.limit:
        replica.running.append(replica.queue.popleft())
        replica.left.append(1.0)
    twin.refresh(replica)


def leave(twin, dispatcher, replica, now):
    advance(replica, now)
    gone = leavers(replica)
    assert gone
    for number in gone:
        dispatcher.finished(str(replica.index), str(number), now, batch_size=1, compute_s=0.1, together=len(gone))
    seat(twin, replica, now)
