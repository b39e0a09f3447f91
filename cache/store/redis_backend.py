"""Sealed values in Redis, through redis-py: short time limits, and a circuit breaker each for reading and writing."""

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

#: Keys that one round trip of an administrative task touches.
_BATCH = 256
#: What a URL may say after its ``?``. Time limits and retries are not among them: those are Weir's.
_OPTIONS = ("db", "username", "password", "client_name", "protocol")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_GLOB = str.maketrans({c: f"\\{c}" for c in "*?[]\\^"})


class RedisBackend:
    """A :class:`cache.store.backend.Backend`. Nothing is asked of the server before the first call.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user, password and database where needed.
        read_s, write_s: longest wait for connecting and for an answer, seconds.
        tls_ca: file of certificates that a TLS server is checked against; None takes the system's.
        breaker: failures in a row that stop asking, and the seconds until it is tried again.

    Raises:
        ConfigError: the URL is none of Redis's, or asks for what there is not. Its password is never quoted.
    """

    def __init__(
        self,
        url: str,
        *,
        read_s: float = 0.02,
        write_s: float = 0.25,
        tls_ca: str | None = None,
        breaker: tuple[int, float] = (5, 1.0),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock = clock
        self.reading, self.writing = Breaker(*breaker), Breaker(*breaker)
        self._reader = _client(url, read_s, tls_ca)
        self._writer = _client(url, write_s, tls_ca)

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
            except (redis.ResponseError, KeyError):  # a server that does not say it to everybody, or not at all
                return None

        return self._guarded(self.writing, ask)

    def check(self, *, writing: bool = True) -> None:
        """Asks the server once for all that the cache will ask of it; see :func:`redis_problems.check`.

        Raises:
            ConfigError: it will never do; says why, and the remedy.
            StoreFailed: it does not answer now.
        """
        self._guarded(self.writing, lambda: check(self._writer, writing=writing))

    def breakers(self) -> dict[str, bool]:
        return {"read": self.reading.is_open, "write": self.writing.is_open}

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _guarded(self, breaker: Breaker, call: Callable[[], Any]) -> Any:
        if not breaker.allows(self._clock()):
            raise StoreFailed("the store has failed several times in a row and is not asked for a while")
        try:
            answer = call()
        except redis.ResponseError as error:
            # A value of another type says nothing about the server; one that is full or read-only refuses every write.
            said = str(error).rpartition("of pipeline caused error: ")[2]  # before it stands the whole value
            breaker.record(said.startswith(WRONG_TYPE), self._clock())
            raise StoreFailed(said if said.startswith(WRONG_TYPE) else explained(error, said)) from None
        except (redis.RedisError, OSError) as error:
            breaker.record(False, self._clock())
            raise StoreFailed(f"the store fails: {explained(error)}") from None
        breaker.record(True, self._clock())
        return answer


def _client(url: str, seconds: float, tls_ca: str | None) -> redis.Redis:
    options: dict[str, Any] = {"ssl_ca_certs": tls_ca} if tls_ca else {}
    _check(url, tls_ca)
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
        raise ConfigError(f"cache.url: {error}") from None


def _check(url: str, tls_ca: str | None) -> None:
    """Refuses what redis-py would stumble over later, or by quoting a piece of the password.

    Raises:
        ConfigError: says how a URL looks, or which option is not known.
    """
    try:
        parts = urlsplit(url)
        # An @ behind the host belongs to a password that was cut at one of its own characters.
        cut = "@" in parts.path + parts.query + parts.fragment
        sound = parts.scheme in ("redis", "rediss", "unix") and not cut and parts.port != 0
    except ValueError:  # brackets, or a port that is no number
        sound = False
    if not sound:
        raise ConfigError(
            "cache.url: no URL of a Redis; it looks like redis://:password@host:6379/0, rediss:// for TLS, or "
            "unix:///path; in the password / is written %2F, ? is %3F, # is %23, @ is %40"
        )
    tls = parts.scheme == "rediss"
    if tls_ca is not None and not tls:
        raise ConfigError(f"cache.tls_ca: it needs a rediss:// URL, and cache.url is {parts.scheme}://")
    known = (*_OPTIONS, *(_TLS_OPTIONS if tls else ()))
    if any(name not in known for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ConfigError(f"cache.url: what may stand after its ? with {parts.scheme}:// is {', '.join(known)}")
