"""API keys: only digests are kept, and keys can be added and removed while the service runs."""

from __future__ import annotations

import hmac
import logging
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from load_balancer.http.api_keys import ApiKeys, append_key, digest, new_key
from weir.config import KeyConfig
from weir.errors import ConfigError, Unauthorized

ALICE, BOB = new_key(), new_key()


def entry(name: str, key: str, **fields) -> KeyConfig:
    return KeyConfig(name=name, sha256=digest(key), **{"tenant": f"of-{name}", **fields})


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    append_key(path, entry("alice", ALICE, admin=True, images_per_minute=60, concurrent_images=4))
    append_key(path, entry("bob", BOB, priority="batch"))
    return path


def test_a_key_has_256_random_bits_and_a_prefix_that_scanners_know() -> None:
    generated = {new_key() for _ in range(100)}
    assert len(generated) == 100
    assert all(key.startswith("weir-") and len(key) == 5 + 43 for key in generated)


def test_a_key_is_known_by_its_digest_and_brings_what_its_holder_may_do(keys: Path) -> None:
    callers = ApiKeys(keys)
    alice, bob = callers.identify(f"Bearer {ALICE}"), callers.identify(f"bearer  {BOB} ")
    assert (alice.name, alice.tenant, alice.admin, alice.concurrent_images) == ("alice", "of-alice", True, 4)
    assert (bob.name, bob.tenant, bob.admin, bob.priority) == ("bob", "of-bob", False, "batch")


def test_the_file_holds_no_key_and_only_its_owner_may_read_it(keys: Path) -> None:
    held = keys.read_text()
    assert ALICE not in held
    assert BOB not in held
    assert digest(ALICE) in held
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert [path.name for path in keys.parent.iterdir()] == [keys.name], "no draft is left"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        "Bearer é\x00",
    ],
    ids=repr,
)
def test_unknown_keys_are_refused_and_never_quoted(keys: Path, header: str | None) -> None:
    with pytest.raises(Unauthorized) as refused:
        ApiKeys(keys).identify(header)
    assert ALICE[5:20] not in refused.value.message


def test_every_known_digest_is_compared_in_constant_time(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    callers = ApiKeys(keys)
    counts = []
    for key in (ALICE, BOB, new_key()):
        compared.clear()
        with suppress(Unauthorized):
            callers.identify(f"Bearer {key}")
        counts.append(len(compared))
    assert counts == [2, 2, 2]


def test_keys_come_and_go_while_the_service_runs(keys: Path) -> None:
    now = [0.0]
    callers = ApiKeys(keys, clock=lambda: now[0])
    carol = new_key()
    append_key(keys, entry("carol", carol))
    now[0] = 1.5
    assert callers.identify(f"Bearer {carol}").name == "carol"
    kept = KeyConfig(name="carol", sha256=digest(carol), tenant="of-carol")
    keys.unlink()
    append_key(keys, kept)
    now[0] = 3.0
    with pytest.raises(Unauthorized):
        callers.identify(f"Bearer {ALICE}")


@pytest.mark.parametrize("broken", ["keys: [", "keys: [{name: alice}]", "words", None], ids=repr)
def test_an_invalid_keys_file_changes_no_keys(keys: Path, broken: str | None, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    callers = ApiKeys(keys, clock=lambda: now[0])
    if broken is None:
        keys.unlink()
    else:
        keys.write_text(broken)
    now[0] = 2.0
    assert callers.identify(f"Bearer {ALICE}").name == "alice"
    with pytest.raises(Unauthorized):
        callers.identify(f"Bearer {new_key()}")
    assert "kept the keys as they were" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "keys: [{name: alice, tenant: t, key: PLANTED}]",
        "keys: [{name: alice, tenant: t, sha256: PLANTED}]",
        "keys:\n  PLANTED: [",
        "PLANTED",
        "keys: PLANTED",
    ],
)
def test_a_plain_key_in_the_file_is_not_quoted(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text.replace("PLANTED", ALICE))
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigError, match=r"keys\.yaml") as refused:
        ApiKeys(path)
    assert ALICE not in str(refused.value) + caplog.text


def test_two_keys_of_one_name_or_one_digest_are_refused(keys: Path) -> None:
    with pytest.raises(ConfigError, match="alice already"):
        append_key(keys, entry("alice", new_key()))
    append_key(keys, entry("dave", ALICE))
    with pytest.raises(ConfigError, match="same sha256"):
        ApiKeys(keys)


def test_without_a_keys_file_every_caller_is_the_public_tenant() -> None:
    assert ApiKeys().identify("Bearer none").tenant == "public"
    assert not ApiKeys().identify(None).admin
    assert ApiKeys(open_admin=True).identify(None).admin
