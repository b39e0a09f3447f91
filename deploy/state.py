"""State files of the services on this machine. A file is valid while a process holds the lock beside it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.name_lock import NameLock
from weir.errors import ConfigError, ServiceError
from weir.files import make_folder, written_whole

FOLDER = Path(".weir")
#: Time for which a claim waits for readers of the state, seconds.
ACQUIRE_S = 0.5


@dataclass(frozen=True, slots=True)
class Service:
    """A service, as its state file describes it.

    Attributes:
        pid: process to send SIGTERM to: of the service, or of `weir up` until that process exists.
        ready: set once the service has been able to serve.
        waiting_for: what a start waits for now; empty once the service is ready.
        connecting_to: address of the Ray cluster that a start connects to now; otherwise empty.
        scratch: folder of the temporary files of the service and of its Ray cluster; empty before it exists.
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
    waiting_for: str = ""
    connecting_to: str = ""
    scratch: str = ""


class StateFile:
    """The state file of the service with a given name.

    From its start to its end a service has a process that holds the lock: first `weir up`, which passes the lock on to
    the process of the service.

    Attributes:
        lock: on the name.
    """

    def __init__(self, name: str, folder: Path = FOLDER):
        self.name = name
        self.path = folder / f"{name}.json"
        self.log = folder / f"{name}.log"
        self.logs = folder / "logs" / name
        self.targets = folder / "targets" / f"{name}.json"
        self.lock = NameLock(folder / f"{name}.lock")

    def acquire(self) -> None:
        """Claims the name.

        Raises:
            ConfigError: the folder cannot be written.
            ServiceError: a service with this name starts or is up.
        """
        try:
            make_folder(self.path.parent, private=True)
        except ConfigError as error:
            problem = error.message.removesuffix("; name another")
            raise ConfigError(f"{problem}; it keeps the state of services, so start Weir where you can write") from None
        end = time.monotonic() + ACQUIRE_S
        while not self.lock.try_acquire():
            # A service keeps the lock. A process that reads the state holds it only for a moment.
            if time.monotonic() > end:
                raise ServiceError(already(self.name, self.read()))
            time.sleep(0.02)

    def release(self) -> None:
        """Releases the name; the files are deleted before the lock is released.

        If the process that shares the lock has released it already, another service may have the name now, and its
        files stay.
        """
        if self.lock.is_current:
            self.path.unlink(missing_ok=True)
            self.targets.unlink(missing_ok=True)
            with suppress(OSError):  # the folder has the list of another service
                self.targets.parent.rmdir()
            self.lock.delete()
        self.lock.hand_over()

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

    def clear(self) -> None:
        """Deletes the files of a service that has ended without deleting them."""
        self.acquire()
        self.release()

    def read(self) -> Service | None:
        """The service, or None when no service with this name is up."""
        return self.recorded() if self.lock.held() else None

    def read_killed(self) -> Service | None:
        """The service of this name that was killed before it could remove its files, or None."""
        return None if self.lock.held() else self.recorded()

    def recorded(self) -> Service | None:
        try:
            return Service(**json.loads(self.path.read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None


def already(name: str, service: Service | None) -> str:
    """The sentence for a second start of a service."""
    if service is None or service.ready:
        return f"{name} is already up; stop it with `weir down`"
    return f"{name} is already starting (process {service.pid}); wait for it, or end it with `weir down`"


def find_killed(name: str | None = None, folder: Path = FOLDER) -> list[tuple[StateFile, Service]]:
    """The services that were killed before they could remove their files: all of them, or the one with that name."""
    files = [StateFile(it, folder) for it in _names(name, folder)]
    return [(file, service) for file in files if (service := file.read_killed())]


def find(name: str | None = None, folder: Path = FOLDER) -> tuple[StateFile, Service]:
    """The service with that name, or the only one that is up.

    Raises:
        ServiceError: no such service is up, or several are up and no name was given.
    """
    files = [StateFile(it, folder) for it in _names(name, folder)]
    up = [(file, service) for file in files if (service := file.read())]
    if not up and (killed := find_killed(name, folder)):
        raise ServiceError(f"{killed[0][0].name} was killed; `weir down` removes what it has left")
    if not up:
        logs = sorted(folder.glob(f"{name or '*'}.log"), key=lambda path: path.stat().st_mtime)
        last = f" (the log of the last one is {logs[-1]})" if logs else ""
        raise ServiceError(f"{name or 'no service'} is {'not ' if name else ''}up; start it with `weir up`{last}")
    if len(up) > 1:
        raise ServiceError(f"several services are up; name one of {', '.join(file.name for file, _ in up)}")
    return up[0]


def _names(name: str | None, folder: Path) -> list[str]:
    return [name] if name else sorted(path.stem for path in folder.glob("*.json"))
