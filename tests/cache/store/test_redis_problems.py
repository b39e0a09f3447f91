"""Redis in other configurations: ACL users, a cluster, a replica, TLS, a wrong password."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from typer.testing import CliRunner, Result

from cache.factory import check_redis
from cache.store.backend import StoreFailed
from cache.store.maintenance import summary
from cache.store.redis_backend import RedisBackend
from cache.store.redis_problems import explained
from cache.store.redis_server import RedisServer
from cache.store.store import SealedStore, state_key
from cli.main import app
from tests.cache.conftest import PARTITION, SECRET, request, state
from weir.config import CacheConfig
from weir.errors import ConfigError

Start = Callable[..., RedisServer]
Backend = Callable[[str], RedisBackend]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server with these lines in its configuration."""
    running: list[RedisServer] = []

    def one(*options: str) -> RedisServer:
        running.append(RedisServer.start(options=options))
        return running[-1]

    yield one
    for server in running:
        server.stop()


@pytest.fixture
def backend() -> Iterator[Backend]:
    made: list[RedisBackend] = []

    def one(url: str) -> RedisBackend:
        made.append(RedisBackend(url, read_s=2, write_s=2))
        return made[-1]

    yield one
    for each in made:
        each.close()


def at(server: RedisServer, user: str, scheme: str = "redis") -> str:
    """The server's URL for this ``user:password``."""
    return f"{scheme}://{user}@{urlsplit(server.url).netloc.rpartition('@')[2]}/0"


def stats(url: str, *options: str) -> Result:
    secret = {"WEIR_CACHE_SECRET": SECRET.decode()}
    return CliRunner().invoke(app, ["cache", "stats", "--url", url, *options], env=secret)


NO_INFO = "user acme on >hush ~weir:* +@all -info -@dangerous +hello"
CACHE_ONLY = "user acme on >hush ~weir:* -@all +get +mget +scan +strlen +set +unlink +multi +exec"


@pytest.mark.parametrize("acl", [NO_INFO, CACHE_ONLY], ids=["no INFO", "what the cache needs alone"])
def test_a_user_without_info_is_accepted_and_the_missing_figures_are_reported(
    start: Start, backend: Backend, acl: str
) -> None:
    url = at(start(acl), "acme:hush")
    connected = backend(url)
    connected.check()
    store = SealedStore(connected, SECRET)
    store.put(request(), [state(10)])
    assert store.get(state_key(PARTITION, "a", 10)) is not None
    assert summary(store)["store_bytes"] is None
    assert connected.breakers() == {"read": False, "write": False}
    done = stats(url)
    assert done.exit_code == 0, done.output
    assert "1 states" in done.output
    assert "the memory usage of Redis is unknown" in " ".join(done.output.split())
    done = stats(url, "--json")
    assert json.loads(done.stdout)["store_bytes"] is None


def test_a_server_whose_info_has_another_name_is_accepted(start: Start, backend: Backend) -> None:
    assert backend(start('rename-command INFO ""').url).used_bytes() is None


def cluster(start: Start) -> RedisServer:
    """A cluster of one node with all slots, which rejects a write of several keys with CROSSSLOT."""
    server = start("cluster-enabled yes")
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        until = time.monotonic() + 60
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < until
            time.sleep(0.02)
    return server


def test_a_cluster_is_refused_before_anything_starts(start: Start, backend: Backend, monkeypatch) -> None:
    url = cluster(start).url
    with pytest.raises(ConfigError, match=r"part of a Redis cluster.*set a server without cluster mode"):
        backend(url).check()
    with pytest.raises(ConfigError, match="part of a Redis cluster"):
        check_redis(CacheConfig(mode="read-write", url=url))
    monkeypatch.setenv("WEIR_CACHE_URL", url)
    with pytest.raises(ConfigError, match="part of a Redis cluster"):
        check_redis(CacheConfig(mode="read"))
    done = stats(url)
    assert done.exit_code == 2
    assert "part of a Redis cluster" in " ".join(done.output.split())


def test_a_failed_write_to_a_cluster_names_the_cause(start: Start, backend: Backend) -> None:
    with pytest.raises(StoreFailed, match="CrossSlot") as caught:
        backend(cluster(start).url).put({"weir:a": b"1", "weir:b": b"2"})
    assert "part of a Redis cluster" in caught.value.message


