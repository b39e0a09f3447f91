"""The metrics of the cache: hits by K, similarities, contents, and calls to the store."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from cache.cache import ApproximateCache
from cache.cache_metrics import CacheMetrics
from cache.encoder import WordEncoder
from cache.index import VectorIndex
from cache.policy.catalog import Catalog, Rules
from cache.policy.eviction import Weir
from cache.policy.partition import Partitions, Settings
from cache.policy.selector import PUBLISHED
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.store import SealedStore
from tests.cache.conftest import SECRET, request, state
from weir.config import load_family
from weir.core import ImageSize
from weir.telemetry import PrometheusMetrics

KS = (5, 10, 15, 20, 25)


class Seen:
    """A cache over a real Redis, and its scraped metrics."""

    def __init__(self, backend: RedisBackend):
        self.registry = CollectorRegistry()
        metrics = PrometheusMetrics(self.registry)
        family, self.encoder = load_family("deploy/families/weir-tiny.yaml"), WordEncoder(256)
        self.store = SealedStore(backend, SECRET, metrics=metrics)
        catalog = Catalog(Rules(PUBLISHED["nirvana"]), Weir(), 40_000, lambda: VectorIndex(256))
        partitions = Partitions(family, self.encoder.version)
        self.cache = ApproximateCache(partitions, catalog, self.store, dim=256, steps=50)
        self.meter = CacheMetrics(self.cache, metrics, family.heavy.steps)

    def serve(self, name: str, prompt: str, resumed_at: int = 0, steps: int | None = None) -> None:
        [vector] = self.encoder.encode([prompt])
        found = self.cache.lookup(name, "acme", prompt, Settings(ImageSize(64, 64), steps=steps), vector)
        self.meter.looked_up(found, 0.003)
        captured = KS if found.capture and not steps else ()
        if captured:
            self.store.put(request(name, found.partition), [state(k) for k in captured])
        self.cache.finish(name, resumed_at, captured, sought=resumed_at)

    def value(self, name: str, **labels: str) -> float:
        self.meter.record()
        return self.registry.get_sample_value(f"weir_{name}", labels) or 0.0


@pytest.fixture
def seen(backend: RedisBackend) -> Seen:
    return Seen(backend)


def test_hits_are_counted_by_the_step_that_they_resumed_at(seen: Seen) -> None:
    seen.serve("1", "a red circle")
    for name, k in (("2", 25), ("3", 25), ("4", 10)):
        seen.serve(name, "a red circle", resumed_at=k)
    assert seen.value("cache_lookups_total") == 4
    assert [seen.value("cache_served_total", k=str(k)) for k in (0, 10, 25)] == [1, 1, 2]


def test_a_step_of_another_run_length_is_counted_as_other(seen: Seen) -> None:
    for number in range(3, 60, 2):
        if number % 5:
            seen.serve(str(number), "a red circle", resumed_at=number, steps=60)
    assert seen.value("cache_served_total", k="other") > 10
    reported = {
        s.labels["k"] for f in seen.registry.collect() for s in f.samples if s.name == "weir_cache_served_total"
    }
    assert reported == {"other"}


def test_lookups_are_recorded_with_their_time_and_similarity(seen: Seen) -> None:
    seen.serve("1", "a red circle")
    seen.serve("2", "a red circle", resumed_at=25)
    assert seen.value("cache_search_seconds_count") == 2
    assert seen.value("cache_similarity_count") == 1, "an empty index has no nearest prompt"
    assert seen.value("cache_similarity_sum") == pytest.approx(1, abs=1e-3)


def test_cached_and_evicted_states_are_recorded(seen: Seen) -> None:
    for number in range(10):
        seen.serve(str(number), f"prompt number {number} of nothing alike {number * 7919}")
    assert seen.value("cache_inserted_total") == 50
    assert seen.value("cache_evicted_total") > 0
    assert seen.value("cache_entries") == len(seen.cache.catalog)
    assert seen.value("cache_states") == 50 - seen.value("cache_evicted_total")
    assert 0 < seen.value("cache_bytes") <= seen.value("cache_budget_bytes") == 40_000


def test_a_server_that_dies_opens_the_breaker_and_every_failed_read_is_counted(seen: Seen, server: RedisServer) -> None:
    assert seen.value("cache_breaker_open", side="read") == 0
    server.process.kill()
    server.process.wait()
    for _ in range(5):
        assert seen.store.get("weir:1:nothing:here:5") is None
    assert seen.value("cache_breaker_open", side="read") == 1
    assert seen.value("cache_breaker_open", side="write") == 0
    assert seen.value("store_calls_total", outcome="failed") == 5
