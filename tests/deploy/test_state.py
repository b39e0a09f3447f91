"""A state file is valid only while the process that wrote it lives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from deploy.state import Service, StateFile, find
from weir.errors import ServiceError

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


def test_the_state_file_of_a_killed_process_is_ignored(tmp_path):
    code = (
        "import os, pathlib, sys; from deploy.state import Service, StateFile\n"
        "state = StateFile('toy', pathlib.Path(sys.argv[1])); state.acquire()\n"
        "state.write(Service('toy', os.getpid(), 'u', 'd', 'c', True)); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "toy.json").exists()
    assert StateFile("toy", tmp_path).read() is None
    with pytest.raises(ServiceError, match="no service is up"):
        find(folder=tmp_path)
    acquired(tmp_path).release()


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
