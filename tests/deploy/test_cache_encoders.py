"""A whole service whose prompts are encoded by processes of their own: losing one, or the cache, costs hits only."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deploy.local import down, up
from tests.deploy.conftest import toy_service

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]
PROMPT = "a red circle left of a blue star"


class Service:
    """The service of this module."""

    def __init__(self, url: str, folder: Path):
        self.url = url
        self._folder = str(folder)

    def ask(self) -> dict[str, Any]:
        body = {"prompt": PROMPT, "model": "toy/heavy"}
        answer = httpx.post(f"{self.url}/v1/images/generations", json=body, timeout=240)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["weir"]

    def hits(self) -> bool:
        """Asks for an image; whether it resumed."""
        return bool(self.ask()["path"] == "cache")

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        found = []
        for it in psutil.process_iter():
            try:
                title = " ".join(it.cmdline())
                if f"ray::ServeReplica:weir:{deployment}" in title and self._folder in it.environ()["WEIR_LOG_FOLDER"]:
                    found.append(it)
            except (psutil.Error, KeyError):
                continue
        return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("encoders")
    # The limits are long because a machine under tests stalls: what is tested is who answers, not how fast.
    cache = {"mode": "read-write", "encoder": "words", "encoder_replicas": 2, "fetch_s": 0.5, "lookup_s": 5}
    running = up(toy_service(folder, cache=cache, slo_s=120), detach=True, folder=folder / "state")
    assert running
    yield Service(running.url, folder / "state")
    down(folder=folder / "state")


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_repeated_prompt_resumes_when_other_processes_encode(service: Service) -> None:
    wait_for(service.hits)
    assert len(service.replicas("Encoder")) == 2
    assert len(service.replicas("Cache")) == 1


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_requests_are_answered_and_hit_again_while_one_encoder_is_lost(service: Service, harm: int) -> None:
    wait_for(service.hits)
    [victim, other] = service.replicas("Encoder")
    os.kill(victim.pid, harm)
    wait_for(lambda: all([service.hits() for _ in range(5)]))  # every one of them is answered
    wait_for(lambda: len(service.replicas("Encoder")) == 2 and victim not in service.replicas("Encoder"))
    assert other.is_running()
    wait_for(service.hits)


def test_requests_are_answered_while_the_cache_is_lost_and_its_successor_has_the_entries(service: Service) -> None:
    wait_for(service.hits)
    [victim] = service.replicas("Cache")
    before = service.ask()["cache"]["id"]
    os.kill(victim.pid, signal.SIGKILL)
    wait_for(lambda: service.ask() and service.replicas("Cache") not in ([], [victim]))
    wait_for(service.hits)
    assert service.ask()["cache"]["id"] == before, "the index was read from the store"
    assert len(service.replicas("Encoder")) == 2
