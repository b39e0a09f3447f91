"""Comparison of policies for a ladder on the same arrivals: the figures, the table, the JSON and the plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from baselines.comparison.runs import Run, RunReport, figures, plot_runs, print_reports
from baselines.comparison.runs_page import write_runs_page
from controller.registry import make_policy, names, system_of
from controller.setting import Setting
from simulator.arrivals import Arrivals
from simulator.levels import LevelOutcome, ladder_in, simulate_levels
from simulator.scenario import Scenario
from weir.approximation_levels import load_ladder
from weir.assets import LADDERS
from weir.json_files import read_json

#: Policies that plan on a ladder.
LEVEL_POLICIES = names(levels=True)
#: Default deadline, in latencies of level 0. The paper does not give its own.
SLO_LATENCIES = 3.0


@dataclass(frozen=True, slots=True)
class LevelReport(RunReport):
    """Figures of one policy on one trace.

    Attributes:
        level_shares: share of the answers by name of the level.
    """

    level_shares: dict[str, float]


def level_run(outcome: LevelOutcome) -> Run:
    """Converts an outcome to a run that can be compared with runs of cascades."""
    qualities = np.where(outcome.answered, outcome.qualities, np.nan)
    return Run(outcome.policy, outcome.answered, outcome.finished_s - outcome.arrivals_s, qualities)


def level_report(outcome: LevelOutcome) -> LevelReport:
    """Summarises a run."""
    levels = ladder_in(outcome.setting).levels
    shares = np.bincount(outcome.levels[outcome.answered], minlength=len(levels)) / max(1, outcome.answered.sum())
    return LevelReport(
        **figures(level_run(outcome), outcome.arrivals_s, system_of(outcome.policy)),
        level_shares={level.name: round(float(s), 4) for level, s in zip(levels, shares, strict=True) if s > 0},
    )


@dataclass(frozen=True, slots=True)
class LevelComparison:
    """Result of :func:`compare_levels`: one outcome and one report per policy, in the requested order."""

    setting: Setting
    outcomes: tuple[LevelOutcome, ...]
    reports: tuple[LevelReport, ...]

    def to_json(self) -> str:
        """Returns a list of objects, one per policy."""
        return json.dumps([asdict(r) for r in self.reports], indent=2)

    def print(self, console: Console | None = None) -> None:
        """Prints a table."""
        print_reports(self.reports, self.setting.replicas, self.setting.slo_s, console)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(map(level_run, self.outcomes))

    def plot(self, path: Path) -> None:
        """Plots throughput, quality and violations over time, in any format of Matplotlib."""
        plot_runs(self.outcomes[0].arrivals_s, self.runs, path)

    def write_page(self, path: Path, title: str) -> None:
        """Writes the comparison as an HTML page.

        Raises:
            ConfigError: the page cannot be written.
        """
        arrivals_s = self.outcomes[0].arrivals_s
        lead = (
            f"{len(arrivals_s):,} requests on {self.setting.replicas} GPUs, each due within {self.setting.slo_s:g} s; "
            "simulated, the same requests for every policy, on a ladder of approximation levels."
        )
        write_runs_page(path, arrivals_s, self.runs, self.reports, title=title, lead=lead)


def ladder_file(family: str) -> Path | None:
    """Returns the file of a ladder by name or path; None when ``family`` is neither."""
    named, path = LADDERS / f"{family}.json", Path(family)
    if "/" not in family and named.is_file():
        return named
    try:
        return path if path.is_file() and "levels" in read_json(path) else None
    except (OSError, ValueError):
        return None


def compare_levels(
    setting: Setting, arrivals: Arrivals, policies: Sequence[str] = LEVEL_POLICIES, *, seed: int = 0
) -> LevelComparison:
    """Runs policies on the same arrivals. Equal prompts have the same class, sampled with the shares of the ladder.

    Raises:
        ConfigError: a policy is unknown, or the ladder lacks a measurement that it needs.
    """
    made = [make_policy(name, setting) for name in policies]
    shares = np.array([group.share for group in ladder_in(setting).prompts] or [1.0])
    prompts = int(arrivals.prompts.max()) + 1 if len(arrivals) else 0
    classes = np.random.default_rng(seed).choice(len(shares), size=prompts, p=shares / shares.sum())
    outcomes = tuple(simulate_levels(policy, arrivals.times_s, classes[arrivals.prompts], seed=seed) for policy in made)
    return LevelComparison(setting, outcomes, tuple(map(level_report, outcomes)))


def compare_level_files(ladder: Path, scenario: Scenario, policies: Sequence[str] = LEVEL_POLICIES) -> LevelComparison:
    """Runs :func:`compare_levels` on files, for the command line.

    Raises:
        ConfigError: an argument or a file is invalid; the message names it.
    """
    read = load_ladder(ladder)
    slo_s = scenario.slo_s
    if slo_s is None:
        slo_s = SLO_LATENCIES * read.levels[0].latency_s[0]
    setting = Setting.of_ladder(read, scenario.gpus, slo_s)
    return compare_levels(setting, scenario.arrivals(), policies, seed=scenario.seed)
