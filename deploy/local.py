"""``weir up``, ``weir down`` and ``weir status``: a service on this machine, from its file to no process left."""

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
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.text import Text

from cache.factory import SECRET, URL, connected
from cache.store.backend import StoreFailed
from cache.store.redis_server import RedisServer
from deploy.cluster import cluster, targets_file
from deploy.policy import policy_of
from deploy.state import FOLDER, Service, StateFile, find
from weir.assets import import_path
from weir.config import CacheConfig, FamilyConfig, ServiceConfig, load_keys, load_service
from weir.errors import ConfigError, ServiceError, WeirError
from weir.ports import listenable
from weir.profiles import load_profile
from weir.prompt_levels import LevelHead

#: Loading weights may mean downloading them first.
UP_TIMEOUT_S = 1800.0
DOWN_TIMEOUT_S = 90.0
POLL_S = 0.25
#: Longest wait for each answer of the Redis that a service names, before it starts.
REDIS_PATIENCE_S = 5.0


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
    """Starts the service of a file and, unless ``detach``, stays until Ctrl-C or SIGTERM and stops it again.

    Must run on the main thread, for it answers signals.

    Args:
        port: where the API listens; None: as the file says; 0: a free port.
        nodes: Ray nodes beside the head that the replicas are spread over; 0: they are on the head.
        folder: where state files live; :func:`down` and :func:`status` look there.
        on_ready: called once the API can serve.

    Returns:
        With ``detach`` the service that is now up; else None, after everything has stopped.

    Raises:
        ConfigError: the file, its family or a profile is wrong; nothing was started.
        ServiceError: a service of this name is up, the port is taken, or ``nodes`` are asked of a cluster that is there
            already; nothing was started.
        NotReady: the application failed to come up; everything was stopped again.
    """
    console = console or Console()
    service, family = checked(config_path)
    _check_redis(service.cache, console)
    state = StateFile(Path(config_path).stem, folder)
    if state.held():
        raise ServiceError(f"{state.name} is already up; stop it with `weir down`")
    if nodes and os.environ.get("RAY_ADDRESS"):
        raise ServiceError("--nodes starts Ray nodes here, and RAY_ADDRESS names a cluster; give one of the two")
    address = (service.http.host, bindable(service.http.host, service.http.port if port is None else port))
    if detach:
        return _detached(config_path, address[1], nodes, state, console)
    state.acquire()
    try:
        _serve(config_path, service, family, address, nodes, state, console, on_ready)
    finally:
        state.release()
    return None


def down(name: str | None = None, *, folder: Path = FOLDER) -> Service:
    """Stops a service and waits until all its processes are gone.

    Raises:
        ServiceError: nothing is up, several are and none is named, or it would not stop.
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
    """What is up: name, pid, url, dashboard, config, targets of Prometheus and, from the load balancer, readiness,
    replicas and plan.

    Raises:
        ServiceError: nothing is up, or several are and none is named.
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
        "healthy": state is not None and state["ready"],
        **(state or {"ready": False, "pending": ["the load balancer does not answer"]}),
    }


def checked(config_path: Path | str) -> tuple[ServiceConfig, FamilyConfig]:
    """The service and its family, with every file that they name looked at.

    Raises:
        ConfigError: names the file, the key and the remedy.
    """
    service, family = load_service(config_path)
    for profile in filter(None, (service.profile, service.pool.emulate)):
        load_profile(profile, family.keys)
    if service.controlled:
        _check_policy(config_path, service)
    if service.keys_file is not None:
        load_keys(service.keys_file)
    return service, family


def _check_policy(config_path: Path | str, service: ServiceConfig) -> None:
    """Makes the policy of a service once: what it needs and does not have is known before anything starts.

    Raises:
        ConfigError: names the file and what is missing.
    """
    try:
        policy_of(service, None if service.cache.levels is None else LevelHead.load(Path(service.cache.levels)))
    except ConfigError as error:
        raise ConfigError(f"{config_path}: controller.policy: {error.message}") from None


def bindable(host: str, port: int) -> int:
    """The port if it is free, a free one for 0.

    Raises:
        ServiceError: something else listens there.
    """
    try:
        return listenable(host, port)
    except OSError as error:
        raise ServiceError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0 for a free one"
        ) from None


