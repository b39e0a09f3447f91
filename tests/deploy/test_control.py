"""Tests of a deployment with a controller on a Ray cluster of a head and two nodes, with emulated workers: it follows
the demand, and no plan and no failure disturbs a request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.lost_node import kill_a_node
from deploy.cluster import cluster, start_node
from deploy.local import bindable, readiness
from deploy.publish import Publisher
from deploy.serve_config import render
from testing.toy_family import FAMILY
from weir import metrics

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.ray,
    # Ray and the subprocess it starts leave their sockets and pipes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
]
#: One light replica carries few requests and leaves three to draw them again; many need two light ones.
FEW, MANY = 4, 9
#: Nothing takes so long, however busy the machine.
LONGEST_S = 240.0
PROFILE: dict[str, Any] = {
    "family": "toy",
    "device": "none",
    "light": {"name": "toy-light", "steps": 2, "batch_sizes": [1, 4], "latency_s": [0.2, 0.5]},
    "heavy": {"name": "toy-heavy", "steps": 50, "batch_sizes": [1, 4], "latency_s": [1.6, 3.2]},
}


class Up(NamedTuple):
    url: str
    publisher: Publisher

    def state(self) -> dict[str, Any]:
        end = time.monotonic() + LONGEST_S
        while (state := readiness(self.url)) is None:  # on a busy machine it may answer too late for one look
            assert time.monotonic() < end
        return state

    def plan(self) -> dict[str, Any]:
        state = self.state()
        return {"version": state["plan"]["version"], "light": state["replicas"]["light"]["planned"]}

    def running(self, application: str, deployment: str) -> set[int]:
        """Process ids of the running replicas."""
        replicas = self.publisher.details()["applications"][application]["deployments"][deployment]["replicas"]
        return {it["pid"] for it in replicas if it["state"] == "RUNNING"}

    def pids(self) -> set[int]:
        return self.running("weir", "Pool")

    def controllers(self) -> set[int]:
        return self.running("weir-controller", "Controller")

    async def load(self, rps: float, until: Callable[[], bool]) -> Counter[int]:
        """Sends requests open loop at a rate until a condition holds; returns the status codes of the answers."""
        async with httpx.AsyncClient(base_url=self.url, timeout=LONGEST_S) as client, asyncio.TaskGroup() as group:

            def send(number: int) -> asyncio.Task[httpx.Response]:
                return group.create_task(client.post("/v1/images/generations", json={"prompt": f"{number}"}))

            answers: list[asyncio.Task[httpx.Response]] = []
            look = group.create_task(asyncio.to_thread(until))
            start = time.monotonic()
            while not (look.done() and look.result()):
                passed = time.monotonic() - start
                assert passed < LONGEST_S, self.plan()
                # By the clock, not by the number of sleeps: a busy machine must not make the load smaller.
                answers += [send(number) for number in range(len(answers), int(rps * passed) + 1)]
                if look.done():
                    look = group.create_task(asyncio.to_thread(until))
                await asyncio.sleep(0.5 / rps)
        for answer in answers:
            if not answer.result().is_success:
                logging.error("%s", answer.result().text)  # pytest shows it when the test fails
        return Counter(answer.result().status_code for answer in answers)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder: Path = tmp_path_factory.mktemp("service")
    (folder / "family.yaml").write_text(yaml.safe_dump(FAMILY))
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    config = folder / "service.yaml"
    service = {
        "family": "family.yaml",
        "slo_s": 20,
        "plan": {"light_replicas": 2, "heavy_replicas": 2},
        "controller": {"policy": "weir"},
        "pool": {"cpus_per_replica": 0.5, "emulate": "profile.json"},  # two replicas fill a node
    }
    config.write_text(yaml.safe_dump(service))
    port = bindable("127.0.0.1", 0)
    body = render(config, host="127.0.0.1", port=port, controlled=True)
    body["http_options"]["request_timeout_s"] = LONGEST_S
    (folder / "serve.yaml").write_text(yaml.safe_dump(body))
    with pytest.MonkeyPatch.context() as patch, cluster_quick_to_miss_a_node(patch) as dashboard:
        command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(folder / "serve.yaml"), "-a", dashboard]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + LONGEST_S
        while not ((state := readiness(url)) and not state["pending"]):
            assert time.monotonic() < end, state
            time.sleep(0.1)
        yield Up(url, Publisher(dashboard))


@contextmanager
def cluster_quick_to_miss_a_node(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Shortens the time, half a minute by default, after which Ray declares a silent node dead."""
    patch.setenv("RAY_health_check_period_ms", "1000")
    patch.setenv("RAY_health_check_failure_threshold", "3")
    with cluster(cpus=2, nodes=2) as dashboard:
        yield dashboard


