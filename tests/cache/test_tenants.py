"""Tenants cannot see, influence or probe one another's entries, and the secret of the tags can be replaced."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.factory import secrets
from cache.index import VectorIndex
from cache.policy.partition import Partitions, Settings
from cache.store.backend import MemoryBackend
from cache.store.redis_server import RedisServer
from cache.store.store import PREFIX, SealedStore
from tests.cache.conftest import SECRET, request, state
from tests.cache.test_faults import Setup, raw
from weir.adapters import AdapterUse, AdapterWeights
from weir.config import CacheConfig, load_family
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.states import state_key

FAMILY = load_family("deploy/families/weir-tiny.yaml")
HERE = Settings(ImageSize(64, 64))
NEW, OLD, STRANGER = b"the new secret of the cache", b"the old secret of the cache", b"the secret of a stranger"
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "star", "square")]


# ------------------------------------------------------------------------------------------------------------- see


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_no_tenants_name_reaches_into_anothers_partitions(one: str, other: str) -> None:
    partitions = Partitions(FAMILY, "clip-1")
    mine, theirs = partitions.name(one, HERE), partitions.name(other, HERE)
    assert (mine == theirs) == (one == other)
    assert theirs.startswith(Partitions.prefix(one)) == (one == other), "a purge of one takes nothing of the other"
    assert not set(":*?[]") & set(mine)


def test_another_tenants_state_moved_under_ones_own_key_is_refused(server: RedisServer, store: SealedStore) -> None:
    partitions = Partitions(FAMILY, "clip-1")
    acme, globex = partitions.name("acme", HERE), partitions.name("globex", HERE)
    store.put(request("a", acme), [state(10)])
    mine = state_key(globex, "a", 10)
    with raw(server) as client:
        client.copy(state_key(acme, "a", 10), mine)
    assert store.get(mine) is None
    assert store.counts["refused"] == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"revision": "2"},
        {"variants": {**FAMILY.variants, "heavy": FAMILY.heavy.model_copy(update={"scheduler": "euler"})}},
        {"encoder": "clip-2"},
    ],
    ids=["another revision", "another scheduler", "another encoder"],
)
def test_states_of_another_model_or_encoder_are_never_read(changed: dict) -> None:
    encoder = changed.pop("encoder", "clip-1")
    now = Partitions(FAMILY.model_copy(update=changed), encoder)
    assert now.name("acme", HERE) != Partitions(FAMILY, "clip-1").name("acme", HERE)


NIGHT, SEPIA = AdapterWeights("/a/night.safetensors"), AdapterWeights("someone/sepia", "1", "sepia.safetensors")


def test_states_of_other_adapters_or_scales_are_never_read_and_those_without_stay() -> None:
    partitions = Partitions(FAMILY, "clip-1")
    sets = [
        (),
        (AdapterUse("night", 1.0, NIGHT),),
        (AdapterUse("night", 0.5, NIGHT),),
        (AdapterUse("night", 1.0, SEPIA),),
        (AdapterUse("night", 1.0, NIGHT), AdapterUse("sepia", 1.0, SEPIA)),
    ]
    names = [partitions.name("acme", replace(HERE, adapters=it)) for it in sets]
    assert len({*names}) == len(sets)
    assert names[0] == partitions.name("acme", HERE)
    assert not set(":*?[]") & set("".join(names))
    sent = {"size": "64x64", "adapters": json.loads(json.dumps([asdict(it) for it in sets[-1]]))}
    assert Settings.from_dict(sent) == replace(HERE, adapters=sets[-1])


# ----------------------------------------------------------------------------------------------------------- probe


def test_a_lookup_does_the_same_work_whatever_others_have_cached(
    store: SealedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: list[tuple[str, int]] = []
    search, get = VectorIndex.search, store.get

    def searched(index: VectorIndex, vector: np.ndarray, count: int = 1) -> list[tuple[int, float]]:
        work.append(("search", len(index)))
        return search(index, vector, count)

    def fetched(key: str) -> object:
        work.append(("fetch", len(key)))
        return get(key)

    monkeypatch.setattr(VectorIndex, "search", searched)
    monkeypatch.setattr(store, "get", fetched)
    setup = Setup(store)
    for number, prompt in enumerate(PROMPTS[:4]):
        setup.serve(f"acme-{number}", prompt, tenant="acme")
    setup.serve("globex-0", PROMPTS[8], tenant="globex")

    def probe(name: str, prompt: str) -> tuple[list[tuple[str, int]], float | None]:
        work.clear()
        found = setup.lookup(name, "globex", prompt, HERE)
        if found.resume is not None:
            store.get(found.resume.key)
        setup.cache.finish(name)
        return list(work), found.similarity

    def unknown(similar_to: str) -> str:
        return similar_to.replace("a ", "one ")

    for number, prompt in enumerate(PROMPTS[:4]):
        cached, similarity = probe(f"probe-{number}", prompt)
        assert cached == probe(f"control-{number}", unknown(prompt))[0] == [("search", 1)]
        assert similarity is not None
        assert similarity < 0.9, "the nearest is its own entry, not the one that is the same"


# ----------------------------------------------------------------------------------------------------------- steer


def test_one_tenants_requests_change_nothing_for_another() -> None:
    def served(poisoned: bool) -> list[int]:
        draw, setup, found = random.Random(7), Setup(SealedStore(MemoryBackend(), SECRET)), []
        for number in range(60):
            prompt = draw.choice(PROMPTS)
            if poisoned:  # the same words, another image
                setup.serve(f"mallory-{number}", prompt, tenant="mallory", seed=666)
            found.append(setup.serve(f"acme-{number}", prompt, tenant="acme", seed=1))
        return found

    alone = served(False)
    assert served(True) == alone
    assert 0 in alone
    assert 25 in alone


# ---------------------------------------------------------------------------------------------------------- rotate


def test_while_a_secret_is_replaced_the_old_one_still_opens_and_only_the_new_one_seals() -> None:
    backend = MemoryBackend()
    before = SealedStore(backend, OLD)
    before.put(request("a"), [state(10)])
    during = SealedStore(backend, NEW, retired=[OLD])
    key = state_key(str(request("a").capture), "a", 10)
    assert during.get(key) is not None
    during.put(request("b"), [state(10)])
    after = SealedStore(backend, NEW)
    assert after.get(key.replace(":a:", ":b:")) is not None
    assert after.get(key) is None, "what the old secret sealed is refused as soon as it is gone"
    assert before.get(key.replace(":a:", ":b:")) is None
    SealedStore(backend, STRANGER).put(request("c"), [state(10)])
    assert during.get(key.replace(":a:", ":c:")) is None, "no other secret opens anything"


def test_a_restart_with_a_new_secret_finds_what_the_old_one_sealed() -> None:
    backend = MemoryBackend()
    assert Setup(SealedStore(backend, OLD)).serve("1", "a red circle") == 0
    during = Setup(SealedStore(backend, NEW, retired=[OLD]))
    assert during.cache.rebuild() == 1
    assert during.serve("2", "a red circle") == 25
    after = Setup(SealedStore(backend, NEW))
    assert after.cache.rebuild() == 0
    assert not list(backend.keys(PREFIX)), "and then they make room"


def test_secrets_are_one_a_line_the_newest_first(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.write_bytes(NEW + b"\n\n" + OLD + b"\r\n")
    assert secrets(CacheConfig(secret_file=str(path))) == [NEW, OLD]
    monkeypatch.setenv("WEIR_CACHE_SECRET", f"{NEW.decode()}\n{OLD.decode()}")
    assert secrets(CacheConfig()) == [NEW, OLD]
    path.write_bytes(NEW + b"\nshort\n")
    with pytest.raises(ConfigError, match="has 5 bytes") as refused:
        secrets(CacheConfig(secret_file=str(path)))
    assert NEW.decode() not in refused.value.message
