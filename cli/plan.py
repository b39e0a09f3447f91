"""Plan and simulate without a cluster: ``weir plan``, ``weir simulate``, ``weir compare``, ``weir cascades``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.terminal import JsonOption, console, error_exit, note, print_json, print_line, results
from weir.errors import ConfigError
from weir.files import check_place, file_format, make_folder

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
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
RateOption = Annotated[float, typer.Option(min=0.0001, help="Factor on the request rate.")]
RedrawOption = Annotated[int | None, typer.Option(min=0, help="Resample arrivals from the demand with this seed.")]
PriceOption = Annotated[float | None, typer.Option(min=0, help="Price of a GPU hour, for the cost of images.")]


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


def simulate(
    trace: TraceOption,
    family: FamilyOption = "diffserve-1",
    policy: Annotated[list[str], typer.Option(help="Policy to run; may be given several times.")] = ["weir"],  # noqa: B006
    scores: ScoresOption = None,
    gpus: GpusOption = 16,
    slo: SloOption = None,
    seed: SeedOption = 0,
    rate: RateOption = 1.0,
    redraw: RedrawOption = None,
    gpu_hour_price: PriceOption = None,
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
        _compare(
            trace, family, policy, scores, gpu_hour_price, plot, as_json, exact,
            gpus=gpus, slo_s=slo, seed=seed, rate=rate, redraw=redraw,
        )  # fmt: skip


def compare(
    trace: TraceOption,
    family: FamilyOption = "diffserve-1",
    scores: ScoresOption = None,
    gpus: GpusOption = 16,
    slo: SloOption = None,
    seed: SeedOption = 0,
    rate: RateOption = 1.0,
    redraw: RedrawOption = None,
    gpu_hour_price: PriceOption = None,
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
        _compare(
            trace, family, None, scores, gpu_hour_price, plot, as_json, False,
            gpus=gpus, slo_s=slo, seed=seed, rate=rate, redraw=redraw,
        )  # fmt: skip


def cascades(
    families: Annotated[
        list[str],
        typer.Argument(help="Cascades that end in one heavy variant: diffserve-1, diffserve-2, or profile files."),
    ],
    trace: Annotated[Path | None, typer.Option(help="Trace on which to simulate each pair and the choice.")] = None,
    gpus: GpusOption = 16,
    slo: SloOption = None,
    rate: RateOption = 1.0,
    redraw: RedrawOption = None,
    seed: SeedOption = 0,
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
    from simulator.arrivals import read_arrivals, resampled

    with error_exit():
        found = read_cascades(families, gpus, slo)
        pairs = [" → ".join(variant.name for variant in chain) for chain in built(found)]
        kept = usable(found)
        by_demand = best_by_demand(kept)
        runs = run_pairs(kept, resampled(read_arrivals(trace), rate, redraw), seed) if trace else []
    if as_json:
        print_json({"pairs": pairs, "by_demand": by_demand, "runs": [run.to_dict() for run in runs]})
        return
    print_line(f"pairs on the Pareto front of quality and cost: {', '.join(pairs)}")
    known = ", ".join(f"{cascade.light} → {cascade.heavy}" for cascade in kept)
    print_line(f"with a discriminator: {known}")
    measured = found[0].setting.quality
    better = f"quality: {'lower' if measured is not None and measured.smaller_is_better else 'higher'} is better"
    table = Table(title=f"best pair by load, {gpus} GPUs", caption=better, box=box.SIMPLE_HEAD)
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


def _compare(
    trace: Path,
    family: str,
    policies: list[str] | None,
    scores: Path | None,
    gpu_hour_price: float | None,
    plot: Path | None,
    as_json: bool,
    exact: bool,
    **more: Any,
) -> None:
    from baselines.comparison.compare import Comparison, compare_files
    from baselines.comparison.level_compare import LEVEL_POLICIES, LevelComparison, compare_level_files, ladder_file
    from baselines.comparison.page import write_page
    from baselines.comparison.systems import SystemComparison, compare_service

    ladder, service = ladder_file(family), family.endswith((".yaml", ".yml"))
    if (ladder or service) and (scores or gpu_hour_price is not None):
        kind = "a ladder of levels" if ladder else "a service"
        raise ConfigError(f"--scores and --gpu-hour-price are for cascades; {family} is {kind}")
    if exact and ladder:
        raise ConfigError(f"--exact is for a service, a profile or a published cascade; {family} is a ladder of levels")
    found: Comparison | LevelComparison | SystemComparison

    extension = None if plot is None else file_format(plot, PLOT_FORMATS, "--plot")
    if plot is not None:
        make_folder(plot.parent)
        check_place(plot)
    if exact:
        from simulator.exact import simulate_exactly

        more["simulator"] = simulate_exactly
    with console.status(Text(f"running {', '.join(policies or ['every policy'])}")):
        if ladder:
            found = compare_level_files(ladder, trace, policies or LEVEL_POLICIES, **more)
        elif service:
            found = compare_service(Path(family), trace, policies, **more)
        else:
            found = compare_files(family, trace, policies, scores=scores, gpu_hour_price=gpu_hour_price, **more)
        if plot is not None:
            title = f"{Path(family).stem if ladder or service else family} on {trace.name}"
            if extension != "html":
                found.plot(plot)
            elif isinstance(found, Comparison):
                write_page(found, plot, title=title)
            else:
                found.write_page(plot, title)
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        found.print(results)
        if plot is not None:
            note(f"written to {plot}")
