"""Testbed: a real service of emulated replicas on a local cluster, with access to each of its processes.

    python -m testing.testbed SERVICE_FILE --ray ADDRESS

runs one live controller of such a service in a separate process.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from cache.factory import SECRET
from cache.store.redis_server import RedisServer
from deploy.cluster import RayWatch, behind_haproxy, cluster, start_node
from deploy.local import bindable, readiness
from deploy.serve_config import APPLICATION, POOL, render, with_plan
from load_balancer.http.openapi import GENERATIONS
from testing.processes import LiveControllers
from testing.service_files import emulated_service
from weir.config import load_service
from weir.plan import Plan

if TYPE_CHECKING:  # Ray reads its environment on import, and the cluster sets it later
    from deploy.publish import Publisher

SLO_S = 15.0
LIGHT, HEAVY = 2, 2
#: Number of nodes beside the head, and logical CPUs of each, one per replica: the pool fills the nodes.
NODES = 2
NODE_CPUS = (LIGHT + HEAVY) // NODES
#: Timeout of the start of all processes of a service, seconds.
START_S = 180.0
PROMPTS = [f"a {color} {shape}" for color in ("red", "green", "blue", "white") for shape in ("circle", "star", "box")]


def plan(version: int, light: int = LIGHT, heavy: int = HEAVY) -> Plan:
    return Plan.split(version, light, heavy, light_batch=4, heavy_batch=4, threshold=0.5)


def write_service(folder: Path, **changes: Any) -> Path:
    """Writes the service file of the testbed."""
    fields: dict[str, Any] = {
        "slo_s": SLO_S,
        "plan": {"light_replicas": LIGHT, "heavy_replicas": HEAVY, "light_batch": 4, "heavy_batch": 4},
        "pool": {"cpus_per_replica": 1},
        "controller": {"policy": "weir"},
    }
    return emulated_service(folder, "bed", light_s=(0.1, 0.25), heavy_s=(0.8, 1.6), **fields | changes)


@dataclass
class Testbed:
    """A running service with access to its parts. The methods block; call them outside the event loop.

    Attributes:
        dashboard: HTTP address of the dashboard of Ray.
        balancers: number of load balancers.
        redis: Redis server of the cache; None without one.
        controllers: the live controllers.
    """

    __test__ = False  # pytest would collect a class of this name

    url: str
    config: Path
    port: int
    dashboard: str
    publisher: Publisher
    balancers: int = 1
    redis: RedisServer | None = None
    #: Linux kills a node with the thread that started it, so one permanent thread starts all nodes.
    _starter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def __post_init__(self) -> None:
        self.controllers = LiveControllers(self.config)

    def state(self) -> dict[str, Any] | None:
        """Returns the readiness report; None while the load balancer does not answer."""
        return readiness(self.url)

    def deployments(self) -> dict[str, Any]:
        """Returns Serve's details of each deployment."""
        deployed: dict[str, Any] = self.publisher.details()["applications"][APPLICATION]["deployments"]
        return deployed

    def running(self, deployment: str) -> dict[str, int]:
        """Returns the process ids of the running replicas of a deployment, by replica id."""
        return _running(self.deployments()[deployment])

    def target(self) -> Plan:
        """Returns the plan of the last PUT."""
        return Plan.from_dict(self.deployments()[POOL]["deployment_config"]["user_config"])

    def replicas(self, role: str) -> list[dict[str, Any]]:
        """Returns the descriptions of the replicas of a role, ordered by rank; of all replicas when none has the
        role."""
        from ray.serve import get_deployment_handle

        answers = get_deployment_handle(POOL, app_name=APPLICATION).broadcast("describe").results(timeout_s=30)
        answers = sorted(answers, key=lambda it: it["rank"])
        return [it for it in answers if it["role"] == role] or answers

    def pids(self, role: str) -> list[int]:
        """Returns the process ids of :meth:`replicas`."""
        return [it["process"]["pid"] for it in self.replicas(role)]

    def start_node(self) -> None:
        """Starts another node with the same number of CPUs."""
        self._starter.submit(start_node, NODE_CPUS).result()

    def is_whole(self, without: Collection[int] = ()) -> bool:
        """Whether the service runs as the last PUT requested, is ready, and has none of the processes ``without``."""
        state, deployed = self.state(), self.deployments()
        target = Plan.from_dict(deployed[POOL]["deployment_config"]["user_config"])
        running = {name: set(_running(it).values()) for name, it in deployed.items()}
        return (
            state is not None
            and state["ready"]
            and not state["pending"]
            and state["plan"]["version"] >= target.version
            and len(running[POOL]) == len(target.assignments)
            and all(running.values())
            and all(pids.isdisjoint(without) for pids in running.values())
        )

    def wait(self, condition: Callable[[], bool], timeout_s: float = START_S) -> bool:
        """Waits until the condition holds. An exception counts as False. Returns False after the timeout."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            with suppress(Exception):
                if condition():
                    return True
            time.sleep(0.1)
        return False

    def publish(self, new: Plan) -> None:
        self.publisher.put(with_plan(render(self.config, host="127.0.0.1", port=self.port, controlled=False), new))

    def next_version(self) -> int:
        state = self.state()
        return 1 + max(self.target().version, state["plan"]["version"] if state else 0)

    def ask(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Sends one request and returns the description of its image."""
        answer = httpx.post(f"{self.url}{GENERATIONS}", json={"prompt": prompt, **fields}, timeout=60, trust_env=False)
        answer.raise_for_status()
        about: dict[str, Any] = answer.json()["data"][0]["weir"]
        return about


