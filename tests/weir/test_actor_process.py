"""The replica killer kills a process, and no later process with the same id."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from weir.actor_process import kill


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def started(process: subprocess.Popen[bytes]) -> float:
    return psutil.Process(process.pid).create_time()


def test_a_process_that_is_frozen_is_killed(sleeper):
    sleeper.send_signal(signal.SIGSTOP)
    kill(sleeper.pid, started(sleeper))
    assert sleeper.wait(60) == -signal.SIGKILL


def test_a_later_process_with_the_same_id_is_not_killed(sleeper):
    kill(sleeper.pid, started(sleeper) - 1)
    assert sleeper.poll() is None


def test_a_process_that_has_ended_is_no_error(sleeper):
    since = started(sleeper)
    sleeper.kill()
    sleeper.wait(60)
    kill(sleeper.pid, since)
