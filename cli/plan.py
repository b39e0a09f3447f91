"""Plan and simulate without a cluster: ``weir plan``, ``weir simulate``, ``weir compare``, ``weir cascades``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.text import Text

from cli.option_groups import grouped
from cli.terminal import JsonOption, console, error_exit, note, print_json, print_line, results
from weir.errors import ConfigError
from weir.files import check_place, file_format, make_folder

if TYPE_CHECKING:
    from baselines.comparison.compare import Comparison
    from baselines.comparison.level_compare import LevelComparison
    from baselines.comparison.systems import SystemComparison
    from simulator.scenario import Scenario

    AnyComparison: TypeAlias = Comparison | LevelComparison | SystemComparison

#: Extensions of the pages and plots that can be written.
PLOT_FORMATS = ("html", "svg", "png", "pdf")

CascadeOption = Annotated[str, typer.Option(help="diffserve-1, -2, -3, sdxl-a100, or a profile file.")]
FamilyOption = Annotated[
    str,
    typer.Option(
        help="diffserve-1, -2, -3, sdxl-a100, argus-sdxl, or a profile or ladder file; a service file for all systems."
    ),
]
TraceOption = Annotated[Path, typer.Option(help="Trace file in any format of `weir replay`.")]
ScoresOption = Annotated[
    Path | None, typer.Option(help="Recorded P(fake), four per prompt.", show_default="sampled from the family's curve")
]
GpusOption = Annotated[int, typer.Option(min=1, help="Number of GPUs.")]
SloOption = Annotated[float | None, typer.Option(help="Deadline, seconds.", show_default="the family's")]


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """Options of what is simulated."""

    gpus: GpusOption = 16
    slo: SloOption = None
    rate: Annotated[float, typer.Option(min=0.0001, help="Factor on the request rate.")] = 1.0
    redraw: Annotated[int | None, typer.Option(min=0, help="Resample arrivals from the demand with this seed.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0

    def on(self, trace: Path) -> Scenario:
        """The scenario of a trace."""
        from simulator.scenario import Scenario

        return Scenario(trace, self.gpus, self.slo, self.rate, self.redraw, self.seed)


@dataclass(frozen=True, slots=True)
class ComparisonOptions(ScenarioOptions):
    """Options of what policies are compared on."""

    scores: Annotated[
        Path | None,
        typer.Option(help="Recorded P(fake), four per prompt.", show_default="sampled from the family's curve"),
    ] = None
    gpu_hour_price: Annotated[
        float | None, typer.Option(min=0, help="Price of a GPU hour, for the cost of images.")
    ] = None

    def compare(self, family: str, trace: Path, policies: list[str] | None, *, exact: bool) -> AnyComparison:
        """Runs policies on a published family, a profile, a ladder of levels, or a service; None: all policies.

        Raises:
            ConfigError: an option or a file is invalid.
        """
        from baselines.comparison.compare import compare_files
        from baselines.comparison.level_compare import LEVEL_POLICIES, compare_level_files, ladder_file
        from baselines.comparison.systems import compare_service
        from simulator.engine import simulate
        from simulator.exact import simulate_exactly

        ladder, service = ladder_file(family), family.endswith((".yaml", ".yml"))
        if (ladder or service) and (self.scores or self.gpu_hour_price is not None):
            kind = "a ladder of levels" if ladder else "a service"
            raise ConfigError(f"--scores and --gpu-hour-price are for cascades; {family} is {kind}")
        if exact and ladder:
            raise ConfigError(
                f"--exact is for a service, a profile or a published cascade; {family} is a ladder of levels"
            )
        scenario, simulator = self.on(trace), simulate_exactly if exact else simulate
        with console.status(Text(f"running {', '.join(policies or ['every policy'])}")):
            if ladder:
                return compare_level_files(ladder, scenario, policies or LEVEL_POLICIES)
            if service:
                return compare_service(Path(family), scenario, policies, simulator=simulator)
            return compare_files(
                family,
                scenario,
                policies,
                scores=self.scores,
                gpu_hour_price=self.gpu_hour_price,
                simulator=simulator,
            )


def plan(
    demand: Annotated[float, typer.Option(help="Requests per second.")],
    family: CascadeOption = "diffserve-1",
    gpus: GpusOption = 16,
    slo: SloOption = None,
    objective: Annotated[str, typer.Option(help="quality, or threshold as in DiffServe.")] = "quality",
    queue_delay: Annotated[
        tuple[float, float], typer.Option(help="Queueing delays of the light and the heavy stage, seconds.")
    ] = (0.0, 0.0),
    solver: Annotated[str, typer.Option(help="auto, highs, gurobi or cbc.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Solve one allocation and explain it.

    Example: weir plan --family diffserve-1 --gpus 16 --demand 24 --slo 5

    DiffServe's own problem: weir plan --demand 24 --objective threshold --queue-delay 0 0 --solver highs --json
    """
    from controller.explain import Objective, describe, explain, plan_for
    from simulator.families import family_setting

    with error_exit():
        if objective not in set(Objective):
            raise ConfigError(f"--objective is {objective!r}; choose one of {', '.join(Objective)}")
        if not all(0 <= delay <= 3600 for delay in queue_delay):
            raise ConfigError(f"--queue-delay is {queue_delay[0]:g} {queue_delay[1]:g}; give seconds from 0 to 3600")
        problem, solution = plan_for(
            family_setting(family, gpus, slo),
            demand,
            objective=Objective(objective),
            queue_delay_s=queue_delay,
            solver=solver,
        )
    if as_json:
        print_json(describe(problem, solution))
    else:
        print_line(explain(problem, solution))


