"""Reads trace files. The format is recognised by the header, or by the content of a file without a header.

format              header                                        example line
Weir                ``arrival_s,prompt``, optionally ``seed``,    ``1.250,a red circle,7,96x64``
                    ``size``
DiffServe           ``offset_ms,prompt_id``, or none              ``368.0,1236``
rate curve          ``t_s,rate``                                  ``60,4.5``: requests/s from 60 s on
timestamped log     a timestamp column and a prompt column        ``2024-05-01T12:00:00Z,a red circle``

Times may be unix times in any column and any unit; see :mod:`traces.clock`. Cells may be separated by commas,
semicolons or tabs, as in files of spreadsheets; numbers may have a decimal comma unless commas separate the cells.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import numpy as np

from traces.clock import SUFFIXES, ClockProblem, are_spreadsheet_days, exact_number, seconds, unit_of
from traces.prompts import prompt_by_id, prompt_log
from traces.rate_curve import RateCurve
from traces.trace import Arrival, Trace
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.own_code import is_own, made

TIMESTAMPS = ("timestamp", "time", "datetime", "date", "created_at")
PROMPTS = ("prompt", "text", "query")
FORMS = (
    "arrival_s,prompt[,seed][,size] · offset_ms,prompt_id · t_s,rate · "
    f"a log with one of {', '.join(TIMESTAMPS)} and one of {', '.join(PROMPTS)}"
)
#: Separators of cells: those of spreadsheets whose decimal separator is a comma, and commas.
_DELIMITERS = ("\t", ";", ",")
#: First line with which some programs tell Excel the separator.
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
#: First bytes of files that are no text → what they are and the remedy.
_OTHER_FILES = {
    b"\x1f\x8b": "packed with gzip; unpack it with gunzip",
    b"PK\x03\x04": "a spreadsheet or a zip file; save it as CSV, or unpack it",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; save it as CSV",
    b"PAR1": "a Parquet file; convert it to CSV",
    b"SQLite": "a database; export it as CSV",
    b"{": "JSON; write a line of CSV for each request",
    b"[": "JSON; write a line of CSV for each request",
}


@dataclass(frozen=True, slots=True)
class _Table:
    """The cells of a file with their line numbers."""

    path: Path
    columns: list[str]
    rows: list[tuple[int, list[str]]]
    decimal_comma: bool

    def fail(self, line: int, column: str, problem: str) -> NoReturn:
        raise ConfigError(f"{self.path}: line {line}, column {column}: {problem}")

    def cells(self, column: str) -> Iterator[tuple[int, str]]:
        index = self.columns.index(column)
        for line, row in self.rows:
            yield line, row[index].strip()

    def numerals(self, column: str) -> Iterator[tuple[int, str]]:
        """The cells of a column of numbers, with decimal points."""
        for line, cell in self.cells(column):
            yield line, cell.replace(",", ".") if self.decimal_comma else cell

    def numbers(self, column: str, what: str, *, least: float = 0.0) -> list[float]:
        """The column as finite numbers of at least ``least``."""
        values = []
        for line, cell in self.numerals(column):
            try:
                value = float(cell)
            except ValueError:
                self.fail(line, column, f"{cell!r} is not a number; write {what}")
            if not math.isfinite(value) or value < least:
                self.fail(line, column, f"{cell} is out of range; write {what}, at least {least:g}")
            values.append(value)
        return values

    def times(self, column: str, unit: str) -> list[float]:
        """The column as seconds since the start; unix times are counted from the first one."""
        what = f"{unit} since the start or unix time"
        values = []
        for line, cell in self.numerals(column):
            value = exact_number(cell)
            if value is None and not _is_number(cell):
                self.fail(line, column, f"{cell!r} is not a number; write {what}")
            if value is None or value < 0:
                self.fail(line, column, f"{cell} is out of range; write {what}, at least 0")
            values.append(value)
        try:
            return seconds(values, unit)
        except ClockProblem as problem:
            self.fail(self.rows[problem.row][0], column, str(problem))

    def texts(self, column: str) -> list[str]:
        for line, cell in self.cells(column):
            if not cell:
                self.fail(line, column, "the prompt is empty; fill it in or drop the line")
        return [cell for _, cell in self.cells(column)]

    def integers(self, column: str, what: str) -> list[int]:
        values = []
        for (line, cell), value in zip(self.cells(column), self.numbers(column, what), strict=True):
            if value != int(value):
                self.fail(line, column, f"{cell} is not a whole number; write {what}")
            values.append(int(value))
        return values


def _read(path: Path) -> _Table:
    try:
        with path.open(newline="", encoding=_encoding(path)) as file:
            header = file.readline()
            declared = _SEPARATOR.fullmatch(header)
            delimiter = declared[1] if declared else _delimiter(header)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            if declared:
                next(reader)
            lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; a trace is a CSV file: {FORMS}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        remedy = "put text with commas or quotes in double quotes, and close each"
        raise ConfigError(f"{path}: line {reader.line_num}: {error}; {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not lines:
        raise ConfigError(f"{path}: the file is empty; a trace is a CSV file: {FORMS}")
    first = [cell.strip() for cell in lines[0][1]]
    decimal_comma = delimiter != ","
    if len(first) == 2 and all(_is_number(it.replace(",", ".") if decimal_comma else it) for it in first):
        columns = ["offset_ms", "prompt_id"]
    else:
        columns, lines = [c.lower() for c in first], lines[1:]
    table = _Table(path, columns, lines, decimal_comma)
    for column in columns:
        if columns.count(column) > 1:
            table.fail(1, column, "the header names it twice; rename or drop one")
    if not lines:
        raise ConfigError(f"{path}: no line follows the header; a trace needs at least one request")
    for line, row in lines:
        if len(row) != len(columns):
            raise ConfigError(
                f"{path}: line {line}: {len(row)} cells where {len(columns)} are due ({', '.join(columns)}); "
                "put prompts with commas in double quotes"
            )
    return table


def _encoding(path: Path) -> str:
    """UTF-16 if the file begins with its byte order mark, as "Unicode text" of spreadsheets does; otherwise UTF-8.

    Raises:
        ConfigError: the file is of a known kind that is not CSV.
    """
    with path.open("rb") as file:
        begin = file.read(8)
    for signature, what in _OTHER_FILES.items():
        if begin.startswith(signature):
            raise ConfigError(f"{path}: is {what}. A trace is a CSV file: {FORMS}")
    return "utf-16" if begin[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _delimiter(header: str) -> str:
    """The separator of cells, from the first line of the file, in which a comma may be a decimal separator."""
    return next((it for it in _DELIMITERS if it in header), ",")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_own(table: _Table) -> Trace:
    arrivals = table.times("arrival_s", "seconds")
    seeds: list[int | None] = [None] * len(arrivals)
    if "seed" in table.columns:
        for i, (line, cell) in enumerate(table.numerals("seed")):
            value = exact_number(cell) if cell else None
            if cell and (value is None or value != value.to_integral_value() or value < -1):
                table.fail(line, "seed", f"{cell!r} is not a seed; write a whole number of at least 0, or nothing")
            seeds[i] = None if value is None or value == -1 else int(value)  # -1 stands for any seed, as in other tools
    sizes = _sizes(table) if "size" in table.columns else [None] * len(arrivals)
    return Trace.of(list(map(Arrival, arrivals, table.texts("prompt"), seeds, sizes)))


def _sizes(table: _Table) -> list[ImageSize | None]:
    sizes: list[ImageSize | None] = []
    for line, cell in table.cells("size"):
        try:
            sizes.append(ImageSize.of(cell) if cell not in ("", "auto") else None)
        except ValueError:
            table.fail(line, "size", f"{cell!r} is not a size; write WIDTHxHEIGHT, such as 1152x896, or nothing")
    return sizes


def _read_diffserve(table: _Table, prompts: Path | str | None) -> Trace:
    offsets = table.times("offset_ms", "milliseconds")
    ids = table.integers("prompt_id", "the number of a prompt")
    prompt_of: Callable[[int], str] = prompt_by_id
    if prompts is not None:
        known = _read_prompts(Path(prompts))
        for (line, _), prompt_id in zip(table.rows, ids, strict=True):
            if prompt_id >= len(known):
                table.fail(
                    line,
                    "prompt_id",
                    f"{prompt_id} is out of range; {prompts} holds prompts 0 to {len(known) - 1}, one a line",
                )
        prompt_of = known.__getitem__
    return Trace.of([Arrival(offset_s, prompt_of(i), None) for offset_s, i in zip(offsets, ids, strict=True)])


def _read_prompts(path: Path) -> list[str]:
    """Reads one prompt per line; the first line is prompt 0."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; a prompts file holds one prompt a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ConfigError(f"{path}: line {number}: the prompt is empty; ids count lines, so fill it in")
    if not lines:
        raise ConfigError(f"{path}: the file is empty; a prompts file holds one prompt a line")
    return [line.strip() for line in lines]


