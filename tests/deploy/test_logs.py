"""The logs of a service are read in the order of time, of one request, as they grow, and after the service is down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deploy.logs import MOST_KEPT, LogFolder, logging_to, logs_of
from deploy.state import StateFile
from weir.errors import ConfigError, ServiceError
from weir.logs import FOLDER, FORMAT

WORKER = """\
2026-11-29T06:00:02.000000Z INFO worker workers.replica [mine] a-0: 2 steps
2026-11-29T06:00:04.000000Z WARNING worker workers.engine.step_loop [mine,other] A call for 2 images failed
Traceback (most recent call last):
ValueError: no
"""
BALANCER = """\
{"time": "2026-11-29T06:00:01.000000Z", "level": "INFO", "message": "began", "request_id": "mine"}
{"time": "2026-11-29T06:00:03.000000Z", "level": "INFO", "message": "idle"}
"""


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs" / "toy"
    folder.mkdir(parents=True)
    (folder / "worker-1.log").write_text(WORKER)
    (folder / "load-balancer-2.log").write_text(BALANCER)
    return folder


def seconds(entries) -> list[str]:
    return [entry.time[17:19] for entry in entries]


def test_records_of_all_processes_and_formats_are_in_the_order_of_time(logs):
    found = LogFolder(logs).read()
    assert seconds(found) == ["01", "02", "03", "04"]
    assert found[-1].text.endswith("\nValueError: no")


def test_a_request_has_its_records_also_those_that_it_shares(logs):
    assert seconds(LogFolder(logs).read("mine")) == ["01", "02", "04"]
    assert seconds(LogFolder(logs).read("other")) == ["04"]
    assert LogFolder(logs).read("min") == []


def test_new_records_are_read_once_and_only_when_they_are_whole(logs):
    files, path = LogFolder(logs), logs / "worker-1.log"
    files.read()
    whole = "2026-11-29T06:00:05.000000Z INFO worker workers.replica [-] next\n"
    with path.open("a") as file:
        file.write(whole[:30])
        file.flush()
        assert files.read() == []
        file.write(whole[30:])
    path.rename(logs / "worker-1.log.1")  # as when a file is full
    assert seconds(files.read()) == ["05"]
    assert files.read() == []


def test_the_command_prints_the_records_of_a_service_that_is_down(logs, monkeypatch):
    monkeypatch.chdir(logs.parent.parent)
    (logs.parent.parent / ".weir").mkdir()
    logs.parent.rename(logs.parent.parent / ".weir" / "logs")
    done = CliRunner().invoke(app, ["logs", "--request", "other"])
    assert (done.exit_code, done.stdout) == (0, WORKER.split("\n", 1)[1])


def test_a_request_without_a_record_is_an_error(logs):
    done = CliRunner().invoke(app, ["logs", "--folder", str(logs), "--request", "nobody"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "have no record of the request nobody" in done.stderr


def test_the_logs_of_no_or_of_several_services_are_an_error(logs, tmp_path):
    assert logs_of(None, tmp_path) == logs
    (tmp_path / "logs" / "other").mkdir()
    assert logs_of("toy", tmp_path) == logs
    with pytest.raises(ServiceError, match="name one of other, toy"):
        logs_of(None, tmp_path)
    with pytest.raises(ServiceError, match="there are no logs of one service"):
        logs_of(None, tmp_path / "nothing")


def test_a_start_names_the_folder_to_its_processes_and_leaves_few_old_files(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    folder = StateFile("toy", tmp_path).logs
    folder.mkdir(parents=True)
    for number in range(MOST_KEPT + 3):
        (folder / f"worker-{number}.log").touch()
    with logging_to(folder) as path:
        assert path == str(folder)
        assert os.environ[FOLDER] == path
    assert FOLDER not in os.environ
    assert len(list(folder.iterdir())) == MOST_KEPT
    monkeypatch.setenv(FORMAT, "xml")
    with pytest.raises(ConfigError, match="accepted: text or json"), logging_to(folder):
        pass
