"""Logs: one record a line, as text or JSON, with the id of the request that the record belongs to.

Processes of a service call :func:`configure` once. Their environment decides where the lines go:

* ``WEIR_LOG_FOLDER``: a folder, in which every process has a file of its own. ``weir up`` sets it. Default: standard
  error.
* ``WEIR_LOG_FORMAT``: ``text`` (default) or ``json``.

Without both, logging stays as it is.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from weir.errors import ConfigError

FOLDER = "WEIR_LOG_FOLDER"
FORMAT = "WEIR_LOG_FORMAT"
#: Size at which a file is continued in a new one, and number of earlier files that are kept of each process.
MOST_BYTES, MOST_FILES = 16 * 2**20, 3
#: Packages whose records are written, from level INFO on.
PACKAGES = ("cache", "controller", "deploy", "load_balancer", "quality", "solvers", "training", "weir", "workers")

#: Id of the request that the current task works on; "" outside of requests. A record about other requests names their
#: ids in its attribute ``request_id``, separated by commas.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")


@contextmanager
def logged_as(request_id: str) -> Iterator[None]:
    """Context manager in which records belong to a request."""
    token = REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        REQUEST_ID.reset(token)


def request_ids(ids: Iterable[str]) -> dict[str, str]:
    """The argument ``extra`` of a record about other requests than that of the current task."""
    return {"request_id": ",".join(filter(None, ids))}


def log_format() -> str:
    """The format that the environment names.

    Raises:
        ConfigError: it is unknown.
    """
    named = os.environ.get(FORMAT, "text")
    if named not in ("text", "json"):
        raise ConfigError(f"{FORMAT} is {named!r}; accepted: text or json")
    return named


def configure(component: str) -> None:
    """Writes the records of this process to where the environment says.

    Args:
        component: what the process is, such as ``worker``; names its file.

    Raises:
        ConfigError: the environment names an unknown format, or a folder that cannot be written.
    """
    formatter = _Json(component) if log_format() == "json" else _Text(component)
    if FOLDER not in os.environ and FORMAT not in os.environ:
        return
    handler: logging.Handler = logging.StreamHandler()
    if named := os.environ.get(FOLDER):
        try:
            Path(named).mkdir(parents=True, exist_ok=True)
            path = Path(named) / f"{component}-{os.getpid()}.log"
            handler = _LogFile(path, maxBytes=MOST_BYTES, backupCount=MOST_FILES, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{FOLDER} is {named}, which cannot be written: {error.strerror}") from None
    handler.setFormatter(formatter)
    for package in PACKAGES:
        logger = logging.getLogger(package)
        for earlier in [it for it in logger.handlers if isinstance(it.formatter, _Text | _Json)]:
            logger.removeHandler(earlier)
            earlier.close()
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


class _LogFile(RotatingFileHandler):
    """A file whose records are lost while the disk is full, which it says once on standard error."""

    _failing = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        self._failing = self._failed

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._failed = True
        if not self._failing:
            problem = f"{self.baseFilename}: cannot be written: {error.strerror}; records are lost until it can be"
            with suppress(OSError):
                sys.stderr.write(f"{problem}\n")


class _Text(logging.Formatter):
    """``TIME LEVEL COMPONENT LOGGER [REQUEST IDS] MESSAGE``, ``-`` for no request; a traceback takes more lines."""

    def __init__(self, component: str):
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        ids = _request_ids(record) or "-"
        line = f"{_time(record)} {record.levelname} {self._component} {record.name} [{ids}] {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    """One JSON object a line; ``request_id`` and ``exception`` are left out where there is none."""

    def __init__(self, component: str):
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "component": self._component,
            "process": record.process,
            "logger": record.name,
            "request_id": _request_ids(record),
            "message": record.getMessage(),
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({name: value for name, value in fields.items() if value != ""})


def _request_ids(record: logging.LogRecord) -> str:
    return getattr(record, "request_id", "") or REQUEST_ID.get()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
