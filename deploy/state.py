"""State files of the services on this machine. A file is valid while its process holds the lock beside it."""

from __future__ import annotations

import fcntl
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from weir.errors import ServiceError
from weir.files import written_whole

FOLDER = Path(".weir")


@dataclass(frozen=True, slots=True)
class Service:
    """A service, as its state file describes it.

    Attributes:
        ready: set once the service has been able to serve.
        cache_url, cache_secret: of the Redis server that was started for the service; empty without one.
        targets: file that lists the targets of Prometheus.
        policy: policy of the controller.
        logs: folder of the logs; empty for a service on a cluster that was there before.
    """

    name: str
    pid: int
    url: str
    dashboard: str
    config: str
    ready: bool = False
    cache_url: str = ""
    cache_secret: str = ""
    targets: str = ""
    policy: str = ""
    logs: str = ""


class StateFile:
    """The state file of the service with a given name. The process of the service holds the lock while it lives."""

    def __init__(self, name: str, folder: Path = FOLDER):
        self.name = name
        self.path = folder / f"{name}.json"
        self.log = folder / f"{name}.log"
        self.logs = folder / "logs" / name
        self.targets = folder / "targets" / f"{name}.json"
        self._lock_path = folder / f"{name}.lock"
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Claims the name.

        Raises:
            ServiceError: a service with this name is up.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self._lock_path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ServiceError(f"{self.name} is already up; stop it with `weir down`") from None
        self._lock = lock

    def release(self) -> None:
        """Releases the name; the files are deleted before the lock is released."""
        assert self._lock is not None
        self.path.unlink(missing_ok=True)
        self.targets.unlink(missing_ok=True)
        with suppress(OSError):  # the folder has the list of another service
            self.targets.parent.rmdir()
        self._lock_path.unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def write(self, service: Service) -> None:
        """Replaces the file atomically: a reader sees the old state or the new one. Only its owner may read it."""
        with written_whole(self.path) as draft:
            draft.touch(mode=0o600)
            draft.write_text(json.dumps(asdict(service), indent=1) + "\n")

    def link_targets(self, source: Path) -> None:
        """Links Ray's list of Prometheus targets, whose path differs in every session, at a stable path."""
        self.targets.parent.mkdir(parents=True, exist_ok=True)
        self.targets.unlink(missing_ok=True)
        self.targets.symlink_to(source)

    def held(self) -> bool:
        """Whether a live process holds the name."""
        try:
            with self._lock_path.open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def read(self) -> Service | None:
        """The service, or None when no service with this name is up."""
        if not self.held():
            return None
        try:
            return Service(**json.loads(self.path.read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def wait_released(self, timeout_s: float) -> bool:
        """Waits until no process holds the name; False if the time is over first."""
        end = time.monotonic() + timeout_s
        while self.held():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True


def find(name: str | None = None, folder: Path = FOLDER) -> tuple[StateFile, Service]:
    """The service with that name, or the only one that is up.

    Raises:
        ServiceError: no such service is up, or several are up and no name was given.
    """
    names = [name] if name else sorted(path.stem for path in folder.glob("*.json"))
    files = [StateFile(it, folder) for it in names]
    up = [(file, service) for file in files if (service := file.read())]
    if not up:
        raise ServiceError(f"{name or 'no service'} is {'not ' if name else ''}up; start it with `weir up`")
    if len(up) > 1:
        raise ServiceError(f"several services are up; name one of {', '.join(file.name for file, _ in up)}")
    return up[0]
