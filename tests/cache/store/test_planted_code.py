"""Code planted in Redis is a counted miss and never runs, even if it was sealed with the secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.store.redis_server import RedisServer
from cache.store.seal import COMPRESSIONS, seal
from cache.store.store import SealedStore, entry_key
from tests.cache.conftest import PARTITION, SECRET
from tests.cache.test_faults import raw
from tests.gadget import FORMS
from weir.states import state_key

KEYS = {"a state": state_key(PARTITION, "a", 10), "a record": entry_key(PARTITION, "a")}


def test_code_planted_in_redis_never_runs(server: RedisServer, store: SealedStore, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    planted = 0
    with raw(server) as client:
        for key in KEYS.values():
            for form in FORMS.values():
                gadget = form(mark)
                sealed = [seal(key, gadget, SECRET, how) for how in COMPRESSIONS]
                for value in (gadget, *sealed):
                    client.set(key, value)
                    assert store.get(key) is None
                    assert list(store.records()) == []
                    assert not mark.exists()
                    planted += 1
    assert store.counts["refused"] >= planted


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_state_is_removed(server: RedisServer, store: SealedStore, form: str, tmp_path: Path) -> None:
    key = KEYS["a state"]
    with raw(server) as client:
        client.set(key, FORMS[form](tmp_path / "it ran"))
    assert store.lost(key)
    assert not list(tmp_path.iterdir())
