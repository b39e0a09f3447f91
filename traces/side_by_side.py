"""Lays the reports of several replays side by side on one page: ``weir report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.page import inline, render
from traces.report import TITLES
from weir.errors import ConfigError
from weir.files import written_whole
from weir.json_files import read_json

#: Figures of the table: the name with the unit and the better direction, the key of the report, and a factor.
_ROWS = (
    ("requests", "requests", 1, 0),
    ("violations of the SLO, %, lower is better", "violation_ratio", 100, 2),
    ("late", "late", 1, 0),
    ("refused", "refused", 1, 0),
    ("failed", "failed", 1, 0),
    ("goodput, images/s, higher is better", "goodput_rps", 1, 2),
    ("latency p50, s", "p50_s", 1, 2),
    ("latency p95, s", "p95_s", 1, 2),
    ("latency p99, s", "p99_s", 1, 2),
    ("light share, %", "light_share", 100, 1),
    ("quality, higher is better", "quality", 1, 3),
    ("mean steps", "mean_steps", 1, 1),
)
#: What differs between any two replays, and so is not beside their figures.
_ALWAYS_DIFFERENT = ("date", "command")


@dataclass(frozen=True, slots=True)
class _Column:
    """One replay: its name, what it was made with, its figures and its plots."""

    name: str
    about: Mapping[str, str]
    slo_s: float
    total: Mapping[str, Any]
    plots: Mapping[str, str]


def write_side_by_side(runs: Sequence[Path], path: Path) -> None:
    """Writes the page.

    Args:
        runs: folders of replays, each with its report.

    Raises:
        ConfigError: a folder has no report, or the page cannot be written.
    """
    columns = [_column(run) for run in runs]
    rows = [
        (name, [_shown(column.total.get(key), factor, digits) for column in columns])
        for name, key, factor, digits in _ROWS
    ]
    plots = [
        (title, [inline(column.plots[name]) if name in column.plots else None for column in columns])
        for name, title in TITLES.items()
        if any(name in column.plots for column in columns)
    ]
    keys = list(dict.fromkeys(key for column in columns for key in column.about))
    about = [(key, [column.about.get(key, "–") for column in columns]) for key in keys]
    differing = [(key, values) for key, values in about if len(set(values)) > 1 and key not in _ALWAYS_DIFFERENT]
    page = render("side_by_side.html.j2", columns=columns, rows=rows, plots=plots, about=about, differing=differing)
    with written_whole(path) as draft:
        draft.write_text(page, encoding="utf-8")


def _column(run: Path) -> _Column:
    remedy = "name folders of `weir replay`"
    if not (run / "report.json").is_file():
        raise ConfigError(f"{run}: there is no report.json of a replay in it; {remedy}")
    try:
        report = read_json(run / "report.json")
        plots = {file.stem: file.read_text() for file in (run / "plots").glob("*.svg")}
        about = {str(key): str(value) for key, value in report["about"].items()}
        return _Column(run.name, about, float(report["slo_s"]), dict(report["total"]), plots)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{run}: has no report of a replay ({type(error).__name__}: {error}); {remedy}") from None


def _shown(value: float | None, factor: float, digits: int) -> str:
    return "–" if value is None else f"{factor * value:,.{digits}f}"
