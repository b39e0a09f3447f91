"""A backend in Redis, with short time limits, and one circuit breaker for reading and one for writing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cache.store.backend import WRONG_TYPE, StoreFailed
from cache.store.breaker import Breaker
from cache.store.redis_problems import check, explained
from weir.errors import ConfigError

#: Number of keys in one round trip of an administrative task.
_BATCH = 256
#: Options that a URL may have after its ``?``. Time limits and retries are not among them: Weir sets those.
_OPTIONS = ("db", "username", "password", "client_name", "protocol")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_GLOB = str.maketrans({c: f"\\{c}" for c in "*?[]\\^"})


class RedisBackend:
    """A :class:`cache.store.backend.Backend` in Redis. It connects at the first call.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user, password and database as needed.
        read_s, write_s: time limits of connecting and of an answer, seconds.
        tls_ca: file of certificates to verify a TLS server; None: the system's.
        key: part of the configuration that has the URL, for errors.
        breaker: number of failures in a row that open a circuit breaker, and seconds until the next probe.

    Raises:
        ConfigError: the URL is invalid, or has unknown options. The message never contains its password.
    """

    def __init__(
        self,
        url: str,
        *,
        read_s: float = 0.02,
        write_s: float = 0.25,
        tls_ca: str | None = None,
        key: str = "cache",
        breaker: tuple[int, float] = (5, 1.0),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock, self._key = clock, key
        self.reading, self.writing = Breaker(*breaker), Breaker(*breaker)
        self._reader = _client(url, read_s, tls_ca, key)
        self._writer = _client(url, write_s, tls_ca, key)

    def get(self, key: str) -> bytes | None:
        return self._guarded(self.reading, lambda: self._reader.get(key))

    def put(self, values: Mapping[str, bytes]) -> None:
        def write() -> None:
            with self._writer.pipeline(transaction=True) as pipe:
                for key, value in values.items():
                    pipe.set(key, value)
                pipe.execute()

        self._guarded(self.writing, write)

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _BATCH):
            self._guarded(self.writing, partial(self._writer.unlink, *keys[start : start + _BATCH]))

    def keys(self, prefix: str) -> Iterator[str]:
        pattern = prefix.translate(_GLOB) + "*"
        cursor = 0
        while True:
            step = partial(self._writer.scan, cursor, match=pattern, count=_BATCH)
            cursor, found = self._guarded(self.writing, step)
            for key in found:
                with suppress(UnicodeDecodeError):  # not one of ours
                    yield key.decode()
            if cursor == 0:
                return

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return self._guarded(self.writing, lambda: self._writer.mget(keys)) if keys else []

    def sizes(self, keys: Sequence[str]) -> list[int]:
        def ask() -> list[int]:
            with self._writer.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.strlen(key)
                answers = pipe.execute(raise_on_error=False)
            return [n if isinstance(n, int) else 0 for n in answers]

        return self._guarded(self.writing, ask) if keys else []

    def used_bytes(self) -> int | None:
        def ask() -> int | None:
            try:
                return int(self._writer.info("memory")["used_memory"])
            except (redis.ResponseError, KeyError):  # INFO is not allowed for this user, or has no such field
                return None

        return self._guarded(self.writing, ask)

    def check(self, *, writing: bool = True) -> None:
        """Checks that the server supports all operations of the cache; see :func:`redis_problems.check`.

        Raises:
            ConfigError: the server is unsuitable; the message has the reason and the remedy.
            StoreFailed: the server does not answer now.
        """
        self._guarded(self.writing, lambda: check(self._writer, writing=writing, key=self._key))

    def breakers(self) -> dict[str, bool]:
        return {"read": self.reading.is_open, "write": self.writing.is_open}

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _guarded(self, breaker: Breaker, call: Callable[[], Any]) -> Any:
        if not breaker.allows(self._clock()):
            raise StoreFailed("the store has failed several times in a row, and calls are suspended")
        try:
            answer = call()
        except redis.ResponseError as error:
            # A value of another type is not a failure of the server; a full or read-only server refuses every write.
            message = str(error).rpartition("of pipeline caused error: ")[
                2
            ]  # the text before it contains the whole value
            breaker.record(message.startswith(WRONG_TYPE), self._clock())
            raise StoreFailed(message if message.startswith(WRONG_TYPE) else explained(error, message)) from None
        except (redis.RedisError, OSError) as error:
            breaker.record(False, self._clock())
            raise StoreFailed(f"the store fails: {explained(error)}") from None
        breaker.record(True, self._clock())
        return answer


def _client(url: str, seconds: float, tls_ca: str | None, key: str) -> redis.Redis:
    options: dict[str, Any] = {"ssl_ca_certs": tls_ca} if tls_ca else {}
    _check(url, tls_ca, key)
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            **options,
        )
    except ValueError as error:
        raise ConfigError(f"{key}.url: {error}") from None


def _check(url: str, tls_ca: str | None, key: str) -> None:
    """Rejects URLs on which redis-py would fail later, or with a part of the password in the message.

    Raises:
        ConfigError: the URL is invalid; the message shows a valid one, or the unknown option.
    """
    try:
        parts = urlsplit(url)
        # An @ after the host belongs to a password that was split at one of its characters.
        cut = "@" in parts.path + parts.query + parts.fragment
        sound = parts.scheme in ("redis", "rediss", "unix") and not cut and parts.port != 0
    except ValueError:  # brackets, or a port that is not a number
        sound = False
    if not sound:
        raise ConfigError(
            f"{key}.url: not a URL of Redis; accepted: redis://:password@host:6379/0, rediss:// for TLS, or "
            "unix:///path; in the password write / as %2F, ? as %3F, # as %23, @ as %40"
        )
    tls = parts.scheme == "rediss"
    if tls_ca is not None and not tls:
        raise ConfigError(f"{key}.tls_ca: it needs a rediss:// URL, and {key}.url is {parts.scheme}://")
    known = (*_OPTIONS, *(_TLS_OPTIONS if tls else ()))
    if any(name not in known for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ConfigError(f"{key}.url: accepted options after its ? with {parts.scheme}:// are {', '.join(known)}")