def readiness(url: str) -> dict[str, Any] | None:
    """What ``/readyz`` says; None while nobody answers."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
        state = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    return state if isinstance(state, dict) and "ready" in state else None


def _serve(
    config_path: Path | str,
    service: ServiceConfig,
    family: FamilyConfig,
    address: tuple[str, int],
    nodes: int,
    state: StateFile,
    console: Console,
    on_ready: Callable[[Service], None] | None,
) -> None:
    stop = threading.Event()

    def answer_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())

    url = f"http://{address[0]}:{address[1]}"
    console.print(Text(_effective(service, family)), soft_wrap=True)
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    answer_signals()
    replicas = service.plan.size
    with ExitStack() as stack:
        stack.callback(lambda: [signal.signal(number, handler) for number, handler in previous.items()])
        progress = stack.enter_context(console.status("starting Ray"))
        access = stack.enter_context(_redis(service))
        pool = service.pool
        dashboard = stack.enter_context(
            cluster(cpus=replicas * pool.cpus_per_replica, gpus=replicas * pool.gpus_per_replica, nodes=nodes)
        )
        answer_signals()  # Ray put its own in place
        from deploy.publish import Publisher
        from deploy.serve_config import render

        targets = ""
        if listed := targets_file():
            state.link_targets(listed)
            targets = str(state.targets.absolute())
        running = Service(state.name, os.getpid(), url, dashboard, str(config_path), False, *access, targets)
        state.write(running)
        plan = service.plan.plan(family.keys)
        publisher = Publisher(dashboard)
        publisher.put(render(config_path, host=address[0], port=address[1], controlled=service.controlled))
        stack.callback(_stop, progress, console)
        progress.update("starting replicas")
        publisher.wait_applied(plan, timeout_s=UP_TIMEOUT_S, stopped=stop.is_set)
        while not stop.is_set():
            now = readiness(url)
            if now and now["ready"] and not now["pending"]:
                break
            progress.update(Text(f"waiting for {', '.join(now['pending']) if now else 'the API'}"))
            stop.wait(POLL_S)
        if stop.is_set():
            return
        progress.stop()
        running = replace(running, ready=True)
        state.write(running)
        console.print(Text(f"{state.name} is up: {url}/v1 (dashboard {dashboard}); Ctrl-C stops it"), soft_wrap=True)
        if on_ready:
            on_ready(running)
        while not stop.wait(1):  # a wait without end would not see signals
            pass


def _check_redis(config: CacheConfig, console: Console) -> None:
    """Looks at the Redis that is named, where one is.

    Raises:
        ConfigError: it will never do. One that does not answer is only mentioned, for a cache can only help.
    """
    if config.mode == "off" or not (config.url or URL in os.environ):
        return
    backend = connected(config, patience_s=REDIS_PATIENCE_S)
    try:
        backend.check(writing=config.mode == "read-write")
    except StoreFailed as error:
        console.print(Text(f"nothing is cached until Redis answers: {error.message}"), soft_wrap=True)
    finally:
        backend.close()


@contextmanager
def _redis(service: ServiceConfig) -> Iterator[tuple[str, str]]:
    """A Redis server for a service that wants a cache and names none; its URL and the secret of the cache.

    Replicas find both in their environment, which is inherited from the Ray that is started after this.

    Raises:
        ConfigError: the replicas are on a cluster that a server on this machine does not serve.
        ServiceError: the server does not start.
    """
    if service.cache.mode == "off" or service.cache.url or URL in os.environ:
        yield "", ""
        return
    if os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"cache.url names no Redis, and RAY_ADDRESS a cluster; name a Redis that it reaches, or set {URL}"
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


def _stop(progress: Any, console: Console) -> None:
    """Takes the application off before Ray goes, so that what is in flight can finish."""
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
                    process.returncode = 0  # it outlives this command, and nobody here waits for it
                    return service
                time.sleep(POLL_S)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    tail = "\n".join(state.log.read_text().splitlines()[-10:])
    raise ServiceError(f"{state.name} did not come up; the end of {state.log}:\n{tail}")


def _effective(service: ServiceConfig, family: FamilyConfig) -> str:
    fields = {"service": service.model_dump(mode="json"), "family": family.model_dump(mode="json")}
    text = yaml.safe_dump(fields, sort_keys=False).rstrip()
    return re.sub(r"(//[^/@\s]*):[^/@\s]*@", r"\1:***@", text)  # passwords in URLs are nobody's to read in a log


def main() -> None:
    """The background process of ``up(detach=True)``."""
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
