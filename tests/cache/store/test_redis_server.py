"""A Redis server of one's own: it gets a free port, also when another process takes the first one."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cache.store import redis_server
from cache.store.redis_server import RedisServer
from weir.errors import ServiceError
from weir.ports import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another process listens."""
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        yield int(listening.getsockname()[1])


def test_another_port_is_tried_when_the_chosen_one_was_taken_meanwhile(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = free_port()
    chosen = iter([taken, free])
    monkeypatch.setattr(redis_server, "free_port", lambda: next(chosen))
    server = RedisServer.start()
    server.stop()
    assert f":{free}/" in server.url


def test_a_port_that_is_asked_for_and_taken_is_an_error_that_says_so(taken: int) -> None:
    with pytest.raises(ServiceError, match=f"did not come up on port {taken}: .*already in use"):
        RedisServer.start(port=taken)
