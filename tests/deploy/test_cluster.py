"""Tests of the start of Ray: on a busy machine its timeouts expire, and its processes are stopped and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from deploy.cluster import (
    RESTARTS,
    RESTARTS_S,
    STARTS,
    RayWatch,
    cluster,
    existing,
    explained,
    keep_token,
    started,
    too_slow,
)
from weir import ray_private
from weir.errors import NotReady, ServiceError

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


def test_a_cluster_that_is_too_slow_each_time_is_an_error_with_the_remedy() -> None:
    reports: list[str] = []

    def start() -> None:
        raise Exception(SLOW)

    with pytest.raises(NotReady, match="stop other work, or use a larger machine") as caught:
        started(start, reports.append)
    assert reports == [f"Ray's processes (attempt {attempt} of {STARTS})" for attempt in range(1, STARTS + 1)]
    assert "\n" not in caught.value.message


def test_the_sentence_on_a_slow_start_shows_how_busy_the_machine_is() -> None:
    assert "a load of 9.4 on 2 CPUs and 1.5 GiB of free memory" in too_slow(9.38, 2, 3 * 2**29)


@pytest.mark.parametrize(("value", "address"), [("", None), ("local", None), ("10.0.0.5:6379", "10.0.0.5:6379")])
def test_a_cluster_is_started_here_unless_the_environment_names_one(
    value: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert existing() == address


def test_any_other_failure_of_ray_is_one_sentence_and_its_logs_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logs = tmp_path / "session_2026-11-29" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("line\n" * 50 + "no room on the device\n")
    with pytest.raises(NotReady, match=r"^Ray did not start: num_cpus is -1$"), explained(tmp_path):
        raise ValueError("num_cpus is -1")
    assert "no room on the device" in caplog.text
    assert caplog.text.count("line\n") < 20


@pytest.fixture
def without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("without_token")
@pytest.mark.parametrize("home", ["/dev/null", "/proc/1"], ids=["no folder", "read-only"])
def test_rays_token_is_kept_with_the_other_files_where_the_home_folder_cannot_be_written(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert keep_token(tmp_path) == ("RAY_AUTH_TOKEN_PATH",)
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.parent == tmp_path
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64


@pytest.mark.usefixtures("without_token")
def test_rays_token_stays_in_a_home_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keep_token(tmp_path) == ()
    token = tmp_path / ".ray" / "auth_token"
    written = token.read_text()
    assert (len(written), token.stat().st_mode & 0o777) == (64, 0o600)
    token.chmod(0o644)  # as Ray writes it
    assert keep_token(tmp_path) == ()
    assert (token.read_text(), token.stat().st_mode & 0o777) == (written, 0o600)


def test_ray_gets_no_folder_that_other_users_can_reach(tmp_path: Path) -> None:
    parent = Path(tempfile.mkdtemp(dir="/tmp"))
    folder = parent / "ray"
    folder.mkdir()
    parent.chmod(0o755)
    try:
        with pytest.raises(NotReady, match=f"other users can reach {folder}"), cluster(1, folder=folder):
            pass
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(parent)


def test_a_token_of_the_user_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("HOME", "/dev/null")
    assert keep_token(tmp_path) == ()


def test_other_failures_are_not_retried() -> None:
    attempts = []

    def start() -> None:
        attempts.append(1)
        raise ValueError("num_cpus is -1")

    with pytest.raises(ValueError, match="num_cpus"):
        started(start)
    assert len(attempts) == 1


def test_a_gcs_that_ends_again_and_again_is_given_up_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    restarts: list[float] = []
    now = 0.0
    monkeypatch.setattr(ray_private, "ended_part", lambda: "gcs_server")
    monkeypatch.setattr(ray_private, "restart_gcs", lambda: restarts.append(now))
    watch = RayWatch(lambda: now)
    for _ in range(2 * RESTARTS):
        watch.check()
        now += RESTARTS_S
    assert len(restarts) == 2 * RESTARTS
    for _ in range(RESTARTS):
        watch.check()
    with pytest.raises(ServiceError, match=f"gcs_server has ended {RESTARTS + 1} times within .* maybe because memory"):
        watch.check()


def test_a_gcs_that_does_not_start_again_is_an_error_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(ray_private, "ended_part", lambda: "gcs_server")
    monkeypatch.setattr(ray_private, "restart_gcs", fail)
    with pytest.raises(ServiceError, match="did not start again: no space left on device"):
        RayWatch().check()
