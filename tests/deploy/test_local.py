"""Tests of ``weir up``, ``weir down`` and ``weir status``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from cache.store.redis_server import RedisServer
from deploy.local import bindable, down, readiness, status, up
from deploy.state import Service, StateFile
from weir.errors import ConfigError, ServiceError


def test_an_invalid_configuration_is_reported_before_anything_starts(config, tmp_path):
    config.write_text(config.read_text().replace("slo_s: 10", "slo_s: -1"))
    with pytest.raises(ConfigError, match=r"toy\.yaml: slo_s"):
        up(config, folder=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_an_invalid_profile_is_reported_before_anything_starts(config, tmp_path):
    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"profile\.json: family"):
        up(config, folder=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_an_unknown_policy_is_reported_before_anything_starts(config, tmp_path):
    config.write_text(config.read_text().replace("policy: weir", "policy: magic"))
    with pytest.raises(ConfigError, match=r"toy\.yaml: controller\.policy: .*'magic'; known: weir"):
        up(config, folder=tmp_path / "state")


def test_a_service_is_checked_before_ray_is_imported(config):
    code = f"import sys; from deploy.local import checked; checked({str(config)!r}); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_port_in_use_is_reported_before_anything_starts(config, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1:{port}"):
            up(config, port=port, folder=tmp_path / "state")
    assert bindable("127.0.0.1", port) == port


@pytest.mark.parametrize("host", ["192.0.2.1", "::1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine_is_named_with_the_remedy(host):
    with pytest.raises(ServiceError, match=r"http\.host has to be an IPv4 address of this machine"):
        bindable(host, 8000)


def killed_service(tmp_path: Path) -> tuple[StateFile, Path]:
    """What a service leaves that was killed: its state, its temporary files, and a process that it has started."""
    scratch = tmp_path / "weir-scratch"
    (scratch / "ray").mkdir(parents=True)
    state = StateFile("toy", tmp_path / "state")
    state.acquire()
    state.write(Service("toy", 1, "http://127.0.0.1:1", "", "toy.yaml", ready=True, scratch=str(scratch)))
    state.lock.hand_over()
    return state, scratch


def test_what_a_killed_service_has_left_is_removed_by_down(tmp_path):
    _, scratch = killed_service(tmp_path)
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"{scratch}/ray"])
    with pytest.raises(ServiceError, match=r"^toy was killed; `weir down` removes what it has left"):
        status(folder=tmp_path / "state")
    assert down(folder=tmp_path / "state").name == "toy"
    assert not psutil.pid_exists(orphan.pid)
    orphan.wait()
    assert list((tmp_path / "state").iterdir()) == []
    assert not scratch.exists()
    with pytest.raises(ServiceError, match="no service is up"):
        down(folder=tmp_path / "state")


def test_the_redis_of_a_killed_service_and_what_writes_its_logs_are_ended_by_down(tmp_path):
    """Redis and Ray's agents replace their command by a title that does not name the folder."""
    _, scratch = killed_service(tmp_path)
    redis = RedisServer.start(parent=scratch)
    with (scratch / "ray" / "agent.log").open("w") as log:
        agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=log, cwd="/")
    assert down(folder=tmp_path / "state").name == "toy"
    assert redis.process.poll() is not None
    assert agent.poll() is not None


def test_what_a_killed_service_has_left_is_removed_by_its_next_start(config, tmp_path, monkeypatch):
    _, scratch = killed_service(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ServiceError, match="Ray does not answer"):
        up(config, folder=tmp_path / "state")
    assert not scratch.exists()


def test_nodes_of_an_existing_cluster_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(ServiceError, match="RAY_ADDRESS names a cluster"):
        up(config, nodes=2, folder=tmp_path / "state")


def test_the_same_service_does_not_start_twice(config, tmp_path):
    state = StateFile("toy", tmp_path)
    state.acquire()
    with pytest.raises(ServiceError, match="already up"):
        up(config, folder=tmp_path)
    state.release()


class Start:
    """`weir up` in a process of its own, up to where it waits for Ray."""

    def __init__(self, config: Path, folder: Path, detach: bool = True):
        code = "import sys; from cli.main import app; app()"
        command = [sys.executable, "-c", code, "up", str(config), *["--detach"] * detach]
        self.state = StateFile("toy", folder / ".weir")
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which nohup has children ignore
        )
        wait_until(lambda: self.waits_for("Ray's processes"))
        service = self.state.read()
        assert service
        self.service = service
        process = psutil.Process(service.pid)
        wait_until(lambda: process.children())
        self.family = [process, *process.children(recursive=True)]

    def waits_for(self, what: str) -> bool:
        assert self.process.poll() is None
        service = self.state.read()
        return service is not None and what in service.waiting_for

    def ended(self) -> str:
        """Waits for the end, checks that nothing is left, and returns what was printed."""
        said = self.process.communicate(timeout=240)[1]
        _, alive = psutil.wait_procs(self.family, timeout=120)
        assert alive == []
        assert {path.name for path in self.state.path.parent.iterdir()} == {"logs", "toy.log"}
        assert not Path(self.service.scratch).exists()
        return said


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.timeout(600)
@pytest.mark.ray
def test_a_signal_ends_a_start_that_waits_for_ray_and_nothing_is_left(config, tmp_path):
    start = Start(config, tmp_path)
    start.process.send_signal(signal.SIGINT)  # SIGTERM has the same handler
    said = start.ended()
    assert start.process.returncode == 130
    assert said.endswith("interrupted\n")
    assert "s  waiting for " in said


