"""A trace: the arrival time, prompt, seed and size of each request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from traces.csv_line import csv_line
from traces.rate_curve import RateCurve, check_count
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.files import written_whole

#: Largest number of windows of a rate curve, to bound its memory: five weeks in windows of five seconds.
MOST_WINDOWS = 600_000


class Arrival(NamedTuple):
    """One request of a trace; the server chooses the seed and the size if they are None."""

    arrival_s: float
    prompt: str
    seed: int | None
    size: ImageSize | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests sorted by arrival. Every transform returns a new trace.

        trace = load_trace("traces/bursty.csv").clip(120).scale_rate(0.5)
        for arrival_s, prompt, seed, size in trace: ...

    Attributes:
        arrivals_s: seconds since the start, ascending, within 0…duration_s.
        prompts: one for each arrival.
        seeds, sizes: one for each arrival, or empty to let the server choose.
        duration_s: duration of the trace, which may end after the last arrival.

    Raises:
        ConfigError: an attribute is not as described above.
    """

    arrivals_s: tuple[float, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int | None, ...] = ()
    duration_s: float = 0.0
    sizes: tuple[ImageSize | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.arrivals_s):
            raise ConfigError(f"{len(self.arrivals_s)} arrivals but {len(self.prompts)} prompts")
        if self.seeds and len(self.seeds) != len(self.arrivals_s):
            raise ConfigError(f"{len(self.arrivals_s)} arrivals but {len(self.seeds)} seeds")
        if self.sizes and len(self.sizes) != len(self.arrivals_s):
            raise ConfigError(f"{len(self.arrivals_s)} arrivals but {len(self.sizes)} sizes")
        arrivals = np.asarray(self.arrivals_s, float)
        if not np.all(np.isfinite(arrivals)) or np.any(arrivals < 0) or np.any(np.diff(arrivals) < 0):
            raise ConfigError("arrivals must be finite, at least 0 s and ascending")
        if len(arrivals) and arrivals[-1] > self.duration_s:
            raise ConfigError(f"the last arrival, {arrivals[-1]} s, lies after the end, {self.duration_s} s")

    @classmethod
    def of(cls, arrivals: Sequence[Arrival], duration_s: float | None = None) -> Trace:
        """A trace of arrivals in any order; by default it ends at the full second after the last one."""
        ordered = sorted(arrivals, key=lambda a: a.arrival_s)
        if duration_s is None:
            duration_s = max(1.0, math.ceil(ordered[-1].arrival_s)) if ordered else 0.0
        seeds, sizes = tuple(a.seed for a in ordered), tuple(a.size for a in ordered)
        return cls(
            arrivals_s=tuple(a.arrival_s for a in ordered),
            prompts=tuple(a.prompt for a in ordered),
            seeds=seeds if any(s is not None for s in seeds) else (),
            duration_s=duration_s,
            sizes=sizes if any(s is not None for s in sizes) else (),
        )

    def __len__(self) -> int:
        return len(self.arrivals_s)

    def __iter__(self) -> Iterator[Arrival]:
        nothing = (None,) * len(self)
        return map(Arrival, self.arrivals_s, self.prompts, self.seeds or nothing, self.sizes or nothing)

    @property
    def mean_rps(self) -> float:
        return len(self) / self.duration_s if self.duration_s else 0.0

    def rate_curve(self, window_s: float = 5.0) -> RateCurve:
        """Requests per second in windows of ``window_s``; the last window may be shorter.

        Windows are longer if there would be more than :data:`MOST_WINDOWS`.

        Raises:
            ConfigError: the trace has no duration or the window is not positive.
        """
        if not self.duration_s:
            raise ConfigError("an empty trace has no rate curve")
        if not (math.isfinite(window_s) and window_s > 0):
            raise ConfigError(f"window_s is {window_s}; it must be above 0")
        window_s = max(window_s, self.duration_s / MOST_WINDOWS)
        windows = max(1, math.ceil(self.duration_s / window_s - 1e-9))
        edges = np.append(np.arange(windows) * window_s, self.duration_s)
        counts, _ = np.histogram(self.arrivals_s, edges)
        return RateCurve(tuple(edges.tolist()), tuple((counts / np.diff(edges)).tolist()))

    def clip(self, duration_s: float) -> Trace:
        """The trace's first ``duration_s`` seconds."""
        _positive("duration_s", duration_s)
        end = min(self.duration_s, duration_s)
        n = int(np.searchsorted(self.arrivals_s, end, side="left" if end < self.duration_s else "right"))
        return Trace(self.arrivals_s[:n], self.prompts[:n], self.seeds[:n], end, self.sizes[:n])

    def scale_speed(self, factor: float) -> Trace:
        """The same requests with all times divided by ``factor``."""
        _positive("factor", factor)
        arrivals = tuple(a / factor for a in self.arrivals_s)
        return replace(self, arrivals_s=arrivals, duration_s=self.duration_s / factor)

    def scale_rate(self, factor: float, *, window_s: float = 5.0) -> Trace:
        """``factor`` times the number of requests in the same time; the demand keeps its shape.

        Requests keep their order and start again when they run out. Their gaps are scaled along the rate curve, so
        consecutive requests stay consecutive and the burstiness within a window is preserved. Nothing is random.

        Raises:
            ConfigError: the factor is not above 0, or there would be too many requests.
        """
        _positive("factor", factor)
        check_count(len(self) * factor)
        if not len(self):
            return self
        curve = self.rate_curve(window_s)
        count = curve.requests_before(self.arrivals_s)
        rounds = np.arange(math.ceil(factor))[:, None] * len(self)
        operational = ((count[None] + rounds) / factor).ravel()
        return self._with_arrivals(curve.time_of(operational[operational <= len(self)]))

    def unseeded(self) -> Trace:
        """The same requests without seeds, so that the server chooses them and may redraw images."""
        return replace(self, seeds=())

    def resample(self, seed: int, cv: float | None = None, *, window_s: float = 5.0) -> Trace:
        """Samples new arrivals from the rate curve: Poisson, or gamma gaps with this coefficient of variation.

        The expected number of requests is preserved. Prompts keep their order and start again when they run out.
        """
        if not len(self):
            return self
        return self._with_arrivals(self.rate_curve(window_s).sample_arrivals(seed, cv))

    def _with_arrivals(self, arrivals_s: np.ndarray) -> Trace:
        order = [i % len(self) for i in range(len(arrivals_s))]
        return Trace(
            arrivals_s=tuple(np.minimum(arrivals_s, self.duration_s).tolist()),
            prompts=tuple(self.prompts[i] for i in order),
            seeds=tuple(self.seeds[i] for i in order) if self.seeds else (),
            duration_s=self.duration_s,
            sizes=tuple(self.sizes[i] for i in order) if self.sizes else (),
        )

    def to_csv(self) -> str:
        """The text of a trace file, with a resolution of milliseconds, for :func:`traces.loader.load_trace`."""
        optional = [name for name, given in (("seed", self.seeds), ("size", self.sizes)) if given]
        lines = [csv_line(("arrival_s", "prompt", *optional))]
        for arrival in self:
            cells = [getattr(arrival, name) for name in optional]
            shown = ("" if it is None else str(it) for it in cells)
            lines.append(csv_line((f"{arrival.arrival_s:.3f}", arrival.prompt, *shown)))
        return "".join(lines)

    def save(self, path: Path | str) -> None:
        """Replaces the file.

        Raises:
            ConfigError: it cannot be written.
        """
        with written_whole(Path(path)) as draft:
            draft.write_text(self.to_csv())


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}; it must be above 0")
