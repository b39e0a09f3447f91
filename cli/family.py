"""Fetch, train and measure a family: ``weir fetch``, ``weir profile``, ``weir train``, ``weir evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.judge_options import JudgeOptions
from cli.option_groups import grouped
from cli.terminal import FamilyOption, JsonOption, error_exit, note, print_json, print_line, progress
from weir.assets import FAMILY
from weir.config import FamilyConfig, load_family
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.files import check_place, file_format, make_folder

if TYPE_CHECKING:
    from workers.profiler import Measurements


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """Options of what a profile measures."""

    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,2,4,8"
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Also measure these sizes of images: WIDTHxHEIGHT, comma-separated, or `listed` for all of "
            "the family file.",
            show_default="the family's own only",
        ),
    ] = None
    repeats: Annotated[int, typer.Option(min=1, help="Measured batches of each size.")] = 3
    prompts: Annotated[Path | None, typer.Option(help="File, one prompt per line.", show_default="generated")] = None
    count: Annotated[int, typer.Option(min=1, help="Number of prompts to measure confidences on.")] = 200
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1
    judge_last: Annotated[
        bool, typer.Option("--judge-last", help="Also measure confidences in images of the last variant, for redraws.")
    ] = False

    def measurements(self, family: FamilyConfig) -> Measurements:
        """What is measured of a family.

        Raises:
            ConfigError: an option is invalid.
        """
        from traces.prompts import prompt_by_id
        from workers.profiler import Measurements

        try:
            batches = [int(b) for b in self.batch_sizes.split(",")]
        except ValueError:
            raise ConfigError(f"--batch-sizes is {self.batch_sizes!r}; give whole numbers like 1,2,4,8") from None
        if self.prompts is not None and not self.prompts.is_file():
            raise ConfigError(f"--prompts: there is no file {self.prompts}")
        if self.prompts is not None:
            lines = self.prompts.read_text().splitlines()
        else:
            lines = [prompt_by_id(i) for i in range(self.count)]
        prompts = [line for line in lines if line.strip()][: self.count]
        return Measurements(batches, self.repeats, prompts, self._sizes(family), self.judge_last)

    def _sizes(self, family: FamilyConfig) -> tuple[ImageSize, ...]:
        if self.sizes is None:
            return ()
        if self.sizes == "listed":
            return family.sizes
        try:
            return tuple(map(ImageSize.of, self.sizes.split(",")))
        except ValueError as error:
            raise ConfigError(f"--sizes: {error}; or `listed`") from None


@grouped
def profile(
    out: Annotated[Path, typer.Option(help="Profile file to write.")],
    family: FamilyOption = FAMILY,
    *,
    profiling: ProfileOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure a family on this machine: seconds per batch and confidences, by variant.

    Example: weir profile --out deploy/profiles/weir-tiny-cpu.json
    """
    from workers.profiler import profile_family, write_profile

    with error_exit():
        config = load_family(family)
        wanted = profiling.measurements(config)
        file_format(out, ["json"])
        make_folder(out.parent)
        check_place(out)
        with progress() as bar:
            task = bar.add_task("loading", total=None)
            measured = profile_family(
                config,
                wanted,
                lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
                threads=profiling.threads,
            )
        write_profile(measured, out)
    if as_json:
        print_json(measured.model_dump(mode="json"))
        return
    for variant in measured.variants.values():
        cells = ", ".join(f"{b}: {s:.3f} s" for b, s in zip(variant.batch_sizes, variant.latency_s, strict=True))
        print_line(f"  {cells}", bold=variant.name)
        for size, times in variant.sizes.items():
            cells = ", ".join(f"{b}: {s:.3f} s" for b, s in zip(times.batch_sizes, times.latency_s, strict=True))
            print_line(f"  {cells}", bold=f"  at {size}")
    note(f"written to {out}")


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


@dataclass(frozen=True, slots=True)
class UserPromptOptions(JudgeOptions):
    """Options of prompts of users, and of the measure of their images."""

    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts of your users, one per line, for --clip, --pick or --judge.", show_default="scenes"),
    ] = None


@grouped
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the results and plots.")] = Path("runs/evaluation"),
    family: FamilyOption = FAMILY,
    count: Annotated[int, typer.Option(min=8, help="Held-out prompts.")] = 400,
    approximations: Annotated[int, typer.Option(min=0, help="Prompts to measure resume and warm start on.")] = 0,
    card: Annotated[Path | None, typer.Option(help="Also write the model card into this folder.")] = None,
    *,
    users: UserPromptOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure a family's quality on held-out prompts.

    Families of `weir train` have a checker that knows what their scenes show. Images of other families are scored by a
    model that --clip, --pick or --judge names, on the prompts of --prompts.

    Example: weir evaluate --count 100 --out runs/evaluation
    """
    from cache.replay import read_prompts
    from training.card import write_card, write_plots
    from training.evaluate import evaluate as measure
    from training.evaluate_prompts import evaluate_prompts

    with error_exit():
        config = load_family(family)
        if users.prompts is None and (users.judge or users.clip or users.pick):
            raise ConfigError("--judge, --clip and --pick measure the images of --prompts; give a file of prompts")
        if users.prompts is not None and (card or approximations):
            raise ConfigError("--card and --approximations are for families of `weir train`; leave --prompts out")
        for folder in filter(None, (out, card)):
            make_folder(folder)
        with _stages() as report:
            if users.prompts is None:
                figures = measure(config, out, count=count, approximations=min(approximations, count), progress=report)
                write_plots(out)
            else:
                judge, named = users.load(config)
                figures = evaluate_prompts(config, read_prompts(users.prompts)[:count], judge, named, out, report)
        if card is not None:
            write_card(out, card)
    if as_json:
        print_json(figures)
    else:
        print_line(f"results and plots are in {out}")
        note(f"`weir calibrate {out / 'evaluation.json'}` shows what each threshold keeps")


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """Context manager of a function that shows the progress of several stages: name, done, total."""
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report


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
