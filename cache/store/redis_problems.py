"""What is wrong with a Redis server for our purpose, told from its errors, with the remedy; and a check before use."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Any

import redis

from weir.errors import ConfigError

#: Key of the look; it is gone at once.
_PROBE = "weir:probe"
_NEEDED = "get, mget, scan, strlen, set, unlink, multi and exec, on keys that begin with weir:"
_CLUSTER = (
    "it is part of a Redis cluster, and Weir writes an entry and its states together, which a cluster does not do "
    "across nodes; name a server without cluster mode"
)
#: Name and message of an error → the remedy.
_REMEDIES = (
    (r"ClusterCrossSlot|CROSSSLOT|Moved|MOVED|ClusterDown", _CLUSTER),
    (r"NoPermission|NOPERM", f"its ACL keeps the user from what the cache needs: {_NEEDED}"),
    (
        "Authentication|NOAUTH|WRONGPASS",
        "user or password is wrong; both stand in the URL, as redis://user:password@host:6379/0",
    ),
    (r"ReadOnlyError|READONLY", "it is a read-only replica; name its primary"),
    (r"certificate verify failed", "its certificate is not known; name that of its authority in cache.tls_ca"),
    (r"MISCONF|OutOfMemoryError", "it takes no writes now; its log says why"),
)


def explained(error: Exception, said: str | None = None) -> str:
    """An error of a server, or of the way to it, with what to do about it where that is known.

    Args:
        said: what is to be shown of it; its message where that may be shown.
    """
    text = f"{type(error).__name__}: {error if said is None else said}"
    what = _remedy(text)
    return f"{text}; {what}" if what else text


def check(client: redis.Redis, *, writing: bool = True) -> None:
    """Asks a server once for all that the cache will ask of it.

    Args:
        writing: states will be written there too.

    Raises:
        ConfigError: it will never do: it is a cluster, a sentinel or a replica, speaks TLS or none against the URL, or
            the user may not.
        redis.RedisError, OSError: it does not answer now.
    """
    try:
        mode = _mode(client)
        if mode == "sentinel":
            raise ConfigError("cache.url: it is a Redis sentinel, which keeps no values; name the server it watches")
        if mode == "cluster":
            raise ConfigError(f"cache.url: {_CLUSTER}")
        client.get(_PROBE)
        client.mget([_PROBE])
        client.strlen(_PROBE)
        client.scan(0, match="weir:*", count=1)
        if writing:
            with client.pipeline(transaction=True) as pipe:
                pipe.set(_PROBE, b"")
                pipe.unlink(_PROBE)
                pipe.execute()
    except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError, OSError) as error:
        text = f"{type(error).__name__}: {error}"
        if what := _remedy(text) or _other_protocol(client, error):
            raise ConfigError(f"cache.url: {what} ({text})") from None
        raise


def _remedy(text: str) -> str | None:
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), None)


def _other_protocol(client: redis.Redis, error: Exception) -> str | None:
    """Whether the server speaks TLS where the URL says none, or the other way round; asked of it by a connection."""
    pool = client.connection_pool
    options = pool.connection_kwargs
    if "host" not in options or isinstance(error, redis.ResponseError):
        return None
    try:
        with socket.create_connection((options["host"], options.get("port", 6379)), options["socket_timeout"]) as plain:
            if issubclass(pool.connection_class, redis.SSLConnection):
                plain.sendall(b"PING\r\n")
                return (
                    "it speaks no TLS; write redis:// instead of rediss://" if plain.recv(1) in (b"+", b"-") else None
                )
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent that has to be hidden
            with context.wrap_socket(plain):
                return "it speaks TLS; write rediss:// instead of redis://"
    except OSError:
        return None


def _mode(client: redis.Redis) -> str:
    """``standalone``, ``cluster`` or ``sentinel``; standalone where the server does not say it to this user."""
    try:
        said: Any = client.execute_command("HELLO")
    except redis.AuthenticationError:
        raise
    except redis.ResponseError:  # before Redis 6, or forbidden
        return "standalone"
    pairs = said.items() if isinstance(said, dict) else zip(said[::2], said[1::2], strict=False)
    told = {_text(key): _text(value) for key, value in pairs}
    return told.get("mode", "standalone")


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