def _read_rate_curve(table: _Table, seed: int) -> Trace:
    starts = table.times("t_s", "seconds")
    rates = table.numbers("rate", "requests per second")
    for (line, _), before, after in zip(table.rows[1:], starts, starts[1:], strict=False):
        if after <= before:
            table.fail(line, "t_s", f"{after:g} does not come after {before:g}; sort the lines, each time once")
    if starts[0] != 0:
        table.fail(table.rows[0][0], "t_s", f"the curve starts at {starts[0]:g}; it must start at 0")
    if len(starts) < 2:
        raise ConfigError(f"{table.path}: one line gives no duration; add a line at the end of the curve")
    # The last rate lasts as long as the one before it.
    curve = RateCurve((*starts, 2 * starts[-1] - starts[-2]), tuple(rates))
    try:
        arrivals = curve.sample_arrivals(seed)
    except ConfigError as error:
        raise ConfigError(f"{table.path}: column rate: {error.message}") from None
    if not len(arrivals):
        raise ConfigError(f"{table.path}: column rate: the curve gives no request; it must hold rates above 0")
    prompts = prompt_log(np.random.default_rng(seed), len(arrivals))
    return Trace(tuple(arrivals.tolist()), tuple(prompts), duration_s=curve.duration_s)


def _read_log(table: _Table, timestamp: str, prompt: str) -> Trace:
    times = [exact_number(cell) for _, cell in table.numerals(timestamp)]
    if times[0] is None:
        moments = [_moment(table, line, timestamp, cell) for line, cell in table.cells(timestamp)]
    else:
        numbers = [time for time in times if time is not None]
        if unit_of(timestamp) is None and are_spreadsheet_days(numbers):
            table.fail(
                table.rows[0][0],
                timestamp,
                f"{numbers[0]} looks like a spreadsheet's date as a number of days; format the column as "
                f"yyyy-mm-dd hh:mm:ss, or name it {timestamp}_s if it holds seconds",
            )
        moments = table.times(timestamp, unit_of(timestamp) or "seconds")
    start = min(moments)
    return Trace.of([Arrival(m - start, p, None) for m, p in zip(moments, table.texts(prompt), strict=True)])


