"""The log files of a service: where they are, and the records of all its processes in the order of time."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.cluster import existing
from deploy.state import FOLDER, StateFile, find
from weir.errors import ServiceError
from weir.files import make_folder
from weir.logs import FOLDER as VARIABLE
from weir.logs import log_format

#: Largest number of log files that a start leaves of earlier ones.
MOST_KEPT = 100
#: Seconds between two looks for new lines.
POLL_S = 0.5
_TEXT = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT\S+Z) \w+ \S+ \S+ \[(?P<ids>\S+)\] ")


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a log, which may have several lines.

    Attributes:
        time: ISO 8601, UTC.
        request_ids: requests that the record belongs to.
    """

    time: str
    request_ids: tuple[str, ...]
    text: str


def entries(lines: list[str]) -> list[Entry]:
    """The records of some lines, in either format of :mod:`weir.logs`. Lines before the first record are left out."""
    found: list[Entry] = []
    for line in lines:
        if (begun := _begun(line)) is not None:
            found.append(begun)
        elif found:
            found[-1] = Entry(found[-1].time, found[-1].request_ids, f"{found[-1].text}\n{line}")
    return found


def _begun(line: str) -> Entry | None:
    """The record that begins with a line; None for a line that continues one."""
    if text := _TEXT.match(line):
        ids = () if text["ids"] == "-" else tuple(text["ids"].split(","))
        return Entry(text["time"], ids, line)
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
        return Entry(str(fields["time"]), tuple(str(fields.get("request_id", "")).split(",")), line)
    except (ValueError, KeyError):
        return None


class LogFolder:
    """The log files of a service. Every :meth:`read` returns what was added since the last one.

    Raises:
        ServiceError: there is no such folder.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise ServiceError(
                f"there are no logs in {folder}; `weir up` writes them, and `weir status` names the folder"
            )
        self._folder = folder
        self._read: dict[int, int] = {}  # bytes that were read, by inode: a file that is full is renamed

    def read(self, request_id: str | None = None) -> list[Entry]:
        """The new records of all files, in the order of time.

        Args:
            request_id: leaves out records of other requests, and those of none.
        """
        found = [entry for path in self._folder.glob("*.log*") for entry in entries(self._new_lines(path))]
        wanted = (it for it in found if request_id is None or request_id in it.request_ids)
        return sorted(wanted, key=lambda entry: entry.time)

    def follow(self, request_id: str | None = None) -> Iterator[Entry]:
        """Yields records as they are written, without end."""
        while True:
            yield from self.read(request_id)
            time.sleep(POLL_S)

    def _new_lines(self, path: Path) -> list[str]:
        try:
            with path.open("rb") as file:
                inode = path.stat().st_ino
                file.seek(self._read.get(inode, 0))
                new = file.read()
        except FileNotFoundError:  # it was renamed or removed meanwhile
            return []
        whole = new[: new.rfind(b"\n") + 1]  # the last line may still be written
        self._read[inode] = self._read.get(inode, 0) + len(whole)
        return whole.decode(errors="replace").splitlines()


@contextmanager
def logging_to(folder: Path) -> Iterator[str]:
    """Context manager in which the processes that are started log to a folder, or to the one that the environment
    names already; yields its path. Processes of an existing cluster log where its environment says, and this yields "".

    Raises:
        ConfigError: the folder cannot be written, or the environment names an unknown format.
    """
    log_format()
    if existing():
        yield ""
        return
    given = os.environ.get(VARIABLE)
    path = Path(given or folder).absolute()
    make_folder(path)
    for old in sorted(path.glob("*.log*"), key=lambda it: it.stat().st_mtime)[:-MOST_KEPT]:
        old.unlink(missing_ok=True)
    os.environ[VARIABLE] = str(path)
    try:
        yield str(path)
    finally:
        if given is None:
            del os.environ[VARIABLE]


def logs_of(name: str | None = None, folder: Path = FOLDER) -> Path:
    """The folder with the logs of a service that is up, or was up earlier; without a name, of the only one.

    Raises:
        ServiceError: there is none, or there are several, or the service is on a cluster that was there before.
    """
    try:
        _, service = find(name, folder)
    except ServiceError:
        parent = folder / "logs"
        known = sorted(it.name for it in parent.iterdir() if it.is_dir()) if parent.is_dir() else []
        if name is None and len(known) == 1:
            name = known[0]
        if name not in known:
            names = f"; name one of {', '.join(known)}" if known else ""
            raise ServiceError(f"there are no logs of {name or 'one service'} in {parent}{names}") from None
        return StateFile(name, folder).logs
    if not service.logs:
        raise ServiceError(f"{service.name} is on a cluster that was there before; its logs are on the cluster's nodes")
    return Path(service.logs)