@pytest.mark.timeout(600)
@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL], ids=["a closed terminal", "SIGKILL"])
def test_a_start_in_the_foreground_ends_with_weir_up_and_nothing_is_left(config, tmp_path, number):
    start = Start(config, tmp_path, detach=False)
    start.process.send_signal(number)
    start.ended()


@pytest.mark.timeout(600)
@pytest.mark.ray
def test_a_start_is_seen_by_status_refuses_a_second_one_and_ends_by_down(config, tmp_path):
    start = Start(config, tmp_path)
    now = status(folder=tmp_path / ".weir")
    assert not now["healthy"]
    assert "Ray's processes" in now["pending"][0]
    with pytest.raises(ServiceError, match=f"^toy is already starting \\(process {start.service.pid}\\); wait for it"):
        up(config, folder=tmp_path / ".weir")
    assert down(folder=tmp_path / ".weir").name == "toy"
    assert "error: toy did not start: it was " in start.ended()
    assert start.process.returncode == 2


@pytest.mark.timeout(600)
@pytest.mark.ray
def test_a_start_whose_process_is_killed_ends_with_one_sentence(config, tmp_path):
    start = Start(config, tmp_path)
    psutil.Process(start.service.pid).kill()
    said = start.ended()
    assert "because memory ran out" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_start_for_a_cluster_that_does_not_answer_leaves_no_state(config, tmp_path, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ServiceError, match="Ray does not answer"):
        up(config, folder=tmp_path / "state")
    assert list((tmp_path / "state").iterdir()) == []


def test_down_without_a_service_is_an_error(tmp_path):
    with pytest.raises(ServiceError, match="no service is up"):
        down(folder=tmp_path)
    with pytest.raises(ServiceError, match="no service is up"):
        status(folder=tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.ray
def test_a_service_whose_raylet_was_killed_says_so_and_leaves_no_process_and_no_file(config, tmp_path):
    folder = tmp_path / "state"
    service = up(config, detach=True, folder=folder)
    assert service
    family = family_of(service)
    part_of(service, "raylet").kill()
    _, alive = psutil.wait_procs(family, timeout=240)
    assert alive == []
    assert "Ray's process raylet has ended" in (folder / "toy.log").read_text()
    assert not Path(service.scratch).exists()
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "toy.log"]
    with pytest.raises(ServiceError, match=r"no service is up; .* \(the log of the last one is \S+/toy\.log\)"):
        down(folder=folder)


@pytest.mark.timeout(600)
@pytest.mark.ray
def test_a_service_whose_gcs_was_killed_answers_on_and_replaces_replicas_again(config, tmp_path):
    folder = tmp_path / "state"
    service = up(config, detach=True, folder=folder, nodes=2)
    assert service
    killed = part_of(service, "gcs_server")
    killed.kill()
    while "gcs_server ended, and was started again" not in (folder / "toy.log").read_text():
        assert ask(service).status_code == 200
    assert part_of(service, "gcs_server").pid != killed.pid
    replica = next(it for it in family_of(service) if "ServeReplica:weir:Pool" in " ".join(it.cmdline()))
    replica.kill()
    until(lambda: not replica.is_running() and (state := readiness(service.url)) is not None and state["ready"])
    until(lambda: ask(service).status_code == 200)
    family = family_of(service)
    down(folder=folder)
    _, alive = psutil.wait_procs(family, timeout=240)
    assert alive == []
    assert not Path(service.scratch).exists()


def family_of(service: Service) -> list[psutil.Process]:
    """The process of a service, and those that it has started."""
    process = psutil.Process(service.pid)
    return [process, *process.children(recursive=True)]


def part_of(service: Service, name: str) -> psutil.Process:
    """The one process of a service with a name."""
    [part] = [it for it in family_of(service) if it.name() == name]
    return part


def ask(service: Service) -> httpx.Response:
    body = {"prompt": "a red circle"}
    return httpx.post(f"{service.url}/v1/images/generations", json=body, timeout=120, trust_env=False)


def until(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
