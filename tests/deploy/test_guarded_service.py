"""Tests of ``weir up`` with keys and a cache: authentication, listening sockets, secrets, overload and fuzzing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
from psutil import CONN_LISTEN, NoSuchProcess

from benchmarks.overload import overload, write_service
from benchmarks.soak import sample
from deploy.local import down, up
from deploy.state import Service, StateFile
from load_balancer.http.api_keys import append_key, digest, new_key
from tests.fuzz import fuzz
from weir.config import KeyConfig

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]
ALICE, BOB, ADMIN = new_key(), new_key(), new_key()
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
GENERATIONS = "/v1/images/generations"
GOOD = {"prompt": "a red circle", "model": "overload/light"}


class Up(NamedTuple):
    service: Service
    folder: Path

    def processes(self) -> list[psutil.Process]:
        """All processes of the service."""
        root = psutil.Process(self.service.pid)
        return [root, *root.children(recursive=True)]

    def secrets(self) -> list[str]:
        """All secrets of the service."""
        password = self.service.cache_url.rpartition("@")[0].rpartition(":")[2]
        return [ALICE, BOB, ADMIN, password, self.service.cache_secret]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys.yaml"
    append_key(keys, KeyConfig(name="alice", sha256=digest(ALICE), tenant="acme"))
    append_key(keys, KeyConfig(name="bob", sha256=digest(BOB), tenant="globex", concurrent_images=1))
    append_key(keys, KeyConfig(name="root", sha256=digest(ADMIN), tenant="ops", admin=True))
    cache = {"mode": "read-write", "encoder": "words", "fetch_s": 0.5, "lookup_s": 5}
    config = write_service(folder, keys_file="keys.yaml", cache=cache)
    started = up(config, detach=True, port=0, folder=folder / "state")
    assert started
    # Only the state file, which is readable by its owner, contains the password of the Redis that `up` has started.
    service = StateFile(started.name, folder / "state").read()
    assert service
    yield Up(service, folder)
    down(service.name, folder=folder / "state")


def test_requests_without_a_valid_key_are_refused(guarded: Up) -> None:
    with httpx.Client(base_url=guarded.service.url, timeout=240) as client:
        assert client.post(GENERATIONS, json=GOOD).status_code == 401
        assert client.post(GENERATIONS, json=GOOD, headers=bearer(new_key())).status_code == 401
        assert client.post(GENERATIONS, json=GOOD, headers=bearer(ALICE)).status_code == 200
        assert client.get("/healthz").status_code == 200
    # The dashboard of the cluster requires Ray's token.
    dashboard = httpx.get(f"{guarded.service.dashboard}/api/serve/applications/", timeout=240)
    assert dashboard.status_code == 401


def test_nothing_listens_beyond_this_machine(guarded: Up) -> None:
    listening, strays = set(), set()
    for process in guarded.processes():
        try:
            name = " ".join(process.cmdline())[:80]
            for socket in process.net_connections(kind="inet"):
                if socket.status == CONN_LISTEN:
                    listening.add(socket.laddr.port)
                    if socket.laddr.ip not in LOOPBACK:
                        strays.add(f"{socket.laddr.ip}:{socket.laddr.port} of {name}")
        except NoSuchProcess:
            continue
    redis_port = int(guarded.service.cache_url.rpartition(":")[2].partition("/")[0])
    dashboard_port = int(guarded.service.dashboard.rpartition(":")[2])
    assert {redis_port, dashboard_port, int(guarded.service.url.rpartition(":")[2])} <= listening
    assert not strays


def test_other_users_of_the_machine_reach_no_file_of_the_service(guarded: Up) -> None:
    for folder in (Path(guarded.service.scratch), guarded.folder / "state"):
        assert folder.stat().st_mode & 0o077 == 0
    logs = [path for path in Path(guarded.service.logs).iterdir() if path.is_file()]
    assert logs
    assert [path for path in logs if path.stat().st_mode & 0o077] == []


def test_a_soak_sees_every_part_of_the_service(guarded: Up) -> None:
    until = time.monotonic() + 240
    while (found := sample(guarded.service)).get(("weir's metrics", "series"), 0) < 10:  # Ray reports in intervals
        assert time.monotonic() < until, found
        time.sleep(0.5)
    for whose in ("weir up", "Pool", "LoadBalancer", "Cache", "ProxyActor", "ServeController", "redis-server"):
        assert all(found[whose, what] > 0 for what in ("memory MiB", "files", "threads")), whose
    assert found["Redis", "bytes MiB"] > 0


def test_a_fuzzer_finds_no_server_error_and_no_undocumented_response(guarded: Up) -> None:
    found = fuzz(guarded.service.url, 8, key=ALICE)
    assert found.returncode == 0, found.stdout
    assert "Server error" not in found.stdout


def test_requests_beyond_the_capacity_are_refused_with_retry_after(guarded: Up) -> None:
    # How fast, and who is in time, `make overload` measures; tests/simulator/test_exact.py has it on virtual time.
    found = asyncio.run(overload(guarded.service.url, seconds=4, calm_s=2.5, factor=5, key=ALICE))
    assert set(found.codes) == {"200", "503"}
    assert found.refused > 0
    assert found.accepted > 0
    assert found.with_retry_after == 1


def test_a_flooding_client_gets_429_and_others_are_served(guarded: Up) -> None:
    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=guarded.service.url, timeout=240) as client:
            heavy = {"prompt": "a", "model": "overload/heavy"}
            bob = [client.post(GENERATIONS, json=heavy, headers=bearer(BOB)) for _ in range(6)]
            return await asyncio.gather(*bob, client.post(GENERATIONS, json=GOOD, headers=bearer(ALICE)))

    *bob, alice = asyncio.run(flood())
    assert alice.status_code == 200
    assert {answer.status_code for answer in bob} == {200, 429}
    assert all("retry-after" in answer.headers for answer in bob if answer.status_code == 429)


def test_no_log_command_line_or_metric_contains_a_secret(guarded: Up) -> None:
    secrets = guarded.secrets()
    assert all(len(secret) >= 16 for secret in secrets)
    commands = []
    for process in guarded.processes():
        try:
            commands.append(" ".join(process.cmdline()))
        except NoSuchProcess:
            continue
    places = {"command lines": "\n".join(commands)}
    (session,) = set(re.findall(r"/tmp/weir-[\w-]+", places["command lines"])) - set(
        re.findall(r"/tmp/weir-redis-[\w-]+", places["command lines"])
    )
    for path in [*Path(session).rglob("*.log"), *Path(session).rglob("*.out"), *Path(session).rglob("*.err")]:
        places[str(path)] = path.read_text(errors="replace")
    places["the log"] = (guarded.folder / "state" / "overload.log").read_text()
    ports = next(Path(session).rglob("prom_metrics_service_discovery.json"))
    for target in {target for group in json.loads(ports.read_text()) for target in group["targets"]}:
        places[target] = httpx.get(f"http://{target}/metrics", timeout=240).text
    assert len(places) > 10
    assert [place for place, text in places.items() for secret in secrets if secret in text] == []
