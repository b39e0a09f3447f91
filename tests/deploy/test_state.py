"""A state file is valid only while the process that wrote it lives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.state import Service, StateFile, find, find_killed
from weir.errors import ConfigError, ServiceError

SERVICE = Service("toy", os.getpid(), "http://127.0.0.1:1", "http://127.0.0.1:2", "toy.yaml", ready=True)


def acquired(folder, name: str = "toy") -> StateFile:
    state = StateFile(name, folder)
    state.acquire()
    state.write(Service(name, os.getpid(), "http://127.0.0.1:1", "http://127.0.0.1:2", "toy.yaml", ready=True))
    return state


def test_a_state_can_be_read_while_its_name_is_held(tmp_path):
    state = acquired(tmp_path)
    assert StateFile("toy", tmp_path).read() == SERVICE
    state.release()
    assert StateFile("toy", tmp_path).read() is None
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_be_held_twice(tmp_path):
    state = acquired(tmp_path)
    with pytest.raises(ServiceError, match="already up"):
        StateFile("toy", tmp_path).acquire()
    state.release()


def test_the_state_file_of_a_killed_process_is_no_service_and_says_so(tmp_path):
    code = (
        "import os, pathlib, sys; from deploy.state import Service, StateFile\n"
        "state = StateFile('toy', pathlib.Path(sys.argv[1])); state.acquire()\n"
        "state.write(Service('toy', os.getpid(), 'u', 'd', 'c', True)); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "toy.json").exists()
    assert StateFile("toy", tmp_path).read() is None
    with pytest.raises(ServiceError, match="toy was killed; `weir down` removes"):
        find(folder=tmp_path)
    [(_, killed)] = find_killed(folder=tmp_path)
    assert killed.name == "toy"
    acquired(tmp_path).release()
    assert find_killed(folder=tmp_path) == []


def test_a_reader_never_sees_a_partial_file(tmp_path):
    state = acquired(tmp_path)
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(StateFile("toy", tmp_path).read() is None)

    reader = threading.Thread(target=read)
    reader.start()
    for port in range(300):
        state.write(Service("toy", 1, f"http://127.0.0.1:{port}", "d" * 5000, "c"))
    stop.set()
    reader.join()
    state.release()
    assert seen == {False}


def test_find_needs_a_name_only_when_several_services_are_up(tmp_path):
    with pytest.raises(ServiceError, match="no service is up"):
        find(folder=tmp_path)
    one = acquired(tmp_path)
    assert find(folder=tmp_path)[1] == SERVICE
    other = acquired(tmp_path, "other")
    with pytest.raises(ServiceError, match="other, toy"):
        find(folder=tmp_path)
    assert find("other", tmp_path)[1].name == "other"
    one.release()
    other.release()


def test_a_second_claim_of_a_starting_service_says_which_process_starts_it(tmp_path):
    state = StateFile("toy", tmp_path)
    state.acquire()
    state.write(Service("toy", 4711, "", "", "toy.yaml", waiting_for="Ray"))
    with pytest.raises(ServiceError, match=r"^toy is already starting \(process 4711\); wait for it, or end it"):
        StateFile("toy", tmp_path).acquire()
    state.release()


def test_of_claims_at_the_same_time_one_wins_however_often_the_state_is_read(tmp_path):
    code = (
        "import pathlib, sys; from deploy.state import StateFile; from weir.errors import ServiceError\n"
        "state = StateFile('toy', pathlib.Path(sys.argv[1])); print('ready', flush=True); input()\n"
        "try: state.acquire()\n"
        "except ServiceError as error: print(error.message, flush=True)\n"
        "else: print('won', flush=True); input(); state.release()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    claims = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            StateFile("toy", tmp_path).lock.held()

    reader = threading.Thread(target=read)
    reader.start()
    assert [claim.stdout.readline() for claim in claims] == ["ready\n"] * 4
    for claim in claims:
        claim.stdin.write("\n")
    answers = [claim.stdout.readline().strip() for claim in claims]
    stop.set()
    reader.join()
    for claim in claims:
        claim.communicate("\n")
    assert sorted(answers) == ["toy is already up; stop it with `weir down`"] * 3 + ["won"]
    assert list(tmp_path.iterdir()) == []


def test_a_child_process_takes_over_the_name_and_its_end_frees_it(tmp_path):
    state = StateFile("toy", tmp_path)
    state.acquire()
    state.write(SERVICE)
    code = (
        "import pathlib, sys; from deploy.state import StateFile\n"
        "state = StateFile('toy', pathlib.Path(sys.argv[1])); state.lock.adopt(int(sys.argv[2]))\n"
        "input(); state.release()"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(state.lock.fd)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[state.lock.fd], text=True) as child:
        state.lock.hand_over()
        assert StateFile("toy", tmp_path).read() == SERVICE
        child.communicate("\n")
    assert StateFile("toy", tmp_path).read() is None
    assert list(tmp_path.iterdir()) == []


def test_a_late_release_leaves_the_files_of_the_next_service(tmp_path):
    late = acquired(tmp_path)
    (tmp_path / "toy.lock").unlink()  # as the process that shares the lock does when it releases it
    successor = acquired(tmp_path)
    late.release()
    assert StateFile("toy", tmp_path).read() == SERVICE
    successor.release()


@pytest.mark.parametrize("folder", ["/dev/null/state", "/proc/state"])
def test_a_folder_that_cannot_be_written_is_named(folder):
    with pytest.raises(ConfigError, match=f"{folder}: cannot write in this folder: .* start Weir where"):
        StateFile("toy", Path(folder)).acquire()
