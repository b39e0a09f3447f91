"""``weir up``, ``weir down`` and ``weir status``: start, stop and state of a service on this machine."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.status import Status
from rich.text import Text

from cache.factory import SECRET, URL, connected
from cache.store.backend import StoreFailed
from cache.store.redis_server import RedisServer
from deploy.cluster import cluster, targets_file
from deploy.logs import logging_to
from deploy.policy import policy_of
from deploy.state import FOLDER, Service, StateFile, find
from weir.assets import import_path
from weir.config import CacheConfig, FamilyConfig, ServiceConfig, load_keys, load_service
from weir.errors import ConfigError, ServiceError, WeirError
from weir.ports import listenable
from weir.profiles import load_profile
from weir.prompt_levels import LevelHead
from workers.models.checkpoint import check_family

#: Timeout of the start, seconds; loading weights may include a download.
UP_TIMEOUT_S = 1800.0
DOWN_TIMEOUT_S = 90.0
POLL_S = 0.25
#: Timeout of each response of the Redis that a service names, before the service starts.
REDIS_TIMEOUT_S = 5.0


def up(
    config_path: Path | str,
    *,
    detach: bool = False,
    port: int | None = None,
    nodes: int = 0,
    folder: Path = FOLDER,
    console: Console | None = None,
    on_ready: Callable[[Service], None] | None = None,
) -> Service | None:
    """Starts the service of a file. Unless ``detach``, it blocks until Ctrl-C or SIGTERM and then stops the service.

    It must run on the main thread, because it handles signals.

    Args:
        port: port of the API; None uses that of the file, 0 a free one.
        nodes: number of Ray nodes beside the head for the replicas; 0 runs them on the head.
        folder: folder of the state files, which :func:`down` and :func:`status` read.
        on_ready: called once the API can serve.

    Returns:
        With ``detach`` the running service; otherwise None, after everything has stopped.

    Raises:
        ConfigError: the file, its family or a profile is invalid; nothing was started.
        ServiceError: a service of this name is up, the port is in use, or ``nodes`` was given for an existing cluster;
            nothing was started.
        NotReady: the application did not start; everything was stopped again.
    """
    console = console or Console()
    service, family = checked(config_path)
    _check_redis(service.cache, console)
    state = StateFile(Path(config_path).stem, folder)
    if state.held():
        raise ServiceError(f"{state.name} is already up; stop it with `weir down`")
    if nodes and os.environ.get("RAY_ADDRESS"):
        raise ServiceError("--nodes starts Ray nodes here, but RAY_ADDRESS names a cluster; use one of the two")
    address = (service.http.host, bindable(service.http.host, service.http.port if port is None else port))
    if detach:
        return _detached(config_path, address[1], nodes, state, console)
    state.acquire()
    try:
        _serve(_Start(config_path, service, family, address, nodes), state, console, on_ready)
    finally:
        state.release()
    return None


def down(name: str | None = None, *, folder: Path = FOLDER) -> Service:
    """Stops a service and waits until all its processes have ended.

    Raises:
        ServiceError: no service is up, several are up and ``name`` is None, or the service did not stop in time.
    """
    state, service = find(name, folder)
    try:
        os.kill(service.pid, signal.SIGTERM)
    except ProcessLookupError:
        return service
    if not state.wait_released(DOWN_TIMEOUT_S):
        raise ServiceError(f"{service.name} (process {service.pid}) did not stop within {DOWN_TIMEOUT_S:.0f} s")
    return service


def status(name: str | None = None, *, folder: Path = FOLDER) -> dict[str, Any]:
    """Returns the state of a service: name, pid, url, dashboard, config, Prometheus targets and, from the load
    balancer, readiness, replicas and plan.

    Raises:
        ServiceError: no service is up, or several are up and ``name`` is None.
    """
    _, service = find(name, folder)
    state = readiness(service.url)
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
        **(state or {"ready": False, "pending": ["the load balancer does not answer"]}),
    }


def checked(config_path: Path | str) -> tuple[ServiceConfig, FamilyConfig]:
    """Loads a service and its family, and validates every file that they name.

    Raises:
        ConfigError: a file is invalid; the message names the file, the key and the remedy.
    """
    service, family = load_service(config_path)
    for profile in filter(None, (service.profile, service.pool.emulate)):
        load_profile(profile, family.keys)
    if service.controlled:
        _check_policy(config_path, service)
    if service.keys_file is not None:
        load_keys(service.keys_file)
    if service.pool.emulate is None:
        check_family(family)
    return service, family


def _check_policy(config_path: Path | str, service: ServiceConfig) -> None:
    """Makes the policy of a service once, to find missing measurements before anything starts.

    Raises:
        ConfigError: a measurement is missing; the message names it and the file.
    """
    try:
        policy_of(service, None if service.cache.levels is None else LevelHead.load(Path(service.cache.levels)))
    except ConfigError as error:
        raise ConfigError(f"{config_path}: controller.policy: {error.message}") from None


def bindable(host: str, port: int) -> int:
    """Returns the port if it is free; a free one for 0.

    Raises:
        ServiceError: the port is in use.
    """
    try:
        return listenable(host, port)
    except OSError as error:
        raise ServiceError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0 for a free one"
        ) from None


def readiness(url: str) -> dict[str, Any] | None:
    """Returns the report of ``/readyz``; None while the load balancer does not answer."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
        state = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    return state if isinstance(state, dict) and "ready" in state else None


