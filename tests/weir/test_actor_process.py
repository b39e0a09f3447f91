"""The replica killer kills a process, and no later process with the same id."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from weir.actor_process import kill
from weir.processes import started_s


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_process_that_is_frozen_is_killed(sleeper):
    sleeper.send_signal(signal.SIGSTOP)
    kill(sleeper.pid, started_s(sleeper.pid))
    assert sleeper.wait(60) == -signal.SIGKILL


def test_a_later_process_with_the_same_id_is_not_killed(sleeper):
    kill(sleeper.pid, started_s(sleeper.pid) - 1)
    assert sleeper.poll() is None


def test_a_process_that_has_ended_is_no_error(sleeper):
    since = started_s(sleeper.pid)
    sleeper.kill()
    sleeper.wait(60)
    kill(sleeper.pid, since)
