"""The processes of a service that a test runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil

from weir.assets import ROOT


def actor(name: str) -> int:
    """Returns the process id of Ray's actor of that name, such as ``ServeController``, below this process."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::{name}"):
                return process.pid
    raise RuntimeError(f"no running process has the name {name}")


def program(name: str) -> psutil.Process:
    """Returns the process below this one that runs a program of that name, such as ``gcs_server``."""
    return next(it for it in psutil.Process().children(recursive=True) if it.name() == name)


def nodes_of(pid: int) -> list[psutil.Process]:
    """Returns the raylets, except the head's, of the cluster that a process has started."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if process.name() == "raylet" and "--head" not in process.cmdline():
                found.append(process)
    return found


class LiveControllers:
    """The running live controllers of a testbed, each in a process of its own.

    Args:
        config: the service file.
    """

    def __init__(self, config: Path):
        self._config = config
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """Starts another one."""
        import ray  # it reads its environment on import, and the cluster sets it later

        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-m", "testing.testbed", str(self._config), "--ray", address]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.running.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], number: int = SIGTERM) -> None:
        process.send_signal(number)
        process.wait(60)
        self.running.remove(process)

    def kill_all(self) -> None:
        for process in list(self.running):
            self.stop(process, SIGKILL)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops all controllers and starts the same number afterwards."""
        running = list(self.running)
        for process in running:
            self.stop(process)
        yield
        for _ in running:
            self.start()