@dataclass(frozen=True, slots=True)
class _Start:
    """What :func:`up` starts: a checked service at an address (host and port), with ``nodes`` Ray nodes."""

    config_path: Path | str
    service: ServiceConfig
    family: FamilyConfig
    address: tuple[str, int]
    nodes: int

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"


def _serve(start: _Start, state: StateFile, console: Console, on_ready: Callable[[Service], None] | None) -> None:
    """Runs a service until a signal stops it."""
    stop = threading.Event()

    def handle_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())

    service = start.service
    console.print(Text(_effective(service, start.family)), soft_wrap=True)
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handle_signals()
    replicas = service.plan.size
    with ExitStack() as stack:
        stack.callback(lambda: [signal.signal(number, handler) for number, handler in previous.items()])
        progress = stack.enter_context(console.status("starting Ray"))
        logs = stack.enter_context(logging_to(state.logs))
        access = stack.enter_context(_redis(service))
        pool = service.pool
        dashboard = stack.enter_context(
            cluster(cpus=replicas * pool.cpus_per_replica, gpus=replicas * pool.gpus_per_replica, nodes=start.nodes)
        )
        handle_signals()  # Ray has installed its own handlers
        from deploy.publish import Publisher
        from deploy.serve_config import render

        targets = ""
        if listed := targets_file():
            state.link_targets(listed)
            targets = str(state.targets.absolute())
        config = str(start.config_path)
        about = (targets, service.controller.policy, logs)
        running = Service(state.name, os.getpid(), start.url, dashboard, config, False, *access, *about)
        state.write(running)
        publisher = Publisher(dashboard)
        host, port = start.address
        publisher.put(render(start.config_path, host=host, port=port, controlled=service.controlled))
        stack.callback(_stop, progress, console)
        progress.update("starting replicas")
        publisher.wait_applied(service.plan.plan(start.family.keys), timeout_s=UP_TIMEOUT_S, stopped=stop.is_set)
        _wait_ready(start.url, stop, progress)
        if stop.is_set():
            return
        progress.stop()
        running = replace(running, ready=True)
        state.write(running)
        console.print(
            Text(f"{state.name} is up: {start.url}/v1 (dashboard {dashboard}); Ctrl-C stops it"), soft_wrap=True
        )
        if on_ready:
            on_ready(running)
        while not stop.wait(1):  # an endless wait would not process signals
            pass


