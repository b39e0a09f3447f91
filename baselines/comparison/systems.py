"""Comparison of all policies of DiffServe, NIRVANA, AccuScale/Argus and Weir on the same requests of one service.

All policies run in the simulator with the service's measured times, arrivals, deadline and GPUs. Policies that use a
cache have the lookups that the service's cache would return. The ladder of policies that assign levels has every K of
the cache profile, averaged over similarities, and the smaller variants; prompts are classified by the K that their
similarity admits.

Qualities are percent of a whole run of the last variant. The answers of a cascade have the measured quality of the mix
at the shares of the variants in their half minute. An answer that resumed has the quality measured for its similarity
and K. Under a policy without a judge an answer has the mean quality of its variant.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from baselines.comparison.chosen import Simulator, chosen_policies
from baselines.comparison.runs import Run, RunReport, figures, plot_runs, print_reports
from baselines.comparison.runs_page import write_runs_page
from controller.policy import Policy
from controller.registry import POLICIES, make_policy, system_of
from simulator.conditions import Conditions
from simulator.engine import simulate
from simulator.fluid import WINDOW_S
from simulator.outcome import Outcome
from simulator.scenario import Scenario
from simulator.workload import Workload, service_workload
from traces.loader import load_trace

#: The policies of a comparison, in the order of its table.
COMPARED = tuple(name for name, entry in POLICIES.items() if not entry.as_published)


@dataclass(frozen=True)
class SystemComparison:
    """Result of :func:`compare_systems`: one run and one report per policy, in the requested order."""

    workload: Workload
    runs: tuple[Run, ...]
    reports: tuple[RunReport, ...]

    def to_json(self) -> str:
        """Returns a list of objects, one per policy."""
        return json.dumps([asdict(r) for r in self.reports], indent=2)

    def print(self, console: Console | None = None) -> None:
        """Prints a table."""
        setting = self.workload.setting
        print_reports(self.reports, setting.replicas, setting.slo_s, console)

    def plot(self, path: Path) -> None:
        """Plots throughput, quality and violations over time, in any format of Matplotlib."""
        plot_runs(self.workload.arrivals.times_s, self.runs, path)

    def write_page(self, path: Path, title: str) -> None:
        """Writes the comparison as an HTML page.

        Raises:
            ConfigError: the page cannot be written.
        """
        setting = self.workload.setting
        lead = (
            f"{len(self.workload.arrivals):,} requests on {setting.replicas} GPUs, each due within "
            f"{setting.slo_s:g} s; simulated, with measured times and qualities, the same requests for every policy. "
            f"{100 * (self.workload.ks > 0).mean():.0f} % of them find a state in the cache, which saves "
            f"{100 * self.workload.saved.mean():.0f} % of all steps of the last variant where it is used."
        )
        write_runs_page(path, self.workload.arrivals.times_s, self.runs, self.reports, title=title, lead=lead)


def compare_systems(
    workload: Workload,
    policies: Sequence[str] | None = None,
    *,
    seed: int = 0,
    simulator: Simulator = simulate,
) -> SystemComparison:
    """Runs policies on the same requests.

    Args:
        policies: names; None selects all policies whose measurements the service has.

    Raises:
        ConfigError: a policy is unknown, or the service lacks a measurement that it needs.
    """
    named = chosen_policies(workload.setting, policies, COMPARED)
    runs = tuple(run_policy(workload, make_policy(name, workload.setting), name, seed, simulator) for name in named)
    arrivals_s = workload.arrivals.times_s
    reports = tuple(RunReport(**figures(run, arrivals_s, system_of(run.policy))) for run in runs)
    return SystemComparison(workload, runs, reports)


def compare_service(
    service: Path, scenario: Scenario, policies: Sequence[str] | None = None, *, simulator: Simulator = simulate
) -> SystemComparison:
    """Runs :func:`compare_systems` on files, for the command line.

    Raises:
        ConfigError: an argument or a file is invalid; the message names it.
    """
    found = service_workload(
        service,
        load_trace(scenario.trace),
        gpus=scenario.gpus,
        slo_s=scenario.slo_s,
        rate=scenario.rate,
        redraw=scenario.redraw,
        seed=scenario.seed,
    )
    return compare_systems(found, policies, seed=scenario.seed, simulator=simulator)


def run_policy(
    workload: Workload,
    policy: Policy,
    name: str,
    seed: int = 0,
    simulator: Simulator = simulate,
    *,
    cached: bool = True,
) -> Run:
    """Simulates one policy. Its lookups find nothing when it does not use a cache or ``cached`` is false."""
    requests = workload.requests if cached and policy.reuses else replace(workload.requests, lookups=())
    outcome = simulator(policy, requests, workload.profile, Conditions(direct=workload.direct, seed=seed))
    return Run(name, ~outcome.violated, outcome.latencies_s, qualities(outcome, workload))


def qualities(outcome: Outcome, workload: Workload) -> np.ndarray:
    """Returns the quality of each answer, in percent of a whole run of the last variant; nan without an answer."""
    mixed = outcome.answered & ~outcome.resumed
    judged = any(threshold > 0 for plan in outcome.plans for threshold in plan.thresholds)
    found = np.where(mixed, 1.0, np.nan)
    if judged:
        found[mixed] = _mixes(outcome, workload, mixed)[mixed]
    else:
        for variant in outcome.ladder[:-1]:
            found[outcome.by(variant) & mixed] = workload.share_of_whole(variant)
    found -= np.where(mixed, outcome.loss / workload.curve(outcome.ladder[0]).at(0.0), 0.0)
    return 100 * np.where(outcome.resumed, workload.resumed_quality_at(outcome.resumed_at), found)


def _mixes(outcome: Outcome, workload: Workload, mixed: np.ndarray) -> np.ndarray:
    """Returns for each request the quality of the mix in its half minute, as a share of the last variant's. Several
    smaller variants are weighted by their shares."""
    window = (outcome.arrivals_s // WINDOW_S).astype(int)
    answers = np.maximum(1, np.bincount(window, mixed))
    light = np.bincount(window, outcome.light & mixed, len(answers))
    found = np.where(light > 0, 0.0, 1.0)
    for variant in outcome.ladder[:-1]:
        curve, mine = workload.curve(variant), np.bincount(window, outcome.by(variant) & mixed, len(answers))
        relative = np.array([curve.at(share) for share in light / answers]) / curve.at(0.0)
        found += mine / np.maximum(1, light) * relative
    return found[window]
