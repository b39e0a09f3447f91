"""Draining: which replicas may be drained, and what a drained replica still gets."""

from __future__ import annotations

import asyncio

import pytest

from load_balancer.pool.draining import check_drain, replaced, working
from load_balancer.runner.generation_request import GenerationRequest
from weir.core import ImageSize
from weir.errors import Conflict, NotFound, NotReady
from weir.plan import HEAVY, LIGHT

KNOWN = ("a", "b", "c")


def test_an_unknown_replica_is_refused_with_the_known_ones():
    with pytest.raises(NotFound, match="no replica 'd'; the replicas are: a, b, c"):
        check_drain("d", KNOWN, ())


def test_the_last_replica_that_takes_work_is_refused_unless_forced():
    check_drain("a", KNOWN, ("b",))
    with pytest.raises(Conflict, match="a is the last replica that takes work"):
        check_drain("a", KNOWN, ("b", "c"))
    check_drain("a", KNOWN, ("b", "c"), force=True)
    check_drain("b", KNOWN, ("b", "c")), "it is drained already"


def test_drained_replicas_take_no_work():
    described = [{"replica": name, "rank": rank} for rank, name in enumerate(KNOWN)]
    assert [it["replica"] for it in working(described, {"b"})] == ["a", "c"]


def test_a_replica_is_known_until_another_one_has_its_rank():
    known = replaced({}, [{"replica": "a", "rank": 0}, {"replica": "b", "rank": 1}], 2)
    assert set(replaced(known, [], 2)) == {"a", "b"}, "while Serve applies a plan, it lists none"
    assert set(replaced(known, [{"replica": "c", "rank": 1}], 2)) == {"a", "c"}
    assert set(replaced(known, [], 1)) == {"a"}, "the pool has become smaller"


async def test_a_drained_replica_finishes_what_it_has_and_gets_nothing_new(running, pool):
    pool.delay_s[HEAVY] = 1.0
    async with running() as balancer:
        order = GenerationRequest("a red circle", ImageSize(64, 64), variant=HEAVY)
        begun = [asyncio.create_task(balancer.generate(order)) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert {replica for replica, _, _ in pool.calls} == {"replica-1", "replica-2"}
        assert balancer.registry.drain("replica-1")
        assert not balancer.registry.drain("replica-1"), "it is drained already"
        (one,) = (it for it in balancer.registry.replicas() if it["id"] == "replica-1")
        assert (one["state"], one["in_flight"]) == ("drained", 1)
        more = [asyncio.create_task(balancer.generate(order)) for _ in range(3)]
        await asyncio.gather(*begun, *more)
        later = [replica for replica, _, _ in pool.calls[2:]]
        assert later == ["replica-2"] * 3
        assert balancer.counters()["ranks"] == [0, 2], "no plan is made for it"
        assert balancer.registry.restore("replica-1")
        assert balancer.counters()["ranks"] == [0, 1, 2]


async def test_draining_survives_probes_and_ends_when_another_replica_has_the_rank(running, pool):
    async with running() as balancer:
        registry = balancer.registry
        registry.drain("replica-1")
        pool.alive = {}  # Serve applies a plan
        registry.probe_now()
        await registry.refreshed()
        pool.alive = {"replica-0": 0, "replica-1": 1, "replica-2": 2}
        registry.probe_now()
        await registry.refreshed()
        assert balancer.counters()["ranks"] == [0, 2]
        pool.alive = {"replica-0": 0, "new": 1, "replica-2": 2}
        registry.probe_now()
        await registry.refreshed()
        assert balancer.counters()["ranks"] == [0, 1, 2]
        assert registry.drained == set()


async def test_readiness_does_not_miss_a_drained_replica(running):
    async with running() as balancer:
        balancer.registry.drain("replica-1")
        balancer.registry.drain("replica-2")
        state = balancer.readiness()
        assert (state["ready"], state["pending"]) == (True, [])
        assert state["replicas"][HEAVY] == {"planned": 0, "ready": 0}
        (image,) = await balancer.generate(GenerationRequest("a", ImageSize(64, 64), variant=HEAVY))
        assert image.variant == HEAVY, "another replica serves the role"


async def test_without_any_working_replica_requests_are_refused_and_readiness_says_why(running):
    async with running() as balancer:
        for replica in ("replica-0", "replica-1"):
            balancer.registry.drain(replica)
        balancer.registry.drain("replica-2", force=True)
        state = balancer.readiness()
        assert not state["ready"]
        assert state["pending"] == ["3 replicas are drained, and no other one takes work"]
        with pytest.raises(NotReady):
            await balancer.generate(GenerationRequest("a", ImageSize(64, 64)))
        balancer.registry.restore("replica-0")
        (image,) = await balancer.generate(GenerationRequest("a", ImageSize(64, 64), variant=LIGHT))
        assert image.variant == LIGHT