def _wait_ready(url: str, stop: threading.Event, progress: Status) -> None:
    """Waits until the load balancer reports that nothing is pending, or until ``stop`` is set."""
    while not stop.is_set():
        now = readiness(url)
        if now and now["ready"] and not now["pending"]:
            return
        progress.update(Text(f"waiting for {', '.join(now['pending']) if now else 'the API'}"))
        stop.wait(POLL_S)


def _check_redis(config: CacheConfig, console: Console) -> None:
    """Checks the Redis that the service or the environment names.

    Raises:
        ConfigError: the Redis is unsuitable. One that does not answer is only reported, because the cache is optional.
    """
    if config.mode == "off" or not (config.url or URL in os.environ):
        return
    backend = connected(config, patience_s=REDIS_TIMEOUT_S)
    try:
        backend.check(writing=config.mode == "read-write")
    except StoreFailed as error:
        console.print(Text(f"nothing is cached until Redis answers: {error.message}"), soft_wrap=True)
    finally:
        backend.close()


@contextmanager
def _redis(service: ServiceConfig) -> Iterator[tuple[str, str]]:
    """Runs a Redis server for a service with a cache that names none; yields its URL and the secret of the cache.

    Replicas read both from their environment, which they inherit from Ray, started after this.

    Raises:
        ConfigError: the replicas are on a cluster that cannot reach a server on this machine.
        ServiceError: the server does not start.
    """
    if service.cache.mode == "off" or service.cache.url or URL in os.environ:
        yield "", ""
        return
    if os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"RAY_ADDRESS names a cluster, and cache.url names no Redis; name a Redis that it can reach, or set {URL}"
        )
    server = RedisServer.start()
    given = {URL: server.url}
    if SECRET not in os.environ and service.cache.secret_file is None:
        given[SECRET] = secrets.token_hex(32)
    os.environ.update(given)
    try:
        yield server.url, os.environ.get(SECRET, "")
    finally:
        for name in given:
            os.environ.pop(name, None)
        server.stop()


def _stop(progress: Status, console: Console) -> None:
    """Shuts the applications down before Ray stops, so that requests in flight can finish."""
    from ray import serve

    progress.update("stopping")
    progress.start()
    serve.shutdown()


def _detached(config_path: Path | str, port: int, nodes: int, state: StateFile, console: Console) -> Service:
    state.path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "deploy.local", str(config_path), "--port", str(port), "--nodes", str(nodes)]
    command += ["--folder", str(state.path.parent.resolve())]
    paths = os.pathsep.join(filter(None, [*import_path(), os.environ.get("PYTHONPATH")]))
    with state.log.open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
    try:
        with console.status(Text(f"starting {state.name}; its log is {state.log}")):
            while process.poll() is None:
                service = state.read()
                if service and service.ready:
                    process.returncode = 0  # it outlives this command, so its exit status is never collected
                    return service
                time.sleep(POLL_S)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    tail = "\n".join(state.log.read_text().splitlines()[-10:])
    raise ServiceError(f"{state.name} did not start; the end of {state.log}:\n{tail}")


def _effective(service: ServiceConfig, family: FamilyConfig) -> str:
    fields = {"service": service.model_dump(mode="json"), "family": family.model_dump(mode="json")}
    text = yaml.safe_dump(fields, sort_keys=False).rstrip()
    return re.sub(r"(//[^/@\s]*):[^/@\s]*@", r"\1:***@", text)  # no passwords of URLs in logs


def main() -> None:
    """Entry point of the background process of ``up(detach=True)``."""
    parser = argparse.ArgumentParser(description="Runs one service until SIGTERM.")
    parser.add_argument("config")
    parser.add_argument("--port", type=int)
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    try:
        up(given.config, port=given.port, nodes=given.nodes, folder=given.folder)
    except WeirError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()
