"""The live controller on real Ray Serve with emulated workers: it follows the demand and disturbs no request."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from controller.loop import Controller
from controller.policies.weir import Weir
from deploy.cluster import cluster
from deploy.local import bindable, readiness
from deploy.publish import Publisher, render
from tests.toy_family import FAMILY
from weir import metrics
from weir.config import load_service

pytestmark = [
    pytest.mark.timeout(600),
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
    controller: Controller

    def plan(self) -> dict[str, Any]:
        end = time.monotonic() + LONGEST_S
        while (state := readiness(self.url)) is None:  # on a busy machine it may answer too late for one look
            assert time.monotonic() < end
        return {"version": state["plan"]["version"], "light": state["replicas"]["light"]["planned"]}

    def published(self) -> int:
        """The version of the last plan that was put to Serve, whether or not it is in force yet."""
        deployments = self.publisher.details()["applications"]["weir"]["deployments"]
        return deployments["LoadBalancer"]["deployment_config"]["user_config"]["version"]

    def pids(self) -> set[int]:
        replicas = self.publisher.details()["applications"]["weir"]["deployments"]["Pool"]["replicas"]
        return {replica["pid"] for replica in replicas}

    async def load(self, rps: float, until: Callable[[], bool]) -> Counter[int]:
        """Open loop: so many requests per second until a condition holds; the status codes of the answers."""
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
        return Counter(answer.result().status_code for answer in answers)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder: Path = tmp_path_factory.mktemp("service")
    (folder / "family.yaml").write_text(yaml.safe_dump(FAMILY))
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    config = folder / "service.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "family": "family.yaml",
                "slo_s": 20,
                "plan": {"light_replicas": 2, "heavy_replicas": 2},
                "controller": {"policy": "weir"},
                "pool": {"cpus_per_replica": 0.1, "emulate": "profile.json"},
            }
        )
    )
    service, _ = load_service(config)
    port = bindable("127.0.0.1", 0)
    with cluster(cpus=4) as dashboard:
        from deploy.control import controller, start

        publisher, plan = Publisher(dashboard), service.plan.plan()
        publisher.put(render(config, plan, host="127.0.0.1", port=port))
        publisher.wait_applied(plan, timeout_s=180)
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while not ((state := readiness(url)) and not state["pending"]):
            assert time.monotonic() < end, state
            time.sleep(0.1)
        stop = threading.Event()
        it = controller(service, config, publisher, "127.0.0.1", port)
        thread = start(it, stop)
        yield Up(url, publisher, it)
        stop.set()
        thread.join()
        import ray.serve

        ray.serve.shutdown()


async def awaited(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


async def test_a_demand_step_flips_roles_without_a_restart_and_without_a_failed_request(up):
    pids = up.pids()
    assert set(await up.load(FEW, until=lambda: up.plan()["light"] == 1)) == {200}
    before = up.plan()
    assert set(await up.load(MANY, until=lambda: up.plan()["light"] > 1)) == {200}
    assert up.plan()["version"] > before["version"] > 1
    assert up.pids() == pids


async def test_what_the_controller_does_can_be_scraped(up):
    import ray

    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    told = (it for it in metrics.ALL if it.room == "controller" and it is not metrics.FAILURES)
    names = {f"ray_{metric.name.removesuffix('_total')}" for metric in told}

    def scraped() -> dict[str, Any]:
        text = httpx.get(address, timeout=10).text
        return {family.name: family for family in text_string_to_metric_families(text)}

    end = time.monotonic() + 60
    while missing := names - set(families := scraped()):  # Ray reports in intervals, and not all at once
        assert time.monotonic() < end, missing
        await asyncio.sleep(0.5)
    while [it.value for it in families["ray_weir_replicas_alive"].samples] != [4]:
        assert time.monotonic() < end
        await asyncio.sleep(0.5)
        families = scraped()
    assert {sample.labels["role"] for sample in families["ray_weir_latency_factor"].samples} == {"light", "heavy"}


async def test_a_policy_that_raises_changes_nothing_and_serving_goes_on(up, monkeypatch):
    failures: list[float] = []

    def broken(*_: object) -> None:
        failures.append(time.monotonic())
        raise RuntimeError("the solver died")

    def failed(times: int) -> Callable[[], bool]:
        target = len(failures) + times
        return lambda: len(failures) >= target

    with monkeypatch.context() as patch:
        patch.setattr(Weir, "observe", broken)
        await awaited(failed(2))
        await awaited(lambda: up.plan()["version"] >= up.published())
        running = up.plan()
        assert set(await up.load(FEW, until=failed(3))) == {200}
        assert up.plan() == running
    assert set(await up.load(FEW, until=lambda: up.plan()["light"] == 1)) == {200}
    assert set(await up.load(MANY, until=lambda: up.plan()["light"] > 1)) == {200}
    assert up.plan()["version"] > running["version"]


async def test_a_dead_dashboard_changes_no_role_and_serving_goes_on(up):
    assert set(await up.load(FEW, until=lambda: up.plan()["light"] == 1)) == {200}
    ours = psutil.Process().children(recursive=True)
    running = (p for p in psutil.process_iter(["cmdline"]) if p in ours)  # forgives processes that end meanwhile
    next(p for p in running if "dashboard.py" in " ".join(p.info["cmdline"] or ())).kill()
    looks = count(1)
    # Enough requests and seconds for a plan that would have flipped a role.
    assert set(await up.load(MANY, until=lambda: time.sleep(1) or next(looks) == 12)) == {200}
    assert up.plan()["light"] == 1
