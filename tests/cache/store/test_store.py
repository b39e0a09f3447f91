"""The sealed store returns what was written under a key, or nothing."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.store.backend import MemoryBackend
from cache.store.quantise import quantise, restore
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.seal import COMPRESSIONS, seal, unseal
from cache.store.store import Record, SealedStore, entry_key
from tests.cache.conftest import PARTITION, SECRET, request, state
from weir.errors import ConfigError, StateRefused
from weir.states import state_key


@pytest.fixture(params=["redis", "memory"])
def either(request: pytest.FixtureRequest) -> SealedStore:
    return SealedStore(request.getfixturevalue("backend") if request.param == "redis" else MemoryBackend(), SECRET)


def record(entry: str = "a", sizes: dict[int, int] | None = None, created: float = 0.0) -> Record:
    vector = np.array([0.6, 0.8], np.float16)
    return Record(PARTITION, entry, "a dog, “quoted” ☂", vector, sizes or {5: 100, 10: 100}, created)


def test_a_state_comes_back_as_it_was_written(either: SealedStore) -> None:
    written = state(10)
    either.put(request(), [state(5), written])
    read = either.get(state_key(PARTITION, "a", 10))
    assert read is not None
    assert np.array_equal(read.latent, written.latent)
    assert (read.step, read.steps, read.sampler, read.model) == (10, 50, written.sampler, written.model)
    assert either.get(state_key(PARTITION, "a", 25)) is None
    assert either.counts == {"written": 2, "read": 1, "absent": 1}


def test_a_request_without_a_partition_stores_nothing(either: SealedStore) -> None:
    either.put(replace(request(), capture=None), [state()])
    assert list(either.backend.keys("")) == []


def test_the_records_rebuild_the_index_after_a_restart(either: SealedStore) -> None:
    either.put(request("a"), [state(5), state(10)])
    either.remember(record("a"))
    [read] = either.records()
    assert (read.partition, read.entry, read.prompt, read.sizes) == (
        PARTITION,
        "a",
        "a dog, “quoted” ☂",
        {5: 100, 10: 100},
    )
    assert np.allclose(read.vector, [0.6, 0.8], atol=1e-3)


def test_a_restart_deletes_orphaned_states(either: SealedStore) -> None:
    either.put(request("crashed"), [state(5)])  # its record was never written
    either.remember(record("evicted"))  # its states are gone
    either.put(request("whole"), [state(5), state(25)])
    either.remember(record("whole"))  # the state of 25 was stored later, and no record has it
    reported: list[int] = []
    assert [r.entry for r in either.records(reported.append)] == ["whole"]
    assert reported == [2]
    assert sorted(either.backend.keys("weir:")) == [entry_key(PARTITION, "whole"), state_key(PARTITION, "whole", 5)]


def test_a_record_that_a_scan_gives_twice_is_read_once_and_stays() -> None:
    class Resized(MemoryBackend):
        """Returns every key twice, as Redis may while its table changes size."""

        def keys(self, prefix: str) -> Iterator[str]:
            found = list(super().keys(prefix))
            yield from found + found

    store = SealedStore(Resized(), SECRET)
    store.put(request(), [state(5)])
    store.remember(record())
    for _ in range(2):
        assert [r.entry for r in store.records()] == ["a"]
    assert len(set(store.backend.keys("weir:"))) == 2


def test_a_purge_takes_one_tenant_only(either: SealedStore) -> None:
    either.put(request("a"), [state(5)])
    either.put(request("b", partition=PARTITION.replace("acme", "acme2")), [state(5)])
    assert either.purge("weir:1:acme|") == 1
    assert list(either.backend.keys("weir:")) == [state_key(PARTITION.replace("acme", "acme2"), "b", 5)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_states_come_back_within_the_stated_error(compression: str) -> None:
    written = state()
    store = SealedStore(MemoryBackend(), SECRET, compression)
    store.put(request(), [written])
    read = store.get(state_key(PARTITION, "a", 10))
    assert read is not None
    error = np.sqrt(np.mean((read.latent.astype(float) - written.latent.astype(float)) ** 2))
    assert error <= (0.01 if compression == "int8" else 0)


@given(st.floats(1e-3, 60), st.integers(0, 1000))
def test_the_error_of_eight_bits_is_at_most_half_a_step(scale: float, seed: int) -> None:
    latent = (scale * np.random.default_rng(seed).normal(size=(4, 8, 8))).astype(np.float16)
    step = np.abs(latent.astype(float)).max(axis=(1, 2), keepdims=True) / 127
    assert (np.abs(restore(quantise(latent)).astype(float) - latent) <= 0.51 * step + 1e-3 * abs(latent)).all()


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(place: int, bit: int) -> None:
    value = bytearray(seal("key", state().to_bytes(), SECRET))
    value[place % len(value)] ^= 1 << bit
    with pytest.raises(StateRefused):
        unseal("key", bytes(value), SECRET)


@given(st.integers(0, 3000))
def test_a_truncated_value_is_refused(length: int) -> None:
    value = seal("key", state().to_bytes(), SECRET)
    with pytest.raises(StateRefused):
        unseal("key", value[: length % len(value)], SECRET)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(StateRefused):
        unseal("key", value, SECRET)


def test_a_value_under_another_key_or_with_another_secret_is_refused() -> None:
    value = seal("key", b"body", SECRET)
    for key, secret in (("other", SECRET), ("key", b"the secret of a stranger")):
        with pytest.raises(StateRefused, match="tag"):
            unseal(key, value, secret)


def test_a_value_of_another_format_is_refused_by_name() -> None:
    value = bytearray(seal("key", b"body", SECRET))
    value[4] = 0
    with pytest.raises(StateRefused, match="format 0"):
        unseal("key", bytes(value), SECRET)


@pytest.mark.parametrize("url", ["http://host", "host:6379", ""])
def test_a_url_that_is_not_of_redis_is_refused_with_the_accepted_form(url: str) -> None:
    with pytest.raises(ConfigError, match="redis://"):
        RedisBackend(url)


def test_a_server_asks_for_its_password(server: RedisServer) -> None:
    without = server.url.replace(server.url.split("@")[0] + "@", "redis://")
    stranger = SealedStore(RedisBackend(without, read_s=0.5), SECRET)
    assert stranger.get("weir:1:x") is None
    assert stranger.counts == {"failed": 1}