def test_a_replica_is_accepted_for_reading_only(start: Start, backend: Backend) -> None:
    primary = start()
    parts = urlsplit(primary.url)
    replica = start(f"replicaof 127.0.0.1 {parts.port}", f"masterauth {parts.password}")
    backend(replica.url).check(writing=False)
    with pytest.raises(ConfigError, match="it is a read-only replica; set the URL of its primary"):
        backend(replica.url).check()
    check_redis(CacheConfig(mode="read", url=replica.url))
    with pytest.raises(ConfigError, match="read-only replica"):
        check_redis(CacheConfig(mode="read-write", url=replica.url))
    assert stats(replica.url).exit_code == 0
    purged = CliRunner().invoke(
        app, ["cache", "purge", "--all", "--url", replica.url], env={"WEIR_CACHE_SECRET": SECRET.decode()}
    )
    assert purged.exit_code == 2
    assert "set the URL of its primary" in " ".join(purged.output.split())


@pytest.mark.parametrize("user", [":wrong", "acme:wrong", "nobody:hush", ""])
def test_a_wrong_user_or_password_is_reported_and_never_quoted(start: Start, backend: Backend, user: str) -> None:
    server = start("user acme on >hush ~* +@all")
    url = at(server, user) if user else re.sub("//.*@", "//", server.url)
    with pytest.raises(ConfigError, match="user or password is wrong; set both in the URL") as caught:
        backend(url).check()
    assert "wrong@" not in caught.value.message
    assert "hush" not in caught.value.message
    done = stats(url)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


@pytest.mark.parametrize("missing", ["set", "scan", "mget", "exec"])
def test_a_user_without_the_needed_permissions_is_refused_with_a_list_of_them(
    start: Start, backend: Backend, missing: str
) -> None:
    url = at(start(f"{CACHE_ONLY} -{missing}"), "acme:hush")
    with pytest.raises(ConfigError, match="forbids the user a command that the cache needs: get, mget, scan"):
        backend(url).check()


def test_a_user_of_other_keys_is_refused(start: Start, backend: Backend) -> None:
    with pytest.raises(ConfigError, match="keys that begin with weir:"):
        backend(at(start("user acme on >hush ~other:* +@all"), "acme:hush")).check()


def test_a_server_without_tls_is_reported_as_such(start: Start, backend: Backend) -> None:
    server = start()
    with pytest.raises(ConfigError, match="it does not use TLS; write redis:// instead of rediss://"):
        backend(server.url.replace("redis://", "rediss://")).check()


def test_a_server_that_needs_tls_is_reported_as_such(tmp_path: Path, backend: Backend) -> None:
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.run([*make, "-subj", "/CN=redis", "-keyout", key, "-out", pem], check=True, capture_output=True)
    from weir.ports import free_port

    port = free_port()
    command = ["openssl", "s_server", "-quiet", "-accept", f"127.0.0.1:{port}", "-key", str(key), "-cert", str(pem)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                with pytest.raises(ConfigError, match="it uses TLS; write rediss:// instead of redis://"):
                    backend(f"redis://:hush@127.0.0.1:{port}/0").check()
                break
            except StoreFailed:
                assert time.monotonic() < until
                time.sleep(0.05)
    finally:
        server.terminate()
        server.communicate(timeout=10)


def test_a_server_that_does_not_answer_is_a_warning_and_the_service_starts() -> None:
    warning = check_redis(CacheConfig(mode="read-write", url="redis://127.0.0.1:1/0"))
    assert warning is not None
    assert warning.startswith("nothing is cached until Redis answers")


def test_without_a_cache_no_redis_is_checked() -> None:
    assert check_redis(CacheConfig(mode="off", url="redis://127.0.0.1:1/0")) is None


@pytest.mark.parametrize("said", ["timed out", "Connection refused", "ERR unknown command", ""])
def test_an_error_without_a_known_remedy_is_shown_unchanged(said: str) -> None:
    assert explained(redis.ConnectionError(said)) == f"ConnectionError: {said}"
