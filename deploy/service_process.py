"""The process of one service: starts Redis, Ray and the applications, and stops them at SIGTERM.

``deploy/local.py`` starts it. Its log goes to standard error. If it fails, the last thing that it writes to standard
output is the failure as JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import yaml

from cache.factory import SECRET, URL
from cache.store.redis_server import RedisServer
from deploy.cause import reason
from deploy.cluster import RayWatch, behind_haproxy, cluster, end, existing, haproxy_knows, targets_file
from deploy.local import readiness
from deploy.logs import logging_to
from deploy.preflight import starts_redis
from deploy.state import Service, StateFile
from deploy.supervisor import POLL_S, START_END_S, Start
from weir import ray_private
from weir.config import BATCH_SLACK, FamilyConfig, ServiceConfig, load_service
from weir.errors import ServiceError, WeirError
from weir.files import OTHERS
from weir.secrecy import shown

#: Timeout of the start, seconds; loading weights may include a download.
UP_TIMEOUT_S = 1800.0
_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h

log = logging.getLogger(__name__)


class _Progress:
    """Writes what a start waits for to the state file and to the log."""

    def __init__(self, state: StateFile, service: Service):
        self.service = service
        self._state = state

    def update(self, **fields: object) -> None:
        self.service = replace(self.service, **fields)  # type: ignore[arg-type]
        self._state.write(self.service)

    @property
    def logs(self) -> Path:
        return self._state.logs

    def release(self) -> None:
        self._state.release()

    def link_targets(self, source: Path) -> None:
        self._state.link_targets(source)
        self.update(targets=str(self._state.targets.absolute()))

    def wait_for(self, what: str) -> None:
        if what != self.service.waiting_for:
            log.info("waiting for %s", what)
            self.update(waiting_for=what)


def serve(start: Start) -> None:
    """Runs a service until SIGTERM.

    Raises:
        WeirError: the service did not start; what was started has been stopped.
    """
    service, family = load_service(start.config)
    state = StateFile(Path(start.config).stem, Path(start.folder))
    state.lock.adopt(start.lock_fd)
    url = f"http://{service.http.host}:{start.port}"
    policy = service.controller.policy
    record = Service(state.name, os.getpid(), url, "", start.config, scratch=start.scratch, policy=policy)
    stop = threading.Event()
    with ExitStack() as stack:
        stack.callback(state.release)
        stack.callback(shutil.rmtree, start.scratch, ignore_errors=True)
        _stop_at_signals(stop)
        _adopt_orphans()
        progress = _Progress(state, record)
        if start.attached:
            threading.Thread(target=_stop_with_parent, args=[progress], daemon=True).start()
        log.info("%s", effective(service, family))
        _run(start, service, family, progress, stop)


def _run(
    start: Start, service: ServiceConfig, family: FamilyConfig, progress: _Progress, stop: threading.Event
) -> None:
    pool, replicas = service.pool, service.plan.size
    scratch = Path(start.scratch)
    with ExitStack() as stack:
        progress.update(logs=stack.enter_context(logging_to(progress.logs)))
        redis: RedisServer | None = None
        if starts_redis(service):
            progress.wait_for("Redis")
            redis = stack.enter_context(_redis(service, scratch))
            progress.update(cache_url=redis.url, cache_secret=os.environ.get(SECRET, ""))
        (scratch / "ray").mkdir()
        progress.update(connecting_to=existing() or "")
        if service.balancers > 1:
            stack.enter_context(behind_haproxy(scratch / "door", BATCH_SLACK * service.slo_s))
        dashboard = stack.enter_context(
            cluster(
                replicas * pool.cpus_per_replica,
                replicas * pool.gpus_per_replica,
                start.nodes,
                folder=scratch / "ray",
                report=progress.wait_for,
            )
        )
        _stop_at_signals(stop)  # Ray has installed its own handlers
        if listed := targets_file():
            progress.link_targets(listed)
        progress.update(dashboard=dashboard, connecting_to="")
        if stop.is_set():
            return
        stack.callback(_shut_down)
        ray = RayWatch()
        _deploy(start, service, family, progress, stop, ray)
        if stop.is_set():
            return
        progress.update(ready=True, waiting_for="")
        log.info("%s is up: %s/v1 (dashboard %s)", progress.service.name, progress.service.url, dashboard)
        while not stop.wait(1):
            ray.check()
            if redis is not None and redis.restart_if_ended():
                log.warning("Redis ended, and was started again; the cache is empty")


def _deploy(
    start: Start,
    service: ServiceConfig,
    family: FamilyConfig,
    progress: _Progress,
    stop: threading.Event,
    ray: RayWatch,
) -> None:
    """Deploys the applications, and waits until they are ready or ``stop`` is set."""
    from deploy.publish import Publisher
    from deploy.serve_config import render

    progress.wait_for("Ray Serve")
    publisher = Publisher(progress.service.dashboard)
    publisher.put(render(start.config, host=service.http.host, port=start.port, controlled=service.controlled))
    publisher.wait_applied(
        service.plan.plan(family.keys), timeout_s=UP_TIMEOUT_S, stopped=stop.is_set, report=progress.wait_for
    )
    while not stop.is_set():
        ray.check()
        waits_for = _pending(progress.service.url, service.balancers)
        if not waits_for:
            return
        progress.wait_for(waits_for)
        stop.wait(POLL_S)


def _pending(url: str, balancers: int) -> str:
    """What a start still waits for; "" when the service is ready."""
    now = readiness(url)
    if now is None:
        return "an answer of the API"
    if now["pending"] or not now["ready"]:
        return ", ".join(now["pending"]) or "its replicas"
    # The HAProxy of a cluster that runs already has other ports.
    known = balancers == 1 or existing() or haproxy_knows(balancers)
    return "" if known else "HAProxy to know the load balancers"


def _shut_down() -> None:
    """Shuts the applications down before Ray stops, so that requests in flight can finish."""
    from ray import serve

    log.info("stopping")
    if not ray_private.ended_part():  # else it would wait for an answer of Ray
        serve.shutdown()


@contextmanager
def _redis(service: ServiceConfig, scratch: Path) -> Iterator[RedisServer]:
    """Runs a Redis server, and names it and a secret of the cache in the environment.

    Replicas read both from their environment, which they inherit from Ray, started after this.

    Raises:
        ServiceError: the server does not start.
    """
    server = RedisServer.start(parent=scratch)
    given = {URL: server.url}
    if SECRET not in os.environ and service.cache.secret_file is None:
        given[SECRET] = secrets.token_hex(32)
    os.environ.update(given)
    try:
        yield server
    finally:
        for name in given:
            os.environ.pop(name, None)
        server.stop()


def effective(service: ServiceConfig, family: FamilyConfig) -> str:
    """The configuration with all defaults, as YAML without what may be a secret."""
    fields = {"service": service.model_dump(mode="json"), "family": family.model_dump(mode="json")}
    return yaml.safe_dump(shown(fields), sort_keys=False).rstrip()


def _adopt_orphans() -> None:
    """Makes this process the parent of descendants whose parents end, so that it finds them when it ends everything.

    Ray's workers outlive a raylet that was killed, and name no folder in their command. Linux only (prctl(2)).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _stop_at_signals(stop: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())


