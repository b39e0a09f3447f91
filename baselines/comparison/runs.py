"""Runs with a quality for each answer: their figures, a table, and plots over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from simulator.bursts import in_bursts
from weir.files import written_whole

#: Number of windows over the whole trace, and the least length of one, seconds.
_WINDOWS, _LEAST_WINDOW_S = 60, 5.0


@dataclass(frozen=True)
class Run:
    """The run of one policy, by request.

    Attributes:
        in_time: whether the request was answered in time.
        latencies_s: latency; infinite without an answer.
        qualities: quality of the answer in percent of a whole heavy run; nan without an answer.
    """

    policy: str
    in_time: np.ndarray
    latencies_s: np.ndarray
    qualities: np.ndarray


@dataclass(frozen=True, slots=True)
class RunReport:
    """Figures of one policy on one trace.

    Attributes:
        system: the system that the policy belongs to.
        violation_ratio: share of the requests without an answer by the deadline.
        quality: mean over the answers, in percent of a whole heavy run.
        goodput_rps: answers in time per second of the trace, which counts as at least one second long.
        peak_throughput_per_min, peak_quality, peak_violation_ratio: the same over the bursts (``simulator/bursts.py``).
    """

    policy: str
    system: str
    requests: int
    violation_ratio: float
    quality: float | None
    goodput_rps: float
    p50_s: float | None
    p99_s: float | None
    peak_throughput_per_min: float
    peak_quality: float | None
    peak_violation_ratio: float


def figures(run: Run, arrivals_s: np.ndarray, system: str) -> dict[str, Any]:
    """Returns the fields of the :class:`RunReport` of a run."""
    inside, burst_s = in_bursts(arrivals_s)
    latencies = run.latencies_s[np.isfinite(run.latencies_s)]
    return {
        "policy": run.policy,
        "system": system,
        "requests": len(arrivals_s),
        "violation_ratio": float((~run.in_time).mean()) if len(arrivals_s) else 0.0,
        "quality": _mean(run.qualities),
        "goodput_rps": float(run.in_time.sum() / max(arrivals_s[-1], 1.0)) if len(arrivals_s) else 0.0,
        "p50_s": float(np.quantile(latencies, 0.5)) if len(latencies) else None,
        "p99_s": float(np.quantile(latencies, 0.99)) if len(latencies) else None,
        "peak_throughput_per_min": float(run.in_time[inside].sum() * 60 / burst_s),
        "peak_quality": _mean(run.qualities[inside]),
        "peak_violation_ratio": float((~run.in_time[inside]).mean()) if inside.any() else 0.0,
    }


def _mean(values: np.ndarray) -> float | None:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else None


def print_reports(reports: Sequence[RunReport], gpus: int, slo_s: float, console: Console | None = None) -> None:
    """Prints the reports as a table."""
    requests = reports[0].requests if reports else 0
    title = f"{requests:,} requests, {gpus} GPUs, SLO {slo_s:g} s; on the right: in bursts"
    caption = "quality: in percent of a whole heavy image's, higher is better"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("system", "policy"):
        table.add_column(column, no_wrap=True)
    for column in ("late\n%", "quality\n%", "good\n/s", "p99\ns", "late\n%", "quality\n%", "good\n/min"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = ""
    for r in reports:
        row: list[tuple[float | None, str]] = [
            (100 * r.violation_ratio, ".2f"),
            (r.quality, ".2f"),
            (r.goodput_rps, ".2f"),
            (r.p99_s, ".1f"),
            (100 * r.peak_violation_ratio, ".2f"),
            (r.peak_quality, ".2f"),
            (r.peak_throughput_per_min, ".0f"),
        ]
        columns = ("–" if figure is None else format(figure, form) for figure, form in row)
        table.add_row("" if r.system == shown else r.system, r.policy, *columns)
        shown = r.system
    (console or Console()).print(table)


@dataclass(frozen=True)
class Windows:
    """Windows of equal length over a trace.

    Attributes:
        window: window of each request, [N].
        middles_s, counts, seconds: middle, number of arrivals and length of each window, [W].
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
        """Returns the answers in time per second, by arrival of their requests."""
        return self._sums(run.in_time) / self.seconds

    def quality(self, run: Run) -> np.ndarray:
        """Returns the mean quality of the answers; nan in windows without an answer."""
        answers, total = self._sums(np.isfinite(run.qualities)), self._sums(np.nan_to_num(run.qualities))
        return np.divide(total, answers, out=np.full(len(answers), np.nan), where=answers > 0)

    def violations(self, run: Run) -> np.ndarray:
        """Returns the share of the requests that were not answered in time, in percent."""
        return 100 * self._sums(~run.in_time) / np.maximum(1, self.counts)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.window, values, len(self.counts))


def plot_runs(arrivals_s: np.ndarray, runs: Sequence[Run], path: Path) -> None:
    """Plots throughput, quality and violations over time, in any format of Matplotlib."""
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
    with written_whole(path) as draft:
        figure.savefig(draft, format=path.suffix[1:].lower())
