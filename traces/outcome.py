"""What became of one request of a replay, and the file that keeps it: a line a request, never half a line."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from traces.paths import read_path
from weir.errors import ConfigError
from weir.files import written_whole


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request that ended, however it ended. What the server did not say is None.

    Attributes:
        index: place in the trace.
        arrival_s: planned, since the start of the replay.
        sent_s: when the request left; later than ``arrival_s`` only by the client's own lateness.
        latency_s: from sending to the whole answer, or to the failure.
        status: of HTTP; 0 when no answer came.
        error: "" for an image, else the server's code, or the client's: ``timeout``, ``connection_failed``,
            ``invalid_answer``.
        reason: what the server said about the error, or what became of the connection; "" for an image.
        path: through the cascade, as :class:`weir.cascade.Answer` names it.
        served_s: from its admission to its answer, by the server's clock.
        image: file of the image, relative to the folder of the replay; "" when none was kept.
        quality: of the image, filled in by the report's scorer.
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
    served_s: float | None = None
    plan_version: int | None = None
    emulated: bool | None = None
    model: str = ""
    id: str = ""
    image: str = ""
    quality: float | None = None
    reason: str = ""

    @property
    def answered(self) -> bool:
        return not self.error

    @property
    def refused(self) -> bool:
        """The server was overloaded or not ready, and said so."""
        return self.status in (429, 503)

    @property
    def lateness_s(self) -> float:
        """Of the client itself."""
        return self.sent_s - self.arrival_s

    def met(self, slo_s: float) -> bool:
        """An image came within the SLO."""
        return self.answered and self.latency_s <= slo_s


COLUMNS = tuple(f.name for f in fields(Outcome))

_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("error", "prompt", "model", "id", "image", "reason"), str),
    **dict.fromkeys(("index", "status", "seed", "steps", "plan_version"), int),
    **dict.fromkeys(("arrival_s", "sent_s", "latency_s", "confidence", "quality"), float),
    **dict.fromkeys(("queue_s", "compute_s", "served_s"), float),
    "path": read_path,
    "emulated": {"True": True, "False": False}.__getitem__,
}


def _line(cells: tuple[object, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        "" if c is None else round(c, 6) if isinstance(c, float) else c for c in cells
    )
    return text.getvalue().encode()


class OutcomeFile:
    """Appends outcomes to a new CSV file as they end.

        with OutcomeFile(path) as file:
            file.append(outcome)

    Each line is handed to the operating system whole and at once, so that a reader, or whoever looks after the writer
    was killed, finds whole lines only.

    Raises:
        ConfigError: the file is there already, its folder cannot be written to, or the disk is full.
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

    def append(self, outcome: Outcome) -> None:
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


def save_outcomes(outcomes: Iterable[Outcome], path: Path) -> None:
    """Replaces the file by these outcomes, in one step: whoever reads meanwhile finds the old or the new file."""
    with written_whole(path) as draft, OutcomeFile(draft) as file:
        for outcome in outcomes:
            file.append(outcome)


def read_outcomes(path: Path | str) -> list[Outcome]:
    """Reads what :class:`OutcomeFile` wrote, in the order of arrival.

    Raises:
        ConfigError: names the file, the line and the column.
    """
    path = Path(path)
    outcomes = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ConfigError(f"{path}: line 1: not the rows of a replay; they start with {','.join(COLUMNS)}")
            for row in reader:
                values: dict[str, Any] = {}
                for column in COLUMNS:
                    cell = row[column]
                    try:
                        values[column] = cell if _READERS[column] is str else _READERS[column](cell) if cell else None
                    except (KeyError, TypeError, ValueError):
                        raise ConfigError(
                            f"{path}: line {reader.line_num}, column {column}: cannot read {cell!r}; replay again"
                        ) from None
                outcomes.append(Outcome(**values))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; make it with `weir replay`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return sorted(outcomes, key=lambda o: o.index)
