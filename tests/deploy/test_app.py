"""`serve deploy` and KubeRay refuse the same Redis servers as `weir up`: the application's builder checks them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cache.store.redis_server import RedisServer
from deploy.app import AppArgs, build
from tests.deploy.conftest import toy_service
from weir.errors import ConfigError


@pytest.fixture
def redis_url() -> Iterator[Callable[..., str]]:
    """Starts a server with these lines in its configuration; returns its URL."""
    running: list[RedisServer] = []

    def start(*options: str) -> str:
        running.append(RedisServer.start(options=options))
        return running[-1].url

    yield start
    for server in running:
        server.stop()


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIR_CACHE_URL", raising=False)
    monkeypatch.setenv("WEIR_CACHE_SECRET", "x" * 32)


def built(folder: Path, url: str, mode: str = "read-write") -> None:
    build(AppArgs(config=str(toy_service(folder, cache={"mode": mode, "url": url}))))


def test_a_redis_that_suits_is_accepted(tmp_path: Path, redis_url: Callable[..., str]) -> None:
    built(tmp_path, redis_url())


def test_a_wrong_password_fails_the_deployment_with_the_remedy(tmp_path: Path, redis_url: Callable[..., str]) -> None:
    address = urlsplit(redis_url()).netloc.rpartition("@")[2]
    with pytest.raises(ConfigError, match="user or password is wrong; set both in the URL"):
        built(tmp_path, f"redis://:wrong@{address}/0")


def test_a_server_of_a_redis_cluster_fails_the_deployment(tmp_path: Path, redis_url: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="part of a Redis cluster"):
        built(tmp_path, redis_url("cluster-enabled yes"))


def test_the_redis_of_the_environment_is_checked_too(
    tmp_path: Path, redis_url: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIR_CACHE_URL", redis_url("cluster-enabled yes"))
    with pytest.raises(ConfigError, match="part of a Redis cluster"):
        build(AppArgs(config=str(toy_service(tmp_path, cache={"mode": "read"}))))


def test_a_redis_that_does_not_answer_is_logged_and_the_application_is_deployed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        built(tmp_path, "redis://127.0.0.1:1/0")
    assert "nothing is cached until Redis answers" in caplog.text


def test_without_a_cache_no_redis_is_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built(tmp_path, "redis://127.0.0.1:1/0", mode="off")
    assert "Redis" not in caplog.text
