"""Operators change a running service of emulated workers through the command line, and see what they did."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from typer.testing import CliRunner

from cli.main import app
from deploy.local import down, up
from load_balancer.http.api_keys import append_key, digest, new_key
from tests.deploy.conftest import toy_service
from weir.config import KeyConfig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    # The command line runs in this process, and Ray leaves its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ALICE, OPS = new_key(), new_key()
PLAN = {"light_replicas": 1, "heavy_replicas": 2}


class Up(NamedTuple):
    url: str

    def weir(self, *command: str, key: str = OPS) -> dict[str, Any]:
        """Runs a command and returns its JSON."""
        done = CliRunner().invoke(app, [*command, "--json"], env={"WEIR_API_KEY": key})
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def status_when_ready(self, key: str = OPS) -> dict[str, Any]:
        """The state of the service when no replica takes in a plan."""
        end = time.monotonic() + 120
        while (done := CliRunner().invoke(app, ["status", "--json"], env={"WEIR_API_KEY": key})).exit_code:
            assert time.monotonic() < end, done.output
            time.sleep(0.5)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def refused(self, *command: str, key: str = OPS) -> tuple[int, str]:
        """Runs a command that is refused; returns its exit code and the message."""
        done = CliRunner().invoke(app, command, env={"WEIR_API_KEY": key})
        assert done.stdout == ""
        return done.exit_code, " ".join(done.stderr.split())

    def state_when(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first state that fulfils the condition."""
        end = time.monotonic() + 120
        while not condition(state := self.weir("admin", "plan")):
            assert time.monotonic() < end, state
            time.sleep(0.5)
        return state

    def plan_when(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first plan in force that fulfils the condition."""
        plan: dict[str, Any] = self.state_when(lambda state: condition(state["plan"]))["plan"]
        return plan

    async def load(self, seconds: float) -> Counter[int]:
        """Sends images to every replica for a while; returns the status codes of the answers."""
        headers = {"authorization": f"Bearer {ALICE}"}
        async with httpx.AsyncClient(base_url=self.url, timeout=60, headers=headers) as client:
            sent = []
            for number in range(int(seconds * 10)):
                body = {"prompt": f"number {number}", "model": "toy/heavy", "cache": "off"}
                sent.append(asyncio.create_task(client.post("/v1/images/generations", json=body)))
                await asyncio.sleep(0.1)
            return Counter(answer.status_code for answer in await asyncio.gather(*sent))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder: Path = tmp_path_factory.mktemp("administered")
    append_key(folder / "keys.yaml", KeyConfig(name="alice", sha256=digest(ALICE), tenant="acme"))
    append_key(folder / "keys.yaml", KeyConfig(name="ops", sha256=digest(OPS), tenant="ops", admin=True))
    cache = {"mode": "read-write", "encoder": "words", "fetch_s": 0.5, "lookup_s": 5}
    config = toy_service(folder, plan=PLAN, keys_file="keys.yaml", cache=cache, slo_s=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the commands look for the service
        started = up(config, detach=True)
        assert started
        yield Up(started.url)
        down()


def test_a_threshold_and_replicas_are_pinned_for_a_time_and_unpinned(service: Up) -> None:
    service.plan_when(lambda plan: plan["origin"] == "weir")
    state = service.weir("admin", "pin", "--for", "300", "--threshold", "light=0.123", "--reason", "a look")
    assert state["pin"]["thresholds"] == {"light": 0.123}
    plan = service.plan_when(lambda plan: plan["thresholds"] == {"light": 0.123})
    assert (plan["origin"], plan["reason"]) == ("pin", "pinned by ops: a look")
    service.weir("admin", "pin", "--for", "300", "--replicas", "light=2", "--replicas", "heavy=1")
    plan = service.plan_when(lambda plan: plan["replicas"] == {"light": 2, "heavy": 1})
    assert plan["origin"] == "pin"
    status = service.status_when_ready()
    assert status["admin"]["pin"]["replicas"] == {"light": 2, "heavy": 1}
    assert [it["action"] for it in status["admin"]["actions"][:2]] == ["pin", "pin"]
    service.weir("admin", "unpin")
    service.plan_when(lambda plan: plan["origin"] == "weir")


def test_a_pin_ends_by_itself(service: Up) -> None:
    service.weir("admin", "pin", "--for", "3", "--threshold", "light=0.321")
    last = service.state_when(lambda state: state["pin"] is None)["actions"][0]
    assert (last["who"], last["action"]) == ("end of its time", "unpin")
    service.plan_when(lambda plan: plan["origin"] == "weir")


def test_another_policy_plans_without_a_restart_and_one_that_cannot_is_refused(service: Up) -> None:
    code, message = service.refused("admin", "policy", "argus")
    assert code == 2
    assert "argus cannot plan for this service" in message
    assert service.weir("admin", "plan")["policy"] == "weir"
    service.weir("admin", "policy", "all-heavy")
    plan = service.plan_when(lambda plan: plan["origin"] == "all-heavy")
    assert plan["replicas"] == {"light": 0, "heavy": 3}
    assert service.status_when_ready()["live"]["policy"] == "all-heavy"
    service.weir("admin", "policy", "weir")
    service.plan_when(lambda plan: plan["origin"] == "weir")


def test_a_replica_is_drained_under_load_and_returned(service: Up) -> None:
    (one, two, three) = (it["id"] for it in service.weir("admin", "plan")["replicas"])

    def states() -> dict[str, tuple[str, int]]:
        return {it["id"]: (it["state"], it["in_flight"]) for it in service.weir("admin", "plan")["replicas"]}

    def drained_and_idle() -> bool:
        service.weir("admin", "drain", one)
        end = time.monotonic() + 60
        while states()[one] != ("drained", 0):
            assert time.monotonic() < end
        return True

    async def drain_under_load() -> Counter[int]:
        load = asyncio.create_task(service.load(6))
        assert await asyncio.to_thread(drained_and_idle)
        return await load

    assert asyncio.run(drain_under_load()) == {200: 60}
    assert states()[one] == ("drained", 0)
    assert sum(service.weir("admin", "plan")["plan"]["replicas"].values()) == 2
    service.weir("admin", "drain", two)
    code, message = service.refused("admin", "drain", three)
    assert code == 1
    assert "is the last replica that takes work" in message
    code, message = service.refused("admin", "drain", "nobody")
    assert code == 2
    assert f"the replicas are: {', '.join(sorted((one, two, three)))}" in message
    for replica in (one, two):
        service.weir("admin", "return", replica)
    end = time.monotonic() + 60
    while {state for state, _ in states().values()} != {"serving"}:  # a busy replica may miss a probe
        assert time.monotonic() < end


def test_replicas_are_added_and_removed_while_requests_are_answered(service: Up) -> None:
    def has(count: int) -> Callable[[dict[str, Any]], bool]:
        return lambda state: len(state["replicas"]) == sum(state["plan"]["replicas"].values()) == count

    def scale(count: int) -> bool:
        assert service.weir("admin", "scale", str(count))["size"] == count
        service.state_when(has(count))
        return True

    async def scale_under_load() -> Counter[int]:
        load = asyncio.create_task(service.load(6))
        assert await asyncio.to_thread(scale, 4)
        assert await asyncio.to_thread(scale, 3)
        return await load

    before = set(it["id"] for it in service.weir("admin", "plan")["replicas"])
    assert asyncio.run(scale_under_load()) == {200: 60}
    after = set(it["id"] for it in service.weir("admin", "plan")["replicas"])
    assert len(before & after) >= 2, "the others go on"


def test_the_running_cache_is_shown_and_purged(service: Up) -> None:
    headers = {"authorization": f"Bearer {ALICE}"}

    def ask(prompt: str) -> str:
        body = {"prompt": prompt, "model": "toy/heavy"}
        answer = httpx.post(f"{service.url}/v1/images/generations", json=body, headers=headers, timeout=60)
        path: str = answer.json()["data"][0]["weir"]["path"]
        return path

    end = time.monotonic() + 60
    while ask("a red circle") != "cache":
        assert time.monotonic() < end
    assert list(service.weir("admin", "cache")["tenants"]) == ["acme"]
    assert service.weir("admin", "purge", "--tenant", "globex") == {"entries": 0, "values": 0}
    # More than one if the cache was told the end of a run when the next request had been looked up.
    assert service.weir("admin", "purge", "--tenant", "acme")["entries"] >= 1
    assert service.weir("admin", "cache")["entries"] == 0
    assert service.weir("cache", "stats")["entries"] == 0
    assert ask("a red circle") == "heavy"
    end = time.monotonic() + 60
    while service.weir("admin", "cache")["entries"] == 0:  # the cache is told the end after the answer
        assert time.monotonic() < end
    assert service.weir("cache", "purge", "--all")["deleted"] > 0
    assert service.weir("admin", "cache")["entries"] == 0, "the running cache hears of it"


def test_an_adapter_that_an_administrator_adds_is_used_until_it_is_removed(service: Up) -> None:
    service.weir("admin", "add-adapter", "chalk", "--file", "/weights/chalk.safetensors")
    headers, body = {"authorization": f"Bearer {ALICE}"}, {"prompt": "a", "loras": [{"name": "chalk", "scale": 0.5}]}
    answer = httpx.post(f"{service.url}/v1/images/generations", json=body, headers=headers, timeout=60)
    assert answer.json()["data"][0]["weir"]["made_with"]["adapters"] == "chalk*0.5=chalk.safetensors@local"
    state = service.weir("admin", "remove-adapter", "chalk")
    assert (state["adapters"], [it["action"] for it in state["actions"][:2]]) == ({}, ["remove-adapter", "add-adapter"])
    assert httpx.post(f"{service.url}/v1/images/generations", json=body, headers=headers).status_code == 400
    assert "absolute path of a .safetensors file" in service.refused("admin", "add-adapter", "a", "--file", "a.pt")[1]


def test_a_key_without_the_scope_changes_nothing_and_sees_no_names(service: Up) -> None:
    code, message = service.refused("admin", "plan", key=ALICE)
    assert code == 1
    assert "lacks the scope admin" in message
    status = service.status_when_ready(ALICE)
    assert status["admin"] is None
    assert status["live"]["pinned_until"] is None


def test_bad_values_are_refused_by_name(service: Up) -> None:
    for command, words in (
        (["pin", "--for", "-5"], "Invalid value for '--for': Input should be greater than or equal to 1"),
        (["pin", "--for", "60", "--replicas", "huge=2", "--replicas", "heavy=1"], "replicas.huge: no replica holds"),
        (["pin", "--for", "60", "--threshold", "light"], "--threshold is 'light'; write VARIANT=VALUE"),
        (["purge"], "give either --tenant NAME or --all"),
        (["plan", "--service", "x", "--url", "y"], "--service and --url both name a service"),
    ):
        code, message = service.refused("admin", *command)
        assert (code, words in message) == (2, True), message
