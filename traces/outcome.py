"""The outcome of one request of a replay, and a CSV file of outcomes that never holds incomplete lines."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from traces.csv_line import csv_line
from traces.paths import read_path
from weir.errors import ConfigError
from weir.files import written_whole


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The outcome of one request that ended. Values that the server did not report are None.

    Attributes:
        index: index of the request in the trace.
        arrival_s: planned time of sending, since the start of the replay.
        sent_s: actual time of sending; the difference from ``arrival_s`` is the client's lateness.
        latency_s: time from sending to the complete answer, or to the failure.
        status: HTTP status; 0 without an answer.
        error: "" for an image, otherwise the server's error code, or the client's: ``timeout``,
            ``connection_failed``, ``invalid_answer``.
        reason: message of the error; "" for an image.
        size: that was requested; "": none.
        path: path through the cascade, as in :class:`weir.cascade.Answer`.
        served_s: time from admission to answer, measured by the server.
        compute_s: seconds at workers, over all runs.
        batch_size: of the answer's run, the images in a call of the denoiser, itself included; mean over the calls.
        image: path of the image file, relative to the folder of the replay; "" if it was not kept.
        quality: quality of the image, set by the report's scorer.
    """

    index: int
    arrival_s: float
    sent_s: float
    latency_s: float
    status: int
    error: str
    prompt: str
    path: str | None = None
    confidence: float | None = None
    seed: int | None = None
    steps: int | None = None
    queue_s: float | None = None
    compute_s: float | None = None
    batch_size: int | None = None
    served_s: float | None = None
    plan_version: int | None = None
    emulated: bool | None = None
    model: str = ""
    id: str = ""
    image: str = ""
    quality: float | None = None
    reason: str = ""
    size: str = ""

    @property
    def answered(self) -> bool:
        return not self.error

    @property
    def refused(self) -> bool:
        """Whether the server refused the request because it was overloaded or not ready."""
        return self.status in (429, 503)

    @property
    def lateness_s(self) -> float:
        """How late the client sent the request."""
        return self.sent_s - self.arrival_s

    def met(self, slo_s: float) -> bool:
        """Whether the image came within the SLO."""
        return self.answered and self.latency_s <= slo_s


COLUMNS = tuple(f.name for f in fields(RequestOutcome))

#: A spreadsheet takes a cell that begins with one of these for a formula, unless an apostrophe precedes it.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "'")


def _plain(text: str) -> str:
    """A cell that a spreadsheet shows as this text."""
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _text(cell: str | None) -> str:
    """The text of a cell; the inverse of :func:`_plain`. Raises ValueError: the row has no such cell."""
    if cell is None:
        raise ValueError("the row is too short")
    return cell[1:] if cell.startswith("'") else cell


def _image_path(cell: str) -> str:
    """Raises ValueError: the path leaves the folder of the replay."""
    path = Path(_text(cell))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(cell)
    return _text(cell)


_TEXTS = ("error", "prompt", "model", "id", "image", "reason", "size")
#: Columns without which a row means nothing.
_NEEDED = tuple(it.name for it in fields(RequestOutcome) if "None" not in str(it.type))
_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(_TEXTS, _text),
    "image": _image_path,
    **dict.fromkeys(("index", "status", "seed", "steps", "batch_size", "plan_version"), int),
    **dict.fromkeys(("arrival_s", "sent_s", "latency_s", "confidence", "quality"), float),
    **dict.fromkeys(("queue_s", "compute_s", "served_s"), float),
    "path": read_path,
    "emulated": {"True": True, "False": False}.__getitem__,
}


def _line(cells: tuple[object, ...]) -> bytes:
    return csv_line(
        "" if c is None else round(c, 6) if isinstance(c, float) else _plain(c) if isinstance(c, str) else c
        for c in cells
    ).encode()


class OutcomeFile:
    """Appends outcomes to a new CSV file as they end.

        with OutcomeFile(path) as file:
            file.append(outcome)

    Each line is written by one system call, so that the file only holds complete lines, also while it is written and
    after the process was killed.

    Raises:
        ConfigError: the file exists, its folder is not writable, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            raise ConfigError(f"{path}: holds an earlier replay; choose another folder or remove that one") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose another folder") from None
        self._write(_line(COLUMNS))

    def append(self, outcome: RequestOutcome) -> None:
        self._write(_line(astuple(outcome)))

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                os.ftruncate(self._fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ConfigError(
                f"{self._path}: cannot be written: {error.strerror}; the rows before this one are kept"
            ) from None

    def __enter__(self) -> OutcomeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def save_outcomes(outcomes: Iterable[RequestOutcome], path: Path) -> None:
    """Replaces the file atomically by one with these outcomes."""
    with written_whole(path) as draft, OutcomeFile(draft) as file:
        for outcome in outcomes:
            file.append(outcome)


def read_outcomes(path: Path | str) -> list[RequestOutcome]:
    """Reads a file of :class:`OutcomeFile`, sorted by index.

    Raises:
        ConfigError: names the file, the line and the column.
    """
    path = Path(path)
    outcomes = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ConfigError(f"{path}: line 1: not a file of a replay, whose header is {','.join(COLUMNS)}")
            for row in reader:
                values: dict[str, Any] = {}
                for column in COLUMNS:
                    cell = row[column]
                    try:
                        given = cell or column in _TEXTS or column in _NEEDED
                        values[column] = _READERS[column](cell) if given else None
                    except (KeyError, TypeError, ValueError):
                        raise ConfigError(
                            f"{path}: line {reader.line_num}, column {column}: invalid value {cell!r}; replay again"
                        ) from None
                outcomes.append(RequestOutcome(**values))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; create it with `weir replay`") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return sorted(outcomes, key=lambda o: o.index)