def _running(deployment: dict[str, Any]) -> dict[str, int]:
    return {it["replica_id"]: it["pid"] for it in deployment["replicas"] if it["state"] == "RUNNING"}


@contextmanager
def _watched() -> Iterator[None]:
    """Starts Ray's GCS again whenever it has ended, as the process of a service does."""
    over, watch = threading.Event(), RayWatch()

    def keep() -> None:
        while not over.wait(1):
            watch.check()

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def testbed(folder: Path, balancers: int) -> Iterator[Testbed]:
    """Runs a service with its own Redis and one live controller. Its pool fills the nodes beside the head.

    Args:
        balancers: number of load balancers; several are behind an HAProxy.
    """
    redis = RedisServer.start()
    # The time limits are long, because a small machine stalls under faults and the limits are not under test.
    cache = {"mode": "read-write", "encoder": "words", "url": redis.url, "fetch_s": 0.5, "lookup_s": 2}
    config = write_service(folder, cache=cache, balancers=balancers)
    os.environ[SECRET] = secrets.token_hex(32)
    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"  # the log files contain it as well
    port = bindable("127.0.0.1", 0)
    try:
        with ExitStack() as stack:
            if balancers > 1:
                door = stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-", dir="/tmp"))
                stack.enter_context(behind_haproxy(Path(door), START_S))
            dashboard = stack.enter_context(cluster(cpus=NODES * NODE_CPUS, nodes=NODES))
            stack.enter_context(_watched())
            from deploy.publish import Publisher

            bed = Testbed(f"http://127.0.0.1:{port}", config, port, dashboard, Publisher(dashboard), balancers, redis)
            bed.publish(plan(1))
            bed.publisher.wait_applied(plan(1), timeout_s=START_S)
            if not bed.wait(bed.is_whole):
                raise RuntimeError(f"the service did not become ready: {bed.state()}")
            bed.controllers.start()
            try:
                yield bed
            finally:
                bed.controllers.kill_all()
                import ray.serve

                ray.serve.shutdown()
    finally:
        del os.environ[SECRET]
        redis.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs one live controller of a testbed.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--ray", required=True)
    given = parser.parse_args()
    import ray

    from deploy.control import Edges, controller

    ray.init(address=given.ray, log_to_driver=False, logging_level=logging.ERROR)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    service, _ = load_service(given.config)
    edges = Edges()
    controller(service, edges).run(stop)
    edges.follow()
    ray.shutdown()


if __name__ == "__main__":
    main()
