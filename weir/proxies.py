"""Keeps what is said to servers of our own away from the proxies that the environment names.

A proxy (``http_proxy``, ``ALL_PROXY``, …) is for what lies beyond it, such as the hub. Our own clients say so for each
call: ``trust_env=False`` with httpx, :data:`DIRECT` with requests. :func:`spare_loopback` does it for the processes
that we start and that bring clients of their own.
"""

from __future__ import annotations

import os

#: As ``proxies`` of requests: none, whatever the environment says.
DIRECT = {"http": None, "https": None, "all": None}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def spare_loopback() -> None:
    """Adds this machine's own addresses to what the environment exempts from proxies."""
    names = ("no_proxy", "NO_PROXY")
    exempt = next((os.environ[name] for name in names if os.environ.get(name)), "").split(",")
    exempt = [*filter(None, map(str.strip, exempt)), *_LOOPBACK]
    os.environ |= dict.fromkeys(names, ",".join(dict.fromkeys(exempt)))