@grouped
def simulate(
    trace: TraceOption,
    family: FamilyOption = "diffserve-1",
    policy: Annotated[list[str], typer.Option(help="Policy to run; may be given several times.")] = ["weir"],  # noqa: B006
    *,
    comparison: ComparisonOptions,
    plot: Annotated[Path | None, typer.Option(help="Page (.html) or image (.svg, .png, .pdf) to write.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Run the load balancer itself on virtual time, which is slower.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run policies on a trace in the simulator, with the cluster's decisions and without GPUs.

    Example: weir simulate --trace traces/bursty.csv --gpus 16 --policy weir --policy diffserve --json
    """
    with error_exit():
        _check_plot(plot)
        found = comparison.compare(family, trace, policy, exact=exact)
        _plot(found, family, trace, plot)
    _print(found, plot, as_json)


@grouped
def compare(
    trace: TraceOption,
    family: FamilyOption = "diffserve-1",
    *,
    comparison: ComparisonOptions,
    plot: Annotated[Path, typer.Option(help="Page (.html) or image (.svg, .png, .pdf) to write.")] = Path(
        "runs/compare.html"
    ),
    as_json: JsonOption = False,
) -> None:
    """Compare all policies that have the necessary measurements on one trace, and write a page.

    Example: weir compare --trace traces/normal.csv --family diffserve-1 --gpus 16 --plot runs/normal.html

    All systems: weir compare --trace traces/bursty.csv --family deploy/configs/weir-tiny.yaml --gpus 4 --rate 3
    """
    with error_exit():
        _check_plot(plot)
        found = comparison.compare(family, trace, None, exact=False)
        _plot(found, family, trace, plot)
    _print(found, plot, as_json)


@grouped
def cascades(
    families: Annotated[
        list[str],
        typer.Argument(help="Cascades that end in one heavy variant: diffserve-1, diffserve-2, or profile files."),
    ],
    trace: Annotated[Path | None, typer.Option(help="Trace on which to simulate each pair and the choice.")] = None,
    *,
    scenario: ScenarioOptions,
    as_json: JsonOption = False,
) -> None:
    """Build cascades from several light variants and show the useful pairs and the best pair for each load.

    Example: weir cascades diffserve-1 diffserve-2 --gpus 16 --trace traces/bursty.csv --rate 40

    A profile holds one light variant, the heavy one, and the measurements of a discriminator (`weir train --budget
    discriminator`, `weir profile`, `weir evaluate`, `weir calibrate`), so each light variant needs a profile.
    """
    from rich import box
    from rich.table import Table

    from baselines.comparison.light_variants import best_by_demand, built, read_cascades, run_pairs, usable

    with error_exit():
        found = read_cascades(families, scenario.gpus, scenario.slo)
        pairs = [" → ".join(variant.name for variant in chain) for chain in built(found)]
        kept = usable(found)
        by_demand = best_by_demand(kept)
        runs = run_pairs(kept, scenario.on(trace).arrivals(), scenario.seed) if trace else []
    if as_json:
        print_json({"pairs": pairs, "by_demand": by_demand, "runs": [run.to_dict() for run in runs]})
        return
    print_line(f"pairs on the Pareto front of quality and cost: {', '.join(pairs)}")
    known = ", ".join(f"{cascade.light} → {cascade.heavy}" for cascade in kept)
    print_line(f"with a discriminator: {known}")
    measured = found[0].setting.quality
    better = f"quality: {'lower' if measured is not None and measured.smaller_is_better else 'higher'} is better"
    table = Table(title=f"best pair by load, {scenario.gpus} GPUs", caption=better, box=box.SIMPLE_HEAD)
    for column in ("requests/s", "light variant", "served, %", "quality"):
        table.add_column(column, justify="right")
    for row in by_demand:
        served, quality = float(str(row["served"])), float(str(row["quality"]))
        table.add_row(f"{row['demand_rps']:g}", str(row["light"]), f"{100 * served:.0f}", f"{quality:.4g}")
    results.print(table)
    if runs:
        print_line(f"{trace}, simulated:")
        table = Table(caption=better, box=box.SIMPLE_HEAD)
        table.add_column("light variant", no_wrap=True)
        for column in ("late\n%", "in time\n/s", "quality", "changes"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("share of answers")
        for run in runs:
            shares = "\n".join(f"{name} {100 * share:.0f} %" for name, share in run.shares.items())
            late, good = f"{100 * run.violation_ratio:.2f}", f"{run.goodput_rps:.1f}"
            table.add_row(run.pair, late, good, f"{run.quality:.4g}", str(run.changes), shares)
        results.print(table)


def _check_plot(path: Path | None) -> None:
    """Checks, before anything takes time, that a plot can be written there."""
    if path is not None:
        file_format(path, PLOT_FORMATS, "--plot")
        make_folder(path.parent)
        check_place(path)


def _plot(found: AnyComparison, family: str, trace: Path, path: Path | None) -> None:
    from baselines.comparison.compare import Comparison
    from baselines.comparison.page import write_page

    if path is None:
        return
    if file_format(path, PLOT_FORMATS, "--plot") != "html":
        found.plot(path)
    elif isinstance(found, Comparison):
        write_page(found, path, title=f"{family} on {trace.name}")
    else:
        found.write_page(path, f"{Path(family).stem} on {trace.name}")


def _print(found: AnyComparison, plot: Path | None, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
        return
    found.print(results)
    if plot is not None:
        note(f"written to {plot}")