def _moment(table: _Table, line: int, column: str, cell: str) -> float:
    """Unix time of an ISO 8601 time, in UTC if it has no zone."""
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        table.fail(line, column, f"{cell!r} is not a time; write ISO 8601 (2024-05-01T12:00:00Z) or unix time")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _read_by(reader: str, path: Path) -> Trace:
    """Reads a file with a function of the user's own."""
    if not path.is_file():
        raise ConfigError(f"{reader}@{path}: there is no file {str(path)!r}; write module:name@FILE")
    trace: Trace = made(reader, str(path), path, has=("arrivals_s", "prompts"))
    return trace


def load_trace(path: Path | str, *, prompts: Path | str | None = None, seed: int = 0) -> Trace:
    """Reads a trace in any format of the module's table and sorts its lines.

    Args:
        path: of the file; ``module:name@FILE`` reads the file with a function of one's own, which takes the path and
            returns a :class:`~traces.trace.Trace`.
        prompts: for DiffServe's format, a file with one prompt per line, prompt 0 first. None: prompts are those of
            :func:`traces.prompts.prompt_by_id`.
        seed: seed of the arrivals (Poisson) and prompts that are generated for a rate curve.

    Raises:
        ConfigError: names the file, the line and column, and the remedy.
    """
    reader, _, file = str(path).partition("@")
    if is_own(reader):
        return _read_by(reader, Path(file))
    table = _read(Path(path))
    columns = table.columns
    if prompts is not None and "prompt_id" not in columns:
        raise ConfigError(f"{path}: has no column prompt_id, so the prompts file {prompts} is not used; leave it out")
    if {"arrival_s", "prompt"} <= set(columns):
        return _read_own(table)
    if {"offset_ms", "prompt_id"} <= set(columns):
        return _read_diffserve(table, prompts)
    if {"t_s", "rate"} <= set(columns):
        return _read_rate_curve(table, seed)
    names = (*TIMESTAMPS, *(name + suffix for name in TIMESTAMPS for suffix in SUFFIXES))
    timestamp = next((c for c in names if c in columns), None)
    prompt = next((c for c in PROMPTS if c in columns), None)
    if timestamp and prompt:
        return _read_log(table, timestamp, prompt)
    if "t_s" in columns:
        raise ConfigError(f"{path}: line 1: a rate curve needs a column rate; rename one of {', '.join(columns)}")
    raise ConfigError(f"{path}: line 1: unknown format with the columns {', '.join(columns)}; known: {FORMS}")
