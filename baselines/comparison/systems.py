"""Every policy of DiffServe, NIRVANA, AccuScale/Argus and Weir on the same requests of one service.

Cascades and caches run in the twin of the cluster (``simulator/engine.py``), policies for levels in the twin of ladders
(``simulator/levels.py``), both with the service's measured times, arrivals, deadline and GPUs. Its ladder is what the
cache profile says of resuming at every K, whatever the similarity, and the light variant; prompts are told apart by the
K that their similarity admits. Qualities are percent of a whole heavy run's: of a cascade's answers the measured mix at
the light share of their half minute, of a resumed or levelled answer what was measured for its own similarity and K.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from baselines.comparison.runs import Run, RunReport, figures, plot_runs, print_reports
from baselines.comparison.runs_page import write_runs_page
from controller.levels import LevelSetting, make_level_policy
from controller.policies import POLICIES, Policy, make_policy
from controller.policy import best_batch
from simulator.engine import simulate
from simulator.fluid import WINDOW_S
from simulator.levels import simulate_levels
from simulator.outcome import UNANSWERED, Outcome
from simulator.workload import Workload, service_workload
from traces.loader import load_trace
from weir.approximation_levels import Ladder, Level, PromptGroup, Strategy
from weir.errors import ConfigError

#: By system, the policies of a comparison; the first of each is the system's own.
SYSTEMS = {
    "Weir": ("weir", "weir-levels"),
    "DiffServe": ("diffserve", "diffserve-static"),
    "NIRVANA": ("nirvana",),
    "Argus": ("argus", "pac", "sommelier"),
    "others": ("proteus", "all-light", "all-heavy"),
}
SYSTEM_OF = {policy: system for system, policies in SYSTEMS.items() for policy in policies}
#: Names of policies that another twin or registry knows by another name. NIRVANA is everything heavy, behind its cache.
_LEVELLED = {"argus": "argus", "pac": "pac", "sommelier": "sommelier", "weir-levels": "weir"}
_CASCADED = {"nirvana": "all-heavy"}
#: Those in the twin of the cluster that reuse states.
_CACHED = ("weir", "nirvana")


@dataclass(frozen=True)
class SystemComparison:
    """What :func:`compare_systems` found; one run and one report for each policy, in the order asked for."""

    workload: Workload
    runs: tuple[Run, ...]
    reports: tuple[RunReport, ...]

    def to_json(self) -> str:
        """A list of objects, one a policy."""
        return json.dumps([asdict(r) for r in self.reports], indent=2)

    def print(self, console: Console | None = None) -> None:
        """A table for people."""
        setting = self.workload.setting
        print_reports(self.reports, setting.replicas, setting.slo_s, console)

    def plot(self, path: Path) -> None:
        """Throughput, quality and violations over time, as a picture in any format of Matplotlib."""
        plot_runs(self.workload.arrivals.times_s, self.runs, path)

    def write_page(self, path: Path, title: str) -> None:
        """All of it as one page.

        Raises:
            ConfigError: it cannot be written.
        """
        setting = self.workload.setting
        lead = (
            f"{len(self.workload.arrivals):,} requests on {setting.replicas} GPUs, each due within "
            f"{setting.slo_s:g} s; simulated, with measured times and qualities, the same requests for every policy. "
            f"{100 * (self.workload.ks > 0).mean():.0f} % of them find a state in the cache, which saves "
            f"{100 * self.workload.saved.mean():.0f} % of all heavy steps where it is used."
        )
        write_runs_page(path, self.workload.arrivals.times_s, self.runs, self.reports, title=title, lead=lead)


def compare_systems(
    workload: Workload, policies: Sequence[str] = tuple(SYSTEM_OF), *, seed: int = 0
) -> SystemComparison:
    """Runs policies on the same requests.

    Raises:
        ConfigError: a policy's name is not known.
    """
    known = dict.fromkeys((*SYSTEM_OF, *POLICIES))
    for name in policies:
        if name not in known:
            raise ConfigError(f"policy is {name!r}; known: {', '.join(known)}")
    runs = tuple(
        _levelled(workload, name, seed) if name in _LEVELLED else _cascaded(workload, name, seed) for name in policies
    )
    arrivals_s = workload.arrivals.times_s
    reports = tuple(RunReport(**figures(run, arrivals_s, SYSTEM_OF.get(run.policy, "others"))) for run in runs)
    return SystemComparison(workload, runs, reports)


def compare_service(
    service: Path,
    trace: Path,
    policies: Sequence[str] = tuple(SYSTEM_OF),
    *,
    gpus: int,
    slo_s: float | None = None,
    seed: int = 0,
    rate: float = 1.0,
    redraw: int | None = None,
) -> SystemComparison:
    """:func:`compare_systems` from files, as the command line has them; ``rate`` and ``redraw`` as in
    :func:`simulator.arrivals.laid_anew`.

    Raises:
        ConfigError: names the argument or the file.
    """
    found = service_workload(service, load_trace(trace), gpus=gpus, slo_s=slo_s, rate=rate, redraw=redraw, seed=seed)
    return compare_systems(found, policies, seed=seed)


def ladder_of(workload: Workload) -> Ladder:
    """The service as a ladder: the heavy variant resumed at every K of its cache, and the light variant. Times are
    those of full batches, for so a GPU under load draws."""
    heavy, light = workload.profile.heavy, workload.profile.light
    slo_s, steps = workload.setting.slo_s, workload.steps
    batch, light_batch = best_batch(heavy.latency, slo_s), best_batch(light.latency, slo_s)
    light_worth = workload.curve.at(1.0) / workload.curve.at(0.0)
    # Equal means would leave no ladder: each rung costs a little.
    worth = workload.worth - 1e-6 * np.arange(len(workload.ladder))
    kinds = workload.kinds
    shares = np.bincount(kinds, minlength=len(workload.ladder)) / max(1, len(kinds))
    means = [float(column.mean()) if len(kinds) else 1.0 - 1e-6 * i for i, column in enumerate(worth.T)]
    levels = [
        Level(
            name=f"K={k}",
            strategy=Strategy.AC,
            skipped_steps=k,
            batch_sizes=(batch,),
            latency_s=(heavy.latency.at(batch) * (1 - k / steps),),
            quality=1.0 if k == 0 else mean,
        )
        for k, mean in zip(workload.ladder, means, strict=True)
    ]
    levels.append(
        Level(
            name=light.name,
            strategy=Strategy.SM,
            variant=light.name,
            batch_sizes=(light_batch,),
            latency_s=(light.latency.at(light_batch),),
            quality=light_worth,
        )
    )
    groups = tuple(
        PromptGroup(
            share=float(share),
            quality=(*(worth[kinds == kind].mean(axis=0) if share else means), light_worth),
        )
        for kind, share in enumerate(shares)
    )
    return Ladder(
        family=workload.profile.family,
        device=workload.profile.device,
        steps=steps,
        levels=tuple(levels),
        similarity_shares=tuple(shares.tolist()),
        prompts=groups,
    )


def _levelled(workload: Workload, name: str, seed: int) -> Run:
    setting = workload.setting
    policy = make_level_policy(_LEVELLED[name], LevelSetting(ladder_of(workload), setting.replicas, setting.slo_s))
    arrivals_s = workload.arrivals.times_s
    outcome = simulate_levels(policy, arrivals_s, workload.kinds, seed=seed)
    light = np.full((len(arrivals_s), 1), workload.curve.at(1.0) / workload.curve.at(0.0))
    worth = np.concatenate([workload.worth, light], axis=1)[np.arange(len(arrivals_s)), outcome.levels]
    qualities = np.where(outcome.answered, 100 * worth, np.nan)
    return Run(name, outcome.answered, outcome.finished_s - arrivals_s, qualities)


def _cascaded(workload: Workload, name: str, seed: int) -> Run:
    return cascaded(workload, name, make_policy(_CASCADED.get(name, name), workload.setting), name in _CACHED, seed)


def cascaded(workload: Workload, name: str, policy: Policy, cached: bool, seed: int = 0) -> Run:
    """The run of a policy in the twin of the cluster, with the cache or without."""
    saved = workload.saved if cached else None
    outcome = simulate(policy, workload.arrivals, workload.confidences, saved=saved, seed=seed)
    return Run(name, ~outcome.violated, outcome.latencies_s, _cascade_qualities(outcome, workload))


def _cascade_qualities(outcome: Outcome, workload: Workload) -> np.ndarray:
    curve, whole = workload.curve, workload.curve.at(0.0)
    answered = outcome.paths != UNANSWERED
    mixed = answered & ~outcome.resumed
    window = (outcome.arrivals_s // WINDOW_S).astype(int)
    light = np.bincount(window, outcome.light & mixed) / np.maximum(1, np.bincount(window, mixed))
    if all(threshold == 0 for *_, threshold in outcome.plans):  # nothing was judged: the light ones are any
        mixes = light * curve.at(1.0) + (1 - light) * whole
    else:
        mixes = np.array([curve.at(share) for share in light])
    qualities = np.where(mixed, 100 * (mixes[window] - outcome.loss) / whole, np.nan)
    return np.where(outcome.resumed, 100 * workload.own_worth, qualities)
