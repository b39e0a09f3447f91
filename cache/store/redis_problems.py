"""Explains errors of a Redis server with their remedies, and checks a server before use."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Any

import redis

from weir.errors import ConfigError

#: Key that the check writes and deletes.
_PROBE = "weir:probe"
_NEEDED = "get, mget, scan, strlen, set, unlink, multi and exec, on keys that begin with weir:"
_CLUSTER = (
    "it is part of a Redis cluster, which cannot write an entry and its states together across nodes; set a server "
    "without cluster mode"
)
#: Pattern of an error's name and message → the remedy.
_REMEDIES = (
    (r"ClusterCrossSlot|CROSSSLOT|Moved|MOVED|ClusterDown", _CLUSTER),
    (r"NoPermission|NOPERM", f"its ACL forbids the user a command that the cache needs: {_NEEDED}"),
    (
        "Authentication|NOAUTH|WRONGPASS",
        "user or password is wrong; set both in the URL, as redis://user:password@host:6379/0",
    ),
    (r"ReadOnlyError|READONLY", "it is a read-only replica; set the URL of its primary"),
    (r"certificate verify failed", "its certificate is unknown; set that of its authority in cache.tls_ca"),
    (r"MISCONF|OutOfMemoryError", "it refuses writes now; see its log"),
)


def explained(error: Exception, shown: str | None = None) -> str:
    """Describes an error of a server or of the connection, with the remedy if it is known.

    Args:
        shown: text to show instead of the error's message; None: the message.
    """
    text = f"{type(error).__name__}: {error if shown is None else shown}"
    what = _remedy(text)
    return f"{text}; {what}" if what else text


def check(client: redis.Redis, *, writing: bool = True, key: str = "cache") -> None:
    """Checks once that a server supports all operations of the cache.

    Args:
        writing: whether values will be written too.
        key: part of the configuration that has the URL.

    Raises:
        ConfigError: the server is a cluster, a sentinel or a replica, its use of TLS differs from the URL, or the user
            lacks permissions.
            redis.RedisError, OSError: the server does not answer now.
    """
    try:
        mode = _mode(client)
        if mode == "sentinel":
            raise ConfigError(
                f"{key}.url: it is a Redis sentinel, which stores no values; set the URL of the server that it monitors"
            )
        if mode == "cluster":
            raise ConfigError(f"{key}.url: {_CLUSTER}")
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
            raise ConfigError(f"{key}.url: {what} ({text})") from None
        raise


def _remedy(text: str) -> str | None:
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), None)


def _other_protocol(client: redis.Redis, error: Exception) -> str | None:
    """Connects to find out whether the server's use of TLS differs from the URL; returns the remedy if it does."""
    pool = client.connection_pool
    options = pool.connection_kwargs
    if "host" not in options or isinstance(error, redis.ResponseError):
        return None
    try:
        with socket.create_connection((options["host"], options.get("port", 6379)), options["socket_timeout"]) as plain:
            if issubclass(pool.connection_class, redis.SSLConnection):
                plain.sendall(b"PING\r\n")
                return (
                    "it does not use TLS; write redis:// instead of rediss://"
                    if plain.recv(1) in (b"+", b"-")
                    else None
                )
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # no secret is sent
            with context.wrap_socket(plain):
                return "it uses TLS; write rediss:// instead of redis://"
    except OSError:
        return None


def _mode(client: redis.Redis) -> str:
    """``standalone``, ``cluster`` or ``sentinel``; standalone if this user may not query it."""
    try:
        answer: Any = client.execute_command("HELLO")
    except redis.AuthenticationError:
        raise
    except redis.ResponseError:  # before Redis 6, or forbidden
        return "standalone"
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=False)
    info = {_text(key): _text(value) for key, value in pairs}
    return info.get("mode", "standalone")


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
