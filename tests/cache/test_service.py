"""The cache's service: it starts with the entries of the store, also if the store starts later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from cache.encoder import WordEncoder
from cache.lookup_batcher import Query
from cache.policy.partition import Settings
from cache.service import CacheService
from cache.store.backend import StoreFailed
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.store import SealedStore
from testing.collector import recorded
from testing.toy_family import FAMILY
from tests.cache.conftest import SECRET, request, state
from weir.config import CacheConfig
from weir.core import CacheReport, ImageSize
from weir.errors import ConfigError

KS = (5, 10, 15, 20, 25)
HERE = {"size": "64x64"}


def running(url: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> CacheService:
    monkeypatch.setenv("WEIR_CACHE_URL", url)
    monkeypatch.setenv("WEIR_CACHE_SECRET", SECRET.decode())
    return CacheService(CacheConfig(mode="read-write", encoder="words", **more).model_dump(), FAMILY)


async def tended(service: CacheService) -> CacheService:
    """Runs the periodic work of a health check, and waits for it."""
    await asyncio.wrap_future(service._tending)
    assert service.ready
    return service


async def started(service: CacheService) -> CacheService:
    """Waits until the service has read its store. A store that does not answer in time is read again later."""
    while not (await tended(service))._rebuilt_from_store:
        await asyncio.sleep(0.1)
        await service.check_health()
    return service


async def draw(service: CacheService, store: SealedStore, name: str) -> None:
    found = await service.lookup(name, "acme", "a red circle", HERE)
    assert found["capture"]
    store.put(request(name, found["partition"]), [state(k) for k in KS])
    await service.finish([CacheReport(name, captured=KS)])


async def test_a_store_that_starts_after_the_cache_is_read_later(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = RedisBackend(server.url, read_s=0.5, write_s=0.5)
    store = SealedStore(backend, SECRET)
    await draw(await started(running(server.url, monkeypatch)), store, "earlier")
    kept = {key: backend.get(key) for key in backend.keys("weir:")}
    server.process.kill()
    server.process.wait()

    late = await tended(running(server.url, monkeypatch))
    found = await late.lookup("a", "acme", "a red circle", HERE)
    assert (found["resume"], found["capture"]) == (None, False), (
        "what it keeps now would not count with what lies there"
    )
    for _ in range(3):
        await late.check_health()
        await tended(late)
    messages = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message.partition(":")[0] for message in messages] == [
        "the cache inserts nothing until its store can be read, and tries again"
    ], "once is enough"

    port, password = int(server.url.split(":")[3].split("/")[0]), server.url.split(":")[2].split("@")[0]
    again = RedisServer.start(port=port, password=password)
    try:
        backend.put({key: value for key, value in kept.items() if value is not None})
        for _ in range(200):  # its breaker is open for a second
            await late.check_health()
            await tended(late)
            found = await late.lookup("b", "acme", "a red circle", HERE)
            if found["resume"]:
                break
            await asyncio.sleep(0.05)
        assert (found["entry"], found["resume"]["step"]) == ("earlier", 25)
    finally:
        again.stop()
        backend.close()


async def test_a_failed_deletion_is_retried_by_a_later_health_check(
    server: RedisServer, store: SealedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await started(running(server.url, monkeypatch))
    await draw(service, store, "a")
    found = await service.lookup("b", "acme", "a red circle", HERE)

    def fails(keys: Sequence[str]) -> None:
        raise StoreFailed("no answer in time")

    with monkeypatch.context() as patch:
        patch.setattr(service._cache.store.backend, "delete", fails)
        await service.finish([CacheReport("b", sought=25, refused=True)])
    assert store.backend.get(found["resume"]["key"]) is not None
    await service.check_health()
    await tended(service)
    assert list(store.backend.keys("weir:")) == []


async def test_a_lookup_is_a_span_of_the_callers_trace(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await started(running(server.url, monkeypatch))
    store = SealedStore(RedisBackend(server.url, read_s=0.5, write_s=0.5), SECRET)
    await draw(service, store, "earlier")
    with recorded("cache") as collector:
        await service.lookup("a", "acme", "a red circle", HERE, "mine", f"00-{'a' * 32}-{'b' * 16}-01")
    [span] = collector.spans
    assert (span.service, span.name, span.trace_id, span.parent_id) == ("weir-cache", "lookup", "a" * 32, "b" * 16)
    assert span.attributes["weir.similarity"] == pytest.approx(1, abs=1e-3)
    assert (span.attributes["weir.request_id"], span.attributes["weir.k"]) == ("mine", 25)


async def test_a_client_that_leaves_during_its_lookup_leaves_no_state_pinned(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await started(running(server.url, monkeypatch))
    await draw(service, SealedStore(RedisBackend(server.url, read_s=0.5, write_s=0.5), SECRET), "earlier")
    for number in range(50):
        lookup = asyncio.create_task(service.lookup(f"gone-{number}", "acme", "a red circle", HERE))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        lookup.cancel()
        await service.finish([CacheReport(f"gone-{number}")])
    await asyncio.gather(lookup, return_exceptions=True)
    assert service._cache.pinned == 0


async def test_an_end_that_overtakes_its_lookup_leaves_no_state_pinned(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await started(running(server.url, monkeypatch))
    await draw(service, SealedStore(RedisBackend(server.url, read_s=0.5, write_s=0.5), SECRET), "earlier")
    await service.finish([CacheReport("gone")])
    await service.lookup("gone", "acme", "a red circle", HERE)
    assert service._cache.pinned == 0
    await service.lookup("here", "acme", "a red circle", HERE)
    assert service._cache.pinned == len(KS)


def query(name: str, prompt: str = "a red circle", **settings: Any) -> Query:
    return Query(name, "acme", prompt, Settings(ImageSize(64, 64), **settings))


async def test_the_vector_of_a_lookup_is_the_vector_of_the_entry_that_it_inserts(
    server: RedisServer, store: SealedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, encoder = await started(running(server.url, monkeypatch, encoder_replicas=1)), WordEncoder()
    vectors = encoder.encode(["a red circle", "a blue star"])
    [found, other] = await service.search([query("a"), query("b", "a blue star")], vectors, encoder.version)
    assert found
    assert other
    assert (found["capture"], other["entry"]) == (True, None)
    store.put(request("a", found["partition"]), [state(k) for k in KS])
    await service.finish([CacheReport("a", captured=KS)])
    [again] = await service.search([query("c")], vectors[:1], encoder.version)
    assert again
    assert (again["entry"], again["resume"]["step"]) == ("a", 25)
    assert again["similarity"] == pytest.approx(1, abs=1e-3)


async def test_vectors_of_another_encoder_are_refused(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    service, encoder = await started(running(server.url, monkeypatch, encoder_replicas=1)), WordEncoder()
    with pytest.raises(ConfigError, match="encoded with words-2, and the index has vectors of words-1024"):
        await service.search([query("a")], encoder.encode(["a red circle"]), "words-2")


async def test_a_lookup_that_fails_fails_alone(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    service, encoder = await started(running(server.url, monkeypatch, encoder_replicas=1)), WordEncoder()
    vectors = encoder.encode(["a red circle"] * 2)
    broken = query("a", guidance="no number")
    [none, found] = await service.search([broken, query("b")], vectors, encoder.version)
    assert none is None
    assert found
    assert found["partition"]
