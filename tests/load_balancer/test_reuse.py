"""The cache in the request path: a hit goes on from its state, everything else goes its way as without a cache."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from load_balancer.http.api_keys import Caller
from load_balancer.runner.cache_client import NO_REUSE, CacheLookup, ServeCacheClient
from load_balancer.runner.cascade_rules import after_lookup, is_drawn_anew
from load_balancer.runner.generation_request import GenerationRequest
from weir.core import ImageRequest, ImageResult, Path, Role, Rules

ORDER = GenerationRequest("a red circle", 64, 64)
HIT = CacheLookup("acme|…", 0.97, "entry-1", "weir:1:acme|…:entry-1:25", 25, capture=False)
MISS = CacheLookup("acme|…", 0.31, capture=True)


class FakeCache:
    def __init__(self, gives: CacheLookup):
        self.gives = gives
        self.asked: list[tuple[str, str]] = []
        self.told: list[tuple[int, tuple[int, ...], bool]] = []

    async def find(self, request: ImageRequest, tenant: str) -> CacheLookup:
        self.asked.append((request.prompt, tenant))
        return self.gives

    def finished(self, request: ImageRequest, drawn: ImageResult | None, sought: bool) -> None:
        self.told.append((0, (), False) if drawn is None else (drawn.resumed_at, drawn.captured, sought))


@pytest.fixture
def pool(pool):
    """Heavy replicas that resume where they are asked to, and store what they are asked to capture."""
    draw = pool.generate
    pool.loses_states = False

    async def generate(replica: str, role: Role, request: dict[str, Any]) -> dict[str, Any]:
        answer = await draw(replica, role, request)
        resumed = 0 if pool.loses_states else request["resume_step"]
        captured = tuple(k for k in (5, 25) if k > resumed) if request["capture"] else ()
        fetch_s = 0.004 if request["resume_step"] else None
        return answer | {"resumed_at": resumed, "captured": captured, "fetch_s": fetch_s}

    pool.generate = generate
    return pool


@pytest.fixture
def running(running):
    return lambda cache, mode="read-write", **more: running(cache=cache, cache_mode=mode, **more)


async def test_a_hit_goes_straight_to_the_heavy_variant_from_its_state(running, pool):
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        (image,) = await balancer.draw(replace(ORDER, caller=Caller("alice", "acme")))
    [(_, role, request)] = pool.calls
    assert role is Role.HEAVY
    assert (request["resume_key"], request["resume_step"], request["capture"]) == (HIT.key, 25, False)
    assert (image.path, image.model, image.reuse) == (Path.CACHE, "toy-heavy", HIT)
    assert cache.asked == [("a red circle", "acme")]
    assert cache.told == [(25, (), True)]
    assert balancer.counters()["reused"] == {"0.5": 1}
    assert balancer.counters()["fetches"] == [0.004]


async def test_a_hit_that_leaves_steps_out_counts_all_that_do_not_run(running, pool):
    cache = FakeCache(replace(HIT, stride=5))
    async with running(cache) as balancer:
        (image,) = await balancer.draw(ORDER)
    [(_, _, request)] = pool.calls
    assert (request["resume_step"], request["resume_stride"]) == (25, 5)
    assert (image.path, cache.told) == (Path.CACHE, [(25, (), True)])
    assert balancer.counters()["reused"] == {"0.9": 1}


@pytest.mark.parametrize(
    ("confidences", "path"), [((0.4, 0.8), Path.HEAVY), ((0.4, 0.3), Path.CACHE), ((0.9, 0.0), Path.CACHE)]
)
async def test_a_resumed_image_that_is_doubted_is_drawn_anew_and_the_better_judged_is_the_answer(
    running, pool, confidences, path
):
    draw, judged = pool.generate, iter(confidences)

    async def generate(replica: str, role: Role, request: dict[str, Any]) -> dict[str, Any]:
        return await draw(replica, role, request) | {"confidence": next(judged)}

    pool.generate = generate
    cache = FakeCache(replace(HIT, stride=5, accept=0.9, capture=True))
    async with running(cache) as balancer:
        (image,) = await balancer.draw(ORDER)
    assert (image.path, image.heavy_confidence, image.draws) == (path, max(confidences), len(pool.calls))
    asked = [(request["resume_step"], request["resume_stride"], request["accept"]) for _, _, request in pool.calls]
    if confidences[0] >= 0.9:
        assert asked == [(25, 5, 0.9)]
        assert [told[0] for told in cache.told] == [25]
        assert balancer.counters()["reused"] == {"0.9": 1}
    else:
        assert asked == [(25, 5, 0.9), (0, 1, 0.9)]
        assert cache.told == [(0, (5, 25), False)], "what the run from noise passed is kept"
        assert balancer.counters()["reused"] == {}


async def test_a_doubted_image_is_the_answer_where_a_second_one_would_fail(running, pool):
    draw = pool.generate

    async def generate(replica: str, role: Role, request: dict[str, Any]) -> dict[str, Any]:
        answer = await draw(replica, role, request)
        error = None if request["resume_step"] else ("generation_failed", "broken")
        return answer | {"confidence": 0.4, "error": error}

    pool.generate = generate
    async with running(FakeCache(replace(HIT, accept=0.9))) as balancer:
        (image,) = await balancer.draw(ORDER)
    assert (image.path, image.result.resumed_at) == (Path.CACHE, 25)


@pytest.mark.parametrize(
    ("accept", "confidence", "finish_at", "anew"),
    [
        (0.9, 0.8, 5.0, True),
        (0.9, 0.9, 5.0, False),
        (0.9, 0.8, 9.0, False),
        (0.9, 0.8, None, False),
        (0, 0, 5.0, False),
    ],
)
def test_only_what_is_doubted_and_in_time_is_drawn_anew(accept, confidence, finish_at, anew):
    assert is_drawn_anew(accept, confidence, heavy_finish_at=finish_at, latest=8.0) is anew


async def test_a_miss_goes_through_the_cascade_and_its_heavy_run_is_captured(running, pool):
    pool.confidence = 0.1
    cache = FakeCache(MISS)
    async with running(cache) as balancer:
        (image,) = await balancer.draw(ORDER)
    (_, first, light), (_, second, heavy) = pool.calls
    assert (first, second) == (Role.LIGHT, Role.HEAVY)
    assert (light["capture"], light["cache_partition"]) == (False, "")
    assert (heavy["capture"], heavy["cache_partition"]) == (True, MISS.partition)
    assert image.path is Path.HEAVY
    assert cache.told == [(0, (5, 25), True)]


async def test_an_accepted_light_image_leaves_nothing_in_the_cache(running, pool):
    cache = FakeCache(MISS)
    async with running(cache) as balancer:
        (image,) = await balancer.draw(ORDER)
        assert image.path is Path.LIGHT
    assert cache.told == [(0, (), False)]
    assert balancer.counters()["looked_up"] == 1


async def test_a_lost_state_costs_steps_and_the_answer_says_so(running, pool):
    pool.loses_states = True
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        (image,) = await balancer.draw(ORDER)
    assert image.path is Path.HEAVY
    assert cache.told == [(0, (), True)]


async def test_a_hit_that_would_be_late_is_drawn_light_first_and_still_resumes_if_deferred(running, pool, plan):
    pool.confidence = 0.1
    cache = FakeCache(HIT)
    async with running(cache, direct=0.6) as balancer:
        (image,) = await balancer.draw(ORDER)
    assert [role for _, role, _ in pool.calls] == [Role.LIGHT, Role.HEAVY]
    assert pool.calls[0][2]["resume_key"] is None
    assert image.path is Path.CACHE


@pytest.mark.parametrize(("heavy_steps", "resumed_at"), [(25, 25), (24, 0)])
async def test_a_state_that_leaves_more_steps_than_the_plans_short_run_is_left_alone(
    running, pool, plan, heavy_steps, resumed_at
):
    pool.confidence = 0.1
    async with running(FakeCache(HIT), plan=replace(plan, rules=Rules(heavy_steps=heavy_steps))) as balancer:
        (image,) = await balancer.draw(ORDER)
    assert image.result.resumed_at == resumed_at
    assert pool.calls[-1][2]["steps"] == (None if resumed_at else heavy_steps)


async def test_a_short_run_leaves_no_states_for_others(running, pool, plan):
    pool.confidence = 0.1
    async with running(FakeCache(MISS), plan=replace(plan, rules=Rules(heavy_steps=10))) as balancer:
        await balancer.draw(ORDER)
    assert (pool.calls[-1][2]["steps"], pool.calls[-1][2]["capture"]) == (10, False)


@pytest.mark.parametrize(("service", "request_", "asked"), [("off", None, 0), ("off", "read", 1), ("read", "off", 0)])
async def test_a_request_says_more_than_the_service(running, service, request_, asked):
    cache = FakeCache(MISS)
    async with running(cache, service) as balancer:
        (image,) = await balancer.draw(replace(ORDER, cache=request_))
    assert len(cache.asked) == asked
    assert (image.reuse is None) == (asked == 0)


async def test_reading_only_captures_nothing(running, pool):
    pool.confidence = 0.1
    cache = FakeCache(MISS)
    async with running(cache, "read") as balancer:
        await balancer.draw(ORDER)
    assert not pool.calls[1][2]["capture"]
    assert cache.told == [(0, (), True)]


async def test_who_forces_the_light_variant_is_not_looked_up(running):
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        (image,) = await balancer.draw(replace(ORDER, role=Role.LIGHT))
    assert image.path is Path.LIGHT
    assert not cache.asked


@pytest.mark.parametrize(("asked", "step"), [(None, 0), ("read-write", 25)])
async def test_where_the_plan_leaves_the_cache_alone_only_who_asks_for_it_goes_on_from_a_state(
    asked, step, running, pool, plan
):
    alone = replace(plan, threshold=1.0, rules=replace(plan.rules, reuse=False))
    async with running(FakeCache(HIT), plan=alone) as balancer:
        (image,) = await balancer.draw(replace(ORDER, cache=asked))
        counted = balancer.counters(0, 0)["found"]
    assert pool.calls[-1][1] is Role.HEAVY
    assert pool.calls[-1][2]["resume_step"] == step
    assert counted == {"0.5": 1}, "what could be saved is still seen"
    assert image.reuse.similarity == HIT.similarity


async def test_a_failed_request_is_told_too(running, pool):
    pool.fail = lambda replica, role: ("generation_failed", "no")
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        with pytest.raises(Exception, match="no"):
            await balancer.draw(ORDER)
    assert cache.told == [(0, (), False)]


@pytest.mark.parametrize(
    ("saved", "direct", "finish_at", "first"),
    [
        (0.5, 0.0, 1.0, Role.HEAVY),
        (0.0, 0.0, 1.0, Role.LIGHT),
        (0.1, 0.2, 1.0, Role.LIGHT),
        (0.5, 0.0, 3.0, Role.LIGHT),
        (0.5, 0.0, None, Role.LIGHT),
    ],
)
def test_only_a_hit_that_is_worth_it_and_in_time_skips_the_light_variant(saved, direct, finish_at, first, plan):
    assert after_lookup(plan, Role.LIGHT, saved, direct=direct, heavy_finish_at=finish_at, latest=2.0) is first


class FakeHandle:
    """A deployment handle whose calls do what a test tells them to."""

    def __init__(self) -> None:
        self.answer: Any = {"partition": "p", "k": 5, "entry": "e", "key": "x", "similarity": 0.7, "capture": True}
        self.delay_s = 0.0
        self.calls: list[str] = []
        self.told: list[tuple[object, ...]] = []
        self._method = ""

    def options(self, *, method_name: str) -> FakeHandle:
        self._method = method_name
        return self

    async def remote(self, *arguments: object) -> Any:
        self.calls.append(self._method)
        if self._method == "finish":
            self.told.append(arguments)
        await asyncio.sleep(self.delay_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


REQUEST = ImageRequest("a", "a red circle", 1, 64, 64, 0.0)


async def test_what_the_cache_finds_is_taken_over():
    assert (await ServeCacheClient(FakeHandle(), 1.0).find(REQUEST, "acme")).k == 5


async def test_the_cache_hears_of_a_state_that_a_worker_refused():
    handle = FakeHandle()
    cache = ServeCacheClient(handle, 1.0)
    drawn = ImageResult("a", b"png", None, 50, 0.0, 1.0, 1, 1, refused=True)
    cache.finished(REQUEST, drawn, True)
    await asyncio.wait(cache._telling, timeout=5)
    assert handle.told == [("a", 0, (), True, None, True)]


async def test_nobody_waits_for_ever_to_tell_a_cache_that_is_away(monkeypatch):
    monkeypatch.setattr("load_balancer.runner.cache_client._TELL_S", 0.01)
    handle = FakeHandle()
    handle.delay_s = 60
    cache = ServeCacheClient(handle, 1.0)
    cache.finished(REQUEST, None, True)
    await asyncio.wait(cache._telling, timeout=5)
    assert not cache._telling
    assert cache.failures == {"tell": 1}


async def test_a_slow_cache_is_a_miss_after_its_time():
    handle = FakeHandle()
    handle.delay_s = 5
    cache = ServeCacheClient(handle, 0.01)
    assert await cache.find(REQUEST, "acme") == NO_REUSE
    assert cache.failures["TimeoutError"] == 1


async def test_a_cache_that_keeps_failing_is_left_alone_for_a_while(monkeypatch):
    handle = FakeHandle()
    handle.answer = RuntimeError("the replica died")
    cache = ServeCacheClient(handle, 1.0)
    for _ in range(8):
        assert await cache.find(REQUEST, "acme") == NO_REUSE
    assert len(handle.calls) == 5
    assert cache.failures == {"RuntimeError": 5, "resting": 3}
    cache.finished(REQUEST, None, True)
    await asyncio.sleep(0.01)
    assert cache.failures["tell"] == 1


@pytest.mark.parametrize(("saved", "first"), [(0.2, Role.LIGHT), (0.3, Role.HEAVY)])
def test_what_the_plan_says_of_hits_comes_before_what_the_service_says(saved, first, plan):
    plan = replace(plan, rules=replace(plan.rules, direct=0.3))
    assert after_lookup(plan, Role.LIGHT, saved, direct=0.1, heavy_finish_at=1.0, latest=2.0) is first


@pytest.mark.parametrize(("level", "first"), [(0, Role.HEAVY), (1, Role.LIGHT), (None, Role.LIGHT)])
def test_a_prompt_that_only_the_heavy_variant_draws_well_skips_the_light_one(level, first, plan):
    plan = replace(plan, rules=replace(plan.rules, heavy_levels=1))
    role = after_lookup(plan, Role.LIGHT, 0.0, direct=0.0, heavy_finish_at=1.0, latest=2.0, level=level)
    assert role is first
