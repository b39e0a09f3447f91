"""``weir up``, ``weir down`` and ``weir status``: start, stop and state of a service on this machine."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from cache.factory import check_choices
from deploy.cluster import existing
from deploy.policy import level_head, policy_of
from deploy.preflight import preflight, scratch_folder
from deploy.state import FOLDER, Service, StateFile, find, find_killed
from deploy.supervisor import Progress, ServiceProcess, Start, end_service, grace_s, stop_signals
from weir.config import FamilyConfig, ServiceConfig, load_keys, load_service
from weir.errors import ConfigError, ServiceError, WeirError
from weir.own_code import is_own, own
from weir.ports import listenable
from weir.profiles import load_profile
from workers.models.checkpoint import check_family

#: Time within which an ended service has released its name, seconds.
RELEASE_S = 10.0
#: Reason why a port cannot be used → the remedy.
_REMEDIES = {
    errno.EADDRINUSE: "choose another port, or 0 for a free one",
    errno.EACCES: "choose a port above 1023",
}


def up(
    config_path: Path | str,
    *,
    detach: bool = False,
    port: int | None = None,
    nodes: int = 0,
    folder: Path = FOLDER,
    console: Console | None = None,
) -> Service | None:
    """Starts the service of a file. Unless ``detach``, it blocks until Ctrl-C or SIGTERM and then stops the service.

    It must run on the main thread, because it handles signals.

    Args:
        port: port of the API; None uses that of the file, 0 a free one.
        nodes: number of Ray nodes beside the head for the replicas; 0 runs them on the head.
        folder: folder of the state files, which :func:`down` and :func:`status` read.
        console: gets a line for everything that the start waits for; None: standard error.

    Returns:
        With ``detach`` the running service; otherwise None, after everything has stopped.

    Raises:
        ConfigError: the file, its family or a profile is invalid, or does not fit this machine; nothing was started.
        ServiceError: a service of this name starts or is up, the port is in use, Ray's address does not answer, or
            ``nodes`` was given for an existing cluster; nothing was started.
        NotReady: the service did not start; everything was stopped again.
        KeyboardInterrupt: a signal ended the start; everything was stopped again.
    """
    console = console or _console()
    service, family = checked(config_path)
    if nodes and existing():
        raise ServiceError("--nodes starts Ray nodes here, but RAY_ADDRESS names a cluster; use one of the two")
    state = StateFile(Path(config_path).stem, folder)
    with stop_signals() as stop, ExitStack() as stack:
        state.acquire()
        stack.callback(state.release)
        if left := state.recorded():
            end_service(None, left.scratch, 0)
        starting = _Startup(state, str(config_path), console, stop)
        starting.report("the checks of this machine")
        free = bindable(service.http.host, service.http.port if port is None else port)
        for warning in preflight(service, family, starting.report):
            starting.say(warning)
        starting.report("the process of the service")
        scratch = scratch_folder()
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        start = Start(str(config_path), free, nodes, str(folder), state.lock.fd, str(scratch), not detach)
        process = starting.launch(start, f"http://{service.http.host}:{free}")
        stack.callback(process.end, starting.progress, stop)
        running = starting.wait_ready(process)
        if detach:
            stack.pop_all()
            process.leave()
            state.lock.hand_over()
            return running
        starting.say(f"{state.name} is up: {running.url}/v1 (dashboard {running.dashboard}); Ctrl-C stops it")
        process.wait(stop)
    return None


class _Startup:
    """What a start says while it goes on: to the terminal, and in the state file to other commands."""

    def __init__(self, state: StateFile, config: str, console: Console, stop: threading.Event):
        self._state, self._console, self._stop = state, console, stop
        self._record = Service(state.name, os.getpid(), "", "", config)
        self.progress = Progress(console)

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def report(self, waiting_for: str) -> None:
        """Says what the start waits for now.

        Raises:
            KeyboardInterrupt: a signal ended the start.
        """
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._state.write(replace(self._record, waiting_for=waiting_for))
        self.progress.wait_for(waiting_for)

    def launch(self, start: Start, url: str) -> ServiceProcess:
        """Starts the process of the service, which writes to the log."""
        with self._state.log.open("w") as log:
            process = ServiceProcess(self._state, start, log)
        found = replace(self._record, pid=process.pid, url=url, scratch=start.scratch, waiting_for="its imports")
        self._state.write(found)
        return process

    def wait_ready(self, process: ServiceProcess) -> Service:
        """Waits until the service is up.

        Raises:
            WeirError: it did not start; where its log is was said before.
        """
        try:
            return process.wait_ready(self.progress, self._stop)
        except WeirError as error:
            self.say(f"the log of {self._state.name} is {self._state.log}")
            raise type(error)(f"{self._state.name} did not start: {error.message}") from None


def down(name: str | None = None, *, folder: Path = FOLDER, console: Console | None = None) -> Service:
    """Stops a service, or ends its start, and waits until all its processes have ended.

    Of services that were killed it removes what they have left; it then returns the first of them.

    Args:
        console: gets a line from time to time; None: standard error.

    Raises:
        ServiceError: no service starts or is up, several are and ``name`` is None, or its processes do not end.
    """
    try:
        state, service = find(name, folder)
    except ServiceError:
        killed = find_killed(name, folder)
        for state, service in killed:
            end_service(None, service.scratch, 0)
            state.clear()
        if killed:
            return killed[0][1]
        raise
    progress = Progress(console or _console())

    def waiting() -> bool:
        progress.wait_for(f"the end of the requests and processes of {service.name}")
        return False

    end_service(service.pid, service.scratch, grace_s(service), waiting)
    if not state.lock.wait_released(RELEASE_S):
        raise ServiceError(f"{service.name} (process {service.pid}) did not end within {RELEASE_S:.0f} s after a kill")
    if state.path.exists():
        with suppress(ServiceError):  # the next start has the name already
            state.clear()
    return service


def status(name: str | None = None, *, folder: Path = FOLDER) -> dict[str, Any]:
    """Returns the state of a service: name, pid, url, dashboard, config, Prometheus targets and, from the load
    balancer, readiness, replicas and plan.

    Raises:
        ServiceError: no service is up, or several are up and ``name`` is None.
    """
    _, service = find(name, folder)
    state = readiness(service.url) if service.ready else None
    pending = service.waiting_for or "the load balancer does not answer"
    return {
        "name": service.name,
        "pid": service.pid,
        "url": service.url,
        "dashboard": service.dashboard,
        "config": service.config,
        "targets": service.targets,
        "policy": service.policy,
        "logs": service.logs,
        "healthy": state is not None and state["ready"],
        **(state or {"ready": False, "pending": [pending]}),
    }


def checked(config_path: Path | str) -> tuple[ServiceConfig, FamilyConfig]:
    """Loads a service and its family, and validates every file that they name.

    Raises:
        ConfigError: a file is invalid; the message names the file, the key and the remedy.
    """
    service, family = load_service(config_path)
    for profile in filter(None, (service.profile, service.pool.emulate)):
        load_profile(profile, family.keys, family.size)
    check_choices(service.cache)
    if service.prompt_filter is not None:
        own(service.prompt_filter, "prompt_filter")
    if family.safety_checker is not None and is_own(family.safety_checker):
        own(family.safety_checker, "safety_checker")
    if service.controlled:
        _check_policy(config_path, service)
    if service.keys_file is not None:
        load_keys(service.keys_file)
    if service.pool.emulate is None:
        check_family(family)
    return service, family


def _console() -> Console:
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def _check_policy(config_path: Path | str, service: ServiceConfig) -> None:
    """Makes the policy of a service once, to find missing measurements before anything starts.

    Raises:
        ConfigError: a measurement is missing; the message names it and the file.
    """
    try:
        policy_of(service, level_head(service))
    except ConfigError as error:
        raise ConfigError(f"{config_path}: controller.policy: {error.message}") from None


def bindable(host: str, port: int) -> int:
    """Returns the port if it is free; a free one for 0.

    Raises:
        ServiceError: the port is in use or reserved, or the host is no address of this machine.
    """
    try:
        return listenable(host, port)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "http.host has to be an IPv4 address of this machine, or 0.0.0.0")
        raise ServiceError(f"cannot listen on {host}:{port}: {error.strerror}; {remedy}") from None


def readiness(url: str) -> dict[str, Any] | None:
    """Returns the report of ``/readyz``; None while the load balancer does not answer."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
        state = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    return state if isinstance(state, dict) and "ready" in state else None
