"""Fetch, train and measure a family: ``weir fetch``, ``weir profile``, ``weir train``, ``weir evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.terminal import FamilyOption, JsonOption, error_exit, note, print_json, print_line, progress
from weir.assets import FAMILY
from weir.config import FamilyConfig, load_family
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.files import check_place, file_format, make_folder


def profile(
    out: Annotated[Path, typer.Option(help="Profile file to write.")],
    family: FamilyOption = FAMILY,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,2,4,8",
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Also measure these sizes of images: WIDTHxHEIGHT, comma-separated, or `listed` for all of "
            "the family file.",
            show_default="the family's own only",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured batches of each size.")] = 3,
    prompts: Annotated[Path | None, typer.Option(help="File, one prompt per line.", show_default="generated")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of prompts to measure confidences on.")] = 200,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
    judge_last: Annotated[
        bool, typer.Option("--judge-last", help="Also measure confidences in images of the last variant, for redraws.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a family on this machine: seconds per batch and confidences, by variant.

    Example: weir profile --out deploy/profiles/weir-tiny-cpu.json
    """
    from traces.prompts import prompt_by_id
    from workers.profiler import profile_family, write_profile

    with error_exit():
        try:
            batches = [int(b) for b in batch_sizes.split(",")]
        except ValueError:
            raise ConfigError(f"--batch-sizes is {batch_sizes!r}; give whole numbers like 1,2,4,8") from None
        if prompts is not None and not prompts.is_file():
            raise ConfigError(f"--prompts: there is no file {prompts}")
        lines = prompts.read_text().splitlines() if prompts else [prompt_by_id(i) for i in range(count)]
        config = load_family(family)
        file_format(out, ["json"])
        make_folder(out.parent)
        check_place(out)
        with progress() as bar:
            task = bar.add_task("loading", total=None)
            measured = profile_family(
                config,
                batches,
                repeats,
                lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
                prompts=[line for line in lines if line.strip()][:count],
                threads=threads,
                judge_last=judge_last,
                sizes=_sizes(sizes, config),
            )
        write_profile(measured, out)
    if as_json:
        print_json(measured.model_dump(mode="json"))
    else:
        for variant in measured.variants.values():
            cells = ", ".join(f"{b}: {s:.3f} s" for b, s in zip(variant.batch_sizes, variant.latency_s, strict=True))
            print_line(f"  {cells}", bold=variant.name)
            for size, times in variant.sizes.items():
                cells = ", ".join(f"{b}: {s:.3f} s" for b, s in zip(times.batch_sizes, times.latency_s, strict=True))
                print_line(f"  {cells}", bold=f"  at {size}")
        note(f"written to {out}")


def _sizes(given: str | None, family: FamilyConfig) -> tuple[ImageSize, ...]:
    if given is None:
        return ()
    if given == "listed":
        return family.sizes
    try:
        return tuple(map(ImageSize.of, given.split(",")))
    except ValueError as error:
        raise ConfigError(f"--sizes: {error}; or `listed`") from None


def train(
    out: Annotated[Path, typer.Option(help="Folder of the weights.")] = Path("models/weir-tiny"),
    work: Annotated[Path, typer.Option(help="Folder of data and checkpoints.")] = Path("training/work"),
    budget: Annotated[str, typer.Option(help="full, discriminator (needs --start), or smoke.")] = "full",
    start: Annotated[Path | None, typer.Option(help="Folder of a family to start from.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
    light_steps: Annotated[
        int, typer.Option(min=1, max=50, help="Steps of the light images that the discriminator learns on.")
    ] = 2,
) -> None:
    """Train the embedded family, from scratch or from an existing one. A stopped run continues where it was.

    Example: weir train --start models/weir-tiny --budget discriminator --work /tmp/work

    A discriminator for the light model with 4 steps, as another light variant (`weir cascades`):
    weir train --start models/weir-tiny --budget discriminator --light-steps 4 --out models/weir-tiny-4
    """
    import torch

    from training.recipe import BUDGETS, train_family

    with error_exit():
        if budget not in BUDGETS:
            raise ConfigError(f"--budget is {budget!r}; choose one of {', '.join(BUDGETS)}")
        make_folder(out)
        make_folder(work)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(threads)
        train_family(out, work, budget=BUDGETS[budget], seed=seed, device=device, start=start, drawn_steps=light_steps)
    print_line(f"the family is in {out}")


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the results and plots.")] = Path("runs/evaluation"),
    family: FamilyOption = FAMILY,
    count: Annotated[int, typer.Option(min=8, help="Held-out prompts.")] = 400,
    approximations: Annotated[int, typer.Option(min=0, help="Prompts to measure resume and warm start on.")] = 0,
    card: Annotated[Path | None, typer.Option(help="Also write the model card into this folder.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts of your users, one per line, for --clip, --pick or --judge.", show_default="scenes"),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Measure for --prompts: attributes, clip, pick, or module:name of your own.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP as the measure: hub name or folder.")] = None,
    pick: Annotated[str | None, typer.Option(help="PickScore as the measure: hub name or folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a family's quality on held-out prompts.

    Families of `weir train` have a checker that knows what their scenes show. Images of other families are scored by a
    model that --clip, --pick or --judge names, on the prompts of --prompts.

    Example: weir evaluate --count 100 --out runs/evaluation
    """
    from cache.replay import read_prompts
    from quality.suite import load_judge, named_measure
    from training.card import write_card, write_plots
    from training.evaluate import evaluate as measure
    from training.evaluate_prompts import evaluate_prompts
    from workers.models.device import device_of

    with error_exit():
        config = load_family(family)
        if prompts is None and (judge or clip or pick):
            raise ConfigError("--judge, --clip and --pick measure the images of --prompts; give a file of prompts")
        if prompts is not None and (card or approximations):
            raise ConfigError("--card and --approximations are for families of `weir train`; leave --prompts out")
        for folder in filter(None, (out, card)):
            make_folder(folder)
        with progress() as bar:
            tasks: dict[str, Any] = {}

            def report(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done)

            if prompts is None:
                figures = measure(config, out, count=count, approximations=min(approximations, count), progress=report)
                write_plots(out)
            else:
                kind, models = named_measure(judge, clip, pick)
                scorer = load_judge(config, kind, clip=clip, pick=pick, device=str(device_of(config)))
                asked = read_prompts(prompts)[:count]
                figures = evaluate_prompts(config, asked, scorer, " ".join((kind, *models)), out, report)
        if card is not None:
            write_card(out, card)
    if as_json:
        print_json(figures)
    else:
        print_line(f"results and plots are in {out}")
        note(f"`weir calibrate {out / 'evaluation.json'}` shows what each threshold keeps")


def fetch(
    family: Annotated[Path, typer.Argument(help="Family file.")],
) -> None:
    """Fetch a family's weights from the Hugging Face hub into its cache folder (HF_HOME), with progress.

    Example: weir fetch deploy/families/sdxl-lightning.yaml
    """
    from workers.models.fetch import fetch as get

    with error_exit():
        folders = get(load_family(family), note)
    for folder in folders:
        print_line(f"weights are in {folder}")
    if not folders:
        print_line(f"{family} names only local folders; there is nothing to fetch")
