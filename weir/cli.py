"""The command line. Every command imports what it needs when it runs, so that ``weir --help`` is quick.

Exit codes: 0 done; 1 it failed while running; 2 wrong usage or configuration; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from weir.config import FamilyConfig, load_family
from weir.core import Role
from weir.errors import ConfigError, InvalidRequest, PlanError, ServiceError, WeirError

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it asks for torchvision, which nothing here needs

REPOSITORY = Path(__file__).resolve().parent.parent
SERVICE = REPOSITORY / "deploy" / "configs" / "weir-tiny.yaml"
FAMILY = REPOSITORY / "deploy" / "families" / "weir-tiny.yaml"

app = typer.Typer(
    name="weir",
    help="Serves text-to-image diffusion models at the best quality that a deadline and a set of GPUs allow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True)

FamilyOption = Annotated[Path, typer.Option(help="Family file.", show_default="the embedded family")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
CascadeOption = Annotated[str, typer.Option(help="diffserve-1, -2, -3, sdxl-a100, or a profile file.")]
TraceOption = Annotated[Path, typer.Option(help="Trace file, in any form that `weir replay` reads.")]
ScoresOption = Annotated[
    Path | None, typer.Option(help="Recorded P(fake), four a prompt.", show_default="drawn from the family's curve")
]
GpusOption = Annotated[int, typer.Option(min=1, help="How many GPUs.")]
SloOption = Annotated[float | None, typer.Option(help="Deadline, seconds.", show_default="the family's")]
SeedOption = Annotated[int, typer.Option(min=0, help="Everything random follows from it.")]
PriceOption = Annotated[float | None, typer.Option(min=0, help="Price of one GPU for an hour, for the cost of images.")]
NameArgument = Annotated[str | None, typer.Argument(help="Name of the service, where several are up.")]


@contextmanager
def _answered() -> Iterator[None]:
    """Turns every failure that has a name into one line on standard error and an exit code."""
    try:
        yield
    except WeirError as error:
        console.print(f"[bold red]error:[/] {error.message}", highlight=False, soft_wrap=True)
        wrong_usage = isinstance(error, ConfigError | InvalidRequest | PlanError | ServiceError)
        raise typer.Exit(2 if wrong_usage else 1) from None
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(130) from None


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield bar


@app.command()
def up(
    config: Annotated[Path, typer.Argument(help="Service file.", show_default="the embedded family")] = SERVICE,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 picks a free one.")] = None,
    detach: Annotated[bool, typer.Option(help="Return once the service is up.")] = False,
) -> None:
    """Start a service and stay until Ctrl-C.

    Example: weir up deploy/configs/weir-tiny.yaml --detach
    """
    from deploy.local import up as start

    with _answered():
        service = start(config, detach=detach, port=port, console=console)
    if service is not None:
        console.print(f"{service.name} is up at {service.url}; stop it with `weir down`")


@app.command()
def down(name: NameArgument = None) -> None:
    """Stop a service and wait until nothing of it is left.

    Example: weir down
    """
    from deploy.local import down as stop

    with _answered():
        service = stop(name)
    console.print(f"{service.name} is down")


@app.command()
def status(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Show what is up: where it answers, its replicas by role, the plan in force.

    Example: weir status --json
    """
    from deploy.local import status as look

    with _answered():
        state = look(name)
    if as_json:
        _print_json(state)
    else:
        for key, value in state.items():
            console.print(f"[bold]{key:>10}[/]  {value}", highlight=False)
    raise typer.Exit(0 if state["healthy"] else 1)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    out: Annotated[Path, typer.Option(help="File to write, PNG.")] = Path("image.png"),
    family: FamilyOption = FAMILY,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Default: a random one, printed.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Confidence below which it is redone.")] = 0.5,
    variant: Annotated[Role | None, typer.Option(help="Force one variant instead of the cascade.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What the image should not show.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of the heavy variant.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale of the heavy variant.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one image in this process, without a cluster.

    Example: weir generate "a red circle" --out a.png
    """
    from workers.generate import generate as draw

    with _answered():
        if not prompt.strip():
            raise ConfigError("the prompt is empty; say what the image should show")
        if not out.parent.is_dir():
            raise ConfigError(f"--out: there is no folder {out.parent}")
        with console.status("drawing"):
            drawn = draw(
                load_family(family),
                prompt,
                seed=random.randrange(2**32) if seed is None else seed,
                threshold=threshold,
                role=variant,
                negative_prompt=negative_prompt,
                steps=steps,
                guidance=guidance,
                threads=1,
            )
        _write_whole(out, drawn.image)
    facts = {k: v for k, v in asdict(drawn).items() if k != "image"} | {"file": str(out)}
    if as_json:
        _print_json(facts)
    else:
        sure = "" if drawn.confidence is None else f", light confidence {drawn.confidence:.2f}"
        console.print(f"{out}: {drawn.model}, {drawn.steps} steps, seed {drawn.seed}{sure}", highlight=False)


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="Trace file: ours, DiffServe's, a rate curve or a log.")],
    url: Annotated[str | None, typer.Option(help="Base URL.", show_default="the service that is up")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="runs/<time>")] = None,
    slo: Annotated[float, typer.Option(min=0.001, help="Deadline that the report judges by, seconds.")] = 10.0,
    duration: Annotated[float | None, typer.Option(min=1, help="Replay only the first seconds.")] = None,
    rate: Annotated[float, typer.Option(min=0.0001, help="Factor on the request rate.")] = 1.0,
    speed: Annotated[float, typer.Option(min=0.0001, help="Factor on the speed of time.")] = 1.0,
    redraw: Annotated[int | None, typer.Option(help="Draw arrivals anew from the rate curve with this seed.")] = None,
    cv: Annotated[float | None, typer.Option(min=0.01, help="With --redraw: gamma gaps of this CV.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts file, for traces that hold ids.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for.")] = None,
    score: Annotated[Path | None, typer.Option(help="Family file: score the images with its judge.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Give up on a request after these seconds.")] = 120.0,
    images: Annotated[bool, typer.Option(help="Keep the images for the gallery.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Replay a trace, open loop, and write a report.

    Example: weir replay traces/bursty.csv --duration 120 --rate 0.5
    """
    from deploy.local import status as look
    from quality.scorer import family_scorer
    from traces.loader import load_trace
    from traces.replay import replay as send
    from traces.report import write_report

    with _answered():
        chosen = load_trace(trace, prompts=prompts, seed=redraw or 0)
        if duration is not None:
            chosen = chosen.clip(duration)
        if rate != 1:
            chosen = chosen.scale_rate(rate)
        if speed != 1:
            chosen = chosen.scale_speed(speed)
        if redraw is not None:
            chosen = chosen.redraw(redraw, cv)
        judge = None
        if score is not None:
            judge = family_scorer(load_family(score), [a.prompt for a in chosen])
            if judge is None:
                raise ConfigError(f"{score}: the family has neither a discriminator's checker nor a clip to score with")
        base = url or look()["url"]
        folder = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
        done = send(
            chosen, base, slo_s=slo, out=folder, model=model, keep_images=images, timeout_s=timeout, console=console
        )
        about = {"trace": trace.name, "rate": f"× {rate:g}", "model": model or "default"}
        summary = write_report(
            done.outcomes,
            folder,
            slo_s=slo,
            title=f"Replay of {trace.name}",
            about=about | ({"quality": judge[0]} if judge else {}),
            duration_s=done.duration_s,
            planned=done.planned,
            scorer=judge[1] if judge else None,
        )
    if as_json:
        _print_json(json.loads((folder / "report.json").read_text()))
    else:
        _print_summary(summary, folder)
    raise typer.Exit(130 if done.interrupted else 0)


def _print_summary(summary: Any, folder: Path) -> None:
    total = summary.total
    rows = {
        "requests": f"{total.requests}",
        "violations": f"{total.violation_ratio:.2%} (late, refused or failed)",
        "goodput": f"{total.goodput_rps:.2f} answers in time per second",
        "latency": f"p50 {_seconds(total.p50_s)}, p95 {_seconds(total.p95_s)}, p99 {_seconds(total.p99_s)}",
        "light share": "—" if total.light_share is None else f"{total.light_share:.0%}",
        "quality": "—" if total.quality is None else f"{total.quality:.3f}",
        "report": str(folder / "report.html"),
    }
    for key, value in rows.items():
        console.print(f"[bold]{key:>12}[/]  {value}", highlight=False)


def _seconds(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f} s"


@app.command()
def plan(
    demand: Annotated[float, typer.Option(help="Requests per second.")],
    family: CascadeOption = "diffserve-1",
    gpus: GpusOption = 16,
    slo: SloOption = None,
    objective: Annotated[str, typer.Option(help="quality, or threshold as DiffServe has it.")] = "quality",
    queue_delay: Annotated[
        tuple[float, float], typer.Option(help="Seconds spent waiting for the light and for the heavy stage.")
    ] = (0.0, 0.0),
    solver: Annotated[str, typer.Option(help="auto, highs, gurobi or cbc.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Solve one allocation and say why it is the best.

    Example: weir plan --family diffserve-1 --gpus 16 --demand 24 --slo 5

    DiffServe's own problem: weir plan --demand 24 --objective threshold --queue-delay 0 0 --solver highs --json
    """
    from controller.explain import Objective, describe, explain, plan_for
    from simulator.families import family_setting

    with _answered():
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
        _print_json(describe(problem, solution))
    else:
        console.print(explain(problem, solution), markup=False, highlight=False)


@app.command()
def simulate(
    trace: TraceOption,
    family: CascadeOption = "diffserve-1",
    policy: Annotated[list[str], typer.Option(help="Policy to run; give it several times for several.")] = ["weir"],  # noqa: B006
    scores: ScoresOption = None,
    gpus: GpusOption = 16,
    slo: SloOption = None,
    seed: SeedOption = 0,
    gpu_hour_price: PriceOption = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write: .svg, .png or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run policies on a trace in the twin of the cluster: the same decisions, no GPU.

    Example: weir simulate --trace traces/bursty.csv --gpus 16 --policy weir --policy diffserve --json
    """
    with _answered():
        _compared(trace, family, policy, scores, gpus, slo, seed, gpu_hour_price, plot, as_json)


@app.command()
def compare(
    trace: TraceOption,
    family: CascadeOption = "diffserve-1",
    scores: ScoresOption = None,
    gpus: GpusOption = 16,
    slo: SloOption = None,
    seed: SeedOption = 0,
    gpu_hour_price: PriceOption = None,
    plot: Annotated[Path, typer.Option(help="Picture to write: .svg, .png or .pdf.")] = Path("runs/compare.svg"),
    as_json: JsonOption = False,
) -> None:
    """Compare all policies on one trace, side by side.

    Example: weir compare --trace traces/normal.csv --family diffserve-1 --gpus 16 --plot runs/normal.svg
    """
    from controller.policies import POLICIES

    with _answered():
        _compared(trace, family, list(POLICIES), scores, gpus, slo, seed, gpu_hour_price, plot, as_json)


def _compared(
    trace: Path,
    family: str,
    policies: list[str],
    scores: Path | None,
    gpus: int,
    slo: float | None,
    seed: int,
    gpu_hour_price: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    from simulator.compare import compare_files

    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--plot is {plot}; its name has to end in .svg, .png or .pdf")
    with console.status(f"running {', '.join(policies)}"):
        found = compare_files(
            family, trace, policies, scores=scores, gpus=gpus, slo_s=slo, seed=seed, gpu_hour_price=gpu_hour_price
        )
        if plot is not None:
            try:
                plot.parent.mkdir(parents=True, exist_ok=True)
                found.plot(plot)
            except OSError as error:
                raise ConfigError(f"--plot: cannot write {plot}: {error.strerror}") from None
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        found.print(console)
        if plot is not None:
            console.print(f"the plots are in {plot}")


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="Profile file to write.")],
    family: FamilyOption = FAMILY,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,2,4,8",
    repeats: Annotated[int, typer.Option(min=1, help="Measured batches of each size.")] = 3,
    prompts: Annotated[Path | None, typer.Option(help="Prompts, one a line.", show_default="its own")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many prompts to measure confidences on.")] = 200,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure a family on this machine: seconds per batch by variant, and confidences.

    Example: weir profile --out deploy/profiles/weir-tiny-cpu.json
    """
    from traces.prompts import prompt_by_id
    from workers.profiler import profile_family, write_profile

    with _answered():
        try:
            sizes = [int(b) for b in batch_sizes.split(",")]
        except ValueError:
            raise ConfigError(f"--batch-sizes is {batch_sizes!r}; give whole numbers like 1,2,4,8") from None
        if prompts is not None and not prompts.is_file():
            raise ConfigError(f"--prompts: there is no file {prompts}")
        lines = prompts.read_text().splitlines() if prompts else [prompt_by_id(i) for i in range(count)]
        with _progress() as bar:
            task = bar.add_task("loading", total=None)
            measured = profile_family(
                load_family(family),
                sizes,
                repeats,
                lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
                prompts=[line for line in lines if line.strip()][:count],
                threads=threads,
            )
        write_profile(measured, out)
    if as_json:
        _print_json(measured.model_dump(mode="json"))
    else:
        for variant in (measured.light, measured.heavy):
            cells = ", ".join(f"{b}: {s:.3f} s" for b, s in zip(variant.batch_sizes, variant.latency_s, strict=True))
            console.print(f"[bold]{variant.name}[/]  {cells}", highlight=False)
        console.print(f"written to {out}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the weights.")] = REPOSITORY / "models" / "weir-tiny",
    work: Annotated[Path, typer.Option(help="Folder of data and checkpoints.")] = REPOSITORY / "training" / "work",
    budget: Annotated[str, typer.Option(help="full, or smoke: every stage, nothing learned.")] = "full",
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
) -> None:
    """Train the embedded family from scratch; a run that was stopped goes on where it was.

    Example: weir train --budget smoke --out /tmp/family --work /tmp/work
    """
    import torch

    from training.recipe import BUDGETS, train_family

    with _answered():
        if budget not in BUDGETS:
            raise ConfigError(f"--budget is {budget!r}; choose one of {', '.join(BUDGETS)}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(threads)
        train_family(out, work, budget=BUDGETS[budget], seed=seed, device=device)
    console.print(f"the family is in {out}")


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the figures and plots.")] = Path("runs/evaluation"),
    family: FamilyOption = FAMILY,
    count: Annotated[int, typer.Option(min=8, help="Held-out prompts.")] = 400,
    card: Annotated[Path | None, typer.Option(help="Also write the model card into this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a family's quality on held-out prompts.

    Example: weir evaluate --count 100 --out runs/evaluation
    """
    from training.card import write_card, write_plots
    from training.evaluate import evaluate as measure

    with _answered():
        config: FamilyConfig = load_family(family)
        with _progress() as bar:
            tasks: dict[str, Any] = {}

            def tell(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done)

            figures = measure(config, out, count=count, progress=tell)
        write_plots(out)
        if card is not None:
            write_card(out, card)
    if as_json:
        _print_json(figures)
    else:
        console.print(f"figures and plots are in {out}")


def _write_whole(path: Path, data: bytes) -> None:
    """Writes the file whole or not at all."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


if __name__ == "__main__":
    app()
