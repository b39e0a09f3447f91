"""Arrival times of simulated requests with the number of each prompt: from traces, or synthetic."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.loader import load_trace
from traces.trace import Arrival, Trace
from weir.core import ImageSize
from weir.errors import ConfigError

#: A trace whose first request is later than this begins at that request; the time before it is not part of the demand.
FIRST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival times in seconds, ascending, with a prompt number for each.

    Attributes:
        sizes: of the images, None for the family's own; empty: all have that.
    """

    times_s: np.ndarray
    prompts: np.ndarray
    sizes: tuple[ImageSize | None, ...] = ()

    @classmethod
    def of(cls, times_s: np.ndarray, prompts: np.ndarray) -> Arrivals:
        """Sorts the arrivals by time; requests at the same time keep their order."""
        order = np.argsort(times_s, kind="stable")
        return cls(np.asarray(times_s, dtype=float)[order], np.asarray(prompts, dtype=int)[order])

    def __len__(self) -> int:
        return len(self.times_s)


def read_arrivals(path: Path | str) -> Arrivals:
    """Reads the arrivals of any trace that :func:`traces.loader.load_trace` reads.

    DiffServe's format (``offset_ms,prompt_id``) keeps its prompt numbers, which are the keys of recorded scores. In
    other formats equal prompts get equal numbers.

    Raises:
        ConfigError: names the file and the line.
    """
    numbered = _numbered(Path(path)) if Path(path).is_file() else None
    return trace_arrivals(load_trace(path)) if numbered is None else numbered


def trace_arrivals(trace: Trace) -> Arrivals:
    """Returns the arrivals of a trace; equal prompts get equal numbers."""
    numbers: dict[str, int] = {}
    prompts = [numbers.setdefault(p, len(numbers)) for p in trace.prompts]
    return Arrivals(np.array(trace.arrivals_s, dtype=float), np.array(prompts, dtype=int), trace.sizes)


def resampled(arrivals: Arrivals, rate: float = 1.0, redraw: int | None = None) -> Arrivals:
    """Scales the demand of arrivals and resamples their times; see :class:`traces.trace.Trace`.

    Args:
        rate: factor on the demand.
        redraw: seed of new arrival times with the same demand; None keeps the times. Prompts keep their order and start
            again when they run out.

    Raises:
        ConfigError: the rate is not above 0.
    """
    if rate == 1 and redraw is None:
        return arrivals
    begin = float(arrivals.times_s[0]) if len(arrivals) else 0.0
    begin = 0.0 if begin < FIRST_S else begin
    trace = Trace.of(
        [
            Arrival(t - begin, str(p), None, size)
            for t, p, size in zip(
                arrivals.times_s, arrivals.prompts, arrivals.sizes or (None,) * len(arrivals), strict=True
            )
        ]
    )
    if rate != 1:
        trace = trace.scale_rate(rate)
    if redraw is not None:
        trace = trace.resample(redraw)
    prompts = np.array([int(p) for p in trace.prompts], dtype=int)
    return Arrivals(begin + np.array(trace.arrivals_s), prompts, trace.sizes)


def _numbered(path: Path) -> Arrivals | None:
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path}: the file does not exist or cannot be read") from None
    except csv.Error:
        return None
    if rows and [c.strip() for c in rows[0]] == ["offset_ms", "prompt_id"]:
        rows = rows[1:]
    try:
        cells = np.array([[float(a), int(b)] for a, b in rows])
    except ValueError:
        return None
    return Arrivals.of(cells[:, 0] / 1000, cells[:, 1].astype(int)) if len(cells) else None


def poisson(rate_rps: np.ndarray, seed: int, prompts: int = 5000) -> Arrivals:
    """Samples a Poisson process with a rate for each second; prompts are uniformly distributed."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rate_rps)
    times = np.repeat(np.arange(len(counts), dtype=float), counts) + rng.random(counts.sum())
    return Arrivals.of(times, rng.integers(0, prompts, len(times)))


def steps(low_rps: float, high_rps: float, seconds: int, every_s: int, seed: int) -> Arrivals:
    """Samples Poisson arrivals whose rate alternates between two values."""
    phase = (np.arange(seconds) // every_s) % 2
    return poisson(np.where(phase == 0, low_rps, high_rps), seed)


def spikes(base_rps: float, peak_rps: float, seconds: int, every_s: int, length_s: int, seed: int) -> Arrivals:
    """Samples Poisson arrivals at a base rate with short peaks."""
    inside = np.arange(seconds) % every_s >= every_s - length_s
    return poisson(np.where(inside, peak_rps, base_rps), seed)
