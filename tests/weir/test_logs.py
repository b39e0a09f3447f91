"""Log records are text or JSON, on standard error or in files, and name their request."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from weir.errors import ConfigError
from weir.logs import FOLDER, FORMAT, PACKAGES, configure, logged_as, request_ids

log = logging.getLogger("weir.some.module")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the environment names; the loggers are as before at the end."""
    before = {name: (list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in PACKAGES}
    monkeypatch.setenv(FOLDER, str(tmp_path / "logs"))
    yield tmp_path / "logs"
    for handler in {it for name in PACKAGES for it in logging.getLogger(name).handlers}:
        handler.close()
    for name, (handlers, level) in before.items():
        logging.getLogger(name).handlers[:] = handlers
        logging.getLogger(name).setLevel(level)


def lines(folder: Path) -> list[str]:
    [path] = folder.iterdir()
    return path.read_text().splitlines()


def test_json_records_name_their_request_and_hold_a_traceback_on_one_line(folder, monkeypatch):
    monkeypatch.setenv(FORMAT, "json")
    configure("worker")
    with logged_as("mine"):
        log.info("began\nin two lines")
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed", extra=request_ids(["a", "", "b"]))
    log.info("idle")
    records = [json.loads(line) for line in lines(folder)]
    assert [record.get("request_id") for record in records] == ["mine", "a,b", None]
    assert [record["message"] for record in records] == ["began\nin two lines", "failed", "idle"]
    assert "ValueError: no" in records[1]["exception"]
    assert {(record["component"], record["logger"]) for record in records} == {("worker", "weir.some.module")}


def test_text_records_have_time_level_component_logger_and_request(folder):
    configure("worker")
    configure("cache")  # replaces the first one
    with logged_as("mine"):
        log.warning("slow")
    [line] = (folder / next(it.name for it in folder.iterdir() if it.name.startswith("cache"))).read_text().splitlines()
    assert line.partition(" ")[2] == "WARNING cache weir.some.module [mine] slow"


def test_without_settings_logging_stays_as_it_is(monkeypatch):
    for name in (FOLDER, FORMAT):
        monkeypatch.delenv(name, raising=False)
    before = list(logging.getLogger("weir").handlers)
    configure("worker")
    assert logging.getLogger("weir").handlers == before


def test_an_unknown_format_is_refused(monkeypatch):
    monkeypatch.setenv(FORMAT, "xml")
    with pytest.raises(ConfigError, match="WEIR_LOG_FORMAT is 'xml'; accepted: text or json"):
        configure("worker")


def test_while_the_disk_is_full_records_are_lost_which_is_said_once(folder, capsys):
    configure("worker")
    log.info("before")
    [path] = folder.iterdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        for number in range(1000):
            log.info("record %d", number)
        [said] = capsys.readouterr().err.splitlines()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == f"{path}: cannot be written: File too large; records are lost until it can be"
    log.info("after")
    assert lines(folder)[0].endswith("before")
    assert lines(folder)[-1].endswith("after")
