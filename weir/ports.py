"""Chooses ports for processes that are started later."""

from __future__ import annotations

import random
import socket
from pathlib import Path

#: Lowest port to choose; below are the ports of well-known services, of Ray and of its workers.
_FIRST = 20_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: First ephemeral port where the kernel does not report it (RFC 6335).
_EPHEMERAL = 49_152
_TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A port of ``host`` on which no process listens, and which no outgoing connection will get.

    The kernel gives every outgoing connection a port of the ephemeral range. Binding to port 0 returns a port of this
    range, too, which a connection may have taken before the process of a starting cluster listens on it. The returned
    port is therefore a random one below that range; it is random so that concurrent calls rarely choose the same.

    Raises:
        OSError: ``host`` is not an address of this machine.
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
    """The port, if no process listens on it; a free port for 0.

    Raises:
        OSError: another process listens on the port.
    """
    if port == 0:
        return free_port(host)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
    return port
