"""Faults of Redis are counted misses, never an error and never a wrong state.

Every fault is made on a real server. The state that a worker would resume from is asked for exactly as a worker does.
"""

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
import redis

from cache.cache import ApproximateCache, Judge, PromptModels
from cache.encoder import WordEncoder
from cache.index import VectorIndex
from cache.policy.catalog import Catalog, Rules
from cache.policy.eviction import Weir
from cache.policy.partition import Partitions, Settings
from cache.policy.selector import PUBLISHED, By, Selector
from cache.store.backend import StoreFailed
from cache.store.breaker import Breaker
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.store import PREFIX, Record, SealedStore
from tests.cache.conftest import PARTITION, SECRET, request, state
from weir.config import load_family
from weir.core import CacheLookup, ImageSize, Resume
from weir.errors import ServiceError
from weir.states import state_key

KEY = state_key(PARTITION, "a", 10)
HERE = Settings(ImageSize(64, 64))


def raw(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def flipped(value: bytes) -> bytes:
    return value[:-5] + bytes([value[-5] ^ 1]) + value[-4:]


DAMAGE: dict[str, Callable[[redis.Redis, bytes], object]] = {
    "a flipped bit": lambda r, v: r.set(KEY, flipped(v)),
    "a truncated value": lambda r, v: r.set(KEY, v[: len(v) // 2]),
    "an empty value": lambda r, v: r.set(KEY, b""),
    "somebody else's value": lambda r, v: r.set(KEY, b"\x80\x04\x95 not ours"),
    "a state moved to another key": lambda r, v: (r.delete(KEY), r.rename(state_key(PARTITION, "a", 5), KEY)),
    "a value sealed with another secret": lambda r, v: SealedStore(
        RedisBackend(url_of(r), read_s=0.5, write_s=0.5), b"the secret of a stranger"
    ).put(request(), [state(10, seed=9)]),
    "a value of an older format": lambda r, v: r.set(KEY, v[:4] + b"\0" + v[5:]),
}


def url_of(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    return f"redis://:{options['password']}@{options['host']}:{options['port']}/0"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_value_with_an_invalid_tag_is_a_counted_miss(server: RedisServer, store: SealedStore, damage: str) -> None:
    store.put(request(), [state(5), state(10)])
    with raw(server) as client:
        DAMAGE[damage](client, client.get(KEY))
    assert store.get(KEY) is None
    assert store.counts["refused"] == 1
    assert store.lost(KEY)


def test_a_key_of_another_type_is_a_counted_miss_and_not_a_server_failure(
    server: RedisServer, store: SealedStore, backend: RedisBackend
) -> None:
    with raw(server) as client:
        client.rpush(KEY, "a", "list")
    for _ in range(10):
        assert store.get(KEY) is None
    assert store.counts["failed"] == 10
    assert not backend.reading.is_open
    assert store.lost(KEY)


def test_a_server_that_is_not_there_is_a_counted_miss() -> None:
    store = SealedStore(RedisBackend("redis://127.0.0.1:1/0"), SECRET)
    assert store.get(KEY) is None
    assert not store.lost(KEY)
    with pytest.raises(StoreFailed):
        store.put(request(), [state()])
    assert store.counts["failed"] == store.counts["write_failed"] == 1


def test_a_server_that_dies_and_comes_back_is_used_again(server: RedisServer, store: SealedStore) -> None:
    store.put(request(), [state(10)])
    server.process.kill()
    server.process.wait()
    assert store.get(KEY) is None
    port, password = int(server.url.split(":")[3].split("/")[0]), server.url.split(":")[2].split("@")[0]
    again = RedisServer.start(port=port, password=password)
    try:
        store.put(request(), [state(10)])
        assert store.get(KEY) is not None
    finally:
        again.stop()


def test_a_server_that_was_killed_is_started_again_at_the_same_url(server: RedisServer, store: SealedStore) -> None:
    assert not server.restart_if_ended()
    server.process.kill()
    server.process.wait()
    assert server.restart_if_ended()
    with raw(server) as client:
        end = time.monotonic() + 30
        while not answers(client):
            assert time.monotonic() < end
    store.put(request(), [state(10)])
    assert store.get(KEY) is not None


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        time.sleep(0.05)
        return False


def test_a_slow_server_costs_the_time_limit_and_then_nothing(server: RedisServer) -> None:
    backend = RedisBackend(server.url, read_s=0.05, breaker=(3, 30.0))
    store = SealedStore(backend, SECRET)
    assert store.get(KEY) is None  # connected
    before = store.counts["failed"]  # a busy machine may exceed the time limit, too
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert store.get(KEY) is None
        assert backend.reading.is_open
        backend._reader = None  # type: ignore[assignment]  # nobody asks the server while the breaker is open
        for _ in range(100):
            assert store.get(KEY) is None
        assert store.counts["failed"] == before + 103
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def test_the_breaker_closes_again_once_the_server_answers(server: RedisServer) -> None:
    now = [0.0]
    backend = RedisBackend(server.url, read_s=0.2, write_s=60, breaker=(2, 5.0), clock=lambda: now[0])
    store = SealedStore(backend, SECRET)
    store.put(request(), [state(10)])
    os.kill(server.process.pid, signal.SIGSTOP)
    for _ in range(2):
        assert store.get(KEY) is None
    os.kill(server.process.pid, signal.SIGCONT)
    assert store.get(KEY) is None, "still open"
    now[0] = 5.1
    while store.get(KEY) is None:  # on a busy machine the server may exceed the time limit
        now[0] += 5.1
    assert not backend.reading.is_open


def test_a_full_server_refuses_writes_and_goes_on_reading(server: RedisServer, store: SealedStore) -> None:
    store.put(request(), [state(10)])
    with raw(server) as client:
        client.config_set("maxmemory", 1)
        client.config_set("maxmemory-policy", "noeviction")
    with pytest.raises(StoreFailed, match="OutOfMemory"):
        store.put(request("b"), [state(10)])
    assert store.get(KEY) is not None


def test_a_read_only_server_refuses_writes_and_goes_on_reading(server: RedisServer, store: SealedStore) -> None:
    store.put(request(), [state(10)])
    with raw(server) as client:
        client.replicaof("127.0.0.1", "1")
    with pytest.raises(StoreFailed, match="ReadOnly"):
        store.put(request("b"), [state(10)])
    assert store.get(KEY) is not None


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(server: RedisServer) -> None:
    taken = int(server.url.split(":")[3].split("/")[0])
    with pytest.raises(ServiceError, match=str(taken)):
        RedisServer.start(port=taken)


def test_the_breaker_lets_one_probe_through_at_a_time() -> None:
    breaker = Breaker(failures=2, open_s=10)
    for _ in range(2):
        assert breaker.allows(0)
        breaker.record(False, 0)
    assert not breaker.allows(9.9)
    assert breaker.allows(10)
    assert not breaker.allows(10.1), "the probe is under way"
    breaker.record(False, 10.2)
    assert not breaker.allows(20)
    assert breaker.allows(20.2)
    breaker.record(True, 20.3)
    assert breaker.allows(20.3)
    assert breaker.allows(20.3)


# ------------------------------------------------------------------------------------- the cache above the store


class Setup:
    """A cache over a store, with the steps of a heavy run and its worker."""

    def __init__(self, store: SealedStore, budget: int = 10**9, judge: Judge | None = None, width: int = 256):
        family = load_family("deploy/families/weir-tiny.yaml")
        self.store = store
        self._encoder = WordEncoder(width)
        selector = PUBLISHED["nirvana"] if judge is None else Selector(((0.5, 25),), by=By.CONFIDENCE)
        catalog = Catalog(Rules(selector), Weir(), budget, lambda: VectorIndex(width))
        partitions = Partitions(family, self._encoder.version)
        self.cache = ApproximateCache(partitions, catalog, store, dim=width, steps=50, models=PromptModels(judge=judge))

    def lookup(self, name: str, tenant: str, prompt: str, settings: Settings = HERE) -> CacheLookup:
        [vector] = self._encoder.encode([prompt])
        return self.cache.lookup(name, tenant, prompt, settings, vector)

    def serve(self, name: str, prompt: str, tenant: str = "acme", seed: int = 0, model: str = "heavy-1") -> int:
        """Looks up, generates with the weights of ``model`` and finishes, as in the request path; returns the step
        that the run began at."""
        found = self.lookup(name, tenant, prompt)
        sought = 0 if found.resume is None else found.resume.step
        fetched = None if found.resume is None else self.store.get(found.resume.key)
        refused = fetched is not None and fetched.model != model
        first = sought if fetched is not None and not refused else 0
        captured = ()
        if found.capture:
            wanted = [state(k, seed, model) for k in (5, 10, 15, 20, 25) if k > first]
            try:
                self.store.put(request(name, found.partition), wanted)
                captured = tuple(s.step for s in wanted)
            except StoreFailed:
                pass
        self.cache.finish(name, first, captured, sought, seen=np.float16([len(prompt)]).tobytes(), refused=refused)
        return first


def test_a_repeated_prompt_resumes_and_a_restart_remembers_it(store: SealedStore) -> None:
    before = Setup(store)
    assert before.serve("1", "a red circle left of a blue star") == 0
    assert before.serve("2", "a red circle left of a blue star") == 25
    after = Setup(store)
    assert after.cache.rebuild() == 1
    assert after.serve("3", "a red circle left of a blue star") == 25


class Lengths:
    """A judge with confidence in images of prompts of the same length."""

    def __init__(self, version: str = "1"):
        self.version = version

    def weigh(self, seen: np.ndarray, prompt: str) -> np.ndarray:
        return np.where(seen[:, 0] == len(prompt), 0.9, 0.1)


def test_a_judged_image_serves_any_prompt_that_it_fits_also_after_a_restart(
    store: SealedStore,
) -> None:
    before = Setup(store, judge=Lengths())
    assert before.serve("1", "a red circle") == 0
    assert before.serve("2", "a red circle on a sky background") == 0
    assert before.serve("3", "a blue cross", seed=1) == 25
    after = Setup(store, judge=Lengths())
    after.cache.rebuild()
    assert after.serve("4", "a red square") == 25


def test_features_of_another_discriminator_are_not_read(store: SealedStore) -> None:
    before = Setup(store, judge=Lengths())
    before.serve("1", "a red circle")
    after = Setup(store, judge=Lengths("2"))
    assert after.cache.rebuild() == 1
    assert after.serve("2", "a red circle") == 0


def test_entries_of_another_encoder_count_and_are_not_deleted_while_it_may_use_them(
    store: SealedStore,
) -> None:
    before = Setup(store, width=128)
    before.serve("1", "a red circle")
    after = Setup(store)
    assert after.cache.rebuild() == 1
    assert after.cache.catalog.used_bytes == before.cache.catalog.used_bytes
    assert after.serve("2", "a red circle") == 0
    assert before.serve("3", "a red circle") == 25, "replaced one by one, both run for a while"


def test_tenants_never_meet(store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle", tenant="acme")
    assert setup.serve("2", "a red circle", tenant="globex") == 0
    assert setup.serve("3", "a red circle", tenant="globex") == 25


def test_a_purge_beside_a_running_cache_costs_one_miss_for_each_entry(store: SealedStore) -> None:
    setup = Setup(store)
    prompts = ("a red circle", "two yellow stars")
    for i, prompt in enumerate(prompts):
        setup.serve(f"before-{i}", prompt)
    store.purge()
    for i, prompt in enumerate(prompts):
        assert setup.serve(f"after-{i}", prompt) == 0
        assert f"before-{i}" not in setup.cache.catalog
    for again, expected in (("once more", 0), ("and again", 25)):
        assert [setup.serve(f"{again}-{i}", prompt) for i, prompt in enumerate(prompts)] == [expected, expected]


def test_a_purge_of_the_running_cache_takes_one_tenant_from_index_and_store(store: SealedStore) -> None:
    setup = Setup(store)
    for tenant in ("acme", "globex"):
        setup.serve(f"of-{tenant}", "a red circle", tenant=tenant)
    before = setup.cache.statistics()
    assert before["tenants"] == {"acme": 1, "globex": 1}
    found = setup.cache.purge("acme")
    assert found["entries"] == 1
    assert found["values"] == before["states"] // 2 + 1
    after = setup.cache.statistics()
    assert (after["entries"], after["states"], after["bytes"]) == (1, before["states"] // 2, before["bytes"] // 2)
    assert after["tenants"] == {"globex": 1}
    assert list(store.backend.keys(f"{PREFIX}{Partitions.prefix('acme')}")) == []
    nothing = setup.lookup("again", "acme", "a red circle")
    assert (nothing.entry, nothing.similarity) == (None, None), "not even as the nearest"
    assert setup.serve("theirs", "a red circle", tenant="globex") == 25
    assert setup.cache.purge()["entries"] == 1
    assert list(store.backend.keys("weir:")) == []


def test_a_run_that_began_before_a_purge_adds_nothing_after_it(store: SealedStore) -> None:
    setup = Setup(store)
    found = setup.lookup("1", "acme", "a red circle")
    setup.cache.purge("acme")
    store.put(request("1", found.partition), [state(5), state(25)])
    setup.cache.finish("1", 0, (5, 25))
    assert len(setup.cache.catalog) == 0
    assert list(store.backend.keys("weir:")) == []
    assert setup.serve("2", "a red circle") == 0
    assert setup.serve("3", "a red circle") == 25, "what begins later is kept"


def test_other_settings_never_meet(store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle")
    for i, settings in enumerate(
        (
            Settings(ImageSize(128, 64)),
            Settings(ImageSize(64, 128)),
            Settings(ImageSize(32, 128)),
            Settings(ImageSize(64, 64), steps=40),
            Settings(ImageSize(64, 64), guidance=5),
            Settings(ImageSize(64, 64), negative_prompt="blurry"),
        )
    ):
        assert setup.lookup(f"other-{i}", "acme", "a red circle", settings).resume is None


def test_the_cache_keeps_its_budget_and_the_store_has_nothing_else(store: SealedStore) -> None:
    setup = Setup(store, budget=40_000)
    for i in range(30):
        setup.serve(str(i), f"prompt number {i} of nothing alike {i * 7919}")
    catalog = setup.cache.catalog
    assert catalog.used_bytes <= 40_000
    assert setup.cache.counters.evicted > 0
    keys = set(store.backend.keys(PREFIX))
    assert len(keys) == catalog.states + len(catalog)


def test_a_deleted_state_is_missed_once(server: RedisServer, store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle")
    with raw(server) as client:
        for key in client.scan_iter(f"{PREFIX}*:1:*"):
            client.delete(key)
    assert setup.serve("2", "a red circle") == 0
    assert setup.cache.counters.reasons["state_lost"] == 1
    setup.serve("3", "a red circle")
    assert setup.serve("4", "a red circle") > 0


def keys_and_states(setup: Setup) -> tuple[list[str], int]:
    """The keys of the stored states, and the number of states in the catalog."""
    return [key for key in setup.store.backend.keys(PREFIX) if key.count(":") == 4], setup.cache.catalog.states


def test_evicted_states_are_deleted_even_if_records_are_refused(
    server: RedisServer, store: SealedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, remember = Setup(store, budget=15_000), store.remember

    def remembered(record: Record) -> None:
        with raw(server) as client:  # the memory is full from here on, and free again for the next image
            client.config_set("maxmemory", 1)
            try:
                remember(record)
            finally:
                client.config_set("maxmemory", 0)

    monkeypatch.setattr(store, "remember", remembered)
    for i in range(10):
        setup.serve(str(i), f"prompt number {i} of nothing alike {i * 7919}")
    there, known = keys_and_states(setup)
    counters = setup.cache.counters
    assert counters.reasons["store_failed"] == 10
    assert counters.evicted == counters.inserted - known > 0
    assert len(there) == known


@pytest.mark.parametrize("broken", ["delete", "sizes"])
def test_a_failed_deletion_is_tried_again(store: SealedStore, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    setup = Setup(store, budget=15_000)

    def fails(*_: object) -> None:
        raise StoreFailed("no answer in time")

    with monkeypatch.context() as patch:
        patch.setattr(store.backend, broken, fails)
        for i in range(10):
            setup.serve(str(i), f"prompt number {i} of nothing alike {i * 7919}")
    there, known = keys_and_states(setup)
    assert len(there) > known
    setup.cache.sweep()
    there, known = keys_and_states(setup)
    assert len(there) == known
    assert Setup(store).cache.rebuild() == len(setup.cache.catalog)


def test_a_refused_state_is_replaced_by_one_that_fits(store: SealedStore) -> None:
    setup = Setup(store)
    assert setup.serve("1", "a red circle", model="the old weights") == 0
    served = [setup.serve(str(i), "a red circle", model="the new weights") for i in range(2, 5)]
    assert served == [0, 0, 25], "refused, stored again, resumed from"
    there, _ = keys_and_states(setup)
    assert all(":3:" in key for key in there), "the old ones are gone from the store too"
    assert setup.cache.counters.reasons == {"state_not_used": 1}


def test_a_state_that_did_not_come_in_time_stays(store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle")
    setup.lookup("2", "acme", "a red circle")
    setup.cache.finish("2", 0, sought=25)
    setup.lookup("3", "acme", "a red circle")
    setup.cache.finish("3")
    assert setup.serve("4", "a red circle") == 25


def test_a_lookup_has_every_state_of_the_nearest_prompt(store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle left of a blue star")
    found = setup.lookup("2", "acme", "one green cross on a gray background")
    assert (found.resume, found.entry) == (None, "1")
    assert [k for k, _ in found.stored] == [5, 10, 15, 20, 25]
    for k, key in found.stored:
        fetched = store.get(key)
        assert fetched is not None
        assert fetched.step == k
    assert found.at(12) == Resume(key=found.stored[1][1], step=10)


def test_a_use_counts_for_the_state_that_the_policy_chose(store: SealedStore) -> None:
    setup = Setup(store, budget=15_000)
    setup.serve("1", "a red circle left of a blue star")
    for i in range(5):
        setup.lookup(f"by policy {i}", "acme", "a red circle left of a blue star")
        setup.cache.finish(f"by policy {i}", 5, sought=5)
    for i in range(6):
        setup.serve(f"other {i}", f"prompt number {i} of nothing alike {i * 7919}")
    assert 5 in setup.cache.catalog.stored("1")
    assert 25 not in setup.cache.catalog.stored("1")


def test_a_missing_state_that_a_policy_chose_is_checked(server: RedisServer, store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle")
    found = setup.lookup("2", "acme", "a red circle")
    with raw(server) as client:
        client.delete(dict(found.stored)[10])
    setup.cache.finish("2", 0, sought=10)
    assert setup.cache.catalog.stored("1") == (5, 15, 20, 25)


def test_no_state_of_a_lookup_is_evicted_before_the_request_is_finished(store: SealedStore) -> None:
    setup = Setup(store, budget=15_000)
    setup.serve("1", "a red circle")
    setup.lookup("open", "acme", "a red circle")
    for i in range(6):
        setup.serve(f"other {i}", f"prompt number {i} of nothing alike {i * 7919}")
    assert setup.cache.catalog.stored("1") == (5, 10, 15, 20, 25)
    setup.cache.finish("open")
    assert not setup.cache.catalog.pins


def test_a_damaged_state_is_deleted_with_its_place_in_the_catalog(server: RedisServer, store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle")
    [key] = [key for key in store.backend.keys(PREFIX) if key.endswith(":25")]
    with raw(server) as client:
        client.set(key, flipped(client.get(key)))
    assert setup.serve("2", "a red circle") == 0
    assert store.backend.get(key) is None
    assert setup.serve("3", "a red circle") == 20


def test_the_cache_continues_while_the_server_is_down_and_after(server: RedisServer, store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle")
    server.process.kill()
    server.process.wait()
    for i in range(10):
        assert setup.serve(f"down-{i}", "a red circle") == 0
    assert setup.cache.counters.served[0] == 11
    assert setup.cache.catalog.states == 5, "what is not proven lost is kept"


def test_a_request_that_is_never_finished_expires(store: SealedStore) -> None:
    now = [0.0]
    setup = Setup(store)
    setup.serve("1", "a red circle")
    setup.cache._clock = lambda: now[0]
    setup.lookup("lost", "acme", "a red circle")
    assert setup.cache.catalog.pins
    now[0] = 1000
    setup.serve("2", "a red circle")
    assert not setup.cache.catalog.pins
    assert setup.cache.counters.reasons["never_finished"] == 1


def test_no_state_of_another_prompt_is_taken_for_its_own(store: SealedStore) -> None:
    setup = Setup(store)
    setup.serve("1", "a red circle", seed=1)
    found = setup.lookup("2", "acme", "a red circle")
    assert found.resume is not None
    fetched = store.get(found.resume.key)
    assert fetched is not None
    assert np.array_equal(fetched.latent, state(25, 1).latent)
