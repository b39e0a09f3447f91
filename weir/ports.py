"""Ports that are chosen now and taken later, by a process that is still to be started."""

from __future__ import annotations

import random
import socket
from pathlib import Path

#: From here on: below lie the ports of well-known services, Ray's own and those of its workers.
_FIRST = 20_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Where the kernel does not say (RFC 6335).
_EPHEMERAL = 49_152
_TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A port of ``host`` that nobody listens on, and that no outgoing connection will have.

    The kernel gives every connection a port of its ephemeral range. One from there, as binding to port 0 gives, may be
    somebody's by the time that a starting cluster, with its hundreds of connections, gets to listen on it. This is one
    from below that range, at random, so that two who choose at once seldom choose the same.

    Raises:
        OSError: ``host`` is no address of this machine.
    """
    try:
        ephemeral = int(_RANGE.read_text().split()[0])
    except (OSError, ValueError):
        ephemeral = _EPHEMERAL
    chance = random.SystemRandom()
    for _ in range(_TRIES if ephemeral > _FIRST else 0):
        port = chance.randrange(_FIRST, ephemeral)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def listenable(host: str, port: int) -> int:
    """The port if nobody listens on it; a free one for 0.

    Raises:
        OSError: somebody does.
    """
    if port == 0:
        return free_port(host)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
    return port
