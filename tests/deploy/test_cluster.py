"""Tests of the start of Ray: on a busy machine its timeouts expire, and its processes are stopped and started again."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from deploy.cluster import STARTS, started

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


def run_forever() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def test_a_cluster_that_starts_too_slowly_is_stopped_and_started_again() -> None:
    attempts: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        attempts.append(run_forever())
        if len(attempts) == 1:
            raise Exception(SLOW)
        return "up"

    beside = run_forever()
    try:
        assert started(start) == "up"
        assert not psutil.pid_exists(attempts[0].pid) or attempts[0].poll() is not None
        assert attempts[1].poll() is None
        assert beside.poll() is None, "it was there before"
    finally:
        for process in (*attempts, beside):
            process.kill()
            process.wait()


def test_a_cluster_that_never_starts_is_an_error() -> None:
    attempts = []

    def start() -> None:
        attempts.append(1)
        raise Exception(SLOW)

    with pytest.raises(Exception, match="timed out during startup"):
        started(start)
    assert len(attempts) == STARTS


def test_other_failures_are_not_retried() -> None:
    attempts = []

    def start() -> None:
        attempts.append(1)
        raise ValueError("num_cpus is -1")

    with pytest.raises(ValueError, match="num_cpus"):
        started(start)
    assert len(attempts) == 1