def _stop_with_parent(progress: _Progress) -> None:
    """Stops this process when its parent has ended, because then standard input ends."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(START_END_S)
    if not progress.service.dashboard:  # Ray starts, and keeps the main thread from reacting
        end(set(psutil.Process().children(recursive=True)))
        shutil.rmtree(progress.service.scratch, ignore_errors=True)
        progress.release()
        os._exit(1)


def main() -> None:
    """Entry point of the process; its argument is a :class:`Start` as JSON."""
    parser = argparse.ArgumentParser(description="Runs one service until SIGTERM.")
    parser.add_argument("start", type=json.loads)
    start = Start(**parser.parse_args().start)
    os.umask(OTHERS)  # what this process and those of Ray write is for this user only
    report = os.dup(1)
    os.dup2(2, 1)  # standard output is for the failure, whatever Ray prints
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        serve(start)
    except SystemExit:  # by Ray's own handler of SIGTERM, which is in force while Ray starts
        return
    except WeirError as error:
        log.error("%s", error.message)
        failure = error
    except Exception as error:
        log.exception("the service failed")
        failure = ServiceError(f"{type(error).__name__}: {reason(error)}")
    else:
        return
    with suppress(BrokenPipeError):  # of a service that was up, no one waits for the failure
        os.write(report, json.dumps({"code": failure.code, "message": failure.message}).encode())
    logging.shutdown()
    os._exit(1)  # exit handlers of Ray would write to the folder that has been removed


if __name__ == "__main__":
    main()
