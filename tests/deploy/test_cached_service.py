"""The whole request path with the cache on: Serve, emulated workers, a Redis server that the service starts itself."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from deploy.local import down, up
from deploy.state import StateFile


def ask(url: str, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "model": "toy/heavy", "seed": 1, **more}
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["weir"]


@pytest.mark.timeout(550)
def test_a_repeated_prompt_resumes_until_redis_dies_and_nobody_notices(config: Path, tmp_path: Path) -> None:
    fields = yaml.safe_load(config.read_text()) | {
        "controller": {"policy": "static"},
        # A laptop under tests stalls longer than a server: what is tested is the path, not the time limits.
        "cache": {"mode": "read-write", "encoder": "words", "fetch_s": 0.5, "lookup_s": 5},
    }
    config.write_text(yaml.safe_dump(fields))
    folder = tmp_path / "state"
    service = up(config, detach=True, folder=folder)
    assert service
    try:
        state = StateFile("toy", folder)
        running = state.read()
        assert running
        assert running.cache_url.startswith("redis://")
        assert state.path.stat().st_mode & 0o077 == 0, "the file holds a secret"

        first = ask(service.url, "a red circle left of a blue star")
        assert first["path"] == "heavy"
        until = time.monotonic() + 60
        while (again := ask(service.url, "a red circle left of a blue star"))["path"] != "cache":
            assert time.monotonic() < until, again
            time.sleep(0.2)
        assert again["cache"]["k"] == 25
        assert again["cache"]["similarity"] == pytest.approx(1, abs=1e-3)
        assert again["cache"]["id"] != again["id"]
        assert again["steps"] == 25
        other = ask(service.url, "nothing alike whatsoever")
        assert (other["path"], other["cache"]["k"]) == ("heavy", 0)
        assert ask(service.url, "a red circle left of a blue star", cache="off")["cache"] is None

        [server] = [p for p in psutil.process_iter(["name"]) if p.name() == "redis-server" and _is_ours(p, running)]
        server.send_signal(signal.SIGKILL)
        for _ in range(3):
            assert ask(service.url, "a red circle left of a blue star")["path"] == "heavy"
    finally:
        down(folder=folder)
    assert json.dumps([p.name for p in folder.iterdir()]) == '["toy.log"]'


def _is_ours(process: psutil.Process, running: Any) -> bool:
    return process.ppid() == running.pid
