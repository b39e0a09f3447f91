"""A whole service with two load balancers behind Serve's HAProxy: plain clients do not notice that one of them dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.local import down, up
from tests.deploy.conftest import toy_service

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]
GENERATIONS = "/v1/images/generations"


class Service:
    """The service of this module; it has no other one of its user's on this machine."""

    def __init__(self, url: str, folder: Path):
        self.url = url
        self._folder = str(folder)

    def processes(self, title: str) -> list[psutil.Process]:
        """Its processes with a title, the oldest first."""
        found = []
        for it in psutil.process_iter():
            try:
                if title in " ".join(it.cmdline()) and self._folder in it.environ().get("WEIR_LOG_FOLDER", ""):
                    found.append(it)
            except psutil.Error:
                continue
        return sorted(found, key=lambda it: it.create_time())

    def balancers(self) -> list[psutil.Process]:
        """The load balancers; waits until there are two."""
        end = time.monotonic() + 240
        while len(found := self.processes("ray::ServeReplica:weir:LoadBalancer")) < 2:
            assert time.monotonic() < end
            time.sleep(0.2)
        return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("two")
    # An emulated image takes a tenth of a second; the deadline is far away, so that a busy machine makes none late.
    config = toy_service(folder, balancers=2, slo_s=120)
    running = up(config, detach=True, folder=folder / "state")
    assert running
    yield Service(running.url, folder / "state")
    down(folder=folder / "state")


async def ask(client: httpx.AsyncClient, **more: object) -> httpx.Response:
    return await client.post(GENERATIONS, json={"prompt": "a red circle", **more})


async def load_while(service: Service, harm: int) -> list[httpx.Response]:
    """Sends plain requests one after another on twelve connections, and a signal to a load balancer meanwhile."""
    victim, over, answers = service.balancers()[0], asyncio.Event(), []

    async def client() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=240) as connection:
            while not over.is_set():
                answers.append(await ask(connection))

    async with asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(client())
        while len(answers) < 24:
            await asyncio.sleep(0.05)
        os.kill(victim.pid, harm)
        before = len(answers)
        while (victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE) or len(answers) < before + 24:
            await asyncio.sleep(0.05)
        over.set()
    return answers


def answered_once(answers: list[httpx.Response]) -> bool:
    """Whether no image was answered twice."""
    ids = [it.json()["data"][0]["weir"]["id"] for it in answers if it.status_code == 200]
    return len(set(ids)) == len(ids)


async def test_no_plain_request_fails_when_a_load_balancer_is_killed(service: Service) -> None:
    answers = await load_while(service, signal.SIGKILL)
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert answered_once(answers)


async def test_a_load_balancer_that_hangs_is_replaced_and_costs_no_plain_request_more_than_a_refusal(
    service: Service,
) -> None:
    answers = await load_while(service, signal.SIGSTOP)
    # A plan that Serve is giving out stops until the load balancer is killed, and there may be no replica meanwhile.
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} <= {503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert answered_once(answers)
    async with httpx.AsyncClient(base_url=service.url, timeout=240) as client:
        end = time.monotonic() + 120
        while (await ask(client)).status_code != 200:
            assert time.monotonic() < end
            await asyncio.sleep(1)


async def test_a_job_whose_load_balancer_is_killed_is_answered_by_the_other_one(service: Service) -> None:
    owners = service.balancers()
    async with httpx.AsyncClient(base_url=service.url, timeout=240) as client:
        headers = {"Prefer": "respond-async"}
        body = {"prompt": "a red circle", "model": "toy/heavy", "seed": 7}
        jobs = [await client.post(GENERATIONS, json=body, headers=headers) for _ in range(8)]
        assert {job.status_code for job in jobs} <= {200, 202}
        owners[0].kill()
        for job in jobs:
            end = time.monotonic() + 120
            while (state := await client.get(f"{GENERATIONS}/{job.json()['id']}")).json()["status"] != "succeeded":
                assert state.status_code == 200, state.text
                assert time.monotonic() < end, state.text
                await asyncio.sleep(0.1)
            assert state.json()["result"]["data"][0]["weir"]["seed"] == 7


def test_the_front_door_listens_on_this_machine_only(service: Service) -> None:
    places: set[str] = set()
    end = time.monotonic() + 120
    while not places:  # Serve starts a new HAProxy whenever the load balancers change, and lets the one before end
        assert time.monotonic() < end
        for proxy in service.processes("haproxy"):
            with suppress(psutil.Error, OSError):
                if proxy.name() == "haproxy":
                    places |= {it.laddr.ip for it in proxy.net_connections() if it.status == "LISTEN" and it.laddr}
    assert places == {"127.0.0.1"}
