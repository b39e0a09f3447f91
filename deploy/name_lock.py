"""The lock on the name of a service, which lives as long as a process that holds it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO


class NameLock:
    """A lock file that a process holds, and can share with a child."""

    def __init__(self, path: Path):
        self._path = path
        self._file: IO[str] | None = None

    def try_acquire(self) -> bool:
        """Takes the lock unless another process holds it."""
        file = self._path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_current(file):
                self._file = file
                return True
        except BlockingIOError:
            pass
        file.close()
        return False

    def adopt(self, fd: int) -> None:
        """Takes over the lock that the parent process has acquired, by its inherited file descriptor."""
        os.set_inheritable(fd, False)  # the lock must end with this process, and not with its children
        self._file = os.fdopen(fd, "a")

    @property
    def fd(self) -> int:
        """File descriptor, for a child process to inherit and :meth:`adopt`."""
        assert self._file is not None
        return self._file.fileno()

    @property
    def is_current(self) -> bool:
        """Whether the held file is still the one at the path: a process that shared it may have deleted it, and
        another service may have the name now."""
        assert self._file is not None
        return self._is_current(self._file)

    def delete(self) -> None:
        """Deletes the file; :meth:`hand_over` has to follow."""
        self._path.unlink(missing_ok=True)

    def hand_over(self) -> None:
        """Leaves the lock to the process that shares it; without one it is released."""
        assert self._file is not None
        self._file.close()
        self._file = None

    def held(self) -> bool:
        """Whether a live process holds the lock."""
        try:
            with self._path.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def wait_released(self, timeout_s: float) -> bool:
        """Waits until no process holds the lock; False if the time is over first."""
        end = time.monotonic() + timeout_s
        while self.held():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _is_current(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False
