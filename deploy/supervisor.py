"""Starts the process of a service, shows what it waits for, and ends it with everything that it has started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil
from rich.console import Console
from rich.text import Text

from deploy.cluster import end
from deploy.state import Service, StateFile
from weir.assets import import_path
from weir.errors import ConfigError, NotReady, ServiceError, WeirError

POLL_S = 0.25
#: Time that a service has to end before Ray runs, and after that with the requests in flight, seconds.
START_END_S, END_S = 2.0, 90.0
#: Time limit of connecting to a Ray cluster that answers, seconds.
CONNECT_S = 60.0
#: A start that waits for one thing says so again after this time, seconds.
REPEAT_S = 10.0


@dataclass(frozen=True, slots=True)
class Start:
    """What to start.

    Attributes:
        config: path of the service file.
        port: port of the API, which is free.
        nodes: number of Ray nodes beside the head for the replicas.
        folder: folder of the state files.
        lock_fd: file descriptor of the lock on the state, which the parent has acquired.
        scratch: folder for temporary files.
        attached: whether the service ends with its parent, which keeps standard input open.
    """

    config: str
    port: int
    nodes: int
    folder: str
    lock_fd: int
    scratch: str
    attached: bool


class Progress:
    """Prints what a start waits for: one line when that changes, and one from time to time while it does not."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console = console
        self._clock = clock
        self._start = self._said = clock()
        self._text = ""

    def wait_for(self, what: str) -> None:
        now = self._clock()
        if not what or (what == self._text and now < self._said + REPEAT_S):
            return
        self._console.print(Text(f"{now - self._start:4.0f} s  waiting for {what}"), soft_wrap=True)
        self._text, self._said = what, now


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Context manager that yields an event which SIGINT and SIGTERM set, and SIGHUP when a terminal is closed; on the
    main thread only. SIGHUP stays ignored under nohup."""
    stop = threading.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class ServiceProcess:
    """The process of a service that this process has started."""

    def __init__(self, state: StateFile, start: Start, log: IO[str]):
        paths = os.pathsep.join(filter(None, [*import_path(), os.environ.get("PYTHONPATH")]))
        self._state = state
        self._scratch = start.scratch
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.service_process", json.dumps(asdict(start))],
            stdin=subprocess.PIPE if start.attached else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[start.lock_fd],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, progress: Progress, stop: threading.Event) -> Service:
        """Waits until the service is ready.

        Raises:
            KeyboardInterrupt: ``stop`` was set.
            WeirError: the start failed; the message says why. The process may still run.
        """
        connecting_s = 0.0
        while not stop.wait(POLL_S):
            service = self._state.read()
            if self._process.poll() is not None:
                raise self._failure()
            if service is None:
                continue
            if service.ready:
                return service
            progress.wait_for(service.waiting_for)
            connecting_s = connecting_s + POLL_S if service.connecting_to else 0.0
            if connecting_s > CONNECT_S:
                raise NotReady(
                    f"Ray at {service.connecting_to} did not accept the connection within {CONNECT_S:.0f} s; check "
                    "that it is the head's GCS address and that its version and token are those of this machine"
                )
        raise KeyboardInterrupt

    def wait(self, stop: threading.Event) -> None:
        """Waits until the process ends or ``stop`` is set.

        Raises:
            ServiceError: the process ended by an error.
        """
        while not stop.wait(POLL_S):
            if self._process.poll() is not None:
                if self._process.returncode:
                    raise self._failure()
                return

    def leave(self) -> None:
        """Leaves the service to itself; it ends by `weir down`."""
        self._close()
        self._process.returncode = 0  # it outlives this process, so its exit status is never collected

    def end(self, progress: Progress, stop: threading.Event) -> None:
        """Ends the process and everything that it has started, at once if ``stop`` is set once more."""
        ended = self._process.poll() is not None
        service = self._state.read()
        stop.clear()

        def hurry() -> bool:
            progress.wait_for("the end of its requests and processes; Ctrl-C once more kills them")
            return stop.is_set()

        grace = grace_s(service) if service else START_END_S
        end_service(None if ended else self.pid, self._scratch, grace, hurry)
        self._process.poll()
        self._close()

    def _close(self) -> None:
        for stream in filter(None, (self._process.stdin, self._process.stdout)):
            stream.close()

    def _failure(self) -> WeirError:
        assert self._process.stdout is not None
        text = self._process.stdout.read()
        with suppress(ValueError, KeyError):
            fields = json.loads(text)
            kinds = {kind.code: kind for kind in (ConfigError, NotReady)}
            return kinds.get(fields["code"], ServiceError)(fields["message"])
        return ServiceError(ended_by(self._process.returncode))


def grace_s(service: Service) -> float:
    """Time that a service has to end by itself, seconds.

    Before Ray runs nothing can be lost, and Ray may keep the process from reacting to signals. After that the
    applications are shut down, which may be on another cluster.
    """
    return END_S if service.dashboard else START_END_S


def ended_by(returncode: int) -> str:
    """The sentence for a process that ended and left no failure."""
    if returncode == 0:
        return "it was stopped"
    if returncode == -signal.SIGKILL:
        return (
            "it was killed, by `weir down` or because memory ran out; then plan fewer replicas, or use a larger machine"
        )
    if returncode < 0:
        return f"it was ended by the signal {signal.Signals(-returncode).name}"
    return f"its process ended with the code {returncode}"


def end_service(pid: int | None, scratch: str, grace_s: float, hurry: Callable[[], bool] = lambda: False) -> None:
    """Ends the process of a service and everything that it has started, and deletes its temporary files.

    The process gets SIGTERM, on which it stops everything itself. What is left after ``grace_s`` is killed: Ray may
    keep a starting process from reacting.

    Args:
        pid: None for a process that has ended; what it has started may still run.
        hurry: called from time to time; True ends the wait.
    """
    family: set[psutil.Process] = set()
    if pid is not None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            family = {process, *process.children(recursive=True)}
            process.terminate()
            until = time.monotonic() + grace_s
            while psutil.wait_procs([process], timeout=min(grace_s, POLL_S))[1] and time.monotonic() < until:
                if hurry():
                    break
            family |= {process, *process.children(recursive=True)}
            process.kill()  # before the others, whose end it would report as a failure
    end(family | _users_of(scratch))
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)


def _users_of(scratch: str) -> set[psutil.Process]:
    """Processes that a service has started for its folder, such as those of Ray and Redis that lost their parent."""
    found = set()
    for process in psutil.process_iter() if scratch else ():
        with suppress(psutil.Error):
            if _uses(process, scratch):
                found.add(process)
    return found - {psutil.Process()}


def _uses(process: psutil.Process, scratch: str) -> bool:
    """Whether the command of a process names the folder, or the process works in it or has a file of it open.

    Redis and Ray's agents replace their command by a title. A process of a terminal is the user's, who may look at a
    log of the folder.
    """
    if any(scratch in word for word in process.cmdline()):
        return True
    if process.terminal() is not None:
        return False
    paths = (process.cwd(), *(file.path for file in process.open_files()))
    return any(Path(path).is_relative_to(scratch) for path in paths)
