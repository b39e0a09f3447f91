"""The cache in the request path: a hit resumes from its state, and every failure is a miss."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import Any

import pytest

from load_balancer.http.api_keys import Caller
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.runner.serve_cache_client import ServeCacheClient
from testing.collector import recorded
from weir.core import NO_LOOKUP, CacheLookup, ImageRequest, ImageResult, ImageSize, Resume
from weir.logs import logged_as
from weir.plan import HEAVY, LIGHT, Rules

ORDER = GenerationRequest("a red circle", ImageSize(64, 64))
STATE = Resume("weir:1:acme|…:entry-1:25", 25)
HIT = CacheLookup("acme|…", 0.97, "entry-1", STATE)
MISS = CacheLookup("acme|…", 0.31, capture=True)


class FakeCache:
    def __init__(self, gives: CacheLookup):
        self.gives = gives
        self.asked: list[tuple[str, str]] = []
        self.reports: list[tuple[int, tuple[int, ...], int]] = []

    async def find(self, request: ImageRequest) -> CacheLookup:
        self.asked.append((request.prompt, request.tenant))
        return self.gives

    def finished(self, image: str, result: ImageResult | None, sought: int) -> None:
        self.reports.append((0, (), 0) if result is None else (result.resumed_at, result.captured, sought))


@pytest.fixture
def pool(pool):
    """A pool whose heavy replicas resume and capture states as requested."""
    quick = pool.generate
    pool.loses_states = False

    async def generate(replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        answer = await quick(replica, variant, request, role)
        resume = request["resume"]
        resumed = 0 if pool.loses_states or resume is None else resume["step"]
        captured = tuple(k for k in (5, 25) if k > resumed) if request["capture"] is not None else ()
        fetch_s = None if resume is None else 0.004
        return answer | {"resumed_at": resumed, "captured": captured, "fetch_s": fetch_s}

    pool.generate = generate
    return pool


@pytest.fixture
def running(running):
    return lambda cache, mode="read-write", **more: running(cache=cache, cache_mode=mode, **more)


async def test_a_hit_resumes_directly_at_the_heavy_variant(running, pool):
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        (image,) = await balancer.generate(replace(ORDER, caller=Caller("alice", "acme")))
    [(_, role, request)] = pool.calls
    assert role == HEAVY
    assert request["resume"] == {"key": STATE.key, "step": 25, "stride": 1, "min_confidence": 0.0}
    assert request["capture"] is None
    assert (image.path, image.model, image.lookup) == ("cache", "toy-heavy", HIT)
    assert cache.asked == [("a red circle", "acme")]
    assert cache.reports == [(25, (), 25)]
    assert balancer.counters()["reused"] == {"0.5": 1}
    assert balancer.counters()["fetches"] == [0.004]


async def test_a_hit_with_a_stride_counts_all_skipped_steps_as_saved(running, pool):
    cache = FakeCache(replace(HIT, resume=replace(STATE, stride=5)))
    async with running(cache) as balancer:
        (image,) = await balancer.generate(ORDER)
    [(_, _, request)] = pool.calls
    assert (request["resume"]["step"], request["resume"]["stride"]) == (25, 5)
    assert (image.path, cache.reports) == ("cache", [(25, (), 25)])
    assert balancer.counters()["reused"] == {"0.9": 1}


@pytest.mark.parametrize(("confidences", "path"), [((0.4, 0.8), "heavy"), ((0.4, 0.3), "cache"), ((0.9, 0.0), "cache")])
async def test_a_doubted_resumed_image_is_generated_again_and_the_better_judged_is_the_answer(
    running, pool, confidences, path
):
    quick, judged = pool.generate, iter(confidences)

    async def generate(replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        return await quick(replica, variant, request, role) | {"confidence": next(judged)}

    pool.generate = generate
    resume = Resume(STATE.key, 25, stride=5, min_confidence=0.9)
    cache = FakeCache(replace(HIT, resume=resume, capture=True))
    async with running(cache) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert (image.path, image.heavy_confidence, image.draws) == (path, max(confidences), len(pool.calls))
    asked = [(request["resume"], request["judge"]) for _, _, request in pool.calls]
    if confidences[0] >= 0.9:
        assert asked == [(asdict(resume), False)], "its least confidence has it judged"
        assert [report[0] for report in cache.reports] == [25]
        assert balancer.counters()["reused"] == {"0.9": 1}
    else:
        assert asked == [(asdict(resume), False), (None, True)]
        assert cache.reports == [(0, (5, 25), 0)], "what the run from noise passed is kept"
        assert balancer.counters()["reused"] == {}


async def test_a_doubted_image_is_the_answer_when_the_second_one_fails(running, pool):
    quick = pool.generate

    async def generate(replica: str, variant: str, request: dict[str, Any], role: str) -> dict[str, Any]:
        answer = await quick(replica, variant, request, role)
        error = None if request["resume"] else ("generation_failed", "broken")
        return answer | {"confidence": 0.4, "error": error}

    pool.generate = generate
    async with running(FakeCache(replace(HIT, resume=replace(STATE, min_confidence=0.9)))) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert (image.path, image.result.resumed_at) == ("cache", 25)


async def test_a_miss_goes_through_the_cascade_and_its_heavy_run_is_captured(running, pool):
    pool.confidence = 0.1
    cache = FakeCache(MISS)
    async with running(cache) as balancer:
        (image,) = await balancer.generate(ORDER)
    (_, first, light), (_, second, heavy) = pool.calls
    assert (first, second) == (LIGHT, HEAVY)
    assert (light["capture"], heavy["capture"]) == (None, MISS.partition)
    assert image.path == "heavy"
    assert cache.reports == [(0, (5, 25), 0)]


async def test_an_accepted_light_image_leaves_nothing_in_the_cache(running, pool):
    cache = FakeCache(MISS)
    async with running(cache) as balancer:
        (image,) = await balancer.generate(ORDER)
        assert image.path == "light"
    assert cache.reports == [(0, (), 0)]
    assert balancer.counters()["looked_up"] == 1


async def test_a_lost_state_costs_steps_and_the_answer_says_so(running, pool):
    pool.loses_states = True
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert image.path == "heavy"
    assert cache.reports == [(0, (), 25)]


async def test_a_hit_that_would_be_late_starts_light_and_resumes_if_deferred(running, pool, plan):
    pool.confidence = 0.1
    cache = FakeCache(HIT)
    async with running(cache, direct=0.6) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert [role for _, role, _ in pool.calls] == [LIGHT, HEAVY]
    assert pool.calls[0][2]["resume"] is None
    assert image.path == "cache"


@pytest.mark.parametrize(("heavy_steps", "resumed_at"), [(25, 25), (24, 0)])
async def test_a_state_with_more_remaining_steps_than_the_plans_short_run_is_not_used(
    running, pool, plan, heavy_steps, resumed_at
):
    pool.confidence = 0.1
    async with running(FakeCache(HIT), plan=replace(plan, rules=Rules(heavy_steps=heavy_steps))) as balancer:
        (image,) = await balancer.generate(ORDER)
    assert image.result.resumed_at == resumed_at
    assert pool.calls[-1][2]["overrides"]["steps"] == (None if resumed_at else heavy_steps)


async def test_a_shortened_run_captures_no_states(running, pool, plan):
    pool.confidence = 0.1
    async with running(FakeCache(MISS), plan=replace(plan, rules=Rules(heavy_steps=10))) as balancer:
        await balancer.generate(ORDER)
    assert (pool.calls[-1][2]["overrides"]["steps"], pool.calls[-1][2]["capture"]) == (10, None)


@pytest.mark.parametrize(("service", "request_", "asked"), [("off", None, 0), ("off", "read", 1), ("read", "off", 0)])
async def test_the_requests_cache_mode_overrides_the_services(running, service, request_, asked):
    cache = FakeCache(MISS)
    async with running(cache, service) as balancer:
        (image,) = await balancer.generate(replace(ORDER, cache=request_))
    assert len(cache.asked) == asked
    assert (image.lookup.similarity is None) == (asked == 0)


async def test_reading_only_captures_nothing(running, pool):
    pool.confidence = 0.1
    cache = FakeCache(MISS)
    async with running(cache, "read") as balancer:
        await balancer.generate(ORDER)
    assert pool.calls[1][2]["capture"] is None
    assert cache.reports == [(0, (), 0)]


async def test_a_request_for_the_light_variant_is_not_looked_up(running):
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        (image,) = await balancer.generate(replace(ORDER, variant=LIGHT))
    assert image.path == "light"
    assert not cache.asked


@pytest.mark.parametrize(("asked", "step"), [(None, 0), ("read-write", 25)])
async def test_under_a_plan_without_reuse_only_requests_that_name_the_cache_resume(asked, step, running, pool, plan):
    alone = replace(plan, thresholds=(1.0,), rules=replace(plan.rules, reuse=False))
    async with running(FakeCache(HIT), plan=alone) as balancer:
        (image,) = await balancer.generate(replace(ORDER, cache=asked))
        counted = balancer.counters(0, 0)["found"]
    assert pool.calls[-1][1] == HEAVY
    assert (pool.calls[-1][2]["resume"] or {"step": 0})["step"] == step
    assert counted == {"0.5": 1}, "what could be saved is still seen"
    assert image.lookup.similarity == HIT.similarity


async def test_the_end_of_a_failed_request_is_reported_to_the_cache(running, pool):
    pool.fail = lambda replica, role: ("generation_failed", "no")
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        with pytest.raises(Exception, match="no"):
            await balancer.generate(ORDER)
    assert cache.reports == [(0, (), 0)]


class FakeHandle:
    """A deployment handle whose calls a test defines."""

    def __init__(self) -> None:
        self.answer: Any = HIT.to_dict()
        self.delay_s = 0.0
        self.calls: list[str] = []
        self.reports: list[tuple[object, ...]] = []
        self.arguments: tuple[Any, ...] = ()
        self._method = ""

    def options(self, *, method_name: str) -> FakeHandle:
        self._method = method_name
        return self

    async def remote(self, *arguments: object) -> Any:
        self.calls.append(self._method)
        if self._method == "finish":
            self.reports += arguments[0]
        else:
            self.arguments = arguments
        await asyncio.sleep(self.delay_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


REQUEST = ImageRequest("a", "a red circle", 1, ImageSize(64, 64), 0.0)


async def test_the_cache_services_answer_becomes_the_lookup():
    assert await ServeCacheClient(FakeHandle(), wait_s=1.0).find(REQUEST) == HIT


@pytest.mark.parametrize(("answer", "error"), [(HIT.to_dict(), None), (RuntimeError("a red circle"), "RuntimeError")])
async def test_a_lookup_is_a_span_that_the_cache_is_told(answer, error):
    handle = FakeHandle()
    handle.answer = answer
    with recorded() as collector, logged_as("mine"):
        await ServeCacheClient(handle, wait_s=1.0).find(REQUEST)
    [lookup] = collector.spans
    assert (lookup.name, lookup.attributes["weir.request_id"]) == ("cache lookup", "mine")
    assert (lookup.failed, lookup.attributes.get("error.type")) == (error is not None, error)
    assert handle.arguments[-1].split("-")[1:3] == [lookup.trace_id, lookup.span_id]


async def test_a_state_that_a_worker_refused_is_reported_to_the_cache():
    handle = FakeHandle()
    cache = ServeCacheClient(handle, wait_s=1.0)
    with logged_as("mine"):
        cache.finished("a", ImageResult("a", b"png", None, 50, 0.0, 1.0, 1.0, 1, 1, refused=True), 25)
    await asyncio.wait(cache._reporting, timeout=5)
    assert handle.reports == [("a", 0, (), 25, None, True, "mine")]


async def test_ends_of_requests_are_reported_together():
    handle = FakeHandle()
    cache = ServeCacheClient(handle, wait_s=1.0)
    for name in ("a", "b", "c"):
        cache.finished(name, None, 0)
    await asyncio.wait(cache._reporting, timeout=5)
    cache.finished("d", None, 0)
    await asyncio.wait(cache._reporting, timeout=5)
    assert [report.name for report in handle.reports] == ["a", "b", "c", "d"]
    assert handle.calls == ["finish"] * 2


async def test_reports_to_an_unreachable_cache_have_a_time_limit(monkeypatch):
    monkeypatch.setattr("load_balancer.runner.serve_cache_client._FINISH_S", 0.01)
    handle = FakeHandle()
    handle.delay_s = 60
    cache = ServeCacheClient(handle, wait_s=1.0)
    cache.finished("a", None, 0)
    cache.finished("b", None, 0)
    await asyncio.wait(cache._reporting, timeout=5)
    assert not cache._reporting
    assert cache.failures == {"finish": 2}


async def test_a_slow_lookup_is_a_miss_after_its_time_limit():
    handle = FakeHandle()
    handle.delay_s = 5
    cache = ServeCacheClient(handle, wait_s=0.01)
    assert await cache.find(REQUEST) == NO_LOOKUP
    assert cache.failures["TimeoutError"] == 1


async def test_lookups_are_suspended_after_repeated_failures(monkeypatch):
    handle = FakeHandle()
    handle.answer = RuntimeError("the replica died")
    cache = ServeCacheClient(handle, wait_s=1.0)
    for _ in range(8):
        assert await cache.find(REQUEST) == NO_LOOKUP
    assert len(handle.calls) == 5
    assert cache.failures == {"RuntimeError": 5, "resting": 3}
    cache.finished("a", None, 0)
    await asyncio.wait(cache._reporting, timeout=5)
    assert cache.failures["finish"] == 1


async def test_of_several_images_of_a_request_only_the_first_resumes(running, pool):
    cache = FakeCache(HIT)
    async with running(cache) as balancer:
        images = await balancer.generate(replace(ORDER, n=3))
    assert [image.result.resumed_at for image in images] == [25, 0, 0]
    assert len(cache.asked) == 1
