"""Runs whose answers each have a quality: throughput, quality and violations over time, in numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Windows over the whole trace, and the least seconds of one.
_WINDOWS, _LEAST_WINDOW_S = 60, 5.0


@dataclass(frozen=True)
class Run:
    """One policy's run. By request: answered in time or not, its latency (infinite without an answer), and the quality
    of its answer in percent of a whole heavy run's (nan without one)."""

    policy: str
    in_time: np.ndarray
    latencies_s: np.ndarray
    qualities: np.ndarray


@dataclass(frozen=True)
class Windows:
    """Equal windows over a trace.

    Attributes:
        window: of each request, [N].
        middles_s, counts, seconds: of each window, its middle, the requests that came in it, and how long it is, [W].
    """

    window: np.ndarray
    middles_s: np.ndarray
    counts: np.ndarray
    seconds: np.ndarray

    @classmethod
    def of(cls, arrivals_s: np.ndarray) -> Windows:
        end = float(arrivals_s[-1]) if len(arrivals_s) else 0.0
        width = max(_LEAST_WINDOW_S, end / _WINDOWS)
        window = (arrivals_s // width).astype(int)
        counts = np.bincount(window, minlength=1)
        starts = np.arange(len(counts)) * width
        # The last window ends with the trace.
        return cls(window, starts + width / 2, counts, np.minimum(width, np.maximum(end - starts, 1.0)))

    def demand_rps(self) -> np.ndarray:
        return self.counts / self.seconds

    def throughput_rps(self, run: Run) -> np.ndarray:
        """Answers in time, by when their requests came."""
        return self._sums(run.in_time) / self.seconds

    def quality(self, run: Run) -> np.ndarray:
        """Mean over the answers; nan without any."""
        answers, total = self._sums(np.isfinite(run.qualities)), self._sums(np.nan_to_num(run.qualities))
        return np.divide(total, answers, out=np.full(len(answers), np.nan), where=answers > 0)

    def violations(self, run: Run) -> np.ndarray:
        """Share of the requests that were not answered in time, in percent."""
        return 100 * self._sums(~run.in_time) / np.maximum(1, self.counts)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.window, values, len(self.counts))


def plot_runs(arrivals_s: np.ndarray, runs: Sequence[Run], path: Path) -> None:
    """Writes throughput, quality and violations over time, as a picture in any format of Matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    throughput, quality, late = figure.subplots(3, 1, sharex=True)
    windows = Windows.of(arrivals_s)
    throughput.plot(windows.middles_s, windows.demand_rps(), color="black", label="demand")
    for run in runs:
        throughput.plot(windows.middles_s, windows.throughput_rps(run), label=run.policy)
        quality.plot(windows.middles_s, windows.quality(run))
        late.plot(windows.middles_s, windows.violations(run))
    throughput.set(ylabel="in time, /s")
    quality.set(ylabel="quality, %")
    late.set(ylabel="violations, %", xlabel="s")
    throughput.legend()
    figure.savefig(path)