async def awaited(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


async def test_a_demand_step_changes_roles_without_a_restart_or_a_failed_request(up):
    pids, first = up.pids(), up.publisher.details()
    assert set(await up.load(FEW, until=lambda: up.plan()["light"] == 1)) == {200}
    before = up.plan()
    assert set(await up.load(MANY, until=lambda: up.plan()["light"] > 1)) == {200}
    assert up.plan()["version"] > before["version"] > 1
    assert up.pids() == pids
    last = up.publisher.details()
    assert last["http_options"] == first["http_options"], "whatever else was deployed stays"
    assert last["applications"].keys() == first["applications"].keys() == {"weir", "weir-controller"}
    assert last["applications"]["weir"]["last_deployed_time_s"] > first["applications"]["weir"]["last_deployed_time_s"]


async def test_the_metrics_of_the_controller_can_be_scraped(up):
    import ray

    head = next(node for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    address = f"http://127.0.0.1:{head['MetricsExportPort']}/metrics"
    recorded = (it for it in metrics.ALL if it.room == "controller" and it is not metrics.FAILURES)
    names = {f"ray_{metric.name.removesuffix('_total')}" for metric in recorded}

    def scraped() -> dict[str, Any]:
        text = httpx.get(address, timeout=LONGEST_S).text
        return {family.name: family for family in text_string_to_metric_families(text)}

    end = time.monotonic() + LONGEST_S
    while missing := names - set(families := scraped()):  # Ray reports in intervals, and not all at once
        assert time.monotonic() < end, missing
        await asyncio.sleep(0.5)
    while [it.value for it in families["ray_weir_replicas_alive"].samples] != [4]:
        assert time.monotonic() < end
        await asyncio.sleep(0.5)
        families = scraped()
    assert {sample.labels["role"] for sample in families["ray_weir_latency_factor"].samples} == {"light", "heavy"}


async def test_a_second_controller_waits(up):
    from deploy.control import Edges

    assert await asyncio.to_thread(Edges().lead) is False


async def test_the_plan_survives_a_dead_controller_and_the_next_one_continues(up):
    (dead,) = up.controllers()
    os.kill(dead, signal.SIGKILL)
    running = up.plan()
    assert running["light"] > 1
    assert set(await up.load(MANY, until=lambda: bool(up.controllers() - {dead}))) == {200}
    assert up.plan()["light"] > 1
    assert set(await up.load(FEW, until=lambda: up.plan()["version"] > running["version"])) == {200}


async def test_a_dead_node_loses_no_request_and_leaves_the_plan(up):
    def ready(light: int, heavy: int) -> bool:
        return {role: it["ready"] for role, it in up.state()["replicas"].items()} == {"light": light, "heavy": heavy}

    version, looks = up.plan()["version"], count(1)
    assert set(await up.load(FEW, until=lambda: next(looks) == 5)) == {200}  # some are on their way
    kill_a_node(os.getpid())
    assert set(await up.load(FEW, until=lambda: up.plan()["version"] > version and ready(1, 1))) == {200}


async def test_the_replicas_return_with_their_node(up):
    start_node(cpus=1)
    assert set(await up.load(FEW, until=lambda: len(up.pids()) == 4 and up.state()["pending"] == [])) == {200}


async def test_a_dead_dashboard_changes_no_role_and_serving_continues(up):
    assert set(await up.load(FEW, until=lambda: up.plan()["light"] == 1)) == {200}
    children = psutil.Process().children(recursive=True)
    running = (p for p in psutil.process_iter(["cmdline"]) if p in children)  # tolerates processes that end meanwhile
    dashboard = next(p for p in running if "dashboard.py" in " ".join(p.info["cmdline"] or ()))
    for process in [*dashboard.children(recursive=True), dashboard]:
        process.kill()
    looks = count(1)
    # Enough requests and seconds for a plan that would have flipped a role.
    assert set(await up.load(MANY, until=lambda: time.sleep(1) or next(looks) == 8)) == {200}
    assert up.plan()["light"] == 1
