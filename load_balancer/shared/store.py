"""The Redis in which the load balancers of a service share their state: its keys, time limits and failures.

A request needs it for an idempotency key, an asynchronous answer, an image behind a URL, or the quota of its key. While
Redis is away, the first three get a typed 503; everything else goes on, each load balancer by itself.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from weir.config import ServiceConfig
from weir.errors import ConfigError, NotReady

log = logging.getLogger(__name__)

STATE_URL, CACHE_URL = "WEIR_STATE_URL", "WEIR_CACHE_URL"
#: Time limit of connecting and of each answer, seconds.
TIMEOUT_S = 1.0
#: When a connection that waits for messages is taken for dead, as the kernel's options: idle time and interval between
#: probes, seconds, and number of probes without an answer.
KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3}
#: ``Retry-After`` while Redis does not answer, seconds.
RETRY_S = 2.0


def state_url(service: ServiceConfig) -> tuple[str | None, str | None]:
    """The Redis of the shared state, and the CA certificates to verify it; None where nothing names one."""
    state, cache = service.state, service.cache
    if url := state.url or os.environ.get(STATE_URL):
        return url, state.tls_ca
    return cache.url or os.environ.get(CACHE_URL), cache.tls_ca


def open_store(service: ServiceConfig, name: str) -> SharedStore | None:
    """The shared state of a service; None for a single load balancer that keeps everything in its memory.

    Args:
        name: prefix of the keys, unless the configuration has one.

    Raises:
        ConfigError: several load balancers need a Redis, and nothing names one; or its URL is invalid.
    """
    if not service.shared:
        return None
    url, tls_ca = state_url(service)
    if url is None:
        raise ConfigError(
            f"balancers is {service.balancers}, which share their state in Redis, and nothing names one; set "
            f"state.url, {STATE_URL}, cache.url or {CACHE_URL}"
        )
    return SharedStore(url, space=service.state.space or name, tls_ca=tls_ca)


class SharedStore:
    """Keys of one service in Redis. Lives on one event loop; connects at the first call.

    Args:
        space: prefix of all keys.

    Raises:
        ConfigError: the URL is invalid.
    """

    def __init__(self, url: str, *, space: str = "weir", tls_ca: str | None = None, timeout_s: float = TIMEOUT_S):
        options: dict[str, Any] = {"ssl_ca_certs": tls_ca} if tls_ca else {}
        try:
            self._redis = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                **options,
            )
            # A subscriber waits for messages for as long as it takes, but not for a host that is gone.
            self._listener = Redis.from_url(
                url,
                socket_connect_timeout=timeout_s,
                socket_keepalive=True,
                socket_keepalive_options=KEEPALIVE,
                **options,
            )
        except ValueError as error:
            raise ConfigError(f"state.url: {error}") from None
        self._space = space
        self._failing = False

    def key(self, *parts: str) -> str:
        """The key of something, from the parts of its name."""
        return ":".join((self._space, "state", *parts))

    @asynccontextmanager
    async def redis(self, what: str = "the shared state") -> AsyncIterator[Redis]:
        """The connection.

        Raises:
            NotReady: Redis does not answer, or refuses.
        """
        try:
            yield self._redis
            self._failing = False
        except (RedisError, OSError, TimeoutError) as error:
            if not self._failing:  # it is asked several times a second
                log.warning("Redis does not keep %s: %s", what, error)
            self._failing = True
            raise NotReady(
                f"{what} is kept in Redis, which does not answer; requests without Idempotency-Key, Prefer and "
                "response_format url are answered meanwhile",
                retry_after_s=RETRY_S,
            ) from error

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any], what: str) -> Any:
        """Runs a Lua script, which is atomic; see :meth:`redis` for errors."""
        async with self.redis(what) as redis:
            return await redis.eval(script, len(keys), *keys, *arguments)  # type: ignore[misc]

    def subscriber(self) -> PubSub:
        """A new subscription, to be closed by the caller."""
        return self._listener.pubsub(ignore_subscribe_messages=True)

    async def close(self) -> None:
        await self._redis.aclose()
        await self._listener.aclose()
