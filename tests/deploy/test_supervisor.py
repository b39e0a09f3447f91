"""The process of a service is watched while it starts, and ends with everything that it has started."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from deploy import supervisor
from deploy.state import Service, StateFile
from deploy.supervisor import (
    END_S,
    REPEAT_S,
    START_END_S,
    Progress,
    ServiceProcess,
    Start,
    end_service,
    ended_by,
    grace_s,
    stop_signals,
)
from weir.errors import NotReady

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
PARENT = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "print('up', flush=True); time.sleep(600)"
)


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def collect(process: subprocess.Popen[str]) -> None:
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("code", [DEAF, PARENT], ids=["ignores SIGTERM", "has a child in another session"])
def test_a_service_ends_with_all_its_processes_and_files(code: str, tmp_path: Path) -> None:
    scratch = tmp_path / "weir-a"
    (scratch / "ray").mkdir(parents=True)
    process = run(code)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    end_service(process.pid, str(scratch), 0.5)
    collect(process)
    assert not [it for it in family if it.is_running() and it.status() != psutil.STATUS_ZOMBIE]
    assert not scratch.exists()


def test_a_wait_for_the_end_of_a_service_can_be_cut_short(tmp_path: Path) -> None:
    process = run(DEAF)
    end_service(process.pid, str(tmp_path / "weir-a"), END_S, lambda: True)
    collect(process)
    assert not psutil.pid_exists(process.pid)


def test_processes_that_lost_their_parent_are_found_by_the_folder_of_the_service(tmp_path: Path) -> None:
    scratch, other = tmp_path / "weir-a", tmp_path / "weir-b"
    orphan, stranger = run(DEAF, f"--temp-dir={scratch}/ray"), run(DEAF, f"--temp-dir={other}/ray")
    end_service(None, str(scratch), 0)
    assert not psutil.pid_exists(orphan.pid)
    collect(orphan)
    assert stranger.poll() is None
    stranger.kill()
    collect(stranger)


def test_a_service_that_has_ended_leaves_nothing_to_end(tmp_path: Path) -> None:
    process = run("print('up', flush=True)")
    collect(process)
    end_service(process.pid, str(tmp_path / "weir-a"), 0)


def test_a_service_gets_time_for_its_requests_and_a_start_without_ray_does_not() -> None:
    starting = Service("toy", 1, "", "", "toy.yaml")
    assert grace_s(starting) == START_END_S
    assert grace_s(Service("toy", 1, "", "http://127.0.0.1:8265", "toy.yaml")) == END_S


@pytest.mark.parametrize(
    ("returncode", "sentence"),
    [
        (0, "it was stopped"),
        (-signal.SIGKILL, "or because memory ran out; then plan fewer replicas"),
        (-signal.SIGSEGV, "it was ended by the signal SIGSEGV"),
        (3, "its process ended with the code 3"),
    ],
)
def test_a_process_that_left_no_failure_is_described_by_its_exit_code(returncode: int, sentence: str) -> None:
    assert sentence in ended_by(returncode)


def test_a_start_says_what_it_waits_for_when_that_changes_and_again_after_a_while() -> None:
    now, out = [0.0], io.StringIO()
    progress = Progress(Console(file=out, width=80), lambda: now[0])
    for at, what in ((0, "Ray"), (2, "Ray"), (5, "replicas"), (6, ""), (7, "replicas"), (5 + REPEAT_S, "replicas")):
        now[0] = at
        progress.wait_for(what)
    assert out.getvalue().splitlines() == [
        "   0 s  waiting for Ray",
        "   5 s  waiting for replicas",
        f"  {5 + REPEAT_S:.0f} s  waiting for replicas",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_former_handler_comes_back(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    with stop_signals() as stop:
        signal.raise_signal(number)
        assert stop.is_set()
    assert signal.getsignal(number) is former


def test_a_cluster_that_answers_and_accepts_no_connection_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CONNECT_S", 1.0)
    connecting = tmp_path / "python"
    connecting.write_text("#!/bin/sh\nexec sleep 600\n")
    connecting.chmod(0o755)
    monkeypatch.setattr(supervisor.sys, "executable", str(connecting))
    state = StateFile("toy", tmp_path)
    state.acquire()
    start = Start("toy.yaml", 1, 0, str(tmp_path), state.lock.fd, str(tmp_path / "weir-a"), True)
    with (tmp_path / "log").open("w") as log:
        process = ServiceProcess(state, start, log)
    state.write(Service("toy", process.pid, "", "", "toy.yaml", connecting_to="10.0.0.5:6379"))
    with pytest.raises(NotReady, match=r"^Ray at 10\.0\.0\.5:6379 did not accept the connection within 1 s; check"):
        process.wait_ready(Progress(Console(file=io.StringIO())), threading.Event())
    process.end(Progress(Console(file=io.StringIO())), threading.Event())
    state.release()
