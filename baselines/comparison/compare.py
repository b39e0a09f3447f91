"""Comparison of policies on the same arrivals: the table, the JSON and the plot of ``weir compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from baselines.comparison.chosen import Simulator, chosen_policies
from controller.registry import make_policy, names
from controller.setting import Setting
from simulator.arrivals import Arrivals
from simulator.conditions import Conditions
from simulator.confidences import confidences_of, read_scores, recorded
from simulator.engine import simulate
from simulator.families import FAMILIES, family_setting
from simulator.fluid import fluid_bound
from simulator.outcome import Outcome
from simulator.report import Report, report
from simulator.request_stream import RequestStream
from simulator.scenario import Scenario
from weir.files import written_whole
from weir.profiles import Profile, load_profile


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of :func:`compare`.

    Attributes:
        bound: quality that perfect foresight reaches without a violation; None when quality was not measured.
        outcomes, reports: one per policy, in the requested order.
    """

    setting: Setting
    arrivals: Arrivals
    bound: float | None
    outcomes: tuple[Outcome, ...]
    reports: tuple[Report, ...]

    def to_json(self) -> str:
        """Returns a list of objects, one per policy."""
        return json.dumps([r.to_dict() for r in self.reports], indent=2)

    def print(self, console: Console | None = None) -> None:
        """Prints a table."""
        title = f"{len(self.arrivals):,} requests, {self.setting.replicas} GPUs, SLO {self.setting.slo_s:g} s"
        if self.bound is not None:
            title += f"; fluid bound {self.bound:.2f}"
        measured = self.setting.quality
        caption = (
            None if measured is None else f"quality: {'lower' if measured.smaller_is_better else 'higher'} is better"
        )
        table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("policy", no_wrap=True)
        for column in ("late\n%", "quality\n", "light\n%", "good\n/s", "p50\ns", "p99\ns", "GPU\n%", "flips\n"):
            table.add_column(column, justify="right", no_wrap=True)
        for r in self.reports:
            table.add_row(
                r.policy,
                f"{100 * r.violation_ratio:.2f}",
                "–" if r.windowed_quality is None else f"{r.windowed_quality:.2f}",
                f"{100 * r.light_share:.1f}",
                f"{r.goodput_rps:.2f}",
                f"{r.p50_s:.2f}",
                f"{r.p99_s:.2f}",
                f"{100 * r.gpu_utilisation:.0f}",
                str(r.role_flips),
            )
        (console or Console()).print(table)

    def plot(self, path: Path) -> None:
        """Plots demand, light share and violations over time, and the trade-off, in any format of Matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 7), layout="constrained")
        (demand, light), (late, trade) = figure.subplots(2, 2)
        width = max(5.0, float(self.arrivals.times_s[-1]) / 60) if len(self.arrivals) else 5.0
        window = (self.arrivals.times_s // width).astype(int)
        counts = np.bincount(window)
        times = (np.arange(len(counts)) + 0.5) * width
        demand.plot(times, counts / width, color="black")
        demand.set(title="demand", ylabel="requests/s", xlabel="s")
        for outcome, figures in zip(self.outcomes, self.reports, strict=True):
            for axes, mask in ((light, outcome.light), (late, outcome.violated)):
                axes.plot(times, np.bincount(window, mask, len(counts)) / np.maximum(counts, 1), label=outcome.policy)
            if figures.windowed_quality is not None:
                trade.scatter(100 * figures.violation_ratio, figures.windowed_quality)
                trade.annotate(outcome.policy, (100 * figures.violation_ratio, figures.windowed_quality))
        light.set(title="share of light answers", xlabel="s")
        late.set(title="share of violations", xlabel="s")
        light.legend()
        trade.set(title="quality against violations", xlabel="violations, %", ylabel="windowed quality")
        if self.bound is not None:
            trade.axhline(self.bound, linestyle=":", color="black")
        with written_whole(path) as draft:
            figure.savefig(draft, format=path.suffix[1:].lower())


def compare(
    setting: Setting,
    requests: RequestStream,
    policies: Sequence[str] | None = None,
    *,
    profile: Profile | None = None,
    seed: int = 0,
    gpu_hour_price: float | None = None,
    simulator: Simulator = simulate,
) -> Comparison:
    """Runs policies on the same requests.

    Args:
        policies: names; None selects all policies whose measurements the setting has.
        profile: profile of the replicas; None uses the latencies of the setting.

    Raises:
        ConfigError: a policy is unknown, or the setting lacks a measurement that it needs.
    """
    made = [make_policy(name, setting) for name in chosen_policies(setting, policies, names())]
    outcomes = tuple(simulator(policy, requests, profile, Conditions(seed=seed)) for policy in made)
    arrivals = requests.arrivals
    bound = fluid_bound(setting, arrivals.times_s) if len(arrivals) else float("nan")
    return Comparison(
        setting,
        arrivals,
        None if np.isnan(bound) else bound,
        outcomes,
        tuple(report(outcome, setting.quality, gpu_hour_price) for outcome in outcomes),
    )


def compare_files(
    family: str,
    scenario: Scenario,
    policies: Sequence[str] | None = None,
    *,
    scores: Path | str | None = None,
    gpu_hour_price: float | None = None,
    simulator: Simulator = simulate,
) -> Comparison:
    """Runs :func:`compare` on names and files, for the command line.

    Args:
        family: name of a published family, or path of a profile.
        scores: file of discriminator scores (P(fake), four lines per prompt); None samples confidences from the
            deferral curve.

    Raises:
        ConfigError: an argument or a file is invalid; the message names it.
    """
    setting, arrivals = family_setting(family, scenario.gpus, scenario.slo_s), scenario.arrivals()
    if scores is None:
        confidences = confidences_of(setting, len(arrivals), scenario.seed)
    else:
        confidences = {setting.variants[0]: recorded(read_scores(scores), arrivals.prompts)}
    return compare(
        setting,
        RequestStream(arrivals, confidences),
        policies,
        profile=None if family in FAMILIES else load_profile(family),
        seed=scenario.seed,
        gpu_hour_price=gpu_hour_price,
        simulator=simulator,
    )
